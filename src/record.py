"""What a run leaves behind: its folder, and the same in Weights & Biases.

OUTPUT_DIR/SWEEP/RUN/
    config.yaml       the resolved config
    metrics.csv       a row per epoch
    summary.json      status, best and last figures; always true, also after a crash
    checkpoints/      last.pt, best.pt
    history.png       the curves
    train.log         what the terminal said, and tracebacks
    wandb/            Weights & Biases' own files
"""

import csv
import hashlib
import json
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from matplotlib.figure import Figure

import config as cfg

log = logging.getLogger(__name__)

COLUMNS = (
    "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second", "seconds",
)  # fmt: skip

# Overrides that say where and how, not what: no part of a run's name.
UNNAMED = (*cfg.NOT_IDENTITY, "experiment")


class RunExists(RuntimeError):
    """The run's folder is there already; nothing in it is touched."""


class Record:
    """One run's folder and its W&B run, from start to end.

    Raises:
        RunExists: the folder is there already.
    """

    def __init__(self, config: cfg.Config, overrides: list[str]) -> None:
        self.name = display_name(overrides)
        self.folder = Path(config.output_dir) / config.sweep / folder_name(config, overrides)
        try:
            (self.folder / "checkpoints").mkdir(parents=True)
        except FileExistsError as error:
            raise RunExists(
                f"{self.folder} is there already: this run was made before. Its record stays as it is; "
                "give another sweep=NAME, or remove the folder, to make it again"
            ) from error
        self.summary: dict[str, Any] = {"status": "interrupted", "name": self.name}
        self.rows: list[dict[str, Any]] = []
        self.log_handler = logging.FileHandler(self.folder / "train.log")
        self.log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self.log_handler)
        write(self.folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
        self.write_summary()
        self.wandb = start_wandb(config, self.folder, self.name)

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Add a row of metrics; its keys are COLUMNS."""
        self.rows.append(row)
        with (self.folder / "metrics.csv").open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        with no_harm():
            if self.wandb:
                self.wandb.log({key: value for key, value in row.items() if value is not None}, step=row["epoch"])
        self.update(epochs=row["epoch"], **{f"last/{key}": row[key] for key in COLUMNS[1:5]})

    def update(self, **figures: Any) -> None:
        """Add figures to the summary."""
        self.summary.update(figures)
        self.write_summary()

    def save(self, name: str, checkpoint: dict[str, Any]) -> None:
        """Write checkpoints/NAME.pt, whole or not at all."""
        path = self.folder / "checkpoints" / f"{name}.pt"
        temporary = path.with_suffix(".tmp")
        torch.save(checkpoint, temporary)
        temporary.replace(path)

    def load(self, name: str, device: torch.device) -> dict[str, Any]:
        path = self.folder / "checkpoints" / f"{name}.pt"
        return torch.load(path, map_location=device, weights_only=True)

    def complete(self, **figures: Any) -> None:
        self.update(status="completed", **figures)
        self.close()

    def fail(self, error: BaseException) -> None:
        """Keep the error; its traceback goes to the summary and the log file."""
        text = "".join(traceback.format_exception(error))
        log.error(text, extra={"file_only": True})
        self.update(status="failed", error=f"{type(error).__name__}: {error}", traceback=text)
        self.close(exit_code=1)

    def close(self, exit_code: int = 0) -> None:
        """Finish W&B and the log file; the status stays what it is."""
        if self.rows:
            draw_history(self.rows, self.name).savefig(self.folder / "history.png", dpi=150)
        with no_harm():
            if self.wandb:
                self.wandb.summary.update({key: value for key, value in self.summary.items() if key != "traceback"})
                self.wandb.finish(exit_code=exit_code)
        logging.getLogger().removeHandler(self.log_handler)
        self.log_handler.close()

    def write_summary(self) -> None:
        write(self.folder / "summary.json", json.dumps(self.summary, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def identity(config: cfg.Config) -> str:
    """A short hash of all that determines the run's result."""
    determining = {
        path: value
        for path, value, _ in cfg.keys_of(config)
        if not any(path == key or path.startswith(key + ".") for key in cfg.NOT_IDENTITY)
    }
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:8]


def folder_name(config: cfg.Config, overrides: list[str]) -> str:
    """Readable first, unique by its end; free of what a shell or Hydra would trip over."""
    readable = re.sub(r"[^\w.+-]+", "_", "-".join(display_name(overrides).split())).strip("_")
    return f"{readable[:100]}-{identity(config)}"


def display_name(overrides: list[str]) -> str:
    """What sets a run apart, e.g. "kernel_size=5 depth=8"; "baseline" where nothing does."""
    named = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if not any(key == unnamed or key.startswith(unnamed + ".") for unnamed in UNNAMED):
            named.append(f"{key.rpartition('.')[2]}={value}")
    return " ".join(named) or "baseline"


def draw_history(rows: list[dict[str, Any]], title: str) -> Figure:
    """Loss and accuracy by epoch, training beside validation."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    epochs = [row["epoch"] for row in rows]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, color in (("train", "#0072B2"), ("val", "#D55E00")):
            values = [row[f"{part}/{metric}"] for row in rows]
            if None not in values:
                percent = [100 * value for value in values] if metric == "accuracy" else values
                axes.plot(epochs, percent, color=color, marker="o" if len(rows) < 3 else None, label=part)
        axes.set(xlabel="epoch", ylabel="accuracy, %" if metric == "accuracy" else "loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


# Weights & Biases.

CONNECT_SECONDS = 15  # to wait for the server at the start
FINISH_SECONDS = 120  # and at the end, for the last figures; they stay on disk
unreachable = False  # once the server could not be had, this process does not wait for it again


def start_wandb(config: cfg.Config, folder: Path, name: str) -> Any:
    """A W&B run inside the run's folder, or None where wandb.mode=disabled.

    Where the server cannot be reached or refuses, the run is recorded offline, to be synchronized later.
    """
    global unreachable
    if config.wandb.mode == "disabled":
        return None
    import wandb

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            mode=mode,
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=config.sweep,
            name=name,
            tags=config.wandb.tags,
            config=asdict(config),
            dir=str(folder.absolute()),  # its service may work in another folder
            settings=wandb.Settings(
                init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS, silent=True, console="off"
            ),
        )

    if config.wandb.mode == "online" and not unreachable:
        try:
            return start("online")
        except wandb.Error as error:
            unreachable = True
            log.warning(
                f"W&B is out of reach ({first_line(error)}); this run is recorded offline. "
                f"Later: wandb sync {folder}/wandb/offline-*"
            )
    return start("offline")


@contextmanager
def no_harm() -> Iterator[None]:
    """Training goes on whatever W&B runs into; all of it is in the run's folder anyway."""
    try:
        yield
    except Exception as error:
        log.warning(f"W&B: {first_line(error)}")


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
