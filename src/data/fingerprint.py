"""A hash of the images in a folder: independent of the folder's path, different when an image changes."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from data.image_files import DataError, class_folders, image_files, split_folders

# Up to these limits the files' contents are hashed, beyond them names and sizes alone: reading would take minutes.
MOST_FILES, MOST_BYTES = 100_000, 2**30


@cache
def fingerprint(root: Path) -> str:
    """Hash all images in the folders of `root`'s splits, or of its classes.

    Never raises, since the run reports what it cannot read. Computed once per process, as the images are read once.
    """
    sizes = {path: size_of(path) for path in files_below(root)}
    with_content = len(sizes) <= MOST_FILES and sum(sizes.values()) <= MOST_BYTES
    digest = hashlib.sha256()
    for path, size in sizes.items():
        name = path.removeprefix(str(root))
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        if with_content:
            digest.update(content_of(path))
    return digest.hexdigest()[:16]


def files_below(root: Path) -> Iterator[str]:
    with suppress(DataError):  # missing, or not to be read: the run will say so
        for split in sorted(split_folders(root).values()) or [""]:
            for name in class_folders(root / split):
                yield from image_files(root / split / name)


def size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # a dangling link
        return 0


def content_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b"unreadable"
