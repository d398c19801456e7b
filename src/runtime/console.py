"""Terminal output: plain lines, progress bars, tables."""

import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich import box, get_console
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from config.text import printable

Item = TypeVar("Item")
SAY_SECONDS = 10.0  # between two progress lines if the output is not a terminal


def say(text: str, style: str | None = None) -> None:
    """Print a plain line without wrapping it."""
    get_console().print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


class Handler(logging.Handler):
    """The logging handler that prints records as plain lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno)
        for line in record.getMessage().split("\n"):
            say(line, style)


class RunProgress(Progress):
    """The progress line of a run: epoch, loss, accuracy, learning rate, images per second, ETA.

    It is hidden if the output is not a terminal.
    """

    REFRESH_SECONDS = 1.0

    def __init__(self, epochs: int, steps_per_epoch: int, quiet: bool) -> None:
        super().__init__(
            TextColumn("  epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            transient=True,
            disable=quiet or not get_console().is_terminal,
        )
        self.steps_per_epoch = steps_per_epoch
        self.run = self.add_task("run", total=epochs * steps_per_epoch, epoch=1, epochs=epochs, figures="")
        self.shown_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True if the metrics were last read a second ago or earlier. Reading them synchronizes the device."""
        return time.monotonic() - self.shown_at >= self.REFRESH_SECONDS

    def show(self, epoch: int, step: int, loss: float, accuracy: float, lr: float, rate: float) -> None:
        """Update the line.

        Args:
            epoch: The current epoch, from 1.
            step: Completed steps of this epoch.
            rate: Images per second.
        """
        self.shown_at = time.monotonic()
        self.update(
            self.run,
            completed=(epoch - 1) * self.steps_per_epoch + step,
            epoch=epoch,
            figures=f"loss {loss:.3f}  accuracy {accuracy:.1%}  lr {lr:.2g}  {rate:,.0f} images/s",
        )


def track(items: Sequence[Item], activity: str) -> Iterator[Item]:
    """Yield the items, with a progress bar on a terminal, otherwise with a line of progress every ten seconds."""
    columns = (
        TextColumn(f"  {activity}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    started = last = time.monotonic()
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
        for done, item in enumerate(progress.track(items)):
            if done == 1:  # The first item may import libraries, which says nothing about the others.
                started = time.monotonic()
            if progress.disable and done > 1 and time.monotonic() - last >= SAY_SECONDS:
                last = time.monotonic()
                left = (last - started) / (done - 1) * (len(items) - done)
                say(f"{activity}: {done:,} of {len(items):,}, {left:.0f} s left")
            yield item


def si(number: float) -> str:
    """Format a number with three digits and an SI prefix, e.g. 78.2 k, 4.76 M."""
    rounded = float(f"{number:.3g}")  # 999.6 is 1.00 k
    power = min(4, int(math.log10(rounded) // 3)) if rounded >= 1 else 0
    digits = f"{number / 1000**power:#.3g}" if power else f"{number:.3g}"
    return f"{digits.rstrip('.')} {' kMGT'[power]}".rstrip()


def duration(seconds: float) -> str:
    """Format a time, e.g. 90 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(n: int, noun: str) -> str:
    """Format a number of things, e.g. 1 run, 1,200 runs."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], best_first: bool = True) -> None:
    """Print a table with its first row highlighted if it is the best, and numbers aligned right.

    On a terminal, columns that do not fit are left out from the right, and a line names them.
    """
    console = get_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(header):
        numeric = all(re.fullmatch(r"([-+]?[\d.,]+( ± [\d.,]+)?( ?[kMGT]?B?)?)?", row[i]) for row in rows)
        table.add_column(Text(printable(name, kept="\n")), justify="right" if numeric else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*(Text(printable(text)) for text in row), style="bold green" if best_first and i == 0 else None)

    def width() -> int:
        return Measurement.get(console, console.options.update(width=10_000), table).maximum

    say(title, style="bold")
    if not console.is_terminal:
        Console(file=console.file, width=width(), highlight=False).print(table)
        return
    while len(table.columns) > 1 and width() > console.width:
        table.columns.pop()
    console.print(table)
    if hidden := header[len(table.columns) :]:
        say(f"(hidden columns: {', '.join(hidden).replace(chr(10), ' ')})", style="dim")
