"""A hash of the images in a folder; it changes when an image changes, but not when the folder is moved."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from data.image_files import DataError, class_folders, image_files, split_folders

# Contents are hashed up to these limits; beyond them reading would take minutes, and only names and sizes are hashed.
MOST_FILES, MOST_BYTES = 100_000, 2**30


@cache
def hash_images(root: Path) -> str:
    """Hash all images below `root`, once per process; unreadable images are hashed as such, without an error."""
    sizes = {path: file_size(path) for path in files_below(root)}
    with_content = len(sizes) <= MOST_FILES and sum(sizes.values()) <= MOST_BYTES
    digest = hashlib.sha256()
    for path, size in sizes.items():
        name = path.removeprefix(str(root))
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        if with_content:
            digest.update(read_content(path))
    return digest.hexdigest()[:16]


def files_below(root: Path) -> Iterator[str]:
    """Yield the paths of all images below `root`, sorted within each class."""
    with suppress(DataError):  # The run itself reports a folder that is missing or unreadable.
        for split in sorted(split_folders(root).values()) or [""]:
            for name in class_folders(root / split):
                yield from image_files(root / split / name)


def file_size(path: str) -> int:
    """Return the size of a file in bytes, 0 for a dangling link."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def read_content(path: str) -> bytes:
    """Return the bytes of a file, or a fixed text if it is unreadable."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b"unreadable"
