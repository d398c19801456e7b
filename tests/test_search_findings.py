"""Tests of a search's findings: the best trial and its ties, importances, hopeless trials."""

import json
import re
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from statsmodels.regression.linear_model import OLS

from sweeps.importance import Importance
from sweeps.search_findings import best_line, finding_lines, key_importances, search_record
from sweeps.trials import complete_trial, is_hopeless


@pytest.mark.parametrize("seed", range(3))
def test_hopeless_trial_is_significantly_worse_by_pooled_spread(seed: int) -> None:
    """The reference is a fit by statsmodels, with a mean for each trial and one variance for all."""
    generator, answers = np.random.default_rng(seed), []
    for _ in range(100):
        sizes = generator.integers(1, 4, 4)
        sizes[0] = 2
        trials = [list(generator.normal(generator.normal(0.9, 0.02), 0.01, size)) for size in sizes]
        *others, values = trials
        best = max(range(3), key=lambda number: np.mean(others[number]))
        numbers = np.repeat(range(4), sizes)
        test = OLS(np.concatenate(trials), np.eye(4)[numbers]).fit().t_test(np.eye(4)[best] - np.eye(4)[3])
        answers.append(is_hopeless(values, others, lower_is_better=False))
        assert answers[-1] == (test.pvalue < 0.05 and test.effect > 0)
        assert answers[-1] == is_hopeless(*([-x for x in values], [[-x for x in other] for other in others]), True)
    assert 10 < sum(answers) < 90
    assert not is_hopeless([0.1], [[0.9]], lower_is_better=False)  # there is no spread to judge by
    assert not is_hopeless([0.1, 0.2], [], lower_is_better=False)


@pytest.mark.slow
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
    importances = {"optimizer.lr": Importance(0.7, 0.6), "model.depth": Importance(0.2, 0.5)}
    record = json.loads(json.dumps(search_record(study, ["best"], importances)))
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
    """Make a study in which the learning rate matters; of 20 trials four are pruned, and a protected one is best."""
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


@pytest.mark.parametrize(("direction", "values"), [("maximize", [0.5, 0.9, 0.9]), ("minimize", [0.9, 0.5, 0.5])])
def test_trials_that_tie_with_the_best_are_named(direction: Any, values: list[float]) -> None:
    study = optuna.create_study(direction=direction)
    for depth, value in enumerate(values, start=1):
        distributions: dict[str, Any] = {"model.depth": optuna.distributions.IntDistribution(1, 3)}
        trial = optuna.trial.create_trial(params={"model.depth": depth}, distributions=distributions, value=value)
        study.add_trial(trial)
    line = best_line(study, "val/loss", 1)
    assert "with model.depth=2" in line and "tied with it: model.depth=3" in line and "depth=1" not in line
