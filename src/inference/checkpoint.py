"""A checkpoint ready to use: its model, its classes, and the images that it expects."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from timm.data.imagenet_info import ImageNetInfo

from config import schema
from config.check import check_keys
from config.commands import Command
from config.errors import ConfigError
from config.schema import Config, flatten
from LLMConvMixer import ConvMixer
from runtime.device import choose_device
from training.model import make_model, memory_format
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
    """
    Attributes:
        model: in evaluation mode, on the device.
        config: of a run that would train such a model on such images.
        classes: their names, as a data set has them; numbers where they are not known.
        labels: the same for people to read.
        image_size: height and width of the images that it was trained on, where the checkpoint knows.
    """

    model: ConvMixer
    weights: Weights
    config: Config
    device: torch.device
    classes: list[str]
    labels: list[str]
    image_size: tuple[int, int] | None


def load_checkpoint(composed: DictConfig, overrides: Sequence[str]) -> tuple[Any, Checkpoint]:
    """The command's keys, as objects of its class in config/commands.py, and the checkpoint.

    Args:
        composed: the command's config.
        overrides: what was typed.

    Raises:
        ConfigError: the checkpoint cannot be read, or what was typed does not fit it.
    """
    weights = read_weights(composed.checkpoint)
    fill_in(composed, settings_of(weights), overrides)
    settings = check_keys(composed)
    config = make_config(settings, weights)
    device = choose_device(settings.trainer.device, settings.trainer.precision)
    with torch.device("meta"):
        model = make_model(config, weights.architecture.channels, weights.architecture.n_classes)
    model.load_state_dict(weights.tensors, assign=True)
    model = model.requires_grad_(False).eval().to(device)
    model = model.to(memory_format=memory_format(config))
    classes, labels = class_names(weights)
    size = settings.data.image_size
    known = (size, size) if size else tuple(weights.about.get("image_size") or ()) or None
    log.info(f"{weights.path}: {weights.architecture}, {len(classes):,} classes")
    return settings, Checkpoint(model, weights, config, device, classes, labels, cast(tuple[int, int] | None, known))


def settings_of(weights: Weights) -> dict[str, Any]:
    """What the checkpoint says of the config, by key."""
    values: dict[str, Any] = {"data.name": "image_folder"}
    if weights.about:
        saved = weights.about["config"]
        values = dict(flatten({"data": saved["data"], "trainer": {"precision": saved["trainer"]["precision"]}}))
    elif weights.is_imagenet:
        values = IMAGENET
    if weights.normalization:
        mean, std = map(list, weights.normalization)
        values = values | {"data.mean": mean, "data.std": std}
    return values


def fill_in(composed: DictConfig, values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the keys that were not typed; keys that are no more, in a run's old config, are left out."""
    known = {key for key, _ in flatten(OmegaConf.to_container(composed))}
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for key, value in values.items():
        chosen_by_group = key.partition(".")[0] in typed and key not in PREPROCESSING
        if key in known and key not in typed and not chosen_by_group:
            OmegaConf.update(composed, key, value)


def make_config(settings: Command, weights: Weights) -> Config:
    """
    Raises:
        ConfigError: the activation is not known, or another one than was typed.
    """
    typed, known = settings.model.activation, weights.activation
    if typed and known and typed != known:
        raise ConfigError(f"model.activation={typed}: the checkpoint's is {known}")
    if not (typed or known):
        raise ConfigError("model.activation: weights cannot tell; expected model.activation=relu or gelu")
    saved = weights.about.get("config", {"model": {}, "trainer": {}})
    model = schema.Model(
        **weights.architecture.model_keys,
        activation=typed or known or "",
        residual_depthwise=saved["model"].get("residual_depthwise", True),
        residual_pointwise=saved["model"].get("residual_pointwise", False),
    )
    trainer = schema.Trainer(epochs=1, device=settings.trainer.device, precision=settings.trainer.precision)
    if "channels_last" in saved["trainer"]:
        trainer.channels_last = saved["trainer"]["channels_last"]
    return Config(model=model, data=settings.data, trainer=trainer)


def class_names(weights: Weights) -> tuple[list[str], list[str]]:
    """As a data set has them, and for people to read: ImageNet's are WordNet's numbers and words."""
    if weights.about:
        return weights.about["classes"], weights.about.get("labels", weights.about["classes"])
    if weights.is_imagenet and weights.architecture.n_classes == 1000:
        imagenet = ImageNetInfo()
        return imagenet.label_names(), list(imagenet.label_descriptions())
    numbers = [str(i) for i in range(weights.architecture.n_classes)]
    return numbers, numbers
