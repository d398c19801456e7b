"""Types of files that are read back: summary.json of a run, sweep.json of a grid."""

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


def number(value: Any) -> float | None:
    """Return a figure of a summary; None if it is no finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= sys.float_info.max else None
