"""The results of a search in words: its best trial, the cost of pruning, the importance of each key."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from comparison.results import by_preference
from comparison.runs import read_runs
from config.command_line import overrides_of
from runtime.console import count
from stats.estimates import TIE
from stats.prediction import rate_bounds
from sweeps.importance import Importance, importances
from sweeps.trials import RUNS, completed_trials, not_retried, seed_values, sign
from tracking.records import SearchedKey, SearchRecord, TrialRecord
from tracking.trial import FINISH, PRUNED_AT

FEWEST = 10  # the fewest completed trials for importances, which are noise with fewer
TREES = 16  # trees of each fANOVA forest; every permutation needs a forest


def finding_lines(
    study: optuna.Study,
    monitor: str,
    n_seeds: int,
    importances: Mapping[str, Importance],
    folders: Mapping[str, Path] | None = None,
) -> list[str]:
    """Describe the results of a search, in a line each.

    Args:
        monitor: The objective, e.g. "val/accuracy".
        n_seeds: Seeds of a complete trial.
        importances: The importance of each key; see key_importances().
        folders: The runs' folders by ID.
    """
    lines = [best_line(study, monitor, n_seeds, folders), pruning_line(study)]
    if fewer := sum(len(values) < n_seeds for values in seed_values(study).values()):
        lines.append(f"given up before the last of {n_seeds} seeds: {count(fewer, 'trial')}")
    trials = len(completed_trials(study))
    if importances:
        named = ", ".join(f"{key} {importance_text(of_key)}" for key, of_key in importances.items())
        lines.append(f"importance (fANOVA of {trials} trials; chance: with permuted results): {named}")
        if not any(of_key.stands_out for of_key in importances.values()):
            lines.append("No key's importance exceeds chance in these trials.")
    elif 0 < trials < FEWEST:
        lines.append(f"importance of the keys: needs {FEWEST} completed trials, there are {trials}")
    return [line for line in lines if line]


def importance_text(of_key: Importance) -> str:
    """Format an importance, e.g. "77% (chance: up to 81%)", or "88%, more than chance (up to 81%)"."""
    more = ", more than chance (" if of_key.stands_out else " (chance: "
    return f"{of_key.share:.0%}{more}up to {of_key.by_chance:.0%})"


def best_line(study: optuna.Study, monitor: str, n_seeds: int, folders: Mapping[str, Path] | None = None) -> str:
    """Describe the best trial, and count all trials by state."""
    of = count(len(not_retried(study)), "trial")
    for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
        if n := len(not_retried(study, state)):
            of += f", {n} of which {word}"
    if not completed_trials(study):
        return f"no trial completed, of {of}"
    value = study.best_value
    figure = f"{value:.1%}" if monitor.endswith("accuracy") else f"{value:.4f}"
    mean = f" (mean over {n_seeds} seeds)" if n_seeds > 1 else ""
    best, *others = dict.fromkeys(" ".join(overrides_of(trial.params)) for trial in best_trials(study, folders or {}))
    equal = f"; tied with it: {', '.join(others[:3])}{' and more' if others[3:] else ''}" if others else ""
    return f"best of {of}: {monitor} {figure}{mean} with {best}{equal}"


def best_trials(study: optuna.Study, folders: Mapping[str, Path]) -> list[FrozenTrial]:
    """List the best trial and those that tie with it, in the order of a comparison, else of the trials."""
    runs = study.user_attrs.get(RUNS, {})
    tied = [trial for trial in completed_trials(study) if abs((trial.value or 0.0) - study.best_value) < TIE]
    folder_of = {trial.number: folders.get(run) for trial in tied for run in runs.get(str(trial.number), [])[:1]}
    existing = [folder.resolve() for folder in dict.fromkeys(folder_of.values()) if folder]
    if len(existing) < 2:
        return tied
    places = {run.folder: place for place, run in enumerate(by_preference(read_runs(existing)))}
    return sorted(tied, key=lambda trial: places.get((folder_of.get(trial.number) or Path()).resolve(), len(places)))


def pruning_line(study: optuna.Study) -> str:
    """Estimate how often pruning loses a winner, from the trials that ran to the end as a check."""
    pruned = len(study.get_trials(states=[TrialState.PRUNED]))
    spared: list[float] = []
    others: list[float] = []
    for trial in completed_trials(study):
        assert trial.value is not None
        was_spared = PRUNED_AT in trial.user_attrs and FINISH in trial.user_attrs
        (spared if was_spared else others).append(sign(study) * trial.value)
    if not pruned and not spared:
        return ""
    line = f"chosen by the pruner: {count(pruned + len(spared), 'trial')}; run to the end as a check: {len(spared)}"
    if not spared:
        return line
    lost = sum(value > max(others, default=-math.inf) for value in spared)
    bound = f"95 % sure: at most {rate_bounds(lost, len(spared))[1]:.0%} of such"
    return f"{line}; better than the best of the others: {lost} of {len(spared)} ({bound})"


def key_importances(study: optuna.Study) -> Mapping[str, Importance]:
    """Compute each key's share of the objective's variance over the search space, and its share by chance.

    The method is functional ANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) of the completed trials. With too few trials
    the result is empty.
    """
    trials = completed_trials(study)
    objectives = np.array([trial.value for trial in trials], dtype=float)
    if len(trials) < FEWEST or len(set(objectives)) == 1:
        return {}
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)

    def shares_of(values: NDArray[np.float64]) -> Mapping[str, float]:
        variant = optuna.create_study(direction=study.direction)
        for trial, value in zip(trials, values.tolist(), strict=True):
            params, distributions = trial.params, trial.distributions
            variant.add_trial(create_trial(params=params, distributions=distributions, value=value))
        return get_param_importances(variant, evaluator=evaluator)

    return importances(shares_of, objectives)


def search_record(
    study: optuna.Study, lines: Sequence[str], importances: Mapping[str, Importance], progress: str = ""
) -> SearchRecord:
    """Describe a search in search.json, which the page of its comparison shows.

    Args:
        lines: The findings; empty before the end of the search.
        importances: The importance of each key; empty before the end of the search.
        progress: The number of trials and the ETA; empty at the end of the search.
    """
    trials = not_retried(study)
    space = trials[0].distributions
    keys: list[SearchedKey] = [
        {
            "key": key,
            "is_log": getattr(space[key], "log", False),
            "choices": list(values.choices) if isinstance(values := space[key], CategoricalDistribution) else None,
            "importance": importances[key].share if key in importances else None,
            "by_chance": importances[key].by_chance if key in importances else None,
        }
        for key in sorted(space, key=lambda key: -importances[key].share if key in importances else 0.0)
    ]
    seeds, runs = seed_values(study), study.user_attrs.get(RUNS, {})  # read once, as they list all trials
    rows = [
        trial_record(trial, seeds.get(trial.number, []), runs.get(str(trial.number), []), sign(study))
        for trial in trials
    ]
    return {"progress": progress, "lines": list(lines), "keys": keys, "trials": rows}


def trial_record(trial: FrozenTrial, values: Sequence[float], runs: Sequence[str], sign: int) -> TrialRecord:
    """Describe a trial; the value of a pruned trial is its best epoch's.

    Args:
        values: Objectives of its seeds; empty if it is not completed.
        runs: The IDs of its runs.
        sign: 1 if a higher objective is better, else -1.
    """
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        values = [max(trial.intermediate_values.values(), key=lambda value: sign * value)]
    words = {TrialState.COMPLETE: "completed", TrialState.FAIL: "failed"}
    return {
        "number": trial.number,
        "status": words.get(trial.state, trial.state.name.lower()),
        "value": float(np.mean(values)) if values else None,
        "low": min(values, default=None),
        "high": max(values, default=None),
        "params": trial.params,
        "runs": list(runs),
    }
