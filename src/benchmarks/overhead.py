"""What a run's record and checkpoints cost it."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.setting import make_config
from runtime.console import print_table
from tracking.checkpoint import Checkpoints
from tracking.run_folder import Record
from training import run as one_run


def run(overrides: list[str]) -> None:
    """The share of a run's time that goes into being able to go on with it, at the default interval.

    Counted is all time spent in checkpoints, in metrics.csv and summary.json, and in seeding every step.
    """
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    Checkpoints.save = timed("checkpoints", Checkpoints.save)  # type: ignore[method-assign]
    Record.add_epoch = timed("metrics.csv, summary.json", Record.add_epoch)  # type: ignore[method-assign]
    one_run.seed_rngs = timed("seeding every step", one_run.seed_rngs)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(["wandb.mode=disabled", *overrides, f"output_dir={folder}", "sweep=overhead"])
        started = time.perf_counter()
        one_run.run(config, overrides)
        total = time.perf_counter() - started
    rows = [(name, f"{seconds:.3f}", f"{seconds / total:.2%}") for name, seconds in spent.items()]
    rows.insert(0, ("all of it", f"{sum(spent.values()):.3f}", f"{sum(spent.values()) / total:.2%}"))
    print_table(f"overhead of a run of {total:.1f} s", ("part", "seconds", "share"), rows)
