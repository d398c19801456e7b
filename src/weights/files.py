"""Files with weights: checkpoints of runs, published weights, files of unknown origin. Reading them runs no code."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from config.errors import ConfigError, first_line
from config.text import shell
from config.typed import check_type
from weights import archive
from weights.description import Description, read_description
from weights.layouts import Architecture, LayoutError, from_layout

# timm's weights on the Hugging Face hub, by timm's name, with the model's architecture and activation. Source: timm's
# convmixer.py and locuslab/convmixer.
PUBLISHED = {
    "convmixer_1536_20": (Architecture(1536, 20, 9, 7, 3, 1000, "batch"), "gelu"),
    "convmixer_768_32": (Architecture(768, 32, 7, 7, 3, 1000, "batch"), "relu"),
    "convmixer_1024_20_ks9_p14": (Architecture(1024, 20, 9, 14, 3, 1000, "batch"), "gelu"),
}

# Keys under which training scripts save weights; averages over steps (EMA) come first.
WRAPPERS = ("average", "state_dict_ema", "model_ema", "ema", "module", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel and averages, torch.compile, Lightning

METADATA = "convmixer"  # key of our description in a safetensors file's header
CHECKSUM = "convmixer_sha256"  # key of our checksum in the same header
FOREIGN = {  # first bytes of files without weights
    b"version https://git-lfs": "a Git LFS pointer; git lfs pull fetches the file itself",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"<": "a web page",
}


@dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Attributes:
        tensors: Tensors in fp32, by our names.
        layout: "ours", "authors" or "timm".
        description: The description in our files; None for other files.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    architecture: Architecture
    layout: str
    path: Path
    description: Description | None = field(repr=False)

    @property
    def published(self) -> str | None:
        """Name of the published ImageNet model with this architecture; None for other models."""
        if self.description:
            return None
        return next((name for name, (shape, _) in PUBLISHED.items() if shape == self.architecture), None)

    @property
    def activation(self) -> str | None:
        """Activation; None if unknown. The authors' files have it in their name."""
        if self.description:
            return self.description.model.activation
        if self.published:
            return PUBLISHED[self.published][1]
        activations = set(re.findall(r"(?<![a-z])(relu|gelu)(?![a-z])", self.path.stem.lower()))
        return activations.pop() if len(activations) == 1 else None

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation of each channel in normalization; None if unknown."""
        if self.description and self.description.mean and self.description.std:
            return self.description.mean, self.description.std
        return (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if self.published else None

    @property
    def run(self) -> Path | None:
        """Folder of the run that wrote the checkpoint; None for other files."""
        folder = self.path.parent.parent
        return folder if self.path.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None

    def fingerprint(self) -> str:
        """Hash the content of the weights, independent of the file's name, folder and layout."""
        content = hashlib.sha256()
        for name, tensor in self.tensors.items():
            content.update(f"{name}{list(tensor.shape)}".encode())
            content.update(tensor.numpy().tobytes())
        return content.hexdigest()[:16]


def read_weights(checkpoint: str, key: str = "checkpoint") -> Weights:
    """Read weights, and recognize their layout and architecture.

    Args:
        checkpoint: Folder of a run, or of a sweep with one run; a file; or the name of a published model.
        key: Config key of this value, for errors.

    Raises:
        ConfigError: There is no such file, it cannot be read, or the weights are not a ConvMixer's.
    """
    path = find_file(checkpoint, key)
    try:
        tensors, content = read_file(path)
    except Exception as error:  # truncated and foreign files fail in many ways
        raise ConfigError(f"{key}={checkpoint}: {path} cannot be read as weights: {reason(error, path)}") from error
    try:
        check_tensors(tensors)
        layout, architecture, renamed = from_layout(tensors)
        return Weights(renamed, architecture, layout, path, read_description(content, architecture))
    except (LayoutError, ConfigError) as error:
        raise ConfigError(f"{key}={checkpoint}: {error}") from error


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are dense and finite.

    Raises:
        LayoutError: A tensor is not.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise LayoutError(f"{name} is sparse, quantized, complex or without content; expected dense weights")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LayoutError(f"{name} holds NaN or infinite numbers")


