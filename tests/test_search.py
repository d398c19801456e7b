"""Tests of searches: they propose runs, resume, and count trials over all starts."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from config.command_line import overrides_of
from conftest import checked, command, metrics, start, summaries, wait_for
from inference.choice import choose_run
from sweeps import search
from tracking.trial import Trial, open_storage

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
    assert re.search(r"1 of 3 trials ended, about .* left", first.stdout)
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

    database, kept = sweep / "search.db", [(trial.params, trial.value) for trial in trials(sweep)]
    database.write_bytes(cut := database.read_bytes()[:-5000])
    damaged = tiny(tmp_path, n_trials=5)
    assert damaged.returncode == 1 and "Traceback" not in damaged.stderr
    assert f"{database.relative_to(tmp_path)}: is damaged" in damaged.stderr and database.read_bytes() == cut
    database.unlink()  # as the message says
    restarted = tiny(tmp_path, n_trials=5)
    assert restarted.returncode == 0 and "missing, but 5 runs of this search exist" in restarted.stdout
    assert "ConvMixer-8/1" not in restarted.stdout
    assert [(trial.params, trial.value) for trial in trials(sweep)] == kept


def test_a_search_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    run = (*TINY, "trainer.epochs=6", "trainer.monitor=val/loss", "checkpoint.max_share=1", "sweep=w")
    arguments = (
        *SEARCH, *run, "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=5", "hydra.sweeper.pruner=hyperband",
        "hydra.sweeper.finish_pruned=0.4", "hydra.sweeper.sampler.n_startup_trials=2",
    )  # fmt: skip
    undisturbed = command(*arguments, "output_dir=whole", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    sweep, whole = tmp_path / "outputs" / "w", tmp_path / "whole" / "w"
    chosen = {trial.number: trial.state for trial in trials(whole) if "pruned_at" in trial.user_attrs}
    assert chosen == {2: TrialState.COMPLETE, 3: TrialState.PRUNED}  # trial 2 runs to the end as a check, and wins
    assert re.search("1 of which pruned(.|\n)*pruner: 2 trials; .*check: 1; .* 1 of 1", undisturbed.stdout)
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: len(begun(sweep)) == 2, process)
    process.kill()
    process.communicate()
    assert [trial.state for trial in trials(sweep)] == [TrialState.COMPLETE, TrialState.RUNNING]
    last = command(*arguments, cwd=tmp_path)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "1 of them done, 1 interrupted" in last.stdout
    assert "resumes after" in last.stdout
    assert list(map(without_times, trials(sweep))) == list(map(without_times, trials(whole)))
    assert metrics(sweep) == metrics(whole)
    assert sorted(statuses(sweep)) == ["completed"] * 3 + ["pruned"]
    (pruned,) = (path.parent for path in sweep.glob("*/summary.json") if '"pruned"' in path.read_text())
    assert (pruned / "checkpoints" / "last.pt").exists()
    by_itself = command(*run, *overrides_of(trials(sweep)[3].params), cwd=tmp_path)
    assert "resumes after step 0 of epoch 4" in by_itself.stdout
    assert statuses(sweep) == ["completed"] * 4


def without_times(trial: FrozenTrial) -> tuple[Any, ...]:
    """Return everything about a trial except its times."""
    return trial.params, trial.state, trial.value, trial.intermediate_values, trial.user_attrs, trial.system_attrs


@pytest.mark.parametrize(
    ("pruner", "attributes", "stops"),
    [("none", {}, []), ("median", {}, [2]), ("median", {"finish": True}, [])],
)
def test_a_run_reports_an_epoch_once_and_stops_where_it_did(
    tmp_path: Path, pruner: str, attributes: dict[str, Any], stops: list[int]
) -> None:
    """The run is worse than the median from the second epoch on."""
    config = checked("trainer.epochs=4", "trial=abcdef01/5", f"output_dir={tmp_path}", "sweep=s")
    (tmp_path / "s").mkdir()
    study = optuna.create_study(
        storage=open_storage(tmp_path / "s" / "search.db"), study_name="s-abcdef01", direction="maximize"
    )
    study.set_user_attr("pruner", pruner)
    reached = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.8}
    study.add_trials([create_trial(value=0.8, intermediate_values=reached)] * 5)
    study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
    for first in (1, 2, 1):  # the run is killed, and resumes after another epoch
        trial = Trial(config)
        answers = {epoch: trial.report_epoch(epoch, value) for epoch, value in ((1, 0.5), (2, 0.55)) if epoch >= first}
        assert [epoch for epoch, stop in answers.items() if stop] == stops
    assert study.trials[5].intermediate_values == {1: 0.5, 2: 0.55}
    assert ("pruned_at" in study.trials[5].user_attrs) == (pruner == "median")


def begun(sweep: Path) -> list[Path]:
    """List the runs that have an epoch from which to resume."""
    return [path for path in sweep.glob("*/metrics.csv") if path.read_text().count("\n") > 2]


def test_a_trial_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "model.kernel_size=choice(1,1000001)", "hydra.sweeper.n_trials=3", "sweep=s")
    done = command("-m", *search, *TINY, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    states = {trial.params["model.kernel_size"]: trial.state for trial in trials(tmp_path / "outputs" / "s")}
    assert states == {"1": TrialState.COMPLETE, "1000001": TrialState.FAIL}
    assert re.search(r"best of 3 trials, [12] of which failed: val/accuracy .* with model.kernel_size=1", done.stdout)
    assert sorted(statuses(tmp_path / "outputs" / "s")) == ["completed", "failed"]  # three trials, two runs
    failed = [trial.number for trial in trials(tmp_path / "outputs" / "s") if trial.state == TrialState.FAIL]
    again = command("-m", *search, *TINY, cwd=tmp_path)
    assert f"{3 - len(failed)} of them done, {len(failed)} failed and repeated" in again.stdout
    assert f"best of 3 trials, {len(failed)} of which failed" in again.stdout
    assert all(int(run) <= 3 for run in re.findall(r"run (\d+) of 3", again.stdout))
    assert [trial.user_attrs["retry_of"] for trial in trials(tmp_path / "outputs" / "s")[3:]] == failed


def test_search_and_comparison_name_the_same_winner_by_loss(tmp_path: Path) -> None:
    """Images of the model's size are not interpolated, so that trials tie."""
    choices = ("trainer.label_smoothing=choice(0.6,0.0)", "augmentation.interpolation=choice(bilinear,bicubic)")
    done = command("-m", "hydra/sweeper=optuna", *choices, *TINY, "trainer.monitor=val/loss", "data.train_fraction=0.5",
                   "trainer.epochs=2", "hydra.sweeper.n_trials=8", "sweep=s", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "s"
    losses = {
        (run["overrides"]["trainer.label_smoothing"], run["overrides"]["augmentation.interpolation"]): run["objective"]
        for run in summaries(sweep)
    }
    tied = [setting for setting, loss in losses.items() if loss == min(losses.values())]
    assert len(losses) == 4 and len(tied) == 2

    (line,) = (line for line in done.stdout.splitlines() if line.startswith("best of 8 trials"))
    assert json.loads((sweep / "search.json").read_text())["lines"][0] == line
    named = re.findall(r"label_smoothing=(\S+) augmentation.interpolation=(\w+)", line)
    best, other = [(float(smoothing), interpolation) for smoothing, interpolation in named]
    assert {best, other} == {*tied}
    rows = json.loads(command("outputs/s", "--json", cwd=tmp_path, script="compare").stdout)["rows"]
    assert [(row["trainer.label_smoothing"], row["augmentation.interpolation"]) for row in rows[:2]] == [best, other]
    assert "bilinear instead of bicubic: +0, higher in 0" in done.stdout, "no rounding errors are shown"
    assert f"Best: interpolation={best[1]} label_smoothing={best[0]:g}" in done.stdout
    assert Path(choose_run(str(sweep))).name.startswith(f"label_smoothing_{best[0]}-interpolation_{best[1]}")


def test_search_ranks_by_mean_and_stops_hopeless_trials(tmp_path: Path) -> None:
    done = command("-m", "hydra/sweeper=optuna", "optimizer.lr=choice(0.00001,0.03)", "hydra.sweeper.seeds=[0,1,2]",
                   "hydra.sweeper.n_trials=3", *TINY[1:2], *TINY[4:], "model.d_model=16", "trainer.epochs=2", "sweep=s",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "s"
    reached = [
        (run["overrides"]["optimizer.lr"], run["overrides"]["seed"], run["objective"]) for run in summaries(sweep)
    ]
    good = [objective for lr, _, objective in reached if lr == 0.03]
    assert sorted((lr, seed) for lr, seed, _ in reached) == [(1e-5, 0), (0.03, 0), (0.03, 1), (0.03, 2)]
    values = {trial.params["optimizer.lr"]: trial.value for trial in trials(sweep)}
    assert values == {"0.03": pytest.approx(sum(good) / 3), "1e-05": min(objective for _, _, objective in reached)}
    assert f"best of 3 trials: val/accuracy {sum(good) / 3:.1%}" in done.stdout
    record = json.loads((sweep / "search.json").read_text())
    assert record["lines"][0] in done.stdout
    runs = {trial["params"]["optimizer.lr"]: len(trial["runs"]) for trial in record["trials"]}
    assert runs == {"0.03": 3, "1e-05": 1}


def test_a_search_keeps_its_trials_in_its_own_folder(tmp_path: Path) -> None:
    cwd = tmp_path / "o?x=1 50%25 a b#c"  # an address of a database would be cut off at any of these
    cwd.mkdir()
    done = tiny(cwd, n_trials=1)
    assert done.returncode == 0, done.stderr
    assert (cwd / "outputs" / "s" / "search.db").exists()
    assert list(tmp_path.iterdir()) == [cwd]


def test_another_search_under_the_same_name_begins_anew() -> None:
    def name(*arguments: str) -> str:
        config = checked(*arguments)
        return search.study_name(config, {"optimizer.lr": FloatDistribution(0.001, 0.1)})

    assert name() == name("trainer.device=cpu", "output_dir=elsewhere")
    assert len({name(), name("trainer.epochs=3"), name("trainer.monitor=val/loss")}) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        "hydra.sweeper.n_trials=null",
        "hydra.sweeper.pruner=best",
        "hydra.sweeper.finish_pruned=2",
        "hydra.sweeper.seeds=[0,0]",
        "seed=1 hydra.sweeper.seeds=[0,1]",
        "hydra.sweeper.pruner=median trainer.epochs=choice(1,2)",
        "optimizer.nmae=choice(sgd,adam)",
    ],
)
def test_a_wrong_search_is_reported_before_any_run(tmp_path: Path, wrong: str) -> None:
    done = command(*SEARCH, *TINY, *wrong.split(), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wrong.partition('=')[0]}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
