"""Checkpoints: everything a run needs to resume as if it had never stopped.

checkpoints/last.pt is the state, checkpoints/previous.pt the one before it, in case the last was cut
off; checkpoints/best.pt holds the best epoch's weights, and alone stays after completion. Each is
written whole or not at all, and read without running code from it.
"""

import logging
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from config import schema
from config.errors import ConfigError, first_line
from data.splits import DataSplits
from runtime.files import whole
from weights import archive

log = logging.getLogger(__name__)

FORMAT = 2  # of last.pt; another cannot be resumed from


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
        self.written_at = time.monotonic()
        self.cost = 0.0  # seconds that the last took to write

    def is_due(self, epoch: int | None = None) -> bool:
        """Whether to write now, at the end of an epoch or between two steps."""
        waited = time.monotonic() - self.written_at
        if epoch is None:
            return self.config.minutes is not None and waited > 60 * self.config.minutes
        if self.config.epochs is None or epoch % self.config.epochs:
            return False
        return waited * self.config.max_share >= self.cost

    def save(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write the state, and the best weights where they are new."""
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

    def load(self, epochs: int) -> dict[str, Any] | None:
        """Read the latest state that is intact and this run's; None to start from the beginning.

        Args:
            epochs: of the whole run.
        """
        for path in self.states:
            if not path.exists():
                continue
            try:
                state = archive.load(path)
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
            return state
        return None

    def remove_states(self) -> None:
        """Remove the states of a run that is completed, apart from checkpoint.keep=all."""
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
            archive.load(path)["model"]
        except Exception as error:  # a cut-off file fails in many ways
            return f"{path} {'is missing' if isinstance(error, OSError) else f'cannot be read ({first_line(error)})'}"
        return None

    def load_best(self) -> dict[str, Any]:
        """Read the best epoch's weights.

        Raises:
            ConfigError: the file is missing or damaged; the next start trains the run from the beginning.
        """
        if problem := self.problem_of_best():
            for path in filter(Path.exists, self.states):
                set_aside(path, problem)
            raise ConfigError(f"{problem}. Fix: put it back, or run the same command again to train from the beginning")
        return archive.load(self.folder / "best.pt")


def set_aside(path: Path, reason: str) -> None:
    """Rename a state that cannot be used, or it would take the place of a good one."""
    log.warning(f"{path} is not used: {reason}")
    with suppress(FileNotFoundError):  # another rank was first
        path.rename(f"{path}.unusable")


def describe_model(config: schema.Config, data: DataSplits) -> dict[str, Any]:
    """What a checkpoint holds beside the weights, so that they can be used without the run's data."""
    return {
        "config": asdict(config),
        "classes": data.classes,
        "channels": data.channels,
        "image_size": list(data.image_size),
        "mean": list(data.mean),
        "std": list(data.std),
    }
