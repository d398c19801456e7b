"""Tests of the count of cores, and of a run's advice if other processes use them."""

import os
import time
from pathlib import Path

import pytest

from runtime import cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
pytestmark = pytest.mark.skipif(not cores.STAT.is_file(), reason="needs Linux")


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, busy: int, seconds: float = 1000) -> None:
    """Pretend that the process started some seconds ago, and that others have used so many of its cores since."""
    ours = sum(os.times()[:4])
    lines = [
        f"cpu{core} {round((ours + busy * seconds) * os.sysconf('SC_CLK_TCK')) if i == 0 else 0} 0 0 900000 0 0 0 0 0 0"
        for i, core in enumerate(sorted(os.sched_getaffinity(0)))
    ]
    stat = folder / "stat"
    stat.write_text("\n".join(["cpu 1 2 3 4", *lines, "cpu999999 900000 0 0 0 0 0 0 0 0 0", "intr 1 2 3"]))
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr(cores, "STARTED", (time.monotonic() - seconds, 0.0))


@pytest.mark.parametrize("busy", [0, 1, 3])
def test_busy_cores_are_those_of_other_processes(busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, tmp_path, busy)
    assert cores.busy_cores() == pytest.approx(busy, abs=0.05)


def test_threads_that_fit_are_named_beside_busy_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, tmp_path, busy=CORES)
    assert "OMP_NUM_THREADS=1 " in cores.too_many_threads(2)
    assert not cores.too_many_threads(1)
    start(monkeypatch, tmp_path, busy=0)
    assert not cores.too_many_threads(CORES)


def test_seconds_of_others_are_read_from_the_machine() -> None:
    seconds = cores.seconds_of_others()
    assert 0 < seconds < float("inf")
    assert cores.seconds_of_others() >= seconds - 1
