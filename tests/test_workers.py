"""Tests of the processes that load images: they pass on batches, end with their run, and ignore its signals."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import TINY, checked, command, start, summaries, wait_for
from data import datasets
from pipeline.batches import Loader, make_train_loader
from processes import REPOSITORY, environment_of

AUGMENTED = ("data.train_fraction=0.2", "augmentation=light", "data.num_workers=2", "data.batch_size=16")


@pytest.fixture
def loader() -> Loader:
    config = checked(*AUGMENTED)
    return make_train_loader(datasets.load(config.data, 1), config)


@pytest.fixture
def before() -> set[BaseProcess]:
    return set(multiprocessing.active_children())


def test_a_killed_worker_is_an_error_that_names_the_key(before: set[BaseProcess], loader: Loader) -> None:
    batches = iter(loader)
    next(batches)
    for worker in set(multiprocessing.active_children()) - before:
        worker.kill()
    with pytest.raises(RuntimeError, match=r"data\.num_workers"):
        list(batches)


def test_an_epoch_left_early_ends_its_workers(before: set[BaseProcess], loader: Loader) -> None:
    expected = list(loader)
    batches = iter(loader)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    del batches
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    for (pixels, labels), (same, same_labels) in zip(loader, expected, strict=True):
        assert torch.equal(pixels, same) and torch.equal(labels, same_labels)


@pytest.mark.slow
def test_batches_need_no_short_tmpdir(tmp_path: Path) -> None:
    (long := tmp_path / ("x" * 100)).mkdir()
    done = command(*TINY, *AUGMENTED, "sweep=s", cwd=tmp_path, TMPDIR=str(long))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [summary["status"] for summary in summaries(tmp_path / "outputs" / "s")] == ["completed"]


@pytest.mark.slow
def test_batches_need_no_shm(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    without = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=12k tmpfs /dev/shm; exec "$@"', "sh"]
    train = [sys.executable, str(REPOSITORY / "src" / "train.py"), *TINY, *AUGMENTED, "sweep=s"]
    done = subprocess.run(
        [*without, *train], cwd=tmp_path, env=environment_of(), timeout=200, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [summary["status"] for summary in summaries(tmp_path / "outputs" / "s")] == ["completed"]


@pytest.mark.slow
def test_a_signal_ends_a_run_whose_workers_hang(tmp_path: Path) -> None:
    process = start(*TINY, *AUGMENTED, "trainer.epochs=10000", "sweep=s", cwd=tmp_path)
    sweep = tmp_path / "outputs" / "s"
    wait_for(lambda: any(path.read_text().count("\n") > 2 for path in sweep.glob("*/metrics.csv")), process)
    pid = process.process.pid
    workers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # as if the images' file system did not answer
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert [summary["status"] for summary in summaries(sweep)] == ["interrupted"]
    assert list(sweep.glob("*/checkpoints/last.pt"))
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("evaluate", "data=image_folder data.root=. output=e"),
        ("evaluate", "data=image_folder data.root=. output=e split=train data.mean=[0.5,0.5] data.std=[0.5,0.5]"),
        ("predict", "images=test output=p.csv"),
    ],
)
def test_a_command_with_workers_ends(script: str, arguments: str, digits_run: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in range(10):
            (tmp_path / part / str(label)).mkdir(parents=True)
            for size in (12, 14):
                Image.new("L", (size, size), label * 20).save(tmp_path / part / str(label) / f"{size}.png")
    broken = tmp_path / "test" / "3" / "12.png"
    broken.write_text("no image")
    workers = (f"checkpoint={digits_run}", "data.num_workers=2", "data.batch_size=4")
    done = command(*workers, *arguments.split(), cwd=tmp_path, script=script)
    assert done.returncode == (1 if script == "evaluate" else 2), done.stdout + done.stderr
