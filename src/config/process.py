"""What every command does first: prepare its standard streams and OpenMP."""

import io
import locale
import os
import sys
from contextlib import suppress
from typing import Any

# OpenMP's threads wait for each other in a loop, 300,000 rounds and more, in which a core that is shared computes
# nothing. Fewer cost nothing on quiet cores; none at all (OMP_WAIT_POLICY=PASSIVE) do.
SPIN_COUNT = "10000"


class LastingStream(io.FileIO):
    """A standard stream; what cannot be written, e.g. as the terminal is closed, is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_process() -> None:
    """Let no output end a command, and set how long OpenMP's threads spin. To be called before torch is imported."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the start
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            lasting = io.TextIOWrapper(
                io.BufferedWriter(LastingStream(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",  # where the terminal's encoding lacks a character
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
    if "utf" not in locale.getencoding().lower():
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # files are UTF-8, whatever the terminal's encoding is
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
