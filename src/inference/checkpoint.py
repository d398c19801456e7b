"""A checkpoint ready to use: its model, its classes, and the images that it expects.

open_checkpoint reads the weights, merges the command's keys with the file's, and builds the model.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
from weights.files import Weights, read_weights

log = logging.getLogger(__name__)

# The evaluation transform of published weights, for ImageNet-1k. Source: timm's convmixer.py.
# In batches of 16, ConvMixer-1536/20 takes less than 3 GiB.
IMAGENET = {"image_size": 224, "crop_fraction": 0.96, "batch_size": 16, "val_fraction": 0.0}
PREPROCESSING = ("image_size", "crop_fraction", "mean", "std")  # keys of `data` that a chosen data set does not change


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A loaded checkpoint.

    Attributes:
        model: The model in evaluation mode, on the device.
        settings: The command's keys, an object of its class in config/commands.py.
        config: Config of a run that would train such a model on such images.
        classes: Names of the classes in the data set; None if unknown.
        labels: Readable names of the classes; numbers if unknown.
        image_size: Height and width of the training images; None if unknown.
    """

    model: ConvMixer
    weights: Weights
    settings: Any
    config: Config
    device: torch.device
    classes: list[str] | None
    labels: list[str]
    image_size: tuple[int, int] | None


def open_checkpoint(composed: DictConfig, overrides: Sequence[str]) -> LoadedCheckpoint:
    """Load the checkpoint of a command, given its composed config and the overrides on the command line.

    Raises:
        ConfigError: There is no such checkpoint, a key is unknown, or the overrides do not fit the weights.
    """
    weights = read_weights(choose_run(composed.checkpoint))
    settings = merge(composed, weights, overrides)
    config = equivalent_config(weights, settings)
    description, architecture = weights.description, weights.architecture
    size = description.image_size if description else None
    if side := settings.data.image_size:
        size = (side, side)
    device = choose_device(settings.trainer.device, settings.trainer.precision)
    check_images(settings.data, weights, size)
    check_memory(config, architecture.channels, size or (1, 1), images=1)
    with torch.device("meta"):
        model = make_model(config, architecture.channels, architecture.n_classes)
    model.load_state_dict(weights.tensors, assign=True)
    model = model.requires_grad_(False).eval().to(device).to(memory_format=memory_format(config))
    log.info(f"{weights.path}: {architecture}, {architecture.n_classes:,} classes")
    return LoadedCheckpoint(model, weights, settings, config, device, *class_names(weights), size)


def merge(composed: DictConfig, weights: Weights, overrides: Sequence[str]) -> Any:
    """Merge a command's keys with the file's. Overrides have priority, then a chosen data set, the file, defaults."""
    values_of = override_values(overrides)
    overridden = {key for name, value in values_of.items() for key, _ in flatten(value, name)}
    if "data" in values_of:
        overridden |= {f"data.{key}" for key in composed.data if key not in PREPROCESSING}
    merged: Any = composed
    for section, values in file_keys(weights).items():
        keys = [key for key in composed[section] if key in values and f"{section}.{key}" not in overridden]
        merged = OmegaConf.merge(merged, {section: {key: literal(values[key]) for key in keys}})
    return parse_keys(merged)


def file_keys(weights: Weights) -> dict[str, dict[str, Any]]:
    """Collect the keys of a command's config that the file describes, by section."""
    data: dict[str, Any] = {"name": "image_folder"}
    trainer = {}
    if weights.description:
        saved = weights.description.config
        data |= saved["data"]
        trainer["precision"] = saved["trainer"].get("precision", "fp32")
    elif weights.published:
        data |= IMAGENET
    if weights.normalization:
        data["mean"], data["std"] = map(list, weights.normalization)
    return {"data": data, "trainer": trainer}


def literal(value: Any) -> Any:
    """Escape interpolations in a value, as a file of unknown origin must not read the environment."""
    if isinstance(value, (list, tuple)):
        return [literal(part) for part in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def equivalent_config(weights: Weights, settings: Command) -> Config:
    """Make the config of a run that would train such a model.

    Raises:
        ConfigError: The activation is unknown, or the override differs from the checkpoint's.
    """
    overridden, recorded = settings.model.activation, weights.activation
    activation = overridden or recorded
    if not activation:
        raise ConfigError("model.activation: weights cannot tell; expected model.activation=relu or gelu")
    if recorded and activation != recorded:
        raise ConfigError(f"model.activation={overridden}: the checkpoint's is {recorded}")
    if description := weights.description:
        model, channels_last = description.model, description.config["trainer"].get("channels_last", "auto")
    else:
        model, channels_last = schema.Model(**weights.architecture.model_keys, activation=activation), "auto"
    compute, channels_last = settings.trainer, channels_last in ("auto", True)
    trainer = schema.Trainer(epochs=1, device=compute.device, precision=compute.precision, channels_last=channels_last)
    return Config(model=model, data=settings.data, trainer=trainer)


def check_images(data: schema.Data, weights: Weights, size: tuple[int, int] | None) -> None:
    """Check that the model can take such images; raise a ConfigError if not."""
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
    """Return the data set's names of the classes and their readable names; ImageNet's are WordNet IDs and words."""
    if weights.published:
        imagenet = ImageNetInfo()
        return imagenet.label_names(), list(imagenet.label_descriptions())
    description = weights.description
    numbers = [str(i) for i in range(weights.architecture.n_classes)]
    if description is None:
        return None, numbers
    return description.classes, [printable(str(label)) for label in description.labels or numbers]
