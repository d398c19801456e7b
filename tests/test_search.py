"""A search instead of a grid: it proposes runs, goes on where it was, and counts over all of its starts."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from statsmodels.regression.linear_model import OLS

from config.command_line import overrides_of
from config.errors import ConfigError
from config.schema import register
from conftest import checked, command, metrics, start, summaries, wait_for
from processes import REPOSITORY
from stats.importance import Importance
from sweeps import search
from sweeps.launch import monitor_of
from sweeps.plan import parse_overrides, split_overrides
from sweeps.search_findings import best_line, finding_lines, key_importances, search_record
from sweeps.space import check_space, make_space
from sweeps.trials import complete_trial, is_hopeless, make_sampler
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


@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler", "GPSampler"])
def test_each_sampler_gets_what_it_takes(sampler: str) -> None:
    make_sampler(options_of(f"hydra.sweeper.sampler._target_=optuna.samplers.{sampler}"), seed=0)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["hydra.sweeper.sampler._target_=optuna.samplers.QMCSampler"], ["QMCSampler", "resume", "TPESampler"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.NSGAIISampler"], ["NSGAIISampler", "resume"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.GridSampler"], ["GridSampler"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.NoSampler"], ["NoSampler"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler", "hydra.sweeper.sampler.n_startup_trials=5"],
         ["RandomSampler", "n_startup_trials"]),
        (["hydra.sweeper.sampler=null"], ["hydra.sweeper.sampler"]),
    ],
)  # fmt: skip
def test_a_sampler_that_cannot_be_used_is_named(overrides: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sampler(options_of(*overrides), seed=0)
    assert all(words in str(caught.value) for words in named), caught.value
    assert "\n" not in str(caught.value)


def options_of(*overrides: str) -> Any:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("train", ["hydra/sweeper=optuna", *overrides], return_hydra_config=True)
    return OmegaConf.to_object(composed.hydra.sweeper)


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
    arguments = (*SEARCH, *run, "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=5", "hydra.sweeper.pruner=hyperband")
    arguments += ("hydra.sweeper.finish_pruned=0.4", "hydra.sweeper.sampler.n_startup_trials=2")
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
    assert list(map(known, trials(sweep))) == list(map(known, trials(whole)))
    assert metrics(sweep) == metrics(whole)
    assert sorted(statuses(sweep)) == ["completed"] * 3 + ["pruned"]
    (pruned,) = (path.parent for path in sweep.glob("*/summary.json") if '"pruned"' in path.read_text())
    assert (pruned / "checkpoints" / "last.pt").exists()
    by_itself = command(*run, *overrides_of(trials(sweep)[3].params), cwd=tmp_path)
    assert "resumes after step 0 of epoch 4" in by_itself.stdout
    assert statuses(sweep) == ["completed"] * 4


def known(trial: FrozenTrial) -> tuple[Any, ...]:
    """All that a trial is, but for its times."""
    return trial.params, trial.state, trial.value, trial.intermediate_values, trial.user_attrs, trial.system_attrs


@pytest.mark.parametrize(
    ("pruner", "attributes", "stops"),
    [("none", {}, []), ("median", {}, [2]), ("median", {"finish": True}, [])],
)
def test_a_run_reports_an_epoch_once_and_stops_where_it_did(
    tmp_path: Path, pruner: str, attributes: dict[str, Any], stops: list[int]
) -> None:
    """Worse than the median from the second epoch on."""
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
    """The runs that have an epoch to go on from."""
    return [path for path in sweep.glob("*/metrics.csv") if path.read_text().count("\n") > 2]


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
    assert f"{3 - len(failed)} of them done, {len(failed)} failed and repeated" in again.stdout
    assert f"best of 3 trials, {len(failed)} of which failed" in again.stdout
    assert all(int(run) <= 3 for run in re.findall(r"run (\d+) of 3", again.stdout))
    assert [trial.user_attrs["retry_of"] for trial in trials(tmp_path / "outputs" / "s")[3:]] == failed


def test_the_mean_over_seeds_decides_and_hopeless_trials_get_no_more(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("seed", range(3))
def test_hopeless_is_what_is_significantly_worse_with_the_pooled_spread(seed: int) -> None:
    """statsmodels fits a mean for each trial, with one variance for all."""
    generator, said = np.random.default_rng(seed), []
    for _ in range(100):
        sizes = generator.integers(1, 4, 4)
        sizes[0] = 2
        trials = [list(generator.normal(generator.normal(0.9, 0.02), 0.01, size)) for size in sizes]
        *others, own = trials
        best = max(range(3), key=lambda number: np.mean(others[number]))
        numbers = np.repeat(range(4), sizes)
        test = OLS(np.concatenate(trials), np.eye(4)[numbers]).fit().t_test(np.eye(4)[best] - np.eye(4)[3])
        said.append(is_hopeless(own, others, lower_is_better=False))
        assert said[-1] == (test.pvalue < 0.05 and test.effect > 0)
        assert said[-1] == is_hopeless(*([-x for x in own], [[-x for x in other] for other in others]), True)
    assert 10 < sum(said) < 90
    assert not is_hopeless([0.1], [[0.9]], lower_is_better=False)  # there is no spread to judge by
    assert not is_hopeless([0.1, 0.2], [], lower_is_better=False)


def test_what_a_search_found() -> None:
    study = searched(20)
    lines = finding_lines(study, "val/accuracy", 3, key_importances(study))
    assert re.search(r"20 trials, 4 of which pruned: .* 95.0% .*seeds.* with optimizer.lr=", lines[0])
    assert re.search(r"pruner: 6 trials.*check: 2.*others: 1 of 2 .*97%", lines[1])  # Clopper and Pearson's bound
    assert re.search(r"3 seeds: 7 trials", lines[2])
    assert re.search(r"16 trials.*: optimizer.lr [6-9]\d%.*up to \d\d%.*augmentation", lines[3])
    few = searched(9)
    assert not key_importances(few)  # it would be noise
    assert "10 completed trials" in finding_lines(few, "val/accuracy", 3, {})[-1]


def test_record_of_a_search_holds_trials_and_importances() -> None:
    study = searched(20)
    found = {"optimizer.lr": Importance(0.7, 0.6), "model.depth": Importance(0.2, 0.5)}
    record = json.loads(json.dumps(search_record(study, ["best"], found)))
    assert [key["key"] for key in record["keys"]][:2] == ["optimizer.lr", "model.depth"]  # the most important first
    keys = {key["key"]: key for key in record["keys"]}
    assert keys["optimizer.lr"]["is_log"] and keys["optimizer.lr"]["importance"] == 0.7
    assert not keys["model.depth"]["is_log"] and keys["model.depth"]["choices"] is None
    assert len(keys["augmentation"]["choices"]) == 5 and keys["augmentation"]["importance"] is None
    assert [trial["number"] for trial in record["trials"]] == list(range(20))
    assert [trial["status"] for trial in record["trials"]].count("pruned") == 4
    best = max(record["trials"], key=lambda trial: trial["value"])
    assert (best["number"], best["low"], best["high"]) == (11, 0.95, 0.95)
    pruned = next(trial for trial in record["trials"] if trial["status"] == "pruned")
    assert pruned["value"] == study.trials[pruned["number"]].intermediate_values[1]


def searched(n_trials: int) -> optuna.Study:
    """The learning rate matters; of 20 trials four are pruned, two more chosen by the pruner, one of them the best."""
    space = {
        "optimizer.lr": FloatDistribution(0.001, 1, log=True),
        "model.depth": IntDistribution(1, 8),
        "augmentation": CategoricalDistribution(["none", "light", "simple", "randaugment", "paper"]),
        "model.kernel_size": CategoricalDistribution(["3", "5"]),
    }
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    for number in range(n_trials):
        trial = study.ask(space)
        value = 0.9 - 0.1 * abs(np.log10(trial.params["optimizer.lr"]) + 2)
        trial.report(value - 0.1, 1)
        if number % 3 == 2:
            trial.set_user_attr("pruned_at", 1)
        if number % 9 == 2:
            trial.set_user_attr("finish", True)
        elif number % 3 == 2:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        complete_trial(study, number, [0.95 if number == 11 else value] * (1 if number % 3 == 0 else 3))
    return study


def test_a_search_keeps_its_trials_in_its_own_folder(tmp_path: Path) -> None:
    cwd = tmp_path / "o?x=1 50%25 a b#c"  # an address of a database would be cut off at any of these
    cwd.mkdir()
    done = tiny(cwd, n_trials=1)
    assert done.returncode == 0, done.stderr
    assert (cwd / "outputs" / "s" / "search.db").exists()
    assert list(tmp_path.iterdir()) == [cwd]


def space(*arguments: str) -> dict[str, Any]:
    """What `python src/train.py -m hydra/sweeper=optuna ARGUMENTS` would search."""
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        several, fixed = split_overrides(parse_overrides(["sweep=s", *arguments]))
        found = make_space("train", several, fixed)
        monitor_of(check_space("train", found, fixed))
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
        (["model.depth=1,2", "data.val_fraction=0"], r"data.val_fraction=0: "),
        (["model.depth=1,2", "data.val_fraction=0,0.1"], r"data.val_fraction=0: "),
        (["model.depth=1,2", "seed=0,1"], r"seed=0,1: "),
        (["model.depth=1"], r"no key has several values"),
    ],
)
def test_what_cannot_be_searched(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(*arguments)


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


@pytest.mark.parametrize(("direction", "values"), [("maximize", [0.5, 0.9, 0.9]), ("minimize", [0.9, 0.5, 0.5])])
def test_trials_that_tie_with_the_best_are_named(direction: str, values: list[float]) -> None:
    study = optuna.create_study(direction=direction)
    for depth, value in enumerate(values, start=1):
        distributions = {"model.depth": optuna.distributions.IntDistribution(1, 3)}
        trial = optuna.trial.create_trial(params={"model.depth": depth}, distributions=distributions, value=value)
        study.add_trial(trial)
    line = best_line(study, "val/loss", 1)
    assert "with model.depth=2" in line and "tied with it: model.depth=3" in line and "depth=1" not in line
