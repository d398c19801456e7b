"""What a search found, in words: its best trial, what pruning cost, how much each key matters."""

import math
from collections.abc import Mapping

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from comparison.formatting import count
from config.schema import overrides_of
from sweeps.trials import completed, not_retried, seed_values, sign
from tracking.trial import FINISH, PRUNED_AT

FEWEST = 10  # completed trials that it takes for importances: of fewer they are noise


def findings(study: optuna.Study, monitor: str, n_seeds: int, shares: Mapping[str, float]) -> list[str]:
    """Lines to be printed.

    Args:
        n_seeds: that a trial gets.
        shares: of each key; see importance().
    """
    lines = [best(study, monitor, n_seeds), pruning(study)]
    if fewer := sum(len(values) < n_seeds for values in seed_values(study).values()):
        lines.append(f"given up before the last of {n_seeds} seeds: {count(fewer, 'trial')}")
    if shares:
        named = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        lines.append(f"importance (fANOVA of {len(completed(study))} trials): {named}")
    return [line for line in lines if line]


def best(study: optuna.Study, monitor: str, n_seeds: int) -> str:
    of = count(len(not_retried(study)), "trial")
    for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
        if n := len(not_retried(study, state)):
            of += f", {n} of which {word}"
    if not completed(study):
        return f"no trial completed, of {of}"
    value = study.best_value
    figure = f"{value:.1%}" if monitor == "val/accuracy" else f"{value:.4f}"
    mean = f" (mean over {n_seeds} seeds)" if n_seeds > 1 else ""
    return f"best of {of}: {monitor} {figure}{mean} with {' '.join(overrides_of(study.best_params))}"


def pruning(study: optuna.Study) -> str:
    """How often pruning would have lost a winner, as far as the trials tell that were finished all the same."""
    pruned = len(study.get_trials(states=[TrialState.PRUNED]))
    spared: list[float] = []
    others: list[float] = []
    for trial in completed(study):
        assert trial.value is not None
        was_spared = PRUNED_AT in trial.user_attrs and FINISH in trial.user_attrs
        (spared if was_spared else others).append(sign(study) * trial.value)
    if not pruned and not spared:
        return ""
    lost = sum(value > max(others, default=-math.inf) for value in spared)
    return f"chosen by the pruner: {count(pruned + len(spared), 'trial')}; finished all the same: {len(spared)}" + (
        f"; better than the best of the others: {lost} of {len(spared)}" if spared else ""
    )


def importance(study: optuna.Study) -> Mapping[str, float]:
    """The share of the objective's variance over the search space that each key accounts for, the highest first.

    By functional ANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) of the completed trials; empty where they are too few.
    """
    if len(completed(study)) < FEWEST or len({trial.value for trial in completed(study)}) == 1:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}
