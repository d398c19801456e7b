"""Tests of the progress and the ETA of a sweep."""

import gc
import json
import os
from pathlib import Path
from typing import cast

import pytest
from filelock import FileLock
from torch import nn

from comparison.progress import Progress, progress, under_way
from conftest import checked
from sweeps.launch import record_grid
from sweeps.plan import Job
from training.summary import summarize

DEPTHS = (1, 2, 4, 8)


def write_summary(folder: Path, depth: int, **figures: object) -> None:
    run = folder / f"depth_{depth}-id{depth}"
    run.mkdir(exist_ok=True)
    (run / "summary.json").write_text(json.dumps(figures))


def test_the_time_left_follows_from_what_completed_runs_took(tmp_path: Path) -> None:
    assert progress(tmp_path) is None
    configs = {depth: checked(f"model.depth={depth}", "trainer.epochs=10") for depth in DEPTHS}
    record_grid(
        tmp_path, [Job([f"model.depth={depth}"], configs[depth], f"id{depth}", {}) for depth in DEPTHS], ["model.depth"]
    )
    write_summary(tmp_path, 2, status="interrupted", epochs=5)
    (tmp_path / ".locks").mkdir()
    with FileLock(tmp_path / ".locks" / "id2.lock"):
        assert progress(tmp_path) == Progress(ended=0, running=1, left=3, seconds=None)
        write_summary(tmp_path, 1, status="completed", epochs=10, seconds=10.0)
        assert progress(tmp_path) == Progress(1, 1, 2, cast(float, pytest.approx(10 + 40 + 80)))
        current = progress(tmp_path, starting=1)
        assert current and current.seconds == pytest.approx(80), "two at once take as long as the longest"
        assert progress(tmp_path, starting=1, at_once=2) == current, "the second is the one that runs already"
    stopped = progress(tmp_path)
    assert stopped == Progress(ended=1, running=0, left=3, seconds=None)
    current = progress(tmp_path, starting=1, at_once=2)
    assert current and current.seconds == pytest.approx(80), "the others are about to begin"
    for depth in DEPTHS:
        write_summary(tmp_path, depth, status="failed")
    assert progress(tmp_path) is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.kernel_size=4"],
        ["model.patch_size=1", "data.image_size=16"],
        ["model.d_model=7"],
        ["model.patch_size=8"],
    ],
)
def test_a_runs_size_is_that_of_its_layers(overrides: list[str]) -> None:
    config = checked("data.val_fraction=0.2", *overrides)
    parts = summarize(config, 1, 10, (config.data.image_size or 8,) * 2)
    layers = sum(part.macs for part in parts if part.name in ("depthwise", "pointwise"))
    assert Job(overrides, config, "", {}).epoch_size == pytest.approx(0.8 * layers)


@pytest.mark.slow
def test_model_summaries_leave_no_parameters_in_memory() -> None:
    def count_parameters() -> int:
        summarize(checked(), 1, 10, (8, 8))
        gc.collect()
        return sum(type(item) is nn.Parameter for item in gc.get_objects())

    assert count_parameters() == count_parameters()


def test_search_is_under_way_while_its_process_holds_the_folder(tmp_path: Path) -> None:
    record = {"progress": "3 of 20 trials ended", "lines": [], "keys": [], "trials": []}
    (tmp_path / "search.json").write_text(json.dumps(record))
    assert under_way(tmp_path) is None
    with FileLock(tmp_path / "sweep.lock"):
        assert under_way(tmp_path) == "3 of 20 trials ended"
        (tmp_path / "search.json").unlink()
        assert under_way(tmp_path)
    (tmp_path / "sweep.lock").unlink()
    os.mkfifo(tmp_path / "sweep.lock")
    assert under_way(tmp_path) is None
