"""A run's ID, and the names that it goes by."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from config.schema import LATER_KEYS, NOT_IDENTITY, Config, keys_of

# Overrides that say where and how, not what: no part of a run's name.
UNNAMED = (*NOT_IDENTITY, "experiment")


def run_id(config: Config) -> str:
    """A short hash of all that determines the run's result: not where its images are, but which."""
    defaults = {path: value for path, value, _ in keys_of(Config()) if path in LATER_KEYS}
    determining: dict[str, Any] = {
        path: value
        for path, value, _ in keys_of(config)
        if not any(path == key or path.startswith(key + ".") for key in NOT_IDENTITY)
        and not (path in defaults and value == defaults[path])
    }
    determining["trainer.channels_last"] = True  # changes speed and rounding alone; runs were hashed with this value
    if config.model.pretrained:  # not where the weights are, but which
        from weights.pretrained import content_of  # takes seconds, like the data below

        determining["model.pretrained"] = content_of(config.model.pretrained)
    if config.data.name == "image_folder":
        from data import datasets  # takes seconds, which a search's mistake need not wait for

        determining["data.root"] = datasets.inventory(Path(config.data.root))
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:8]


def folder_name(name: str) -> str:
    """A run's name as the start of a folder's, free of what a shell or Hydra would trip over."""
    return re.sub(r"[^\w.+-]+", "_", "-".join(name.split())).strip("_")[:100]


def display_name(overrides: list[str]) -> str:
    """What sets a run apart, e.g. "kernel_size=5 depth=8"; "baseline" where nothing does."""
    named = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if not any(key == unnamed or key.startswith(unnamed + ".") for unnamed in UNNAMED):
            named.append(f"{key.rpartition('.')[2]}={value}")
    return " ".join(named) or "baseline"


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """What was typed for this run, by config key or group; None where a key was deleted."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {override.key_or_group: override.value() for override in parsed}
