"""Files that appear whole or not at all, whatever ends the process, and are read if they are there."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from config.errors import ConfigError
from config.typed import check_type

PARTIAL = ".convmixer_partial_"  # begins the names of temporary folders, which are all that is ever removed

LARGEST = 64 << 20  # characters of a file that is read at once; sweep.json of 5,000 runs has a million


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write to a temporary file that gets its name at the end; an exception leaves the previous file.

    It is alone in a new folder beside `path`, so that no process can have put a link in its place. Where `path` is a
    link, the link is replaced.
    """
    with TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a machine that goes down leaves a name without content
        temporary.replace(path)


def remove_partial(folder: Path) -> None:
    """Remove temporary folders of killed processes; for a folder that no other process uses."""
    for temporary in folder.glob(f"{PARTIAL}*"):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)


def check_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Check that a command may write these files or folders.

    Raises:
        ConfigError: a file or folder that a command is to write is there already, or cannot be written.
    """
    for path in paths:
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise ConfigError(f"output={path}: is there already; expected another name, or overwrite=true")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"output={path}: {folder} is not a folder to write to; expected another name")


def check_ours(path: Path, mark: str) -> None:
    """Check that an existing file was written by this command.

    Raises:
        ConfigError: a file of somebody else has the name of one that a command writes beside its output.
    """
    if path.exists() and mark.encode() not in path.read_bytes()[:4096]:
        raise ConfigError(f"{path}: is there already and was not written by this command; expected another output=NAME")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; bytes of a file's name that are not, are escaped, so that no name costs a table."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_text(path: Path) -> str:
    """Read a small file that this program wrote.

    Raises:
        ValueError: it is a pipe or a device, whose reader would wait for ever, or far larger than such files are.
    """
    if not path.is_file() and path.exists():
        raise ValueError("is no file")
    with path.open(encoding="utf-8") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"is larger than {LARGEST >> 20} MiB")
    return text


def read_json(path: Path, kind: Any) -> Any:
    """Empty where the file is missing, cut off, or of another type."""
    try:
        return check_type(kind, json.loads(read_text(path)))
    except (OSError, ValueError, RecursionError):
        return {}
