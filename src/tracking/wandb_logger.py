"""Logging to Weights & Biases: a row for each epoch, and the progress within an epoch."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from config.errors import first_line
from config.schema import Config, flatten
from config.text import shell
from runtime.files import whole

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15  # time limit for connecting to the server
FINISH_SECONDS = 10  # time limit for sending the last figures, which also stay on disk
PROGRESS_SECONDS = 30.0  # least time between two rows within an epoch
HEADER_BYTES = 7  # size of a .wandb file without records
EPOCH_METRICS = ("train/*", "val/*", "lr", "images_per_second", "seconds")
unreachable = False  # After one failure this process does not try to connect again.


@contextmanager
def log_exceptions() -> Iterator[None]:
    """Log exceptions of W&B and figures instead of raising them: metrics.csv and summary.json hold all results."""
    try:
        yield
    except Exception as error:
        log.warning(f"W&B or figure error (ignored): {first_line(error)}")


class WandbLogger:
    """A run's W&B run, unless wandb.mode=disabled. No method raises.

    A resumed run is the same W&B run. Its step is the number of training images so far, for the rows of epochs and for
    the rows of `progress/…` within an epoch.
    """

    def __init__(self) -> None:
        self.run: Any = None
        self.progress_at = time.monotonic()

    @log_exceptions()
    def start(self, config: Config, folder: Path, name: str, wandb_id: str) -> None:
        """Start or resume the W&B run; see start_wandb()."""
        self.run = start_wandb(config, folder, name, wandb_id)
        if self.run:
            for names, axis in (("progress/*", "images"), *((name, "epoch") for name in EPOCH_METRICS)):
                self.run.define_metric(names, step_metric=axis)

    @log_exceptions()
    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.csv at the step `images`."""
        if self.run:
            self.run.log({key: value for key, value in row.items() if value is not None}, step=row["images"])

    @log_exceptions()
    def log_progress(self, images: int, figures: Mapping[str, float]) -> None:
        """Log the progress within an epoch after so many training images, at most every PROGRESS_SECONDS."""
        if self.run and time.monotonic() - self.progress_at >= PROGRESS_SECONDS:
            self.progress_at = time.monotonic()
            progress = {f"progress/{name}": value for name, value in figures.items()}
            self.run.log({"images": images, **progress}, step=images)

    @log_exceptions()
    def log_figures(self, files: Mapping[str, Path], images: int) -> None:
        """Log PNG files by their names; W&B's copies become hard links to them."""
        if not self.run:
            return
        import wandb

        self.run.log({f"figures/{name}": wandb.Image(str(file)) for name, file in files.items()}, step=images)
        for name, file in files.items():
            for copy in Path(self.run.dir, "media", "images", "figures").glob(f"{name}_*.png"):
                with suppress(OSError), whole(copy) as link:  # The file system may have no hard links.
                    link.hardlink_to(file)

    @log_exceptions()
    def relog(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Log the rows of a completed run's metrics.csv again, for the agent of a W&B sweep."""
        if self.run:
            for row in rows:
                self.run.log({key: float(text) for key, text in row.items() if text}, step=int(row["epoch"]))

    @log_exceptions()
    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Send the summary and end the W&B run."""
        if self.run:
            self.run.log({}, commit=True)  # Otherwise the last row would arrive after the summary and change it.
            self.run.summary.update({key: value for key, value in summary.items() if key != "traceback"})
            self.run.finish(exit_code=exit_code)


def remove_empty_runs(folder: Path) -> None:
    """Remove W&B runs without records, left by processes that were killed while W&B started.

    One of them would make `wandb sync` fail for all. No process may be training the run.
    """
    for run in (folder / "wandb").glob("*run-*"):
        if all(file.stat().st_size <= HEADER_BYTES for file in run.glob("*.wandb")):
            shutil.rmtree(run)


@log_exceptions()
def end_service() -> None:
    """End W&B's service if it runs; if a scheduler's signal ended it, the client would print a traceback."""
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


def run_of_agent() -> str | None:
    """Return the ID of the W&B run if the agent of a W&B sweep started this process, else None."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def start_wandb(config: Config, folder: Path, name: str, wandb_id: str) -> Any:
    """Start a W&B run in the run's folder; return None if wandb.mode=disabled.

    A resumed run is the same W&B run; the rows so far are logged again. If the server is out of reach or refuses, the
    run is recorded offline.
    """
    global unreachable
    if config.wandb.mode == "disabled":
        return None
    import wandb

    by_agent = run_of_agent() is not None  # The client then takes the run's ID and project from the environment.
    init = partial(
        wandb.init,
        id=None if by_agent else wandb_id,
        project=None if by_agent else config.wandb.project,
        entity=None if by_agent else config.wandb.entity,
        group=config.sweep,
        name=name,
        tags=config.wandb.tags,
        notes=config.notes,
        # An agent's run already has the sweep's parameters in its config, under keys with dots. A nested config would
        # clash with a group among them, e.g. dropout=blocks.
        config=dict(flatten(asdict(config))) if by_agent else asdict(config),
        dir=str(folder.absolute()),  # W&B's service may have another working directory.
        settings=wandb.Settings(
            init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS, silent=True, console="off"
        ),
    )
    if config.wandb.mode == "online" and not unreachable:
        try:
            return init(mode="online", resume="allow")
        except wandb.Error as error:
            unreachable = True
            wandb.teardown()  # Otherwise the client would reject the ID as in use.
            log.warning(
                f"W&B is out of reach ({first_line(error)}); this run is recorded offline. "
                f"Later: {shell('wandb', 'sync', f'{folder}/wandb/')}offline-*"
            )
    return init(mode="offline")
