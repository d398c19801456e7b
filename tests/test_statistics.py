"""The statistics of comparisons: against SciPy and statsmodels, and in simulations where the truth is known."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.multitest import multipletests

from comparison.effects import Effect
from comparison.findings import result
from comparison.least_squares import SeedModel, mean
from comparison.report import as_json
from comparison.results import Comparison
from run_folders import DEPTH, KERNEL, compared

RATE = "optimizer.lr"


def draw(n: int, seed: int = 0, around: float = 0.9) -> list[float]:
    return list(np.random.default_rng(seed).normal(around, 0.01, n))


def only(found: Sequence[Effect]) -> Effect:
    (effect,) = found
    return effect


def kernels(*values: Any) -> Comparison:
    """Settings of kernel 3, 5, 7 …, and val/accuracy by seed."""
    return compared([({KERNEL: 3 + 2 * i}, own) for i, own in enumerate(values)])


def test_a_mean_has_students_interval() -> None:
    values = draw(5)
    estimate = mean(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert estimate.std == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    estimate = mean([0.5])
    assert estimate is not None and (estimate.value, estimate.low, estimate.contains(0.5)) == (0.5, None, None)
    assert mean([]) is None


@pytest.mark.parametrize("unstable", [None, 0.2])
def test_settings_with_the_same_seeds_are_compared_by_the_paired_t_test(unstable: float | None) -> None:
    """A third setting that is unstable leaves the difference between the two what it is."""
    a, b = draw(5, 1), draw(5, 2, 0.92)
    others = [np.random.default_rng(0).normal(0.5, unstable, 5).tolist()] if unstable else []
    change = kernels(a, b, *others).effects[0].change
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert change.by_seed and change.p == pytest.approx(expected.pvalue)
    assert (change.low, change.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("hard", [0.0, 0.1])
def test_a_missing_seed_leaves_the_pairs_that_are_whole_if_seeds_matter(hard: float) -> None:
    a, b = draw(5, 3), draw(4, 4)
    a[0] -= hard
    b[0] -= hard
    change = only(kernels(a, b).effects).change
    assert change.by_seed == bool(hard)
    assert change.p == pytest.approx((stats.ttest_rel(b, a[:4]) if hard else stats.ttest_ind(b, a)).pvalue)


def test_settings_with_different_seeds_are_independent_samples() -> None:
    a, b = draw(5, 1), draw(3, 2, 0.93)
    change = only(kernels(a, dict(enumerate(b, start=10))).effects).change
    assert not change.by_seed and change.p == pytest.approx(stats.ttest_ind(b, a).pvalue)


def test_a_grid_with_holes_agrees_with_statsmodels() -> None:
    """Two factors, seeds missing here and there, one setting missing altogether: means and effects are those of one
    model of all runs; the error of an effect is that of the runs it compares, and HC3 for what it owes to the rest."""
    generator = np.random.default_rng(3)
    settings, lines = [], []
    for kernel in (3, 5, 9):
        for depth in (8, 16):
            seeds = [seed for seed in range(5) if (kernel * depth + seed) % 4 and (kernel, depth) != (9, 16)]
            values = {seed: 0.9 + 0.003 * kernel + 0.03 * seed + generator.normal(0, 0.01) for seed in seeds}
            settings.append(({KERNEL: kernel, DEPTH: depth}, values))
            lines += [(f"k{kernel}d{depth}", seed, value) for seed, value in values.items()]
    runs = pd.DataFrame(lines, columns=["setting", "seed", "value"])
    found = compared(settings)
    whole = smf.ols("value ~ 0 + C(setting) + C(seed)", runs).fit()
    robust = (whole.resid / (1 - whole.get_influence().hat_matrix_diag)) ** 2  # HC3

    for setting in found.valued:
        name = f"k{setting.levels[KERNEL]}d{setting.levels[DEPTH]}"
        everywhere = pd.DataFrame({"setting": name, "seed": sorted(set(runs.seed))})
        assert found.mean(setting) == pytest.approx(whole.predict(everywhere).mean())

    by_levels = {(effect.factor, effect.level): effect for effect in found.effects}
    pairs = {
        (KERNEL, 5): [("k5d8", "k3d8"), ("k5d16", "k3d16")],
        (KERNEL, 9): [("k9d8", "k3d8")],
        (DEPTH, 16): [("k3d16", "k3d8"), ("k5d16", "k5d8")],
    }
    assert set(by_levels) == set(pairs)
    for levels, matched in pairs.items():
        weights = pd.Series(0.0, whole.params.index)
        for first, second in matched:
            weights[f"C(setting)[{first}]"] += 1 / len(matched)
            weights[f"C(setting)[{second}]"] -= 1 / len(matched)
        of_run = np.linalg.pinv(whole.model.exog).T @ weights  # how much each run counts
        is_compared = runs.setting.isin([name for pair in matched for name in pair])
        own = smf.ols("value ~ 0 + C(setting) + C(seed)", runs[is_compared]).fit()
        squares = [own.mse_resid * np.sum(of_run[is_compared] ** 2)]
        squares += list((of_run**2 * robust)[~is_compared])
        freedom = sum(squares) ** 2 / (squares[0] ** 2 / own.df_resid + sum(np.square(squares[1:])))
        change = by_levels[levels].change
        assert by_levels[levels].pairs == len(matched)
        assert change.value == pytest.approx(whole.t_test(weights.to_numpy()).effect.item())
        assert (change.error, change.freedom) == pytest.approx((np.sqrt(sum(squares)), freedom))
        assert change.p == pytest.approx(2 * stats.t.sf(abs(change.value) / np.sqrt(sum(squares)), freedom))
        assert (change.low, change.high) == pytest.approx(
            stats.t.interval(0.95, freedom, change.value, np.sqrt(sum(squares)))
        )


def test_p_values_are_corrected_by_holms_method() -> None:
    found = kernels(*(draw(5, i, 0.95 - 0.012 * i) for i in range(6))).differences.values()
    unshown = [1.0] * (15 - len(found))  # pairs of six settings: the best is picked from them
    tested = [effect.change.p for effect in found]
    is_significant, p = (array[: len(found)] for array in multipletests(tested + unshown, method="holm")[:2])
    assert [effect.p_holm for effect in found] == pytest.approx(list(p))
    assert [effect.is_significant for effect in found] == list(is_significant)
    assert len(set(is_significant)) == 2, "the case should hold both"


def test_one_seed_has_an_effect_but_no_interval() -> None:
    effect = only(kernels([0.9], [0.95]).effects)
    assert effect.change.value == pytest.approx(0.05)
    assert (effect.change.low, effect.p_holm, effect.is_significant) == (None, None, False)


def test_settings_of_one_seed_are_judged_by_the_noise_of_the_others() -> None:
    single = kernels([0.8], [0.82], draw(5, 0), draw(5, 1)).effects[0].change
    pooled = (4 * np.var(draw(5, 0), ddof=1) + 4 * np.var(draw(5, 1), ddof=1)) / 8
    assert (single.std, single.freedom) == pytest.approx((np.sqrt(pooled), 8))


def test_a_difference_without_residual_is_exact() -> None:
    """Three settings, two of which are apart by the same in every seed: no test, but not "not significant" either."""
    found = kernels([0.90, 0.91, 0.92], [0.95, 0.96, 0.97], [0.93, 0.90, 0.91])
    exact, other = found.effects
    assert exact.change.is_exact and not other.change.is_exact
    assert (exact.change.low, exact.change.high) == pytest.approx((0.05, 0.05))
    words = json.loads(as_json(found))["words"]
    assert not any("not significant" in sentence and "kernel_size=3" in sentence for sentence in words)
    (sentence,) = (sentence for sentence in words if sentence.startswith("kernel_size 5 instead of 3"))
    assert "significant" not in sentence and "every seed" in sentence


# Missing runs.


def test_the_best_is_not_the_one_whose_hard_seed_failed() -> None:
    """Kernels 3, 5 and 7 over four seeds; the last one is hard, and failed for kernel 3."""
    seeds = np.array([0.0, 0.001, -0.001, -0.08])
    values = [0.95 + add + seeds + np.random.default_rng(i).normal(0, 0.0007, 4) for i, add in ((1, 0), (2, 0.0097))]
    third, fifth, seventh = dict(enumerate(values[0][:3])), values[1], values[1] - 0.0005
    found = compared([({KERNEL: 3}, third), ({KERNEL: 5}, list(fifth)), ({KERNEL: 7}, list(seventh))])
    tree = json.loads(as_json(found))
    assert tree["rows"][0][KERNEL] == 5 and tree["rows"][-1][KERNEL] == 3
    assert tree["rows"][-1]["val/accuracy"] > tree["rows"][0]["val/accuracy"], "the plain means say the opposite"
    (told,) = (sentence for sentence in tree["words"] if "missing" in sentence)
    raw, adjusted = tree["rows"][-1]["val/accuracy"], tree["rows"][-1]["val/accuracy/adjusted"]
    assert "kernel_size=3 (seed 3)" in told and f"{raw:.2%}"[:-1] in told and f"{adjusted:.2%}"[:-1] in told


def test_a_run_that_diverged_is_no_hard_seed() -> None:
    """Two equal settings, one without the seed at which a third one diverged."""
    found = kernels(draw(5, 1), draw(4, 2), [0.9, 0.91, 0.9, 0.89, 0.1])
    by_kernel = {effect.level: effect for effect in found.effects}
    assert abs(by_kernel[5].change.value) < 0.02 and not by_kernel[5].is_significant
    assert not found.model.is_adjusted


def simulated(generator: np.random.Generator) -> Comparison:
    """Up to six settings and six seeds that matter more than the settings do; a fifth of the runs is missing."""
    grid = [(kernel, depth) for kernel in (3, 5, 7) for depth in (8, 16)][: generator.choice([2, 3, 4, 6])]
    seeds = generator.normal(0, 0.05, 6)
    settings = []
    for kernel, depth in grid:
        values = 0.9 + generator.normal(0, 0.01) + seeds + generator.normal(0, 0.003, 6)
        kept = [seed for seed in range(6) if generator.random() < 0.8] or [0]
        settings.append(({KERNEL: kernel, DEPTH: depth}, {seed: values[seed] for seed in kept}))
    return compared(settings)


@pytest.mark.slow
def test_no_sentence_contradicts_the_sign_of_an_effect_below_it() -> None:
    generator = np.random.default_rng(0)
    for _ in range(1000):
        found = simulated(generator)
        best, sentences = found.valued[0].levels, result(found)
        assert all(f"{found.short(key)}={best[key]}" in sentences[0] for key in found.keys)
        assert all(difference.change.value <= 0 for difference in found.differences.values())
        is_claimed = any(sentence.startswith("It is significantly better") for sentence in sentences)
        assert is_claimed == all(difference.is_significant for difference in found.differences.values())
        for effect in found.effects:
            change = effect.change.value
            assert change < 0 or effect.n_higher > 0
            assert change > 0 or effect.n_higher < effect.pairs
            if len(found.keys) == 1:
                assert change < 0 or best[effect.factor] != effect.baseline
                assert change > 0 or best[effect.factor] != effect.level


def test_what_is_truly_worse_is_seldom_called_significantly_better() -> None:
    """Five against six seeds, seeds apart by 5 points, noise of 0.3 points, the second truly a point better."""
    generator, claims = np.random.default_rng(1), 0
    for _ in range(300):
        seeds = generator.normal(0, 0.05, 6)
        a, b = (0.9 + gain + seeds + generator.normal(0, 0.003, 6) for gain in (0, 0.01))
        found = kernels(dict(enumerate(a[:5])), list(b))
        claims += found.valued[0].levels[KERNEL] == 3 and only(list(found.differences.values())).is_significant
    assert claims == 0


def test_where_nothing_differs_the_best_is_seldom_called_significantly_better() -> None:
    """The best of six equals, picked from the data, is better than one of them in at most 5 % of 400 draws."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        found = kernels(*generator.normal(0.9, 0.01, (6, 5)).tolist())
        wrong += any(difference.is_significant for difference in found.differences.values())
    assert wrong <= 20


