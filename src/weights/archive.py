"""Verified reading of PyTorch's files: no code runs, checksums match, and sizes are those of the content."""

import argparse
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

CHUNK = 1 << 20
MOST_EXPANDED = 4  # times the file's size; a view of one number can claim any size
MOST_INFLATED = 100  # times a file's size; PyTorch itself compresses nothing


class Damaged(ValueError):
    """A file of PyTorch whose content has changed since it was written."""


def load_archive(path: Path) -> Any:
    """Read a file that torch.save has written.

    Raises:
        Damaged: A checksum differs, or the path is a pipe or a device.
        Exception: PyTorch's, of many kinds, for a truncated or foreign file.
    """
    if path.exists() and not path.is_file():
        raise Damaged("it is no file")
    with path.open("rb") as file:  # given a path, PyTorch would choose the format by its suffix
        if zipfile.is_zipfile(file):
            verify(zipfile.ZipFile(file))
        file.seek(0)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training script saves its arguments
            content = torch.load(file, map_location="cpu", weights_only=True)
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(content))
    if claimed > MOST_EXPANDED * path.stat().st_size + CHUNK:
        raise Damaged("its tensors claim to be far larger than the file")
    return content


def tensors_in(content: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from tensors_in(part)


def verify(archive: zipfile.ZipFile) -> None:
    """Compare each part with its CRC, as PyTorch does not; a CRC of 0 means that torch.save wrote none.

    Raises:
        Damaged: A part differs, or the archive claims far more content than it has bytes.
    """
    parts = archive.infolist()
    if sum(part.file_size for part in parts) > MOST_INFLATED * sum(part.compress_size for part in parts) + CHUNK:
        raise Damaged("it claims to be far larger than it is")
    for part in parts:
        if part.CRC == 0:
            continue
        try:
            with archive.open(part) as content:
                while content.read(CHUNK):
                    pass
        except Exception as error:  # from zipfile, zlib or the system
            raise Damaged(f"it is damaged: the checksum of {part.filename} differs") from error
