"""Checkpoints: everything a run needs to resume as if it had never stopped.

checkpoints/last.pt is the latest state, and checkpoints/previous.pt the one before it, in case last.pt is damaged.
checkpoints/best.pt holds the best epoch's weights; it alone is kept after completion. The files are written atomically,
and reading them runs no code.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge
from torch import nn
from typing_extensions import TypedDict

from config import schema
from config.errors import ConfigError, first_line
from config.typed import Finite, Whole, check_type, strict
from data.splits import DataSplits
from runtime.files import whole
from weights import archive
from weights.files import reason

log = logging.getLogger(__name__)

FORMAT = 2  # version of last.pt; a run does not resume from other versions


@strict
class Best(TypedDict):
    """The content of best.pt, except for its description."""

    model: dict[str, Any]


Row = TypedDict(
    "Row",
    {
        "epoch": Whole, "images": Whole, "train/loss": float, "train/accuracy": float,
        "val/loss": float | None, "val/accuracy": float | None,
    },
)  # fmt: skip
strict(Row)


@strict
class State(TypedDict):
    """The content of last.pt (training/state.py), except for its description."""

    identity: str
    format: int
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    metrics: dict[str, Any]
    epoch: Annotated[Whole, Ge(1)]
    step: Annotated[Whole, Ge(0)]
    epoch_seconds: Finite
    seconds: Finite
    selection: NotRequired[dict[str, Any] | None]
    rows: list[Row]


class Checkpoints:
    """A run's checkpoints folder.

    Args:
        folder: The folder checkpoints/ of the run.
        run_id: The run's ID; states of other runs are not loaded.
        config: The schedule of checkpoints.
    """

    def __init__(self, folder: Path, run_id: str, config: schema.Checkpoint) -> None:
        self.folder, self.config = folder, config
        self.header = {"identity": run_id, "format": FORMAT}
        self.loaded: Path | None = None
        self.written_at = time.monotonic()
        self.cost = 0.0  # seconds spent on the last checkpoint

    def is_due(self, epoch: int | None = None) -> bool:
        """Return True if a checkpoint is due, at the end of `epoch`, or without it between two steps."""
        waited = time.monotonic() - self.written_at
        if epoch is None:
            return self.config.minutes is not None and waited > 60 * self.config.minutes
        if self.config.epochs is None or epoch % self.config.epochs:
            return False
        return waited * self.config.max_share >= self.cost

    def save(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write the state, and the best weights if they are new."""
        started = time.monotonic()
        if best is not None:
            with whole(self.folder / "best.pt") as temporary:
                torch.save(best, temporary)
        last = self.folder / "last.pt"
        if last.exists():
            last.replace(self.folder / "previous.pt")
        with whole(last) as temporary:
            torch.save({**self.header, **state}, temporary)
        self.written_at = time.monotonic()
        self.cost = self.written_at - started

    def load(self, epochs: int) -> Any:
        """Read the latest intact state of this run of `epochs` epochs; None to start from the beginning."""
        for path in self.states:
            if not path.exists():
                continue
            try:
                state: State = read_checked(path, State)
                if {key: state.get(key) for key in self.header} != self.header:
                    raise ValueError("it belongs to another run, or to another version of this code")
            except ValueError as error:
                set_aside(path, first_line(error))
                continue
            problem = self.problem_of_best() if state["rows"] else None
            if problem and state["epoch"] > epochs:
                set_aside(path, f"{problem}, and no epoch is left to replace it")
                continue
            if problem:
                log.warning(f"{problem}: unless a later epoch becomes the best, the run must start from the beginning")
            self.loaded = path
            return state
        return None

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Restore the loaded state within this context; set the state aside if it does not fit the run.

        Raises:
            ConfigError: The state does not fit; the next start loads the state before it.
        """
        try:
            yield
        except Exception as error:  # PyTorch raises errors of many types.
            assert self.loaded
            set_aside(self.loaded, first_line(error))
            raise ConfigError(
                f"{self.loaded} does not fit the run ({first_line(error)}). Fix: run the same command again, which "
                "resumes from the state before it, or starts from the beginning"
            ) from error

    def remove_states(self) -> None:
        """Remove last.pt and previous.pt, once the run is completed, unless checkpoint.keep=all."""
        if self.config.keep == "best":
            for path in self.states:
                path.unlink(missing_ok=True)

    @property
    def states(self) -> tuple[Path, Path]:
        """The paths of both states, the latest first."""
        return self.folder / "last.pt", self.folder / "previous.pt"

    def problem_of_best(self) -> str | None:
        """Explain why best.pt cannot be read; return None if it is intact."""
        path = self.folder / "best.pt"
        try:
            read_checked(path, Best)
        except ValueError as error:
            return f"{path} {f'cannot be read ({first_line(error)})' if path.exists() else 'is missing'}"
        return None

    def load_best(self, model: nn.Module) -> None:
        """Load the best epoch's weights into the model.

        Raises:
            ConfigError: The file is missing or damaged; the next start trains the run from the beginning.
        """
        file = self.folder / "best.pt"
        try:
            model.load_state_dict(read_checked(file, Best)["model"])
        except Exception as error:  # PyTorch raises errors of many types.
            problem = self.problem_of_best() or f"{file} does not fit the run ({first_line(error)})"
            for path in filter(Path.exists, self.states):
                set_aside(path, problem)
            raise ConfigError(
                f"{problem}. Fix: restore it, or run the same command again to train from the beginning"
            ) from error


def read_checked(path: Path, kind: Any) -> Any:
    """Read a checkpoint.

    Raises:
        ValueError: It is missing, damaged, or of another type; the message does not name the file.
    """
    try:
        content = archive.load_archive(path)
    except Exception as error:  # Damaged files raise errors of many types.
        raise ValueError(reason(error, path) if path.exists() else "it is missing") from error
    return check_type(kind, content)


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged state, which would otherwise replace an intact one as previous.pt."""
    log.warning(f"{path} is not used: {reason}")
    with suppress(FileNotFoundError):  # Another rank has renamed it.
        path.rename(f"{path}.unusable")


def describe_model(config: schema.Config, data: DataSplits) -> dict[str, Any]:
    """Describe the model for a checkpoint, which can then be used without the run's data."""
    return {
        "config": asdict(config),
        "classes": data.classes,
        "channels": data.channels,
        "image_size": list(data.image_size),
        "mean": list(data.mean),
        "std": list(data.std),
    }
