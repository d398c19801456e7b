"""A run's ID, a hash of all config keys that affect its result, and its name for people."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from config import schema
from config.schema import CONF, GROUPS, LATER_KEYS, NOT_IDENTITY, Config, EarlyStopping, is_below, keys_of

# Overrides that say where and how, not what: no part of a run's name.
UNNAMED = (*NOT_IDENTITY, "experiment")
SET_BY_SWEEP = ("varied", "trial")  # and not by who typed it

IMAGE_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # pixels of a side, where all images have the same


def run_id(config: Config) -> str:
    """Compute a run's ID: equal for runs that train the same model on the same images in the same way."""
    return hashed(effect(config))


def is_damaged(values: Mapping[str, Any], images: str | None, folder: str) -> bool:
    """Compare a recorded config with the ID in its folder's name; False where they cannot be compared.

    Runs of another version of the keys cannot, nor runs that start from weights, which may be elsewhere.

    Args:
        values: config.yaml, as "section.key" → value.
        images: the recorded fingerprint of a folder of images.
        folder: its name, which somebody may have changed; a number at its end can be a date.
    """
    recorded = folder.rpartition("-")[2]
    if not re.fullmatch(r"(?!\d+$)[0-9a-f]{8}", recorded):
        return False
    if "sweep" not in values:
        return True  # among the last lines, whatever the version
    if not {key for key in values if not is_below(key, NOT_IDENTITY)} <= all_keys():
        return False
    of_folder = values.get("data.name") == "image_folder"
    if required_keys() - values.keys() or values.get("model.pretrained") or (of_folder and not images):
        return False
    return all(
        hashed(normalized(values, None, images if of_folder else None, divided)) != recorded
        for divided in {False, of_folder}
    )


@cache
def all_keys() -> set[str]:
    sections = [Config(optimizer=optimizer()) for optimizer in schema.OPTIMIZERS.values()]
    sections += [Config(scheduler=scheduler()) for scheduler in schema.SCHEDULERS.values()]
    return {key for section in sections for key, *_ in keys_of(section)}


@cache
def required_keys() -> set[str]:
    """List the keys of every config since runs were first hashed as they are now."""
    optional = (*NOT_IDENTITY, *LATER_KEYS, "optimizer", "scheduler")
    return {key for key, *_ in keys_of(Config()) if not is_below(key, optional)}


