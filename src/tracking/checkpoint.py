"""Checkpoints: everything a run needs to go on as if it had never stopped.

checkpoints/last.pt is the state, checkpoints/previous.pt the one before it, in case the last was cut
off; checkpoints/best.pt holds the best epoch's weights. Each is written whole or not at all, and read
without running code from it.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from config import schema

log = logging.getLogger(__name__)


class Checkpoints:
    """A run's checkpoints folder.

    Args:
        folder: where they are.
        identity: of the run; a state of another run is not taken.
        config: how often a state is written.
    """

    def __init__(self, folder: Path, identity: str, config: schema.Checkpoint) -> None:
        self.folder, self.identity, self.config = folder, identity, config
        self.written_at = time.monotonic()
        self.cost = 0.0  # seconds that writing took
        self.unusable: set[Path] = set()

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
            write(best, self.folder / "best.pt")
        last = self.folder / "last.pt"
        if last.exists():  # one that is no good must not take the place of the one before it
            last.replace(self.folder / ("last.pt.unusable" if last in self.unusable else "previous.pt"))
            self.unusable.discard(last)
        write({"identity": self.identity, **state}, last)
        self.written_at = time.monotonic()
        self.cost = self.written_at - started

    def load(self) -> dict[str, Any] | None:
        """The latest state that is whole and this run's, or None."""
        for name in ("last.pt", "previous.pt"):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if state["identity"] == self.identity:
                    return state
                reason = "it is of another run"
            except Exception as error:  # a cut-off file fails in many ways
                reason = f"it cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            log.warning(f"{path} is not used: {reason}")
            self.unusable.add(path)
        return None

    def load_best(self) -> dict[str, Any]:
        return torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True)


def write(content: dict[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())  # or a machine that goes down leaves a name without content
    temporary.replace(path)