def reason(error: Exception, path: Path) -> str:
    """Explain in one line why a file cannot be read as weights."""
    if isinstance(error, (NoWeights, archive.Damaged)):
        return str(error)
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if kind := file_kind(path):
        return f"it is {kind}"
    if forbidden := re.search(r"GLOBAL ([\w.]+)", str(error)):
        code = f"import torch; torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], 'weights.pt')"
        return (
            f"it holds {forbidden[1]}, an object that could run code. If you trust the file, keep its weights alone: "
            f"{shell('python', '-c', code)}"
        )
    return "it is truncated, or of another format"


class NoWeights(ValueError):
    """A readable file without named tensors."""


def file_kind(path: Path) -> str | None:
    """Recognize a file without weights by its content; None if it is unknown."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    if kind := next((kind for magic, kind in FOREIGN.items() if start.lstrip().startswith(magic)), None):
        return kind
    if start[257:262] == b"ustar":
        return "a tar archive"
    if path.suffix == ".onnx":
        return "an ONNX program"
    if zipfile.is_zipfile(path):
        try:
            names = {Path(name).name for name in zipfile.ZipFile(path).namelist()}
        except (OSError, ValueError, zipfile.BadZipFile):  # the table of contents is damaged
            return None
        if "constants.pkl" in names:
            return "a TorchScript program"
        if any(name.startswith(("serialized_exported_program", "archive_format")) for name in names):
            return "a program of torch.export"
        return None if "data.pkl" in names else "a zip archive without tensors"
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in start) and start.isascii()
    return "a text file" if is_text else None


def find_file(checkpoint: str, key: str) -> Path:
    """Find the file of a checkpoint; fetch that of a published model."""
    path = Path(checkpoint)
    for name in PUBLISHED:
        if checkpoint in (name, name.removesuffix("_ks9_p14")) and not path.exists():  # conf/model has the short name
            return fetch(name, key)
    if path.is_dir():
        candidates = [path / "checkpoints" / "best.pt", path / "checkpoints" / "last.pt", path / "model.safetensors"]
        if file := next(filter(Path.is_file, candidates), None):
            return file
        runs = sorted(path.glob("*/checkpoints/best.pt"))
        if len(runs) == 1:  # a sweep with one run
            return runs[0]
        content = f"has {len(runs)} runs, e.g. {runs[0].parent.parent}" if runs else "no weights in it or in its runs"
        raise ConfigError(f"{key}={checkpoint}: {content}; expected a run's folder, with checkpoints/best.pt")
    if not path.is_file():
        raise ConfigError(
            f"{key}={checkpoint}: there is no such file; expected a run's folder, a file, or one of "
            + ", ".join(PUBLISHED)
        )
    return path


def fetch(name: str, key: str) -> Path:
    """Fetch timm's published weights from the Hugging Face hub, through the cache of its client."""
    from huggingface_hub import hf_hub_download

    repository = f"timm/{name}.in1k"
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # from the client, its HTTP library or the system
        raise ConfigError(
            f"{key}={name}: {repository} cannot be fetched from the Hugging Face hub ({first_line(error)}); "
            "a file that is here already can be given by its path"
        ) from error


def read_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read the weights under the file's names, and the rest of the file's content."""
    if is_safetensors(path):
        with safe_open(path, framework="pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        description = header.get(METADATA, "{}")
        if CHECKSUM in header and header[CHECKSUM] != checksum(tensors, description):
            raise archive.Damaged("it is damaged: its checksum differs")
        return strip(tensors), check_type(dict[str, Any], json.loads(description))
    content = archive.load_archive(path)
    if not isinstance(content, Mapping):
        raise NoWeights(f"it holds a {type(content).__name__}, not named tensors")
    return unwrap(content), content


def checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    """Hash weights and description; safetensors itself has no checksum."""
    content = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def is_safetensors(path: Path) -> bool:
    """Recognize safetensors by its first bytes: the header's length, then the header."""
    with path.open("rb") as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    return first == b"{" and length <= path.stat().st_size


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the named tensors in a dictionary that a training script saved."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return unwrap(content[wrapper])
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return strip({name: tensor for name, tensor in tensors.items() if name != "n_averaged"})


def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes of wrapped modules, such as "module.", that all names have."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return strip({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors
