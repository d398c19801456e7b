"""What every command does first: prepare its standard streams and OpenMP."""

import io
import os
import sys
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
        if stream is None:  # closed before the start
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 (for as long as the process)
        elif isinstance(stream, io.TextIOWrapper) and not isinstance(
            getattr(stream.buffer, "raw", None), LastingStream
        ):
            lasting = io.TextIOWrapper(
                io.BufferedWriter(LastingStream(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",  # of what the terminal's encoding does not have
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            stream.flush()
            setattr(sys, name, lasting)
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
