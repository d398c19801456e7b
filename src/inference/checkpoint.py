"""A checkpoint ready to use: its model, its classes, and the images that it expects.

open_checkpoint finds the file, completes the command's keys from what the file says, and loads the model.
"""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from timm.data.imagenet_info import ImageNetInfo

from config import schema
from config.commands import Command
from config.errors import ConfigError, format_value
from config.parse import parse_keys
from config.schema import Config, flatten
from config.text import printable
from inference.choice import choose_run
from LLMConvMixer import ConvMixer
from runtime.device import choose_device
from tracking.identity import override_values
from training.model import make_model, memory_format
from training.summary import check_memory
from weights.description import described
from weights.files import Weights, read_weights

log = logging.getLogger(__name__)

# The evaluation transform of published weights, for ImageNet-1k. Source: timm's convmixer.py.
IMAGENET = {
    "data.name": "image_folder",
    "data.image_size": 224,
    "data.crop_fraction": 0.96,
    "data.batch_size": 16,  # ConvMixer-1536/20 then takes less than 3 GiB
    "data.val_fraction": 0.0,
}
# What a model's images are like, of whichever data set; a group that is chosen sets the other keys.
PREPROCESSING = ("data.image_size", "data.crop_fraction", "data.mean", "data.std")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: in evaluation mode, on the device.
        config: of a run that would train such a model on such images.
        classes: their names, as a data set has them; None where they are not known.
        labels: the same for people to read; numbers where they are not known.
        image_size: height and width of the images that it was trained on, where the checkpoint knows.
    """

    model: ConvMixer
    weights: Weights
    config: Config
    device: torch.device
    classes: list[str] | None
    labels: list[str]
    image_size: tuple[int, int] | None


def open_checkpoint(composed: DictConfig, overrides: Sequence[str]) -> tuple[Checkpoint, Any]:
    """Load a command's checkpoint.

    Returns:
        The checkpoint, and the command's keys: overrides, the chosen data set, what the file says, defaults.

    Raises:
        ConfigError: there is no such checkpoint, or the overrides do not fit it.
    """
    weights = read_weights(choose_run(composed.checkpoint))
    settings = complete(composed, weights, overrides)
    return load_checkpoint(weights, settings), settings


def complete(composed: DictConfig, weights: Weights, overrides: Sequence[str]) -> Any:
    """Complete a command's keys with the file's description, and return objects of its class in config/commands.py.

    Overrides have priority over the file, and so has a chosen data set, except for the preprocessing keys.

    Args:
        composed: the command's config.
        overrides: what was typed.

    Raises:
        ConfigError: there is no such key, or its value is outside its constraint.
    """
    typed = override_values(overrides)
    of_command = {key for key, _ in flatten(OmegaConf.to_container(composed))}
    typed_keys = {key for name, value in typed.items() for key, _ in flatten(value, name)} - {"data"}
    completed = copy.deepcopy(composed)
    for key, value in said_by(weights).items():  # without keys that are no more, in an old run's config
        is_chosen = "data" in typed and key.startswith("data.") and key not in PREPROCESSING
        if key in of_command and key not in typed_keys and not is_chosen:
            OmegaConf.update(completed, key, literal(value))
    return parse_keys(completed)


def literal(value: Any) -> Any:
    """Escape interpolations in a value, as a file of unknown origin must not read the environment."""
    if isinstance(value, (list, tuple)):
        return [literal(part) for part in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def names_data(overrides: Sequence[str]) -> bool:
    """Check whether the user names the data set, which then may be downloaded."""
    return bool(override_values(overrides).keys() & {"data", "data.name", "data.root"})


def said_by(weights: Weights) -> dict[str, Any]:
    """Collect the keys of the command's config that the file describes."""
    values: dict[str, Any] = {"data.name": "image_folder"}
    if weights.description:
        saved = weights.description.config
        precision = saved["trainer"].get("precision", "fp32")
        values |= dict(flatten({"data": saved["data"], "trainer": {"precision": precision}}))
    elif weights.published:
        values |= IMAGENET
    if weights.normalization:
        mean, std = map(list, weights.normalization)
        values |= {"data.mean": mean, "data.std": std}
    return values


