"""Files with weights: runs' checkpoints, published ones, strangers'. Reading them runs no code from them."""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from config.errors import ConfigError, first_line
from weights.layouts import Architecture, LayoutError, from_layout

# What timm has published on the Hugging Face hub, by timm's name, with the activation; the authors' files have names
# that begin with these. Source: timm's convmixer.py and locuslab/convmixer.
PUBLISHED = {"convmixer_1536_20": "gelu", "convmixer_768_32": "relu", "convmixer_1024_20_ks9_p14": "gelu"}

# Where a training script may have put the weights, an average over steps (EMA) before the plain ones.
WRAPPERS = ("average", "state_dict_ema", "model_ema", "ema", "module", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel and averages, torch.compile, Lightning

# What our checkpoints say beside the weights (training/run.py).
ABOUT = ("config", "classes", "labels", "channels", "image_size", "mean", "std", "metrics")
METADATA = "convmixer"  # the key of a safetensors file's header under which ours say what they are


@dataclass(frozen=True)
class Weights:
    """Weights as a file has them.

    Attributes:
        tensors: by our names, in fp32.
        architecture: what they tell about their model.
        layout: "ours", "authors" or "timm".
        path: the file.
        published: the name of the published model, where it is one.
        about: what our files say beside the weights: config, classes, image_size, mean, std, …
    """

    tensors: dict[str, Tensor] = field(repr=False)
    architecture: Architecture
    layout: str
    path: Path
    published: str | None
    about: dict[str, Any] = field(repr=False)

    @property
    def activation(self) -> str | None:
        """As far as it is known."""
        if "config" in self.about:
            return self.about["config"]["model"]["activation"]
        named = re.search(r"(?<![a-z])(relu|gelu)(?![a-z])", self.path.stem.lower())
        return named[1] if named else PUBLISHED.get(self.published or "")

    @property
    def is_imagenet(self) -> bool:
        """Whether these are weights for ImageNet-1k that the authors or timm have published, as far as one can see."""
        return self.published is not None or (self.layout != "ours" and self.architecture.n_classes == 1000)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation of each channel that images were normalized with, as far as they are known."""
        if self.about.get("mean"):
            return tuple(self.about["mean"]), tuple(self.about["std"])
        return (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if self.is_imagenet else None

    @property
    def run(self) -> Path | None:
        """The folder of the run that the file is a checkpoint of."""
        folder = self.path.parent.parent
        return folder if self.path.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None

    def fingerprint(self) -> str:
        """A hash of the weights' content, whatever the file's name, place and layout."""
        content = hashlib.sha256()
        for name, tensor in self.tensors.items():
            content.update(f"{name}{list(tensor.shape)}".encode())
            content.update(tensor.numpy().tobytes())
        return content.hexdigest()[:16]


def read_weights(given: str, key: str = "checkpoint") -> Weights:
    """
    Args:
        given: a run's folder (or that of a sweep of one run), a file, or the name of a published model.
        key: the config key that it is the value of, for errors.

    Raises:
        ConfigError: there is no such file, it cannot be read, or the weights are not a ConvMixer's.
    """
    path = find_file(given, key)
    try:
        tensors, about = read_file(path)
    except Exception as error:  # a truncated or foreign file fails in many ways
        raise ConfigError(f"{key}={given}: {path} cannot be read as weights: {reason(error)}") from error
    try:
        layout, architecture, ours = from_layout(tensors)
    except LayoutError as error:
        raise ConfigError(f"{key}={given}: {error}") from error
    published = published_name(given) or next(filter(path.name.startswith, PUBLISHED), None)
    return Weights(ours, architecture, layout, path, None if about else published, about)


def published_name(given: str) -> str | None:
    """timm's name of a published model; it may be given as conf/model has it."""
    return next((name for name in PUBLISHED if given in (name, name.removesuffix("_ks9_p14"))), None)


def reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "it is no file of tensors, or holds objects that could run code"
    if isinstance(error, EOFError | SafetensorError) or "PytorchStreamReader" in str(error):
        return "it is truncated, or of another format"
    return first_line(error)


def find_file(given: str, key: str) -> Path:
    path = Path(given)
    if (name := published_name(given)) and not path.exists():
        return fetch(name, key)
    if path.is_dir():
        candidates = [path / "checkpoints" / "best.pt", path / "checkpoints" / "last.pt", path / "model.safetensors"]
        if found := next(filter(Path.is_file, candidates), None):
            return found
        runs = sorted(path.glob("*/checkpoints/best.pt"))
        if len(runs) == 1:  # a sweep of one
            return runs[0]
        there = f"{len(runs)} runs, e.g. {runs[0].parent.parent}" if runs else "no weights"
        raise ConfigError(f"{key}={given}: there are {there}; expected a run's folder, with checkpoints/best.pt")
    if not path.is_file():
        raise ConfigError(
            f"{key}={given}: there is no such file; expected a run's folder, a file, or one of {', '.join(PUBLISHED)}"
        )
    return path


def fetch(name: str, key: str) -> Path:
    """timm's published weights from the Hugging Face hub, kept in its client's cache."""
    from huggingface_hub import hf_hub_download

    repository = f"timm/{name}.in1k"
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the client's own, its HTTP library's, the system's
        raise ConfigError(
            f"{key}={name}: {repository} cannot be fetched from the Hugging Face hub ({first_line(error)}); "
            "a file that is here already can be given by its path"
        ) from error


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights as they are named in the file, and what one of ours says beside them."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            return strip({name: file.get_tensor(name) for name in file.keys()}), about  # noqa: SIM118
    with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training script keeps its arguments
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not named tensors")
    is_ours = "config" in content and "classes" in content
    about = {name: content[name] for name in ABOUT if name in content} if is_ours else {}
    return unwrap(content), about


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors within what a training script has saved."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return unwrap(content[wrapper])
    return strip({name: value for name, value in content.items() if isinstance(value, Tensor) and name != "n_averaged"})


def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without the prefixes that wrapped modules leave."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return strip({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors
