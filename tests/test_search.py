"""A search instead of a grid: it proposes runs, goes on where it was, and counts over all of its starts."""

import re
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from config.errors import ConfigError
from config.schema import register
from conftest import checked, command, metrics, start, summaries, wait_for
from processes import REPOSITORY
from sweeps import search
from sweeps.jobs import parse_overrides
from sweeps.space import check_space, split_overrides

TINY = (
    "model.d_model=8",
    "model.depth=1",
    "trainer.epochs=1",
    "data.train_fraction=0.2",
    "wandb.mode=disabled",
    "trainer.figures=false",
)
SEARCH = (
    "-m",
    "hydra/sweeper=optuna",
    "optimizer.lr=tag(log, interval(0.001, 0.1))",
    "model.kernel_size=choice(3,5,7)",
)


def trials(sweep: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{sweep / 'search.db'}").trials  # of the one study


def statuses(sweep: Path) -> list[str]:
    return [summary["status"] for summary in summaries(sweep)]


def tiny(cwd: Path, *arguments: str, n_trials: int = 3) -> subprocess.CompletedProcess[str]:
    return command(*SEARCH, *TINY, f"hydra.sweeper.n_trials={n_trials}", "sweep=s", *arguments, cwd=cwd)


def test_a_search_goes_on_and_goes_further(tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "s"
    first = tiny(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "run 3 of 3" in first.stdout
    assert "maximize val/accuracy" in first.stdout
    done = trials(sweep)
    highest = max(trial.value for trial in done if trial.value is not None)
    assert re.search(rf"best of 3 trials: val/accuracy {highest:.1%} with optimizer.lr=0\.\d+ model", first.stdout)
    assert len((sweep / "comparison.csv").read_text().splitlines()) == 4
    assert {summary["objective"] for summary in summaries(sweep)} == {trial.value for trial in done}

    again = tiny(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "3 of them done" in again.stdout
    assert "ConvMixer-8/1" not in again.stdout  # nothing is run
    assert trials(sweep) == done

    further = tiny(tmp_path, n_trials=5)
    assert further.returncode == 0, further.stderr
    assert further.stdout.count("ConvMixer-8/1") == 2
    assert trials(sweep)[:3] == done
    assert statuses(sweep) == ["completed"] * 5


def test_a_search_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    arguments = (*SEARCH, *TINY, "trainer.epochs=12", "checkpoint.max_share=1", "hydra.sweeper.n_trials=3", "sweep=s")
    arguments += ("hydra.sweeper.sampler.n_startup_trials=1",)  # it learns from the second trial on
    undisturbed = command(*arguments, "output_dir=whole", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    sweep, whole = tmp_path / "outputs" / "s", tmp_path / "whole" / "s"
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: len(begun(sweep)) == 2, process)
    process.kill()
    process.communicate()
    assert [trial.state for trial in trials(sweep)] == [TrialState.COMPLETE, TrialState.RUNNING]
    last = command(*arguments, cwd=tmp_path)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "1 of them done, 1 interrupted" in last.stdout
    assert "resumes after" in last.stdout
    assert [(trial.params, trial.value) for trial in trials(sweep)] == [
        (trial.params, trial.value) for trial in trials(whole)
    ]
    assert metrics(sweep) == metrics(whole)
    assert statuses(sweep) == ["completed"] * 3


def begun(sweep: Path) -> list[Path]:
    """The runs that have an epoch or two to go on from."""
    return [path for path in sweep.glob("*/metrics.csv") if path.read_text().count("\n") > 3]


def test_a_trial_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    done = command("-m", "hydra/sweeper=optuna", "model.patch_size=choice(1,7)", *TINY, "hydra.sweeper.n_trials=3",
                   "sweep=s", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    states = {trial.params["model.patch_size"]: trial.state for trial in trials(tmp_path / "outputs" / "s")}
    assert states == {"1": TrialState.COMPLETE, "7": TrialState.FAIL}
    assert re.search(r"best of 3 trials, [12] of which failed: val/accuracy .* with model.patch_size=1", done.stdout)
    assert sorted(statuses(tmp_path / "outputs" / "s")) == ["completed", "failed"]  # three trials, two runs
    failed = [trial.number for trial in trials(tmp_path / "outputs" / "s") if trial.state == TrialState.FAIL]
    again = command("-m", "hydra/sweeper=optuna", "model.patch_size=choice(1,7)", *TINY, "hydra.sweeper.n_trials=3",
                    "sweep=s", cwd=tmp_path)  # fmt: skip
    assert f"{3 - len(failed)} of them done, {len(failed)} failed and tried again" in again.stdout
    assert f"best of 3 trials, {len(failed)} of which failed" in again.stdout
    assert [trial.user_attrs["retry_of"] for trial in trials(tmp_path / "outputs" / "s")[3:]] == failed


@pytest.mark.parametrize("folder", ["o?x=1", "50%25", "a b#c"])
def test_a_search_keeps_its_trials_in_its_own_folder(tmp_path: Path, folder: str) -> None:
    cwd = tmp_path / folder
    cwd.mkdir()
    done = tiny(cwd, n_trials=1)
    assert done.returncode == 0, done.stderr
    assert (cwd / "outputs" / "s" / "search.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def space(*arguments: str) -> dict[str, Any]:
    """What `python src/train.py -m hydra/sweeper=optuna ARGUMENTS` would search."""
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        found, fixed = split_overrides("train", parse_overrides(["sweep=s", *arguments]))
        check_space("train", found, fixed)
    return dict(found)


def test_what_hydra_writes_as_a_sweep_is_searched() -> None:
    assert space(
        "optimizer.lr=tag(log, interval(0.001, 1))", "dropout.rate=interval(0, 1e-1)", "dropout=blocks",
        "model.depth=interval(1, 4)", "model.d_model=tag(log, interval(8, 64))", "model.kernel_size=range(3, 10, 2)",
        "trainer.label_smoothing=range(0, 0.3, 0.1)", "optimizer.weight_decay=0,0.01", "augmentation=light,none",
        "trainer.clip_grad_norm=interval(1, 5)", "kernel=glob(k1*)",
    ) == {
        "optimizer.lr": FloatDistribution(0.001, 1, log=True),
        "dropout.rate": FloatDistribution(0, 0.1),
        "model.depth": IntDistribution(1, 4),
        "model.d_model": IntDistribution(8, 64, log=True),
        "model.kernel_size": IntDistribution(3, 9, step=2),
        "trainer.label_smoothing": FloatDistribution(0, 0.2, step=0.1),
        "optimizer.weight_decay": CategoricalDistribution(["0", "0.01"]),
        "augmentation": CategoricalDistribution(["light", "none"]),
        "trainer.clip_grad_norm": FloatDistribution(1, 5),
        "kernel": CategoricalDistribution(["k15"]),
    }  # fmt: skip


def test_another_search_under_the_same_name_begins_anew() -> None:
    def name(*arguments: str) -> str:
        config = checked(*arguments)
        return search.study_name(config, {"optimizer.lr": FloatDistribution(0.001, 0.1)})

    assert name() == name("trainer.device=cpu", "output_dir=elsewhere")
    assert len({name(), name("trainer.epochs=3"), name("trainer.monitor=val/loss")}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.name=interval(0, 1)"], r"optimizer.name=interval\(0, 1\): the key does not hold numbers"),
        (["optimizer.lr=interval(0, 0.1)"], r"optimizer.lr=0.0: expected above 0"),
        (["optimizer.lr=tag(log, interval(0, 0.1))"], r"optimizer.lr=tag\(log, interval\(0, 0.1\)\): .*low"),
        (["optimizer.lr=interval(0.1, 0.01)"], r"optimizer.lr=interval\(0.1, 0.01\): .*low"),
        (["dropout.rate=choice(0.1, 1.5)", "dropout=blocks"], r"dropout.rate=1.5: expected at least 0 and below 1"),
        (["model.depth=range(4, 4)"], r"model.depth=range\(4, ?4\): the range is empty"),
        (["model.depth=1,2", "data.val_fraction=0"], r"data.val_fraction=0: a search goes by validation"),
        (["model.depth=1,2", "data.val_fraction=0,0.1"], r"data.val_fraction=0: a search goes by validation"),
        (["model.depth=1,2", "seed=0,1"], r"seed=0,1: would be searched for the luckiest"),
        (["model.depth=1"], r"there is nothing to search"),
    ],
)
def test_what_cannot_be_searched(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(*arguments)


@pytest.mark.parametrize("wrong", ["hydra.sweeper.n_trials=0", "optimizer.nmae=choice(sgd,adam)"])
def test_a_wrong_search_is_report_errors_before_anything_starts(tmp_path: Path, wrong: str) -> None:
    done = command(*SEARCH, *TINY, wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wrong.partition('=')[0]}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
