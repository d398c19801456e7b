"""What a person sees: plain lines, a progress bar where there is a terminal, tables."""

import logging
import re
import time
from collections.abc import Iterable, Sequence

from rich import box, get_console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def say(text: str, style: str | None = None) -> None:
    """A plain line, never broken."""
    get_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Handler(logging.Handler):
    """Log records as plain lines that do not break the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno)
        say(record.getMessage(), style)


class RunProgress(Progress):
    """One line for a run: epoch, loss, accuracy, learning rate, images per second, time left.

    Quiet where the output is no terminal.
    """

    REFRESH_SECONDS = 1.0

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        super().__init__(
            TextColumn("  epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            transient=True,
            disable=not get_console().is_terminal,
        )
        self.steps_per_epoch = steps_per_epoch
        self.run = self.add_task("run", total=epochs * steps_per_epoch, epoch=1, epochs=epochs, figures="")
        self.shown_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to look at the numbers again; looking waits for the device."""
        if time.monotonic() - self.shown_at < self.REFRESH_SECONDS:
            return False
        self.shown_at = time.monotonic()
        return True

    def show(self, epoch: int, step: int, loss: float, accuracy: float, lr: float, rate: float) -> None:
        """`epoch` from 1, `step` of the epoch, `rate` in images per second."""
        self.update(
            self.run,
            completed=(epoch - 1) * self.steps_per_epoch + step,
            epoch=epoch,
            figures=f"loss {loss:.3f}  accuracy {accuracy:.1%}  lr {lr:.2g}  {rate:,.0f} images/s",
        )


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first row stands out, numbers to the right."""
    rows = list(rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        numeric = all(re.fullmatch(r"[-+]?[\d.,]*", row[i]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for i, row in enumerate(rows):
        table.add_row(*row, style="bold green" if i == 0 else None)
    console = get_console()
    # In a file or a pipe there is no width to keep to.
    width = None if console.is_terminal else Measurement.get(console, console.options.update(width=1000), table).maximum
    console.print(table, width=width, crop=False)
