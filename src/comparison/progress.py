"""The progress of a grid and its ETA.

`sweep.json` in its folder lists the runs of the sweep's last command. The ETA assumes that the time of a run is
proportional to its size, and takes the factor from completed runs.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from runtime.claims import is_held
from runtime.console import duration
from runtime.files import read_json
from tracking.records import PlannedRun, RaceRecord, SearchRecord
from tracking.run_index import RunIndex
from tracking.run_lock import is_locked


@dataclass(frozen=True)
class Progress:
    """The progress of a grid.

    Attributes:
        ended: Number of completed or failed runs.
        running: Number of runs that a process is training.
        left: Number of other runs, which are new or interrupted.
        seconds: Time until all have ended, with as many at once as now; None if unknown.
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
        counts = f"{self.ended} of {runs} runs ended, {self.running} running, {self.left} to come"
        return f"{counts}: {self.time_left}" if self.time_left else counts


def under_way(folder: Path) -> str | None:
    """Describe the progress of the folder's sweep; None if it has ended."""
    if grid := progress(folder):
        return str(grid)
    if not is_held(folder / "sweep.lock"):  # a search or a race holds it
        return None
    chosen = [read_json(folder / "search.json", SearchRecord), read_json(folder / "race.json", RaceRecord)]
    return next((record["progress"] for record in chosen if record.get("progress")), "the first runs are being trained")


def progress(folder: Path, starting: int = 0, at_once: int = 0) -> Progress | None:
    """Estimate the progress of a grid; None without a grid, or if all runs have ended.

    Args:
        folder: The sweep's folder.
        starting: Number of runs that are about to start.
        at_once: The least number of runs that train at once, counting those not yet started.
    """
    runs = pd.DataFrame.from_dict(read_json(folder / "sweep.json", dict[str, PlannedRun]), orient="index")
    index = RunIndex(folder)
    records = pd.DataFrame(map(index.summary, runs.index), runs.index, ["status", "epochs", "seconds"])
    ended = records.status.isin(["completed", "failed"])
    if ended.all():
        return None
    running = sum(is_locked(index.folders[run_id]) for run_id in runs.index[~ended] if run_id in index.folders)
    done = runs.epoch_size * records.epochs.fillna(0)
    remaining = runs.epoch_size * runs.epochs - done
    completed = records.status == "completed"
    spent = records.seconds[completed].groupby(runs.data).sum()  # data sets differ in images an epoch
    times = remaining[~ended] * runs.data.map(spent / done[completed].groupby(runs.data).sum())[~ended]
    at_once = max(at_once, running + starting)
    is_known = at_once and times.notna().all()
    seconds = max(times.max(), times.sum() / at_once) if is_known else None
    return Progress(int(ended.sum()), running, int((~ended).sum()) - running, seconds)