@pytest.mark.parametrize("unstable", [False, True])
def test_p_values_are_uniform_where_runs_are_missing_and_nothing_differs(unstable: bool) -> None:
    """Also where another setting is ten times as noisy: at most 5 % of p values below 0.05, with the error of 1,500."""
    generator = np.random.default_rng(2)
    std = np.array([[0.01], [0.01], [0.1 if unstable else 0.01]])
    small = 0
    for _ in range(1500):
        values = 0.9 + generator.normal(0, 0.02, 6) + generator.normal(0, 1, (3, 6)) * std
        values[1, 0] = values[0, 1] = np.nan
        p = SeedModel(values).difference([1, -1, 0]).p
        small += p is not None and p < 0.05
    assert small / 1500 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


# Effects of factors.


def test_the_baseline_is_what_most_settings_share_else_the_lowest() -> None:
    star = compared([({KERNEL: k, DEPTH: d}, [0.9]) for k, d in ((5, 8), (5, 16), (3, 8), (5, 4))])
    assert {(effect.factor, effect.level, effect.baseline) for effect in star.effects} == {
        (KERNEL, 3, 5), (DEPTH, 16, 8), (DEPTH, 4, 8),
    }  # fmt: skip
    assert only(compared([({KERNEL: 9}, [0.9]), ({KERNEL: 5}, [0.9])]).effects).baseline == 5


