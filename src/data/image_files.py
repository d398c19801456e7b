"""Image files: which ones a folder of classes holds, and how one is read.

Light to import: a run's ID needs the list of files, but neither torch nor scikit-learn.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from config.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
GREY = ("1", "L")  # Pillow's modes without color


class DataError(ConfigError):
    """The data cannot be used as asked; the message names the key or the file, and what would be right."""


def class_folders(folder: Path) -> list[str]:
    """The names of the classes; hidden folders (.ipynb_checkpoints) are none."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def image_files(folder: Path | str) -> list[str]:
    """The paths of a class' images, sorted, those in its subfolders too, as torchvision and timm have it.

    A dangling link is one, which cannot be read.
    """
    found: list[str] = []
    for entry in os.scandir(folder):
        if entry.name[0] == ".":
            continue
        if entry.is_dir():
            found += image_files(entry.path)
        elif entry.name.lower().endswith(SUFFIXES):
            found.append(entry.path)
    return sorted(found)


def open_image(path: str, mode: str | None = None) -> Image.Image:
    """A file as an image of the mode asked for, else as "L" (grey) or "RGB", whichever it is nearer to.

    16 bits are scaled to 8. The orientation that a camera notes in EXIF is ignored, as torchvision and timm do.

    Raises:
        DataError: it is not an image, or only a part of one, or has levels of unknown range.
    """
    path = str(path)  # not NumPy's, which an error would show as np.str_('…')
    try:
        with Image.open(path) as image:
            read = to_8_bits(image)
            return read.convert(mode or ("L" if read.mode in GREY else "RGB"))
    except Exception as error:  # Pillow raises whatever its decoders raise
        raise DataError(f"data.root: {path} cannot be read as an image ({error})") from error


def to_8_bits(image: Image.Image) -> Image.Image:
    """
    Raises:
        ValueError: the range of its levels is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # 0 … 65535
        levels = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: levels of unknown range; expected 8 or 16 bits per channel")
    return image
