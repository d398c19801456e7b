"""Tests of a sweep as a user types it, in a separate process."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from conftest import command
from processes import REPOSITORY
from runtime.claims import held, join_sweep

SMALL = (
    "model.d_model=8",
    "model.depth=1",
    "trainer.epochs=1",
    "data.train_fraction=0.1",
    "wandb.mode=disabled",
    "trainer.figures=false",
)


def statuses(sweep: Path) -> dict[str, str]:
    return {
        path.parent.name.rpartition("-")[0]: json.loads(path.read_text())["status"]
        for path in sweep.glob("*/summary.json")
    }


@pytest.mark.slow
def test_four_runs_and_their_comparison(tmp_path: Path) -> None:
    done = command("-m", "model.kernel_size=3,5", "model.depth=1,2", *SMALL[:1], *SMALL[2:], "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "s"
    assert list(statuses(sweep).values()) == ["completed"] * 4
    assert "run 4 of 4" in done.stdout
    rows = list(csv.DictReader((sweep / "comparison.csv").open()))
    assert {(row["model.kernel_size"], row["model.depth"]) for row in rows} == {
        ("3", "1"), ("3", "2"), ("5", "1"), ("5", "2"),
    }  # fmt: skip
    assert "## Result" in (sweep / "comparison.md").read_text()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    done = command("-m", "model.kernel_size=3,1000001,5", *SMALL, "sweep=s", cwd=tmp_path)
    assert done.returncode == 1
    before, _, after = done.stdout.partition("FAILED kernel_size=1000001")
    assert "run 2 of 3" in before
    assert "memory" in after.splitlines()[0]
    assert "run 3 of 3" in after  # reported at once, not at the end
    assert "1 of 3 runs did not complete" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(statuses(tmp_path / "outputs" / "s").values()) == ["completed", "completed", "failed"]


@pytest.mark.slow
def test_impossible_runs_are_left_out_and_named_first(tmp_path: Path) -> None:
    done = command("-m", "patch=p1,p7,p2", "seed=0,1", *SMALL, "sweep=s", cwd=tmp_path)
    assert done.returncode == 1
    before, _, after = done.stdout.partition("run 1 of 4")
    named = [line for line in before.splitlines() if "model.patch_size=7: does not divide the 8x8 images" in line]
    assert len(named) == 1 and all(f"patch=p7 seed={seed}" in named[0] for seed in (0, 1))
    assert "does not divide" not in after
    assert "2 of 6 runs did not complete" in done.stderr
    assert list(statuses(tmp_path / "outputs" / "s").values()) == ["completed"] * 4
    again = command("-m", "patch=p1,p7,p2", "seed=0,1", *SMALL, "sweep=s", cwd=tmp_path)
    assert again.returncode == 1 and "4 of 6 runs completed before; 0 to run" in again.stdout


@pytest.mark.slow
def test_impossible_settings_of_a_race_get_no_seeds(tmp_path: Path) -> None:
    race = ("hydra/sweeper=race", "hydra.sweeper.first_seeds=3", "hydra.sweeper.max_seeds=3")
    done = command("-m", *race, "patch=p7,p2,p4", *SMALL, "sweep=s", cwd=tmp_path)
    assert "model.patch_size=7" in done.stdout.partition("round 1")[0]
    assert list(statuses(tmp_path / "outputs" / "s").values()) == ["completed"] * 6
    assert done.returncode == 1 and "1 of 7 runs did not complete" in done.stderr


@pytest.mark.slow
def test_impossible_trials_of_a_search_start_no_run(tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=5")
    done = command("-m", *search, "model.patch_size=choice(3,2,7,4)", *SMALL, "sweep=s", cwd=tmp_path)
    named = done.stdout.partition("run 1 of")[0]
    assert "model.patch_size=3" in named and "model.patch_size=7" in named
    assert "FAILED" in done.stdout + done.stderr and done.returncode == 1
    assert {*statuses(tmp_path / "outputs" / "s")} <= {"patch_size_2", "patch_size_4"}


@pytest.mark.slow
def test_a_single_run_that_fails_says_so_with_its_exit_code(tmp_path: Path) -> None:
    done = command("patch=p7", *SMALL, cwd=tmp_path)
    assert done.returncode == 1
    assert "does not divide" in done.stdout


@pytest.mark.slow
def test_groups_can_be_swept_with_glob(tmp_path: Path) -> None:
    done = command("-m", "kernel=glob(k*,exclude=k1*)", *SMALL, "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(statuses(tmp_path / "outputs" / "s")) == {f"kernel_k{k}" for k in (3, 5, 7, 9)}
    assert "kernel=k3,k5,k7,k9" in (first := done.stdout.splitlines()[0]) and "depth=1" in first
    lines = [line for line in done.stdout.splitlines() if "kernel=k3: ConvMixer" in line]
    assert lines and "depth=1" not in lines[0]  # what all runs share is said once
    for path in (tmp_path / "outputs" / "s").glob("*/summary.json"):
        summary = json.loads(path.read_text())
        assert summary["varied"] == ["kernel"] and summary["overrides"]["model.depth"] == 1
        assert summary["name"] == f"kernel={summary['overrides']['kernel']}"


@pytest.mark.slow
def test_a_larger_grid_takes_up_the_runs_of_the_smaller_one(tmp_path: Path) -> None:
    command("-m", "kernel=k3,k5", *SMALL, "sweep=s", cwd=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/s/*/metrics.csv")}
    done = command("-m", "kernel=k3,k5", "seed=0,1", *SMALL, "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 runs completed before" in done.stdout and "run 2 of 2" in done.stdout
    assert len(statuses(tmp_path / "outputs" / "s")) == 4
    assert len(times) == 2 and all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.slow
@pytest.mark.parametrize("sweeper", ["basic", "race"])
def test_a_sweep_has_one_folder(tmp_path: Path, sweeper: str) -> None:
    for place in ("sweep=k${model.kernel_size}", "sweep=a,b", "output_dir=a,b"):
        arguments = ("-m", "model.kernel_size=3,5", *SMALL, place, f"hydra/sweeper={sweeper}")
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert f"error: {place.partition('=')[0]}=" in done.stderr
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.slow
def test_unnamed_sweeps_of_one_second_have_their_own_folders(tmp_path: Path) -> None:
    name = "sweep=${now:%Y}"  # as good as the same second
    for _ in range(2):
        assert command("-m", "seed=0,1", *SMALL, name, cwd=tmp_path).returncode == 0
    assert command(*SMALL, name, cwd=tmp_path).returncode == 0
    folders = sorted(filter(Path.is_dir, (tmp_path / "outputs").iterdir()), key=lambda path: len(path.name))
    assert len(folders) == 3 and all(path.name.startswith(folders[0].name) for path in folders)
    assert sorted(len(statuses(path)) for path in folders) == [1, 2, 2]


@pytest.mark.slow
def test_a_run_records_the_options_that_hydra_chose(tmp_path: Path) -> None:
    race = ("hydra/sweeper=race", "hydra.sweeper.first_seeds=3", "hydra.sweeper.max_seeds=3", "data.val_fraction=0.1")
    on_digits = ("data=digits", "hardware=any", "data.batch_size=16", "patch=p1", "augmentation=none")
    done = command("-m", "experiment=annotated,short_cifar10", *on_digits, *SMALL, *race, "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/s/*/summary.json")]
    assert {summary["choices"]["experiment"] for summary in read} == {"annotated", "short_cifar10"}
    assert {summary["choices"]["augmentation"] for summary in read} == {"none"}
    assert all(f"experiment={summary['choices']['experiment']}" in summary["name"] for summary in read)
    table = (tmp_path / "outputs" / "s" / "race.md").read_text()
    assert "annotated" in table and "short_cifar10" in table


@pytest.mark.slow
def test_the_terminal_is_quiet_when_it_is_none(tmp_path: Path) -> None:
    done = command(*SMALL, cwd=tmp_path)
    assert "\x1b[" not in done.stdout
    assert "\r" not in done.stdout
    assert "epoch 1/1" in done.stdout


@pytest.mark.slow
def test_wandb_mode_from_the_environment(tmp_path: Path) -> None:
    small = [override for override in SMALL if not override.startswith("wandb")]
    done = command(*small, cwd=tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/*/*/wandb/offline-run-*/*.wandb"))
    assert not (tmp_path / "wandb").exists()
    assert os.listdir(tmp_path) == ["outputs"]  # noqa: PTH208


@pytest.mark.slow
def test_runs_of_other_processes_are_put_off_and_cores_shared(tmp_path: Path) -> None:
    arguments = ("-m", "model.kernel_size=3,5", *SMALL, "sweep=s")
    first, second = json.loads(command(*arguments, "plan=json", cwd=tmp_path).stdout)["planned"]
    locks = tmp_path / "outputs" / "s" / ".locks"
    locks.mkdir(parents=True)
    join_sweep(tmp_path / "outputs" / "s")
    try:
        with FileLock(locks / f"{first['run_id']}.lock"):
            done = command(*arguments, cwd=tmp_path)
    finally:
        held.pop().release()
    assert done.returncode == 1 and set(statuses(tmp_path / "outputs" / "s")) == {"kernel_size_5"}
    assert "2 processes of this sweep" in done.stdout
    assert done.stdout.index("run 2 of 2") < done.stdout.index("run 1 of 2") < done.stdout.index("another process")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and "1 of 2 runs completed before" in done.stdout
    assert "processes of this sweep" not in done.stdout
    assert second["run_id"] in {path.name.rpartition("-")[2] for path in (tmp_path / "outputs" / "s").iterdir()}


@pytest.mark.slow
def test_empty_wandb_runs_are_removed_at_the_end_of_a_sweep(tmp_path: Path) -> None:
    arguments = ("-m", "model.kernel_size=3,5", *SMALL, "sweep=s")
    assert command(*arguments, cwd=tmp_path).returncode == 0
    for run in (tmp_path / "outputs" / "s").glob("kernel_size*"):
        for name, content in (("empty", b":W&B\xbf\x18\x00"), ("full", b":W&B\xbf\x18\x00and more")):
            folder = run / "wandb" / f"offline-run-20260101_000000-{name}"
            folder.mkdir(parents=True)
            (folder / f"run-{name}.wandb").write_bytes(content)
    assert command(*arguments, cwd=tmp_path).returncode == 0
    left = {path.name.rpartition("-")[2] for path in tmp_path.glob("outputs/s/*/wandb/*")}
    assert left == {"full"}


def test_command_starts_without_slow_imports() -> None:
    code = (
        "import sys, train; from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher;"
        "print(len(Plugins.instance().discover(Launcher)), {'torch', 'pandas', 'optuna', 'wandb'} & {*sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    launchers, _, heavy = done.stdout.partition(" ")
    assert int(launchers) >= 3 and heavy.strip() == "set()"
