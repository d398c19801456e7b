"""Pretrained weights: tensors that fit the model are loaded, the others are initialized."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from config import schema
from config.errors import ConfigError
from data.splits import DataSplits
from LLMConvMixer import ConvMixer
from weights.description import described, differences
from weights.files import Weights, find_file, read_weights

KEY = "model.pretrained"


def load_pretrained(
    model: ConvMixer, config: schema.Model, channels: int, classes: Sequence[str]
) -> tuple[Weights, str]:
    """Load the weights of model.pretrained that fit into a model.

    The model is changed in place. The classifier is initialized if the classes differ. A patch embedding for another
    number of channels is adapted as in timm.

    Returns:
        The weights, and a sentence on the loaded and the initialized tensors.

    Raises:
        ConfigError: The file cannot be read, or its model is another.
    """
    weights = read_weights(cast(str, config.pretrained), KEY)
    check_same_model(weights, config)
    tensors = dict(weights.tensors)
    notes = []
    if weights.architecture.channels != channels:
        tensors["patch_emb.conv.weight"] = adapt_channels(tensors["patch_emb.conv.weight"], channels)
        notes.append(f"the patch embedding adapted from {weights.architecture.channels} to {channels} channels")
    if not same_classes(weights, classes):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classification.")}
        notes.append(f"a new classifier for {len(classes)} classes, which are others")
    model.load_state_dict(tensors, strict=False)
    loaded = f"{len(tensors)} of {len(weights.tensors)} tensors taken"
    return weights, f"starts from {weights.path} ({weights.architecture}): {', '.join([loaded, *notes])}"


def check_same_model(weights: Weights, config: schema.Model) -> None:
    """Check that the weights have the architecture of the config.

    Raises:
        ConfigError: The weights are of another model; the message names the overrides that would fit.
    """
    if weights.description:
        model = weights.description.model
    else:
        shape, activation = weights.architecture.model_keys, weights.activation or config.activation
        model = schema.Model(**shape, activation=activation)
    if differing := differences(model, described(config)):
        raise ConfigError(f"{KEY}={config.pretrained}: is of another model; set {' '.join(differing)}")


def normalize_as_before(data: DataSplits, weights: Weights, config: schema.Data) -> DataSplits:
    """Normalize images with the mean and deviation of the weights, unless data.mean is set."""
    normalization = weights.normalization
    if config.mean is not None or normalization is None or len(normalization[0]) != data.channels:
        return data
    return replace(data, mean=normalization[0], std=normalization[1])


def same_classes(weights: Weights, classes: Sequence[str]) -> bool:
    """Compare classes by name, or by number if the file has no names."""
    if weights.description and weights.description.classes:
        return list(weights.description.classes) == list(classes)
    return weights.architecture.n_classes == len(classes)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a patch embedding to another number of channels, as timm's adapt_input_conv does.

    For grey images the channels are summed, so that a grey image gives the same result as in RGB. Otherwise they are
    repeated and scaled, so that activations stay about as large.

    Args:
        weight: [d_model, channels before, patch_size, patch_size].
    """
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % before] * (before / channels)


def hash_pretrained(checkpoint: str) -> str:
    """Hash the content of a file that affects training; the hash replaces the path in a run's ID.

    It covers the weights and, from our files, the classes, on which loading the classifier depends, and the mean and
    deviation of the images.

    Raises:
        ConfigError: The file cannot be read.
    """
    path = find_file(checkpoint, KEY)
    status = path.stat()
    return hash_file(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def hash_file(path: Path, changed: int, size: int) -> str:
    weights = read_weights(str(path), KEY)
    if weights.description is None:
        return weights.fingerprint()
    description = json.dumps([weights.description.classes, weights.normalization])
    return hashlib.sha256(f"{weights.fingerprint()}{description}".encode()).hexdigest()[:16]
