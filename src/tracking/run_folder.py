"""What a run leaves behind: its folder, and the same in Weights & Biases.

OUTPUT_DIR/SWEEP/RUN/
    config.yaml       the resolved config
    metrics.csv       a row per epoch
    summary.json      status, best and last figures; always true, also after a crash
    checkpoints/      last.pt, best.pt
    history.png       the curves
    figures/          of the trained model: filters, kernels, confusion matrix
    train.log         what the terminal said, and tracebacks
    wandb/            Weights & Biases' own files
"""

import csv
import json
import logging
import secrets
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from config.schema import Config
from runtime.distributed import World
from tracking import plots
from tracking.identity import display_name, readable, run_id
from tracking.wandb_logger import log_exceptions, run_of_agent, start_wandb

log = logging.getLogger(__name__)

COLUMNS = (
    "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second", "seconds",
)  # fmt: skip


class RunBusy(RuntimeError):
    """Another process is training this run."""


class Record:
    """One run's folder and its W&B run.

    A run is known by its identity: where the sweep has a folder for it already, that one is taken up.

    Raises:
        RunBusy: another process has it.
    """

    def __init__(self, config: Config, overrides: list[str], world: World) -> None:
        self.config = config
        self.writes = world.rank == 0  # rank 0 alone
        self.name = display_name(overrides)
        self.run_id = run_id(config)
        sweep = Path(config.output_dir) / config.sweep
        # Let go by the system when the process ends, however it ends.
        self.lock = FileLock(sweep / ".locks" / f"{self.run_id}.lock")
        if world.broadcast(self.writes and not self.take()):
            raise RunBusy(f"{self.name} is being trained by another process ({sweep}/*-{self.run_id})")
        # Not before: the same run may have got its folder from another process, under another name.
        found = next(sweep.glob(f"*-{self.run_id}"), sweep / f"{readable(self.name)}-{self.run_id}")
        self.folder = Path(world.broadcast(str(found)))
        if self.writes:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.summary = world.broadcast(self.read_summary())
        self.rows: list[dict[str, Any]] = []
        self.wandb: Any = None
        self.log_handler = logging.FileHandler(self.folder / "train.log", delay=True)
        self.log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def take(self) -> bool:
        """Lock the run; False where another process has it."""
        Path(self.lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    @property
    def is_completed(self) -> bool:
        return self.summary.get("status") == "completed"

    def start(self, rows: list[dict[str, Any]]) -> None:
        """Begin, or go on after `rows`: the epochs that the checkpoint holds, and no others."""
        if not self.writes:
            return
        logging.getLogger().addHandler(self.log_handler)
        wandb_id = run_of_agent() or self.summary.get("wandb_id") or secrets.token_hex(4)
        # Until the run ends it is one that was interrupted: so the file is true whenever the process dies.
        self.summary = {"status": "interrupted", "name": self.name, "wandb_id": wandb_id}
        write(self.folder / "config.yaml", yaml.safe_dump(asdict(self.config), sort_keys=False))
        self.update(epochs=len(rows))
        with log_exceptions():
            self.wandb = start_wandb(self.config, self.folder, self.name, wandb_id)
        write(self.folder / "metrics.csv", ",".join(COLUMNS) + "\n")
        for row in rows:
            self.add_epoch(row)

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Add a row of metrics; its keys are COLUMNS."""
        self.rows.append(row)
        if not self.writes:
            return
        with (self.folder / "metrics.csv").open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        with log_exceptions():
            if self.wandb:
                self.wandb.log({key: value for key, value in row.items() if value is not None}, step=row["epoch"])
        self.update(epochs=row["epoch"], **{f"last/{key}": row[key] for key in COLUMNS[1:5]})

    def update(self, **figures: Any) -> None:
        """Add figures to the summary."""
        self.summary.update(figures)
        if self.writes:
            write(self.folder / "summary.json", json.dumps(self.summary, indent=2) + "\n")

    def draw(self, weights: Mapping[str, Tensor], confusion: Tensor, classes: Sequence[str]) -> None:
        """Picture the trained model: its filters, and which class of the test set it takes for which."""
        if not self.writes:
            return
        with log_exceptions():
            depthwise = [weight.cpu() for name, weight in weights.items() if name.endswith("depth_wise_conv.weight")]
            figures = {
                "patch_embedding_filters": plots.patch_embedding_filters(weights["patch_emb.conv.weight"].cpu()),
                "depthwise_kernels": plots.depthwise_kernels(depthwise),
                "confusion_matrix": plots.confusion_matrix(confusion.cpu(), classes),
            }
            (self.folder / "figures").mkdir(exist_ok=True)
            for name, figure in figures.items():
                plots.save(figure, self.folder / "figures" / name)
            if self.wandb:
                import wandb

                files = {
                    f"figures/{name}": wandb.Image(str(self.folder / "figures" / f"{name}.png")) for name in figures
                }
                self.wandb.log(files, step=self.rows[-1]["epoch"])

    def complete(self, **figures: Any) -> None:
        self.summary |= {"status": "completed", **figures}
        self.finish()
        self.update()  # last of all: what is not completed is finished by the next start
        self.release()

    def fail(self, error: BaseException) -> None:
        """Keep the error; its traceback goes to the summary and the log file."""
        text = "".join(traceback.format_exception(error))
        log.error(text, extra={"file_only": True})
        self.summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": text}
        with log_exceptions():  # the disk may be full
            self.update()
        self.close(exit_code=1)

    def close(self, exit_code: int = 0) -> None:
        """Finish and let go of the run; the status stays what it is."""
        self.finish(exit_code)
        self.release()

    def finish(self, exit_code: int = 0) -> None:
        """The picture, and W&B."""
        if not self.writes:
            return
        with log_exceptions():
            if self.rows:
                plots.history(self.rows, self.name).savefig(self.folder / "history.png", dpi=150)
        with log_exceptions():
            if self.is_completed and not self.rows:
                self.report_again()
            if self.wandb and self.rows:
                self.wandb.log({}, commit=True)  # or the last row would come after the summary and change it
            if self.wandb:
                self.wandb.summary.update({key: value for key, value in self.summary.items() if key != "traceback"})
                self.wandb.finish(exit_code=exit_code)

    def release(self) -> None:
        if not self.writes:
            return
        logging.getLogger().removeHandler(self.log_handler)
        self.log_handler.close()
        self.lock.release()

    def report_again(self) -> None:
        """Tell the agent of a W&B sweep what a run reached that was completed before."""
        if run_of_agent():
            self.wandb = start_wandb(self.config, self.folder, self.name, self.summary["wandb_id"])
        if self.wandb:
            with (self.folder / "metrics.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    figures = {key: float(text) for key, text in row.items() if text}
                    self.wandb.log(figures, step=int(row["epoch"]), commit=True)

    def read_summary(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "summary.json").read_text())
        except (OSError, ValueError):
            return {}


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
