"""Types of files that are read back: a run's summary.json and a sweep's files.

sweep.json lists the runs of a grid. The page of a comparison shows search.json, race.json and images.json.
"""

import sys
from typing import Annotated, Any, Literal, Required

from annotated_types import Ge
from typing_extensions import TypedDict

from config.typed import Finite, Plain, Whole, strict


@strict
class Summary(TypedDict, total=False):
    """A run's summary.json; further keys are figures and words for readers."""

    status: Required[Literal["completed", "failed", "interrupted", "pruned", "running"]]
    name: str
    wandb_id: str
    run_id: str
    data_fingerprint: str
    overrides: dict[str, Plain]
    varied: list[str]
    choices: dict[str, str | None]
    images: dict[str, Whole]
    epochs: Annotated[Whole, Ge(0)]
    macs: Whole
    objective: float | None
    seconds: float | None


@strict
class PlannedRun(TypedDict):
    """A run of a grid in sweep.json, which has them by their IDs."""

    data: str
    epochs: Whole
    epoch_size: Finite


@strict
class TrialRecord(TypedDict):
    number: Whole
    status: str
    value: Finite | None  # the monitored metric
    low: Finite | None  # the metric of the worst seed
    high: Finite | None  # the metric of the best seed
    params: dict[str, Plain]
    runs: list[str]  # IDs


@strict
class SearchedKey(TypedDict):
    key: str
    is_log: bool
    choices: list[Plain] | None  # None for a range
    importance: Finite | None
    by_chance: Finite | None


@strict
class SearchRecord(TypedDict):
    progress: str  # empty at the end of the search
    lines: list[str]  # findings; empty before the end
    keys: list[SearchedKey]  # by importance, the highest first
    trials: list[TrialRecord]


@strict
class Racer(TypedDict):
    name: str
    seeds: Whole
    value: str
    behind: str
    outcome: str
    is_dropped: bool
    runs: list[str]  # IDs


@strict
class RaceRecord(TypedDict):
    progress: str  # empty at the end of the race
    lines: list[str]  # findings; empty before the end
    rounds: list[Whole]  # seeds of a setting after each round
    settings: list[Racer]  # remaining settings, then dropped ones


@strict
class Picture(TypedDict):
    src: str
    caption: list[str]


@strict
class PictureRow(TypedDict):
    title: str
    images: list[Picture]


@strict
class Pictures(TypedDict):
    """The content of images.json: the test images that are won and lost most clearly."""

    runs: list[str]  # IDs of the runs compared
    legend: str
    rows: list[PictureRow]


def number(value: Any) -> float | None:
    """Return a figure of a summary, or None if it is not a finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= sys.float_info.max else None
