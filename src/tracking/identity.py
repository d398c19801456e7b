"""A run's ID, a hash of all config keys that affect its result, and its name for people."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from config import schema
from config.compose import parse_override
from config.schema import CONF, GROUPS, LATER_KEYS, NOT_IDENTITY, Config, EarlyStopping, is_below, keys_of
from config.typed import config_types

UNNAMED = (*NOT_IDENTITY, "experiment")  # keys that are not part of a run's name
SET_BY_SWEEP = ("varied", "trial")  # keys set by the sweep, not on the command line

IMAGE_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # pixels of a side, for data sets with images of one size


def run_id(config: Config) -> str:
    """Compute a run's ID: equal for runs that train the same model on the same images in the same way."""
    return hash_values(effective_values(config))


def is_damaged(values: Mapping[str, Any], images: str | None, folder: str) -> bool:
    """Return True if a recorded config contradicts the ID in its folder's name; False if they cannot be compared.

    They cannot be compared if the run has other keys than this version, or started from weights, which may be gone.

    Args:
        values: The content of config.yaml, as "section.key" → value.
        images: The recorded fingerprint of a folder of images.
        folder: The name of the run's folder, which a user may have changed; a number at its end can be a date.
    """
    recorded = folder.rpartition("-")[2]
    if not re.fullmatch(r"(?!\d+$)[0-9a-f]{8}", recorded):
        return False
    if "sweep" not in values:
        return True  # Every version writes this key, near the end of the file.
    if not {key for key in values if not is_below(key, NOT_IDENTITY)} <= config_types().__annotations__.keys():
        return False
    of_folder = values.get("data.name") == "image_folder"
    if required_keys() - values.keys() or values.get("model.pretrained") or (of_folder and not images):
        return False
    return all(
        hash_values(normalize(values, None, images if of_folder else None, divided)) != recorded
        for divided in {False, of_folder}
    )


@cache
def required_keys() -> set[str]:
    """List the keys that every config has had since the first run was hashed."""
    optional = (*NOT_IDENTITY, *LATER_KEYS, "optimizer", "scheduler")
    return {key for key, *_ in keys_of(Config()) if not is_below(key, optional)}


def hash_values(values: Mapping[str, Any]) -> str:
    """Hash normalized values to eight hexadecimal digits; LATER_KEYS count only if they differ from their default."""
    defaults = {key: value for key, value, _ in keys_of(Config()) if key in LATER_KEYS}
    kept = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def effective_values(config: Config) -> dict[str, Any]:
    """Collect the values that a result can depend on; equivalent configs get the same values."""
    weights = None
    if config.model.pretrained:  # The content of the weights counts, not their path.
        from weights.pretrained import hash_pretrained  # takes seconds

        weights = hash_pretrained(config.model.pretrained)
    values = {key: value for key, value, _ in keys_of(config)}
    return normalize(values, weights, data_fingerprint(config), divides_folder(config))


def normalize(values: Mapping[str, Any], weights: str | None, images: str | None, divided: bool) -> dict[str, Any]:
    """Set keys without effect in this config to their defaults.

    Args:
        values: All values of the config by key.
        weights: Hash of the weights to start from; None without them.
        images: Hash of a folder of images; None for the other data sets.
        divided: True if the test images are split off from a folder.
    """
    normal: dict[str, Any] = {
        key: 0.0 if isinstance(value, float) and value == 0 else value  # -0.0 becomes 0.0
        for key, value in values.items()
        if not is_below(key, NOT_IDENTITY)
    }
    if weights:
        normal["model.pretrained"] = weights
    if images:  # The content of the images counts, not their path.
        normal["data.fingerprint"] = images
    if values["data.image_size"] == IMAGE_SIZES.get(values["data.name"]):
        normal["data.image_size"] = None  # the same as the size of the images
    places = ("blocks", "head", "stochastic_depth")
    normal["dropout.rate"] = max(values[f"dropout.{place}"] for place in places)  # has effect only through these
    hflip = 0.0 if values["data.name"] == "digits" else 0.5
    normal["data.hflip"] = values["augmentation.hflip"] or hflip  # has effect only through augmentation.hflip
    if not values["data.val_fraction"]:
        normal["trainer.monitor"] = "val/accuracy"
    if not values["data.val_fraction"] and values["data.train_fraction"] == 1 and not divided:
        normal["data.split_seed"] = 0
    if not divided:
        normal["data.test_fraction"] = schema.Data.test_fraction
    if values["trainer.early_stopping.patience"] is None:
        normal |= {f"trainer.early_stopping.{key}": value for key, value in asdict(EarlyStopping()).items()}
    if not values.get("optimizer.weight_decay"):
        normal["optimizer.decay_norm_and_bias"] = False
    if not values["trainer.compile"] or values.get("trainer.compile_mode") == "default":
        normal["trainer.compile_mode"] = "auto"  # changes only speed and rounding
    normal["trainer.channels_last"] = True  # changes only speed and rounding; the first runs were hashed with True
    return normal


