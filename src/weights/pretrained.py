"""Weights that a run starts from: the part that fits is loaded, the rest is initialized."""

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

    The classifier is initialized if the classes differ. A patch embedding for another number of channels is adapted
    as in timm.

    Args:
        model: just built; changed in place.
        config: what it was built from.
        channels: of the images.
        classes: their names.

    Returns:
        The weights, and a sentence on what was taken and what was not.

    Raises:
        ConfigError: the file cannot be read, or its model is another one.
    """
    given = cast(str, config.pretrained)
    weights = read_weights(given, KEY)
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
    taken = f"{len(tensors)} of {len(weights.tensors)} tensors taken"
    return weights, f"starts from {weights.path} ({weights.architecture}): {', '.join([taken, *notes])}"


def check_same_model(weights: Weights, config: schema.Model) -> None:
    """Check that the weights have the architecture of the config.

    Raises:
        ConfigError: the weights are of another model; the message says what to set.
    """
    if weights.description:
        theirs = weights.description.model
    else:
        shape, activation = weights.architecture.model_keys, weights.activation or config.activation
        theirs = schema.Model(**shape, activation=activation)
    if differing := differences(theirs, described(config)):
        raise ConfigError(f"{KEY}={config.pretrained}: is of another model; set {' '.join(differing)}")


def normalize_as_before(data: DataSplits, weights: Weights, config: schema.Data) -> DataSplits:
    """Normalize images with the mean and deviation of the weights, unless data.mean is set."""
    known = weights.normalization
    if config.mean is not None or known is None or len(known[0]) != data.channels:
        return data
    return replace(data, mean=known[0], std=known[1])


def same_classes(weights: Weights, classes: Sequence[str]) -> bool:
    """Compare classes by name; if the file has no names, by their number."""
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


def content_of(given: str) -> str:
    """Hash everything in a file that affects training; the hash replaces the path in a run's ID.

    That is the weights, and what one of our files says beside them: the classes that decide whether the classifier is
    kept, and the mean and deviation of the images.

    Raises:
        ConfigError: they cannot be read.
    """
    path = find_file(given, KEY)
    status = path.stat()
    return hash_file(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def hash_file(path: Path, changed: int, size: int) -> str:
    weights = read_weights(str(path), KEY)
    if weights.description is None:
        return weights.fingerprint()
    beside = json.dumps([weights.description.classes, weights.normalization])
    return hashlib.sha256(f"{weights.fingerprint()}{beside}".encode()).hexdigest()[:16]