def hashed(settings: Mapping[str, Any]) -> str:
    defaults = {key: value for key, value, _ in keys_of(Config()) if key in LATER_KEYS}
    kept = {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def effect(config: Config) -> dict[str, Any]:
    """Collect every key that a result can depend on; equivalent configs get the same values."""
    weights = None
    if config.model.pretrained:  # not where the weights are, but which
        from weights.pretrained import content_of  # takes seconds, like the data below

        weights = content_of(config.model.pretrained)
    values = {key: value for key, value, _ in keys_of(config)}
    return normalized(values, weights, data_fingerprint(config), divides_folder(config))


def normalized(values: Mapping[str, Any], weights: str | None, images: str | None, divided: bool) -> dict[str, Any]:
    """Set keys without effect in this config to their defaults.

    Args:
        weights, images: hashes of the content that the run starts from and trains on.
        divided: the test images are a part of a folder's.
    """
    settings: dict[str, Any] = {
        key: 0.0 if isinstance(value, float) and value == 0 else value  # -0.0
        for key, value in values.items()
        if not is_below(key, NOT_IDENTITY)
    }
    if weights:
        settings["model.pretrained"] = weights
    if images:  # not where the images are, but which
        settings["data.fingerprint"] = images
    if values["data.image_size"] == IMAGE_SIZES.get(values["data.name"]):
        settings["data.image_size"] = None  # the images' own
    places = ("blocks", "head", "stochastic_depth")
    settings["dropout.rate"] = max(values[f"dropout.{place}"] for place in places)  # it works through these
    hflip = 0.0 if values["data.name"] == "digits" else 0.5
    settings["data.hflip"] = values["augmentation.hflip"] or hflip  # likewise
    if not values["data.val_fraction"]:
        settings["trainer.monitor"] = "val/accuracy"
    if not values["data.val_fraction"] and values["data.train_fraction"] == 1 and not divided:
        settings["data.split_seed"] = 0
    if not divided:
        settings["data.test_fraction"] = schema.Data.test_fraction
    if values["trainer.early_stopping.patience"] is None:
        settings |= {f"trainer.early_stopping.{key}": value for key, value in asdict(EarlyStopping()).items()}
    if not values.get("optimizer.weight_decay"):
        settings["optimizer.decay_norm_and_bias"] = False
    if not values["trainer.compile"] or values.get("trainer.compile_mode") == "default":  # speed and rounding alone
        settings["trainer.compile_mode"] = "auto"
    settings["trainer.channels_last"] = True  # changes speed and rounding alone; runs were hashed with this value
    return settings


def divides_folder(config: Config) -> bool:
    """Check whether the test images are a part of a folder's, drawn by data.split_seed."""
    if config.data.name != "image_folder":
        return False
    from data.image_files import is_divided  # NumPy and Pillow take long to import

    return is_divided(Path(config.data.root))


def data_fingerprint(config: Config) -> str | None:
    """Hash the images of `data=image_folder`; None for the other data sets, which never change."""
    if config.data.name != "image_folder":
        return None
    from data.fingerprint import hash_images  # takes seconds, which a search's mistake need not wait for

    return hash_images(Path(config.data.root).resolve())


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse a run's overrides, by config key or group; None for a deleted key."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.key_or_group: override.value() for override in parsed if override.key_or_group not in SET_BY_SWEEP}


def repeatable(overrides: Any) -> dict[str, Any] | None:
    """Select the recorded overrides that a command may repeat: keys of the schema, as others run code (_target_).

    None if they are not known, or if one of them is not safe to repeat: the record may be somebody else's.
    """
    if not isinstance(overrides, Mapping):
        return None
    kept = {
        key: value
        for key, value in overrides.items()
        if key in GROUPS or (re.fullmatch(r"[\w.]+", key) and is_below(key, all_keys()))
    }
    return kept if all(is_safe(key, value) for key, value in kept.items()) else None


def is_safe(key: str, value: Any) -> bool:
    """Check that composing a value has no side effect: no option in another folder, and no resolver.

    ${seed} refers to a key; ${oc.env:SECRET} would read the environment.
    """
    if key in GROUPS and value is not None:
        return re.fullmatch(r"\w+", str(value)) is not None and (CONF / key / f"{value}.yaml").exists()
    return not re.search(r"\$\{[^}]*:", json.dumps(value, default=str))


def as_given(overrides: Iterable[str]) -> dict[str, str]:
    """Split overrides such as "+model.depth=8" into keys and values; the last one of a key counts."""
    return {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}


def display_name(overrides: Iterable[str], varied: Collection[str] = ()) -> str:
    """Name a run by what varies in its sweep, e.g. "kernel_size=5 depth=8", else by its overrides, else "baseline".

    Args:
        varied: the keys that vary in the run's sweep.
    """
    given = as_given(overrides)
    if varied:
        return in_short({key: given[key] for key in given if key in varied}) or "baseline"
    return in_short(without_unnamed(given)) or "baseline"


def without_unnamed(given: Mapping[str, str]) -> dict[str, str]:
    """Drop overrides that do not affect the result."""
    return {key: value for key, value in given.items() if not is_below(key, UNNAMED)}


def in_short(given: Mapping[str, str]) -> str:
    """Join overrides without their sections; of weights given by a path, only its last part."""
    shortened = {key: value.rpartition("/")[2] if key == "model.pretrained" else value for key, value in given.items()}
    return " ".join(f"{key.rpartition('.')[2]}={value or given[key]}" for key, value in shortened.items())


def folder_name(name: str) -> str:
    """Turn a run's name into the start of a folder's name, without characters special to a shell or Hydra."""
    return re.sub(r"[^\w.+-]+", "_", "-".join(name.split())).strip("_")[:100]