def load_checkpoint(weights: Weights, settings: Command) -> Checkpoint:
    """Build the model of a checkpoint on its device.

    Raises:
        ConfigError: what was typed does not fit the weights.
    """
    description, architecture = weights.description, weights.architecture
    config = make_config(weights, settings)
    device = choose_device(settings.trainer.device, settings.trainer.precision)
    size = description.image_size if description else None
    if side := settings.data.image_size:
        size = (side, side)
    check_images(settings.data, weights, size)
    check_memory(config, architecture.channels, size or (1, 1), images=1)
    with torch.device("meta"):
        model = make_model(config, architecture.channels, architecture.n_classes)
    model.load_state_dict(weights.tensors, assign=True)
    model = model.requires_grad_(False).eval().to(device)
    model = model.to(memory_format=memory_format(config))
    classes, labels = class_names(weights)
    log.info(f"{weights.path}: {architecture}, {architecture.n_classes:,} classes")
    return Checkpoint(model, weights, config, device, classes, labels, size)


def make_config(weights: Weights, settings: Command) -> Config:
    """Make the config of a run that would train such a model.

    Raises:
        ConfigError: the activation is not known, or another one than was typed.
    """
    typed, known = settings.model.activation, weights.activation
    if typed and known and typed != known:
        raise ConfigError(f"model.activation={typed}: the checkpoint's is {known}")
    if not (typed or known):
        raise ConfigError("model.activation: weights cannot tell; expected model.activation=relu or gelu")
    trainer = schema.Trainer(epochs=1, device=settings.trainer.device, precision=settings.trainer.precision)
    if weights.description is None:
        model = schema.Model(**weights.architecture.model_keys, activation=typed or known or "")
    else:
        model = weights.description.model
        saved = weights.description.config["trainer"]
        trainer = replace(trainer, channels_last=saved.get("channels_last", trainer.channels_last))
    trainer = replace(trainer, channels_last=trainer.channels_last in ("auto", True))
    return Config(model=model, data=settings.data, trainer=trainer)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe weights for export, as weights/description.py reads them, without paths and training keys."""
    description, data = checkpoint.weights.description, asdict(checkpoint.config.data)
    for key in ("num_workers", "pipeline", "root"):
        del data[key]
    if data["name"] != "image_folder":
        data["root"] = "data"  # where it is downloaded to
    trainer = asdict(checkpoint.config.trainer)
    config = {
        "model": described(checkpoint.config.model),
        "data": data,
        "trainer": {key: trainer[key] for key in ("precision", "channels_last")},
    }
    return {
        "config": config,
        "classes": checkpoint.classes,
        "labels": checkpoint.labels if checkpoint.classes else None,
        "image_size": checkpoint.image_size,
        "mean": data["mean"],
        "std": data["std"],
        "metrics": description.epoch if description else {},
    }


def check_images(data: schema.Data, weights: Weights, size: tuple[int, int] | None) -> None:
    """Check that the model can take such images.

    Raises:
        ConfigError: the model cannot take such images.
    """
    architecture = weights.architecture
    if (data.mean is None) != (data.std is None):
        raise ConfigError(
            f"data.mean={format_value(data.mean)}, data.std={format_value(data.std)}: expected both, or null for both"
        )
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        if values is not None and len(values) != architecture.channels:
            raise ConfigError(f"{key}={values}: expected {architecture.channels} numbers, one for each channel")
    if size and any(side % architecture.patch_size for side in size):
        raise ConfigError(f"data.image_size={size[0]}: expected a multiple of {architecture.patch_size}, the patch")


def class_names(weights: Weights) -> tuple[list[str] | None, list[str]]:
    """Return the class names as data sets have them, and for people to read; ImageNet's are WordNet's IDs and words."""
    if weights.published:
        imagenet = ImageNetInfo()
        return imagenet.label_names(), list(imagenet.label_descriptions())
    description = weights.description
    numbers = [str(i) for i in range(weights.architecture.n_classes)]
    if description is None:
        return None, numbers
    return description.classes, [printable(str(label)) for label in description.labels or numbers]
