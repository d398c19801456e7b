"""Tests of interrupted sweeps: runs are found again, continue where they were, and never run twice at once."""

import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import wandb_files
from conftest import command, metrics, start, summaries, wait_for
from interruption import SMALL, configured, signal_at_step
from runtime.distributed import World
from tracking.identity import run_id
from tracking.run_folder import RunBusy, RunFolder
from training import run

# Everything that a checkpoint must hold: dropout, mixing, averaging, loss scaling, a schedule, patience.
EVERYTHING = (
    *SMALL, "dropout=all", "augmentation=paper", "trainer.ema_decay=0.9", "trainer.precision=fp16",
    "trainer.early_stopping.patience=9", "trainer.accumulation_steps=2", "data.batch_size=30",
)  # fmt: skip


def test_a_completed_run_is_not_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configured(tmp_path)
    objective = run.run(config, ["model.depth=2"])
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert run.run(configured(tmp_path, "checkpoint.epochs=2", "wandb.project=other"), []) == objective
    assert "completed before" in caplog.text
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before


def test_another_configuration_is_another_run(tmp_path: Path) -> None:
    for overrides in ([], ["optimizer.lr=0.02"], ["seed=1"]):
        run.run(configured(tmp_path, "trainer.epochs=1", *overrides), [])  # the same name, as if conf/ had changed
    assert [summary["status"] for summary in summaries(tmp_path / "s")] == ["completed"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_run_stopped_by_a_signal_goes_on_with_the_same_command(tmp_path: Path, number: signal.Signals) -> None:
    arguments = (*SMALL, "trainer.epochs=10000", "wandb.mode=offline")
    process = start(*arguments, "sweep=s", cwd=tmp_path)
    csv = tmp_path / "outputs" / "s"
    wait_for(lambda: any(path.read_text().count("\n") > 3 for path in csv.glob("*/metrics.csv")), process)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert f"{number.name}: " in output
    (summary,) = summaries(csv)
    assert summary["status"] == "interrupted"
    assert 3 <= summary["epochs"] < 10000


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    overrides = (*EVERYTHING, "trainer.epochs=6", "wandb.mode=offline")
    undisturbed = command(*overrides, "sweep=whole", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stdout
    stops = 0
    for lines in (2, 4, 99):
        process = start(*overrides, "sweep=parts", cwd=tmp_path)
        sweep = tmp_path / "outputs" / "parts"
        reached = f"metrics.csv with {lines} lines"
        while process.poll() is None:
            if any(path.read_text().count("\n") >= lines for path in sweep.glob("*/metrics.csv")):
                time.sleep(0.05)  # somewhere within the next epoch
                process.send_signal(signal.SIGTERM)
                stops += 1
                break
            time.sleep(0.005)
        process.communicate(timeout=60)
    assert stops >= 2, reached
    assert process.returncode == 0
    assert metrics(tmp_path / "outputs" / "parts") == metrics(tmp_path / "outputs" / "whole")
    (parts,), (whole,) = summaries(tmp_path / "outputs" / "parts"), summaries(tmp_path / "outputs" / "whole")
    for key in ("status", "test/loss", "test/accuracy", "best/epoch", "objective", "epochs"):
        assert parts[key] == whole[key]
    # One W&B run, with every row once.
    (folder,) = [path.parent for path in (tmp_path / "outputs" / "parts").glob("*/metrics.csv")]
    seen = wandb_files.read(folder)
    assert [row["epoch"] for row in seen["history"] if "epoch" in row] == [1, 2, 3, 4, 5, 6]
    ids = {path.stem.partition("-")[2] for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert ids == {parts["wandb_id"]}


@pytest.mark.parametrize(
    "scheduler",
    ["one_cycle", "constant", "constant scheduler.warmup_epochs=1", "cosine", "step scheduler.decay_epochs=0.3"],
)
def test_run_resumed_within_an_epoch_equals_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    overrides = (f"scheduler={scheduler}".split()[0], *scheduler.split()[1:], "trainer.epochs=2", "data.batch_size=40")
    run.run(configured(tmp_path, *overrides, sweep="whole"), [])  # 10 steps an epoch
    with monkeypatch.context() as patched:
        signal_at_step(4, patched)
        with pytest.raises(SystemExit):
            run.run(configured(tmp_path, *overrides, sweep="parts"), [])
    (state,) = (tmp_path / "parts").glob("*/checkpoints/last.pt")
    saved = torch.load(state)
    assert (saved["epoch"], saved["step"]) == (1, 4)
    run.run(configured(tmp_path, *overrides, sweep="parts"), [])
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_run_of_another_name_is_the_same_run(tmp_path: Path) -> None:
    def record(*overrides: str) -> RunFolder:
        return RunFolder(configured(tmp_path, *overrides), list(overrides), World())

    first = record("dropout=blocks", "dropout.rate=0")
    with pytest.raises(RunBusy):
        record("dropout=head", "dropout.rate=0")
    first.release()
    second = record("dropout=head", "dropout.rate=0")
    assert second.path == first.path
    second.release()


def test_a_folder_of_images_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    def images(name: str, count: int) -> str:
        for part, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            folder = tmp_path / name / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
        return run_id(configured(tmp_path, "data=image_folder", f"data.root={tmp_path / name}"))

    assert images("here", 3) == images("moved", 3)
    assert images("other", 4) != images("another", 3)


def test_a_failed_run_is_tried_again(tmp_path: Path) -> None:
    config = configured(tmp_path, "data=image_folder", f"data.root={tmp_path / 'images'}")
    assert run.run(config, []).status == "failed"
    assert summaries(tmp_path / "s")[0]["status"] == "failed"
    assert run.run(config, []).status == "failed"
    assert len(summaries(tmp_path / "s")) == 1


def test_on_failure_stop_ends_the_sweep(tmp_path: Path) -> None:
    done = command("-m", "model.kernel_size=1000001,3", *SMALL, "sweep=s", "on_failure=stop", cwd=tmp_path)
    assert done.returncode == 1
    assert [summary["status"] for summary in summaries(tmp_path / "outputs" / "s")] == ["failed"]


def test_runs_go_on_after_one_diverges_or_lacks_memory(tmp_path: Path) -> None:
    done = command(
        "-m", "model.kernel_size=3,1000001", "optimizer.lr=0.01,1e30", "optimizer=sgd", "model.norm=none", *SMALL,
        "sweep=s", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    runs = summaries(tmp_path / "outputs" / "s")
    assert sorted(summary["status"] for summary in runs) == ["completed", "failed", "failed", "failed"]
    errors = " ".join(summary.get("error", "") for summary in runs)
    assert "NaN or infinite" in errors
    assert "memory" in errors
    assert done.stdout.count("FAILED") == 3


def test_two_processes_share_a_sweep(tmp_path: Path) -> None:
    arguments = ("-m", "model.kernel_size=3,5,7", *SMALL, "sweep=s", "wandb.mode=disabled")
    both = [start(*arguments, cwd=tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    sweep = tmp_path / "outputs" / "s"
    assert [summary["status"] for summary in summaries(sweep)] == ["completed"] * 3
    for log in sweep.glob("*/train.log"):
        assert log.read_text().count("ConvMixer-8/2") == 1  # each was started once
    assert any("another process" in output or "completed before" in output for output in outputs)


def rows(sweep: Path) -> int:
    """Count the completed epochs of all runs together."""
    return sum(path.read_text().count("\n") - 1 for path in sweep.glob("*/metrics.csv"))


KILLS = int(os.environ.get("KILLS", "2"))
MAIN_COMMAND = ("-m", "model.kernel_size=5,9", "model.depth=8,16")
IN_CI = (
    "-m", "model.kernel_size=3,5", "model.depth=1", "model.d_model=8", "dropout=all", "trainer.epochs=6",
    "data.train_fraction=0.2", "data.num_workers=1",
)  # fmt: skip


def test_sweep_killed_repeatedly_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """The sweep is killed with SIGKILL at random moments, and started again until all runs are completed.

    `KILLS=20 pytest -s tests/test_resume.py -k killed` kills the four-run sweep of the README twenty times.
    """
    arguments = (*(IN_CI if KILLS <= 2 else MAIN_COMMAND), "checkpoint.max_share=1", "trainer.figures=false")
    arguments += ("wandb.mode=offline",)
    undisturbed = command(*arguments, "sweep=undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stdout
    outputs, moments = tmp_path / "outputs", random.Random(0)
    kills, starts, sweeps, epochs = 0, 0, 1, rows(outputs / "undisturbed")
    while True:
        sweep = outputs / f"killed{sweeps}"
        reached = rows(sweep) + moments.randrange(epochs // 3) if kills < KILLS else math.inf
        process = start(*arguments, f"sweep={sweep.name}", cwd=tmp_path)
        starts += 1
        while process.poll() is None and rows(sweep) < reached:
            time.sleep(0.01)
        if rows(sweep) >= reached:
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
            process.communicate()
            kills += 1
            continue
        output = process.communicate()[0]
        assert process.returncode == 0, output
        if kills == KILLS:
            break
        sweeps += 1
    print(f"\n{kills} kills, {starts} starts, {sweeps} sweep(s)")
    for sweep in outputs.glob("killed*"):
        assert metrics(sweep) == metrics(outputs / "undisturbed")
        for run_folder in (path.parent for path in sweep.glob("*/metrics.csv")):
            assert len({path.stem for path in run_folder.glob("wandb/offline-run-*/*.wandb")}) == 1
            log = (run_folder / "train.log").read_text()
            epochs = (run_folder / "metrics.csv").read_text().count("\n") - 1
            again = log.count("  epoch ") - epochs  # only what was not in the checkpoint yet
            assert 0 <= again <= log.count("ConvMixer-") - 1