def test_what_follows_from_other_keys_is_no_factor_but_is_named() -> None:
    settings = [
        ({"optimizer.momentum": momentum, "optimizer.name": name, RATE: lr}, [accuracy])
        for name, momentum, lr, accuracy in (
            ("adamw", None, 0.1, 0.90), ("adamw", None, 0.2, 0.91), ("sgd", 0.9, 0.1, 0.92), ("sgd", 0.9, 0.2, 0.93),
        )
    ]  # fmt: skip
    found = compared(settings, "seed")
    assert found.factors == ["optimizer.name", RATE]
    by_factor = {effect.factor: effect for effect in found.effects}
    assert by_factor["optimizer.name"].changes_with == ("optimizer.momentum",)
    assert by_factor[RATE].changes_with == ()
    assert by_factor["optimizer.name"].pairs == 2
    assert by_factor["optimizer.name"].change.value == pytest.approx(0.02)


def test_factors_that_never_change_alone_say_so() -> None:
    """Half a fraction of 2 × 2 × 2: each pair of settings differs in two factors at least."""
    levels = [(a, b, (a + b) % 2) for a in (0, 1) for b in (0, 1)]
    settings = [({KERNEL: a, DEPTH: b, "model.d_model": c}, [0.9]) for a, b, c in levels]
    assert all(effect.changes_with for effect in compared(settings, "seed").effects)
    assert compared(settings).effects == []


def test_a_search_has_all_that_it_varied_as_factors() -> None:
    """With a learning rate of its own for every trial, all the rest is a function of it."""
    trials = [(0.001 * 1.3**i, (3, 5, 7)[i % 3], (4, 8)[i % 2]) for i in range(12)]
    settings = [({RATE: lr, KERNEL: k, DEPTH: d}, [0.9 + i / 100]) for i, (lr, k, d) in enumerate(trials)]
    found = compared(settings)
    assert set(found.factors) == {RATE, KERNEL, DEPTH}
    effect = only(found.effects)  # kernels and depths come again after six trials
    assert (effect.factor, effect.level, effect.baseline) == (RATE, trials[6][0], trials[0][0])
    assert effect.change.value == pytest.approx(0.06) and effect.changes_with == ()
    assert compared(settings[:6]).effects == []
