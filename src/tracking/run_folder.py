"""A run's folder.

OUTPUT_DIR/SWEEP/RUN/
    config.yaml       the resolved config
    metrics.csv       a row per epoch
    summary.json      status, best and last figures; correct also after a crash
    checkpoints/      best.pt; last.pt and previous.pt until the run is completed
    predictions.npy   test predictions; predictions.csv: by path and class; wrong_images.csv: the misclassified ones
    history.png       the curves
    augmentation.png  a dozen training images as the model sees them
    figures/          filters, kernels and confusion matrix of the trained model
    train.log         the terminal's output, and tracebacks
    wandb/            Weights & Biases' files
"""

import csv
import json
import logging
import secrets
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray

from config.schema import Config
from config.text import printable
from data.splits import Split
from runtime.distributed import World
from runtime.files import append, naming_full_disk, read_json, remove_partial, whole, write_text
from tracking import plots
from tracking.checkpoint import Checkpoints
from tracking.identity import display_name, folder_name, override_values, run_id
from tracking.predictions import write_predictions
from tracking.records import Summary
from tracking.run_index import RunIndex
from tracking.run_lock import acquire_lock, describe_holder, lock_of
from tracking.trial import Trial
from tracking.wandb_logger import WandbLogger, log_exceptions, remove_empty_runs, run_of_agent

log = logging.getLogger(__name__)

VALIDATED = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
MEASURED = ("train/loss", "train/accuracy", *(f"val/{name}" for name in VALIDATED))
COLUMNS = ("epoch", *MEASURED[:4], "lr", "images_per_second", "seconds", *MEASURED[4:])


class LogFile(logging.FileHandler):
    """The run's log, in a file that is not a link."""

    def _open(self) -> Any:
        return append(Path(self.baseFilename))

    def close(self) -> None:
        with suppress(OSError):  # The disk is full.
            super().close()


