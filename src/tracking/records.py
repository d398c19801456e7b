"""Types of files that are read back: summary.json of a run, and those of a sweep.

sweep.json lists the runs of a grid; search.json, race.json and images.json are for the page of a comparison.
"""

import sys
from typing import Annotated, Any, Literal, Required

from annotated_types import Ge
from typing_extensions import TypedDict

from config.typed import Finite, Plain, Whole, strict


@strict
class Summary(TypedDict, total=False):
    """A run's summary.json; its other keys are figures, or words that nothing depends on."""

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
    """A run of a grid, by its ID in sweep.json."""

    data: str
    epochs: Whole
    epoch_size: Finite


@strict
class Trial(TypedDict):
    number: Whole
    status: str
    value: Finite | None  # of the monitored metric
    low: Finite | None  # of its seeds
    high: Finite | None
    params: dict[str, Plain]
    runs: list[str]  # IDs


@strict
class SearchedKey(TypedDict):
    key: str
    is_log: bool
    choices: list[Plain] | None  # None: a range
    importance: Finite | None
    by_chance: Finite | None


@strict
class Search(TypedDict):
    progress: str  # empty at its end
    lines: list[str]  # its findings; empty before its end
    keys: list[SearchedKey]  # the most important first
    trials: list[Trial]


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
class Race(TypedDict):
    progress: str  # empty at its end
    lines: list[str]  # the outcome; empty before its end
    rounds: list[Whole]  # seeds after each
    settings: list[Racer]  # those in question, then those dropped


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
    """The test images that are won and lost most clearly."""

    runs: list[str]  # IDs of the runs compared
    legend: str
    rows: list[PictureRow]


def number(value: Any) -> float | None:
    """Return a figure of a summary; None if it is no finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= sys.float_info.max else None
