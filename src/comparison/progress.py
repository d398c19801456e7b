"""Progress of a grid, and the time left.

`sweep.json` in its folder holds the runs that the sweep's last command asked for. What those that are left will take
follows from what the completed ones took, as if seconds were in proportion to the size of a run.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from comparison.formatting import duration
from runtime.claims import is_held
from runtime.files import read_json
from tracking.records import PlannedRun, Race, Search
from tracking.run_index import RunIndex
from tracking.run_lock import is_locked


@dataclass(frozen=True)
class Progress:
    """The progress of a grid.

    Attributes:
        ended: completed or failed runs.
        running: those that a process is training.
        left: the others: not begun, or interrupted.
        seconds: until all have ended, with as many at once as now; None where nothing tells.
    """

    ended: int
    running: int
    left: int
    seconds: float | None

    @property
    def time_left(self) -> str:
        return "" if self.seconds is None else f"about {duration(self.seconds)} left"

    def __str__(self) -> str:
        runs = self.ended + self.running + self.left
        told = f"{self.ended} of {runs} runs ended, {self.running} running, {self.left} to come"
        return f"{told}: {self.time_left}" if self.time_left else told


def under_way(folder: Path) -> str | None:
    """Say how far the folder's sweep is; None where it has ended."""
    if grid := progress(folder):
        return str(grid)
    if not is_held(folder / "sweep.lock"):  # a search or a race holds it
        return None
    chosen = [read_json(folder / "search.json", Search), read_json(folder / "race.json", Race)]
    return next((record["progress"] for record in chosen if record.get("progress")), "the first runs are being trained")


def progress(folder: Path, starting: int = 0, at_once: int = 0) -> Progress | None:
    """Estimate a grid's progress; None if no grid has recorded its runs, or all of them have ended.

    Args:
        folder: the sweep's.
        starting: runs that are about to be trained, besides those that are.
        at_once: as many are trained at once in any case, though some may not have begun.
    """
    runs = pd.DataFrame.from_dict(read_json(folder / "sweep.json", dict[str, PlannedRun]), orient="index")
    index = RunIndex(folder)
    told = pd.DataFrame(map(index.summary, runs.index), runs.index, ["status", "epochs", "seconds"])
    ended = told.status.isin(["completed", "failed"])
    if ended.all():
        return None
    running = sum(is_locked(index.folders[run_id]) for run_id in runs.index[~ended] if run_id in index.folders)
    done = runs.epoch_size * told.epochs.fillna(0)
    left = runs.epoch_size * runs.epochs - done
    completed = told.status == "completed"
    spent = told.seconds[completed].groupby(runs.data).sum()  # as many images in all runs on a data set
    each = left[~ended] * runs.data.map(spent / done[completed].groupby(runs.data).sum())[~ended]
    at_once = max(at_once, running + starting)
    known = at_once and each.notna().all()
    seconds = max(each.max(), each.sum() / at_once) if known else None
    return Progress(int(ended.sum()), running, int((~ended).sum()) - running, seconds)