class LogFormatter(logging.Formatter):
    """A formatter that makes text safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), kept="\n\t")


class RunBusy(RuntimeError):
    """An error: another process is training this run."""


class RunFolder:
    """One run's folder and its W&B run. Only rank 0 writes; on other ranks these methods do nothing.

    Attributes:
        name: The run's name for people.
        run_id: The run's ID, the end of its folder's name.
        rows: A row for each epoch: COLUMNS, and `images`, the training images seen so far.
        summary: The content of summary.json.
        is_pruned: True if the search stops the run.
    """

    def __init__(
        self, config: Config, overrides: Sequence[str], world: World, choices: Mapping[str, str | None] | None = None
    ) -> None:
        """Lock the run and find its folder: an existing one with its ID, under any name, or a new one.

        The overrides name the run; `choices` are the options chosen from config groups.

        Raises:
            RunBusy: Another process is training the run.
        """
        sweep = Path(config.output_dir) / config.sweep
        self.config, self.overrides, self.choices = config, override_values(overrides), dict(choices or {})
        self.name, self.run_id = display_name(overrides, config.varied), run_id(config)
        lock = lock_of(sweep, self.run_id)
        has_lock = lock.exists()  # False: the run has never been started, and has no folder yet
        self.lock = acquire_lock(lock) if world.rank == 0 else None
        if world.broadcast(self.lock is None):
            raise RunBusy(
                f"{self.name} is being trained by another process: {describe_holder(lock)} locks {lock}. "
                "Fix: wait for it, or end it"
            )
        # Under the lock, as another process may have made the folder under another name.
        path = sweep / f"{folder_name(self.name)}-{self.run_id}"
        if has_lock:
            path = RunIndex(sweep).folders.get(self.run_id, path)
        self.path = Path(world.broadcast(str(path)))
        if self.writes:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.summary: dict[str, Any] = world.broadcast(read_json(self.path / "summary.json", Summary))
        self.rows: list[dict[str, Any]] = []
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.run_id, config.checkpoint)
        self.wandb = WandbLogger()
        self.trial: Trial | None = None
        self.is_pruned = False
        self.log_handler = LogFile(self.path / "train.log", delay=True)
        self.log_handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))

    @property
    def writes(self) -> bool:
        """True on rank 0, which alone writes files."""
        return self.lock is not None

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch so far by `trainer.monitor`, or without validation of the last epoch."""
        if self.rows[-1]["val/loss"] is None:
            return self.rows[-1]

        def rank(row: dict[str, Any]) -> tuple[float, float]:
            """Return the key that sorts rows: the monitor, then the loss or the accuracy."""
            monitor, loss = self.config.trainer.monitor, row["val/loss"]
            return (-loss, row["val/accuracy"]) if monitor == "val/loss" else (row[monitor], -loss)

        return max(self.rows, key=rank)

    def start(self, rows: list[dict[str, Any]]) -> None:
        """Start the record, or resume after `rows`, the epochs of the checkpoint."""
        if self.writes:
            self.start_record()
        for row in rows:
            self.add_epoch(row)

    def start_record(self) -> None:
        """Write the config and the first summary, and start the log, metrics.csv and the W&B run."""
        logging.getLogger().addHandler(self.log_handler)
        for folder in (self.path, self.checkpoints.folder):
            remove_partial(folder)
        remove_empty_runs(self.path)
        wandb_id = run_of_agent() or self.summary.get("wandb_id") or secrets.token_hex(4)
        # The status is "interrupted" until the run ends, as a killed process cannot write it.
        self.summary = {"status": "interrupted", "name": self.name, "wandb_id": wandb_id}
        self.summary |= {"run_id": self.run_id, "overrides": self.overrides, "varied": self.config.varied}
        self.summary |= {"choices": self.choices} if self.choices else {}
        self.summary |= {"notes": self.config.notes} if self.config.notes else {}
        write_text(self.path / "config.yaml", yaml.safe_dump(asdict(self.config), sort_keys=False))
        self.update(epochs=0)
        self.wandb.start(self.config, self.path, self.name, wandb_id)
        with log_exceptions():
            self.trial = Trial(self.config) if self.config.trial else None
        write_text(self.path / "metrics.csv", ",".join(COLUMNS) + "\n")

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Record an epoch in metrics.csv, summary.json and W&B, and report it to the search."""
        self.rows.append(row)
        if not self.writes:
            return
        path = self.path / "metrics.csv"
        with naming_full_disk(path), append(path) as file:
            csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(row)
        self.wandb.log_epoch(row)
        last, best = {f"last/{key}": row.get(key) for key in MEASURED}, self.best
        self.update(epochs=row["epoch"], **last, **{f"best/{key}": best.get(key) for key in ("epoch", *MEASURED)})
        if self.trial:
            with log_exceptions():
                self.is_pruned = self.trial.report_epoch(row["epoch"], row[self.config.trainer.monitor])

    def update(self, **figures: Any) -> None:
        """Add figures to the summary."""
        self.summary.update(figures)
        if self.writes:
            write_text(self.path / "summary.json", json.dumps(self.summary, indent=2) + "\n")

    def save_predictions(self, predictions: NDArray[np.void], test: Split, classes: Sequence[str]) -> None:
        """Save test predictions as predictions.npy and as tables; see write_predictions()."""
        if self.writes:
            with whole(self.path / "predictions.npy") as temporary:
                np.save(temporary, predictions)
            write_predictions(self.path, predictions, test, self.config.data.root, classes)

    def save_preview(self, figure: Figure) -> None:
        """Save augmentation.png, and log it in W&B, before the first epoch."""
        path = self.path / "augmentation.png"
        if self.writes and not path.exists():
            with whole(path) as temporary:
                figure.savefig(temporary, dpi=150)
            self.wandb.log_figures({"augmentation": path}, images=0)

    def save_figures(self, figures: Mapping[str, Figure]) -> None:
        """Save figures by name in the run's folder and in W&B."""
        if not self.writes:
            return
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        files = {name: folder / f"{name}.png" for name in figures}
        for name, figure in figures.items():
            with whole(files[name]) as temporary:
                figure.savefig(temporary, dpi=150)
        self.wandb.log_figures(files, self.rows[-1]["images"])

    def fail(self, error: BaseException) -> None:
        """Record an error; its traceback goes to the summary and the log file."""
        text = "".join(traceback.format_exception(error))
        log.error(text, extra={"file_only": True})
        with log_exceptions():  # The disk may be full.
            self.close(exit_code=1, status="failed", error=f"{type(error).__name__}: {error}", traceback=text)

    def close(self, exit_code: int = 0, **figures: Any) -> None:
        """Draw the curves, end the W&B run, add figures to the summary, and release the lock.

        The summary is written last: until it has the status `completed`, the next start finishes the run.
        """
        if self.writes and self.rows:
            with log_exceptions(), whole(self.path / "history.png") as temporary:
                plots.history(self.rows, self.name).savefig(temporary, dpi=150)
        self.wandb.finish({**self.summary, **figures}, exit_code)
        try:
            self.update(**figures)
            if self.writes and self.summary["status"] == "completed":
                self.checkpoints.remove_states()
        finally:
            self.release()

    def relog(self) -> None:
        """Log a completed run's results again if the agent of a W&B sweep started this process."""
        if not self.writes or not run_of_agent():
            return
        self.wandb.start(self.config, self.path, self.name, self.summary["wandb_id"])
        with log_exceptions(), (self.path / "metrics.csv").open(newline="") as file:
            self.wandb.relog(csv.DictReader(file))
        self.wandb.finish(self.summary)

    def release(self) -> None:
        """Release the run's lock."""
        if self.lock is None:
            return
        logging.getLogger().removeHandler(self.log_handler)
        self.log_handler.close()
        self.lock.release()
