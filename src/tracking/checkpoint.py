"""Checkpoints: everything a run needs to resume as if it had never stopped.

checkpoints/last.pt is the state, checkpoints/previous.pt the one before it, in case the last was cut
off; checkpoints/best.pt holds the best epoch's weights, and alone stays after completion. Each is
written whole or not at all, and read without running code from it.
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

log = logging.getLogger(__name__)

FORMAT = 2  # of last.pt; another cannot be resumed from


@strict
class Best(TypedDict):
    """The content of best.pt beside its description."""

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
    """The content of last.pt beside its description (training/state.py)."""

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
        folder: where they are.
        run_id: the run's; the state of another run is not taken.
        config: how often a state is written.
    """

    def __init__(self, folder: Path, run_id: str, config: schema.Checkpoint) -> None:
        self.folder, self.config = folder, config
        self.header = {"identity": run_id, "format": FORMAT}
        self.loaded: Path | None = None
        self.written_at = time.monotonic()
        self.cost = 0.0  # seconds that the last took to write

    def is_due(self, epoch: int | None = None) -> bool:
        """Check whether to write now, at the end of an epoch or between two steps."""
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
        """Read the latest intact state of this run; None to start from the beginning.

        Args:
            epochs: of the whole run.
        """
        for path in self.states:
            if not path.exists():
                continue
            try:
                state: State = check_type(State, archive.load(path))
                if {key: state.get(key) for key in self.header} != self.header:
                    raise ValueError("it is of another run, or of another version of this code")
            except Exception as error:  # a cut-off file fails in many ways
                set_aside(path, first_line(error))
                continue
            problem = self.problem_of_best() if state["rows"] else None
            if problem and state["epoch"] > epochs:
                set_aside(path, f"{problem}, and no epoch is left to replace it")
                continue
            if problem:
                log.warning(f"{problem}: the run needs a better epoch than those before, or starts again after it")
            self.loaded = path
            return state
        return None

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Restore the loaded state within this context; set a state aside that does not fit the run.

        Raises:
            ConfigError: it does not fit; the next start takes the state before it.
        """
        try:
            yield
        except Exception as error:  # PyTorch raises whatever its objects raise
            assert self.loaded
            set_aside(self.loaded, first_line(error))
            raise ConfigError(
                f"{self.loaded} does not fit the run ({first_line(error)}). Fix: run the same command again, which "
                "takes the state before it, or begins anew"
            ) from error

    def remove_states(self) -> None:
        """Remove last.pt and previous.pt, once the run is completed, unless checkpoint.keep=all."""
        if self.config.keep == "best":
            for path in self.states:
                path.unlink(missing_ok=True)

    @property
    def states(self) -> tuple[Path, Path]:
        return self.folder / "last.pt", self.folder / "previous.pt"

    def problem_of_best(self) -> str | None:
        """Explain why best.pt cannot be read; None if it can."""
        path = self.folder / "best.pt"
        try:
            check_type(Best, archive.load(path))
        except Exception as error:  # a cut-off file fails in many ways
            return f"{path} {'is missing' if isinstance(error, OSError) else f'cannot be read ({first_line(error)})'}"
        return None

    def load_best(self, model: nn.Module) -> None:
        """Load the best epoch's weights into the model.

        Raises:
            ConfigError: the file is missing or damaged; the next start trains the run from the beginning.
        """
        problem = self.problem_of_best()
        if not problem:
            try:
                model.load_state_dict(archive.load(self.folder / "best.pt")["model"])
            except Exception as error:  # PyTorch raises whatever its objects raise
                problem = f"{self.folder / 'best.pt'} does not fit the run ({first_line(error)})"
        if problem:
            for path in filter(Path.exists, self.states):
                set_aside(path, problem)
            raise ConfigError(f"{problem}. Fix: put it back, or run the same command again to train from the beginning")


def set_aside(path: Path, reason: str) -> None:
    """Rename a state that cannot be used, as it would replace a good one."""
    log.warning(f"{path} is not used: {reason}")
    with suppress(FileNotFoundError):  # another rank was first
        path.rename(f"{path}.unusable")


def describe_model(config: schema.Config, data: DataSplits) -> dict[str, Any]:
    """Describe the model for a checkpoint, so that it can be used without the run's data."""
    return {
        "config": asdict(config),
        "classes": data.classes,
        "channels": data.channels,
        "image_size": list(data.image_size),
        "mean": list(data.mean),
        "std": list(data.std),
    }