def divides_folder(config: Config) -> bool:
    """Return True if the test images are split off from a folder, by data.split_seed."""
    if config.data.name != "image_folder":
        return False
    from data.image_files import is_divided  # NumPy and Pillow take long to import

    return is_divided(Path(config.data.root))


def data_fingerprint(config: Config) -> str | None:
    """Hash the images of data=image_folder; return None for the other data sets, which never change."""
    if config.data.name != "image_folder":
        return None
    from data.fingerprint import hash_images  # takes seconds, while wrong commands should fail at once

    return hash_images(Path(config.data.root).resolve())


def override_values(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse a run's overrides to values by config key or group; None for a deleted key."""
    parsed = map(parse_override, overrides)
    return {override.key_or_group: override.value() for override in parsed if override.key_or_group not in SET_BY_SWEEP}


def repeatable(overrides: Any) -> dict[str, Any] | None:
    """Select the recorded overrides that a command may repeat: only keys of the schema, as _target_ would run code.

    Return None if there is no record, or if a value is not safe to repeat, as the record may be another person's.
    """
    if not isinstance(overrides, Mapping):
        return None
    kept = {
        key: value
        for key, value in overrides.items()
        if key in GROUPS or (re.fullmatch(r"[\w.]+", key) and is_below(key, config_types().__annotations__))
    }
    return kept if all(is_safe(key, value) for key, value in kept.items()) else None


def is_safe(key: str, value: Any) -> bool:
    """Return True if composing a value has no side effect: no option in another folder, and no resolver.

    ${seed} refers to a key and is safe. ${oc.env:SECRET} would read the environment.
    """
    if key in GROUPS and value is not None:
        return re.fullmatch(r"\w+", str(value)) is not None and (CONF / key / f"{value}.yaml").exists()
    return not re.search(r"\$\{[^}]*:", json.dumps(value, default=str))


def override_texts(overrides: Iterable[str]) -> dict[str, str]:
    """Split overrides such as "+model.depth=8" into keys and their texts; the last override of a key counts."""
    return {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}


def display_name(overrides: Iterable[str], varied: Collection[str] = ()) -> str:
    """Name a run by the overrides of keys that vary in its sweep, e.g. "kernel_size=5 depth=8", else by all of them."""
    texts = override_texts(overrides)
    named = {key: text for key, text in texts.items() if key in varied} if varied else drop_unnamed(texts)
    return short_text(named) or "baseline"


def drop_unnamed(texts: Mapping[str, str]) -> dict[str, str]:
    """Drop overrides that do not affect the result."""
    return {key: text for key, text in texts.items() if not is_below(key, UNNAMED)}


def short_text(texts: Mapping[str, str]) -> str:
    """Join overrides without the sections of their keys, and without the folders of model.pretrained."""
    shortened = {key: text.rpartition("/")[2] if key == "model.pretrained" else text for key, text in texts.items()}
    return " ".join(f"{key.rpartition('.')[2]}={text or texts[key]}" for key, text in shortened.items())


def folder_name(name: str) -> str:
    """Convert a run's name to the start of its folder's name, without characters special to a shell or Hydra."""
    return re.sub(r"[^\w.+-]+", "_", "-".join(name.split())).strip("_")[:100]
