"""Image files: the lists of a folder with classes, the check of their size, and the reading of one file.

This module imports quickly, as a run's ID needs the list of files, but neither torch nor scikit-learn.
"""

import logging
import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from config.errors import ConfigError, first_line
from config.text import printable
from runtime.cores import cores

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# The allowed formats of the content, for any suffix; others of Pillow's start programs (EPS) or are not photographs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
GREY = ("1", "L")  # Pillow's modes without color
# The names of folders by split, in lower case; capitals are accepted, too.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
# Folders that network drives, archives and operating systems add to folders of images, in lower case.
VENDORS = (
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot",  # Synology, QNAP, NetApp
    "__macosx", "network trash folder", "temporary items", "$recycle.bin", "system volume information", "lost+found",
)  # fmt: skip
SHOWN = 10  # the most unreadable images that a message names
CANNOT_BE_READ = " cannot be read as an image"
SECONDS = 10.0  # time limit for finding further unreadable images after the first


class DataError(ConfigError):
    """Data that do not fit the config; the message names the key or the file, and the fix."""


def is_ignored(name: str) -> bool:
    """Return True if a file or folder is hidden (.ipynb_checkpoints, ._1.jpg) or a vendor's (@eaDir)."""
    return name.startswith(".") or name.lower() in VENDORS


def split_folders(root: Path) -> dict[str, str]:
    """Find the folders of splits in `root`, e.g. {"train": "train", "val": "valid"}, in alphabetical order.

    Raises:
        DataError: `root` cannot be read, or two folders have names of the same split.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root}: no such folder")
    folders: dict[str, str] = {}
    for name in class_folders(root):
        for split, names in SPLITS.items():
            if name.lower() in names:
                if split in folders:
                    raise DataError(
                        f"data.root={root}: both {folders[split]} and {name} are {split}; expected one of them"
                    )
                folders[split] = name
    return folders


def is_divided(root: Path) -> bool:
    """Return True if a folder has no test or validation images; its test set is then split off."""
    try:
        return not split_folders(root).keys() & {"test", "val"}
    except DataError:
        return False


def class_folders(folder: Path) -> list[str]:
    """List the names of a folder's subfolders, without hidden ones and vendors'.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_ignored(entry.name))
    except OSError as error:
        raise DataError(f"data.root: {folder} cannot be read ({error.strerror})") from error


def image_files(folder: Path | str, above: Collection[str] = ()) -> list[str]:
    """List the paths of a class's images, sorted, including those in subfolders, as torchvision and timm do.

    A dangling link counts as an image, which cannot be read.

    Args:
        above: Real paths of the folders above it, to which no link is followed; by default all parents of `folder`.

    Raises:
        DataError: A folder cannot be read.
    """
    files: list[str] = []
    real = os.path.realpath(folder)
    above = {*(above or map(str, Path(real).parents)), real}
    try:
        for entry in os.scandir(folder):
            if is_ignored(entry.name):
                continue
            if entry.is_dir():
                if os.path.realpath(entry.path) in above:
                    warn_skipped(entry.path, "a link to a folder above it")
                else:
                    files += image_files(entry.path, above)
            elif entry.name.lower().endswith(SUFFIXES):
                if entry.is_file() or not Path(entry.path).exists():  # Dangling links are included.
                    files.append(entry.path)
                else:
                    warn_skipped(entry.path, "a pipe or device")  # Opening a pipe would block.
    except OSError as error:
        raise DataError(f"data.root: {folder} cannot be read ({error.strerror})") from error
    return sorted(files)


@cache  # Folders are listed several times.
def warn_skipped(path: str, reason: str) -> None:
    log.warning(f"  skipped: {printable(path)} ({reason})")


def check_patch_size(patch_size: int, image_size: tuple[int, int], name: str) -> None:
    """Check that whole patches cover the images.

    Raises:
        DataError: The patch size does not divide the height and width of the images.
    """
    height, width = image_size
    if height % patch_size or width % patch_size:
        fitting = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
        raise DataError(
            f"model.patch_size={patch_size}: does not divide the {height}x{width} images of "
            f"data={name}; expected one of {', '.join(map(str, fitting))}"
        )


def open_image(path: str, mode: str | None = None) -> Image.Image:
    """Read an image file as 8 bits per channel; by default grey images as "L", others as "RGB".

    Levels of 16 bits are scaled to 8. The orientation in EXIF is ignored, as in torchvision and timm.

    Args:
        mode: Pillow's mode of the result, "L" or "RGB".

    Raises:
        DataError: The file is not an image, is incomplete, or has levels of unknown range.
    """
    path = str(path)  # An error would show NumPy's string type as np.str_('…').
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise ValueError("a folder, pipe or device; expected a file")  # Opening a pipe would block.
        with Image.open(path, formats=FORMATS) as image:
            read = to_8_bits(image)
            return read.convert(mode or ("L" if read.mode in GREY else "RGB"))
    except Exception as error:  # Pillow's decoders raise errors of many types.
        reason = first_line(error).replace(f" {path!r}", "")
        raise DataError(f"data.root: {printable(path)}{CANNOT_BE_READ} ({reason})") from error


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale an image's levels to 8 bits.

    Raises:
        ValueError: The range of the levels is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # 0 … 65535
        levels = np.array(image, dtype=np.uint32)
        levels += 128  # half of 257, to round
        levels //= 257
        return Image.fromarray(levels.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: levels of unknown range; expected 8 or 16 bits per channel")
    return image


def unreadable_images(paths: Sequence[str], seconds: float | None = None) -> dict[str, str]:
    """Find images that cannot be read; return "PATH (reason)" by path.

    Args:
        seconds: Time limit, after which the other files count as readable; None: no limit.
    """
    deadline = None if seconds is None else time.monotonic() + seconds

    def reason(path: str) -> str | None:
        if deadline and time.monotonic() > deadline:
            return None
        try:
            open_image(path)
        except DataError as error:
            return reason_of(error)
        return None

    pool = ThreadPoolExecutor(cores())
    try:
        return {path: error for path, error in zip(paths, pool.map(reason, paths), strict=True) if error}
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends the pool, too.


def reason_of(error: DataError) -> str:
    """Format "PATH (reason)" for an image that cannot be read."""
    return str(error).removeprefix("data.root: ").replace(CANNOT_BE_READ, "")


def unreadable_error(paths: Sequence[str], first: DataError) -> DataError:
    """Make one error for all images among the paths that cannot be read, from the error of the first."""
    reasons = sorted({reason_of(first), *unreadable_images(paths, SECONDS).values()})
    count = "one image" if len(reasons) == 1 else f"{len(reasons):,} images"
    return DataError(
        f"data.root: {count}{CANNOT_BE_READ}: {first_reasons(reasons)}. "
        "Fix: repair or remove, or set data.skip_unreadable=true"
    )


def first_reasons(reasons: Sequence[str]) -> str:
    """Join the first ten reasons, and count the others."""
    more = f", … and {len(reasons) - SHOWN:,} more" if len(reasons) > SHOWN else ""
    return ", ".join(reasons[:SHOWN]) + more
