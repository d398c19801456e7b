"""Tests of the runs of a comparison: copied, repeated, on other images, unreadable, running."""

import fcntl
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from comparison.results import read
from rendering.findings import caveats, warnings
from run_folders import KERNEL, names, write_run, write_sweep
from tracking import run_lock


def test_a_seed_run_twice_is_no_second_sample(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", {(5, 8): [0.9]})
    write_sweep(tmp_path / "b", {(5, 8): [0.92]})
    (setting,) = read([tmp_path / "a", tmp_path / "b", tmp_path / "a"]).settings
    estimate = setting.estimate("val/accuracy")
    assert estimate and (estimate.n, estimate.low) == (1, None) and estimate.value == pytest.approx(0.91)


@pytest.mark.parametrize("copy", ["a-copy", "z-copy"])
def test_a_copied_folder_does_not_replace_its_run(tmp_path: Path, copy: str) -> None:
    for name, status, epochs in ((copy, "interrupted", 1), ("m", "completed", 2), (f"{copy} 2", "interrupted", 2)):
        write_run(tmp_path / "s" / name, status=status, epochs=epochs, wandb_id="1f", best__val__accuracy=epochs / 10)
    write_run(tmp_path / "s" / "other", wandb_id="2e", best__val__accuracy=0.5)
    comparison = read([tmp_path / "s"])
    assert names(comparison) == {"m", "other"}
    assert [line for line in warnings(comparison) if f"/{copy} is" in line and "/m:" in line]


@pytest.mark.parametrize(
    ("key", "metric", "differs"),
    [
        ("data.name=cifar10", "val/accuracy", True), ("data.split_seed=1", "val/accuracy", True),
        ("data.split_seed=1", "test/accuracy", False), ("optimizer.lr=0.5", "val/accuracy", False),
    ],
)  # fmt: skip
def test_results_on_different_images_are_said_to_be(tmp_path: Path, key: str, metric: str, differs: bool) -> None:
    write_run(tmp_path / "s" / "a", best__val__accuracy=0.9, test__accuracy=0.9)
    write_run(tmp_path / "s" / "b", key, best__val__accuracy=0.8, test__accuracy=0.9)
    lines = warnings(read([tmp_path / "s"], metric=metric))
    assert bool(lines) is differs and all(key.partition("=")[0] in line for line in lines)


def test_the_number_of_images_is_that_of_all_runs_or_none(tmp_path: Path) -> None:
    for name, images in (("a", 144), ("b", 24)):
        counts = {"train": 1, "val": images, "test": 1}
        write_run(tmp_path / "s" / name, f"{KERNEL}={images}", images=counts, best__val__accuracy=0.9)
    comparison = read([tmp_path / "s"])
    assert not any("rests on" in line for line in caveats(comparison))
    assert "144 images" in warnings(comparison)[0] and "24 images" in warnings(comparison)[0]


def test_runs_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for name, file, content in (
        ("no_config", "config.yaml", None), ("no_summary", "summary.json", None), ("cut", "summary.json", '{"sta'),
        ("list", "summary.json", "[]"), ("yaml", "config.yaml", "a: [1"), ("binary", "config.yaml", "\udcff"),
        ("words", "config.yaml", "just words"), ("odd", "config.yaml", "model: {kernel_size: [{a: 1}]}\nseed: 0"),
    ):  # fmt: skip
        path = write_run(tmp_path / "s" / name, best__val__accuracy=0.8) / file
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode(errors="surrogateescape"))
    runs = {run.folder.name: run for run in read([tmp_path / "s"]).runs}
    assert {run.status for run in runs.values()} == {"unreadable"} and len(runs) == 8
    assert all("\n" not in run.reason for run in runs.values())
    assert "summary.json" in runs["cut"].reason and "config.yaml" in runs["yaml"].reason
    assert "model.kernel_size" in runs["odd"].reason


# Locks.


HOLD = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s" / "kernel_size_5-01234567", status="interrupted", epochs=1)
    write_run(tmp_path / "s" / "pruned-45670123", status="pruned", epochs=1)
    (tmp_path / "s" / ".locks").mkdir()

    def statuses() -> dict[str, str]:
        return {run.folder.name.rpartition("-")[2]: run.status for run in read([tmp_path / "s"]).runs}

    assert statuses() == {"01234567": "interrupted", "45670123": "pruned"}
    assert not list((tmp_path / "s" / ".locks").iterdir()), "looking makes no lock"
    lock = tmp_path / "s" / ".locks" / "01234567.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"held\n"
        assert statuses() == {"01234567": "running", "45670123": "pruned"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.exists() and statuses() == {"01234567": "interrupted", "45670123": "pruned"}
    assert run.exists()


def test_who_only_looks_does_not_keep_a_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 60)
    path = tmp_path / "0123abcd.lock"
    path.touch()
    with ThreadPoolExecutor() as pool, path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        starting = pool.submit(run_lock.acquire_lock, path)
        assert not starting.done()
        fcntl.flock(file, fcntl.LOCK_UN)
        lock = starting.result()
    assert lock is not None
