"""Files that appear whole or not at all, whatever ends the process, and are read if they are there."""

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, TextIO

from config.errors import FULL, ConfigError
from config.typed import check_type

PARTIAL = ".convmixer_partial_"  # begins the names of temporary folders, which are all that is ever removed
ROOM = 1 << 20  # bytes that must be free for a command's result
LARGEST = 64 << 20  # characters of a file that is read at once; sweep.json of 5,000 runs has a million


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write to a temporary file that gets its name at the end; an exception leaves the previous file.

    It is alone in a new folder beside `path`, so that no process can have put a link in its place. Where `path` is a
    link, the link is replaced.
    """
    with TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with naming_full_disk(path):  # while the part that was written fills it
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # or a machine that goes down leaves a name without content
        temporary.replace(path)


def remove_partial(folder: Path) -> None:
    """Remove temporary folders of killed processes; for a folder that no other process uses."""
    for temporary in folder.glob(f"{PARTIAL}*"):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)


def check_new(paths: Iterable[Path], overwrite: bool, size: int = ROOM, is_folder: bool = False) -> None:
    """Check that a command may write these files or folders.

    Args:
        size: Bytes that a command will write.
        is_folder: The command writes a folder, not files.

    Raises:
        ConfigError: A file or folder that a command is to write is there already, or cannot be written.
    """
    for path in paths:
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise ConfigError(f"output={path}: is there already; expected another name, or overwrite=true")
        if path.exists() and path.is_dir() != is_folder:
            raise ConfigError(f"output={path}: is {'no' if is_folder else 'a'} folder; expected another name")
        check_place(path, f"output={path}", "another place with output=PATH", size)


def check_place(path: Path, name: str, fix: str, size: int = ROOM) -> None:
    """Try to write beside `path`, or into it if it is a folder. Permissions alone do not show ACLs and mounts.

    Args:
        name: The key and value, or the path, that the error names.
        fix: What the error advises.
        size: Bytes that are to be written.

    Raises:
        ConfigError: There is no permission or no space.
    """
    folder = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.exists())
    try:
        write_zeros(folder)
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {size:,} bytes")
    except OSError as error:
        reason = error.strerror if folder.is_dir() else "not a folder"
        raise ConfigError(f"{name}: {folder}: {reason}. Fix: {fix}") from error


def check_ours(path: Path, mark: str) -> None:
    """Check that an existing file was written by this command.

    Raises:
        ConfigError: A file of somebody else has the name of one that a command writes beside its output.
    """
    if not path.exists():
        return
    with path.open("rb") if path.is_file() else nullcontext() as file:  # a pipe would be waited for
        if file is None or mark.encode() not in file.read(4096):
            raise ConfigError(
                f"{path}: is there already and was not written by this command; expected another output=NAME"
            )


# A full disk.


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise the system's error, with the path, for whatever error of a library a full disk leads to."""
    try:
        yield
    except Exception as error:
        if (code := full_disk_code(error, path.parent)) is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def full_disk_code(error: Exception, folder: Path) -> int | None:
    """Return the code of the system's error behind an error of a full disk; None for another error.

    PyTorch, NumPy and SQLite keep no code: then a file that is written to the folder tells.
    """
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause.errno
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return errno.ENOSPC
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ConfigError):
        return None
    try:
        write_zeros(folder)
    except OSError as problem:
        return problem.errno if problem.errno in FULL else None
    return None


def write_zeros(folder: Path) -> None:
    """Write a file without a name, which is gone afterwards.

    Raises:
        OSError: There is no permission or no space.
    """
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM))
        file.flush()
        os.fsync(file.fileno())


def append(path: Path) -> TextIO:
    """Open a text file to append to; a link in its place is replaced, not followed."""
    if path.is_symlink():
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", newline="")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; bytes of a file's name that are not, are escaped, so that no name costs a table."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_text(path: Path) -> str:
    """Read a small file that this program wrote.

    Raises:
        ValueError: It is a pipe or a device, whose reader would wait for ever, or far larger than such files are.
    """
    if not path.is_file() and path.exists():
        raise ValueError("is no file")
    with path.open(encoding="utf-8") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"is larger than {LARGEST >> 20} MiB")
    return text


def read_json(path: Path, kind: Any) -> Any:
    """Read a file of JSON; return {} if it is missing, cut off, or of another type."""
    try:
        return check_type(kind, json.loads(read_text(path)))
    except (OSError, ValueError, RecursionError):
        return {}
