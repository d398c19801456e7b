"""Preparation of a command's process: its standard streams and OpenMP."""

import io
import locale
import logging
import os
import sys
from contextlib import suppress
from typing import Any

# OpenMP's threads wait for each other by spinning for 300,000 rounds and more, which blocks cores that are shared.
# Fewer rounds cost nothing on idle cores; no spinning at all (OMP_WAIT_POLICY=PASSIVE) does.
SPIN_COUNT = "10000"


class LastingStream(io.FileIO):
    """A standard stream that drops output which cannot be written, e.g. after the terminal was closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_process() -> None:
    """Make the standard streams survive failed writes, and limit OpenMP's spinning; call it before importing torch."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # The stream was closed before the process started.
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            lasting = io.TextIOWrapper(
                io.BufferedWriter(LastingStream(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",  # for characters that the terminal's encoding lacks
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
    if "utf" not in locale.getencoding().lower():
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # Files are read and written as UTF-8.
    logging.raiseExceptions = False  # A log on a full disk, W&B's among them, loses lines and prints no traceback.
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
