"""Tests of the statistics of comparisons, from runs to sentences; those of the numbers are in test_stats.py."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from comparison.results import Comparison
from rendering.findings import result
from rendering.report import as_json
from run_folders import DEPTH, KERNEL, compared
from stats import analyse
from stats.factors import changes

RATE = "optimizer.lr"


def draw(n: int, seed: int = 0, around: float = 0.9) -> list[float]:
    return list(np.random.default_rng(seed).normal(around, 0.01, n))


def only(items: Sequence[Any]) -> Any:
    (effect,) = items
    return effect


def seeded(values: Sequence[float]) -> dict[int, float | None]:
    return dict(enumerate(values))


def kernels(*values: Any) -> Comparison:
    """Compare kernels 3, 5, 7 …, given val/accuracy by seed."""
    return compared([({KERNEL: 3 + 2 * i}, accuracies) for i, accuracies in enumerate(values)])


def words(comparison: Comparison) -> str:
    return " ".join(json.loads(as_json(comparison))["words"])


def test_one_seed_has_an_effect_but_no_interval() -> None:
    effect = only(kernels([0.9], [0.95]).effects)
    assert effect.estimate == pytest.approx(0.05)
    assert (effect.low, effect.p, effect.is_significant) == (None, None, False)


def test_ties_are_called_ties_in_these_runs() -> None:
    comparison = kernels([0.9], [0.9])
    assert "Tied with it in these runs: kernel_size=5" in words(comparison)
    assert comparison.effects[0].is_tied and "every seed" not in words(comparison)


def test_diverging_setting_is_named_with_its_rate_and_not_best() -> None:
    """Three of six runs of kernel 3 end as NaN, and the others are a point better than kernel 5."""
    survivors = {seed: 0.951 + 0.0003 * seed for seed in range(3)}
    steady = {seed: 0.941 + 0.0004 * (seed % 4) for seed in range(6)}
    comparison = compared([({KERNEL: 3}, survivors), ({KERNEL: 5}, steady)], failed=[({KERNEL: 3}, range(3, 6))])
    assert comparison.valued[0].levels[KERNEL] == 5 and comparison.failed(comparison.valued[1]) == 3
    assert "kernel_size=3: 3 of 6 runs failed" in words(comparison)
    assert "significantly better than the other" not in words(comparison).replace("not significantly", "")


def test_a_run_that_was_lost_is_not_held_against_its_setting() -> None:
    comparison = compared(
        [({KERNEL: 3}, draw(3)), ({KERNEL: 5}, draw(4, 1, 0.5))],
        failed=[({KERNEL: 3}, [3])],
        error="OutOfMemoryError: 1",
    )
    assert comparison.failed(comparison.valued[0]) == 0 and comparison.missing == {comparison.valued[0]: [3]}


def test_the_best_of_many_is_said_to_look_too_good() -> None:
    comparison = kernels(*(draw(3, seed) for seed in range(12)))
    assert comparison.selection and comparison.selection.bias and comparison.selection.bias > 0.001
    assert "better than it is" in words(comparison)


def test_a_best_that_was_picked_on_the_test_set_says_so() -> None:
    values = [({KERNEL: kernel}, draw(3, kernel)) for kernel in (3, 5, 7)]
    assert "on the test set" in words(compared(values, metric="test/accuracy"))
    assert "on the test set" not in words(compared(values))


def test_difference_below_the_smallest_does_not_matter() -> None:
    values = np.random.default_rng(0).normal(0.9, 1e-4, (2, 6)).tolist()
    comparison = compared([({KERNEL: 3}, values[0]), ({KERNEL: 5}, values[1])], smallest=0.5)
    assert all(difference.is_negligible for difference in comparison.differences.values())
    assert "does not matter" in words(comparison) and not any(plan.seeds for plan in comparison.plans)


def test_only_settings_that_may_be_the_best_get_a_probability() -> None:
    comparison = kernels(draw(5, 0), draw(5, 1), draw(5, 2, 0.5))
    tree = json.loads(as_json(comparison))
    assert len(tree["may_be_best"]) == 2 and "kernel_size=7 0 %" not in words(comparison)
    assert tree["new_run_of_best_beats_next"]["low"] < 0.5 < tree["new_run_of_best_beats_next"]["high"]


# Missing runs.


def test_the_best_is_not_the_one_whose_hard_seed_failed() -> None:
    """Kernels 3, 5 and 7 ran with four seeds. The last seed is hard, and failed for kernel 3."""
    seeds = np.array([0.0, 0.001, -0.001, -0.08])
    values = [0.95 + add + seeds + np.random.default_rng(i).normal(0, 0.0007, 4) for i, add in ((1, 0), (2, 0.0097))]
    third, fifth, seventh = dict(enumerate(values[0][:3])), values[1], values[1] - 0.0005
    comparison = compared([({KERNEL: 3}, third), ({KERNEL: 5}, list(fifth)), ({KERNEL: 7}, list(seventh))])
    tree = json.loads(as_json(comparison))
    assert tree["rows"][0][KERNEL] == 5 and tree["rows"][-1][KERNEL] == 3
    assert tree["rows"][-1]["val/accuracy"] > tree["rows"][0]["val/accuracy"], "the plain means say the opposite"
    (sentence_on_missing,) = (sentence for sentence in tree["words"] if "missing" in sentence)
    raw, adjusted = tree["rows"][-1]["val/accuracy"], tree["rows"][-1]["val/accuracy/adjusted"]
    assert (
        "kernel_size=3 (seed 3)" in sentence_on_missing
        and f"{raw:.2%}"[:-1] in sentence_on_missing
        and f"{adjusted:.2%}"[:-1] in sentence_on_missing
    )


def test_a_run_that_diverged_is_no_hard_seed() -> None:
    """Two settings are equal, and one lacks the seed at which a third one diverged."""
    comparison = kernels(draw(5, 1), draw(4, 2), [0.9, 0.91, 0.9, 0.89, 0.1])
    by_kernel = {effect.level: effect for effect in comparison.effects}
    assert abs(by_kernel[5].estimate) < 0.02 and not by_kernel[5].is_significant
    assert comparison.valued[-1].levels[KERNEL] == 7


def simulated(generator: np.random.Generator) -> Comparison:
    """Draw up to six settings and six seeds, which matter more than the settings; a fifth of the runs is missing."""
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
    for _ in range(200):
        comparison = simulated(generator)
        best, sentences = comparison.valued[0].levels, result(comparison)
        assert all(f"{comparison.short(key)}={best[key]}" in sentences[0] for key in comparison.keys)
        assert all(difference.estimate <= 0 for difference in comparison.differences.values())
        claims = [sentence for sentence in sentences if sentence.startswith("It is significantly better than")]
        significant = sum(difference.is_significant for difference in comparison.differences.values())
        assert len(claims) == (significant > 0)
        if 0 < significant < len(comparison.differences):
            assert f"than {significant} of the {len(comparison.differences)} others" in claims[0]
        for effect in comparison.effects:
            change = effect.estimate
            assert change < 0 or effect.n_higher > 0
            assert change > 0 or effect.n_higher < len(effect.pairs)
            if len(comparison.keys) == 1:
                assert change < 0 or best[effect.factor] != effect.baseline
                assert change > 0 or best[effect.factor] != effect.level


@pytest.mark.slow
def test_truly_worse_setting_is_never_significantly_better() -> None:
    """Five and six seeds are 5 points apart, noise is 0.3 points, and the second setting is a point better."""
    generator, claims = np.random.default_rng(1), 0
    for _ in range(300):
        seeds = generator.normal(0, 0.05, 6)
        a, b = (0.9 + gain + seeds + generator.normal(0, 0.003, 6) for gain in (0, 0.01))
        comparison = kernels(dict(enumerate(a[:5])), list(b))
        claims += (
            comparison.valued[0].levels[KERNEL] == 3 and only(list(comparison.differences.values())).is_significant
        )
    assert claims == 0


@pytest.mark.slow
def test_best_of_equals_is_significant_in_at_most_5_percent() -> None:
    """The best of six equal settings is significantly better than another in at most 5 % of 400 draws."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        result = analyse(dict(enumerate(map(seeded, generator.normal(0.9, 0.01, (6, 5)).tolist()))))
        wrong += any(result.differences[result.best, other].is_significant for other in result.ranked[1:])
    assert wrong <= 20


@pytest.mark.slow
@pytest.mark.parametrize("unstable", [False, True])
def test_p_values_of_equals_hold_their_level_with_missing_runs(unstable: bool) -> None:
    """At most 5 % of 1,500 p values are below 0.05, also if another setting is ten times as noisy."""
    generator = np.random.default_rng(2)
    std = np.array([[0.01], [0.01], [0.1 if unstable else 0.01]])
    small = 0
    for _ in range(1500):
        values = 0.9 + generator.normal(0, 0.02, 6) + generator.normal(0, 1, (3, 6)) * std
        runs = [seeded(row) for row in values.tolist()]
        del runs[1][0], runs[0][1]
        p = analyse(dict(enumerate(runs))).differences[0, 1].p_alone
        small += p is not None and p < 0.05
    assert small / 1500 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.filterwarnings("error")
def test_losses_beyond_float32_are_not_compared() -> None:
    settings = [({KERNEL: kernel}, [0.5 + 0.1 * kernel, 0.9, 0.7]) for kernel in (3, 5, 7)]
    runs = compared([*settings, ({KERNEL: 9}, [1e155, 3e155, 2e155])], metric="val/loss").runs
    comparison = Comparison("test", runs, "val/loss")
    assert [len(setting.by_seed("val/loss")) for setting in comparison.settings] == [3, 3, 3, 0]
    assert not {"nan", "inf", "+nan", "+inf", "-inf"} & {*words(comparison).split()}
    assert only([setting for setting in comparison.settings if setting.levels[KERNEL] == 9]) not in comparison.valued


# Effects of factors.


def test_the_baseline_is_a_studys_center_else_the_lowest() -> None:
    star = compared([({KERNEL: k, DEPTH: d}, [0.9]) for k, d in ((5, 8), (5, 16), (3, 8), (5, 4))])
    assert {(effect.factor, effect.level, effect.baseline) for effect in star.effects} == {
        (KERNEL, 3, 5), (DEPTH, 16, 8), (DEPTH, 4, 8),
    }  # fmt: skip
    assert only(compared([({KERNEL: 9}, [0.9]), ({KERNEL: 5}, [0.9])]).effects).baseline == 5


@pytest.mark.parametrize(
    ("levels", "further", "baselines"),
    [
        ([(5, 8), (5, 16), (9, 8), (9, 16)], (9, 32), {KERNEL: 5, DEPTH: 8}),
        ([(5, 8), (9, 8), (5, 16), (9, 16), (5, 32), (9, 32)], (3, 32), {KERNEL: 5, DEPTH: 8}),
        ([(5, 8), (5, 16), (3, 8), (5, 4)], (9, 64), {KERNEL: 5, DEPTH: 8}),
    ],
    ids=["grid", "lower level", "one thing at a time"],
)
def test_baselines_stay_when_a_setting_is_added(
    levels: list[tuple[int, int]], further: tuple[int, int], baselines: dict[str, int]
) -> None:
    for planned in (levels, [*levels, further]):
        comparison = compared([({KERNEL: k, DEPTH: d}, [0.9]) for k, d in planned])
        assert {effect.factor: effect.baseline for effect in comparison.effects} == baselines


@pytest.mark.parametrize(
    "levels",
    [
        [(5, 8), (5, 16), (9, 8), (9, 16)],
        [(k, d) for k in (3, 5, 9) for d in (4, 8, 16)],
        [(5, 8), (3, 8), (9, 8), (5, 4), (5, 16)],
        [(9, 16), (3, 16), (5, 16), (7, 16), (9, 4), (9, 8)],
    ],
    ids=["grid of four", "grid of nine", "one thing at a time", "one thing at a time, from the highest"],
)
def test_no_added_setting_turns_a_sign_round(levels: list[tuple[int, int]]) -> None:
    """The added setting has any kernel and depth, also the lowest and the highest."""

    def compared_levels(planned: list[tuple[int, int]]) -> set[tuple[Any, Any, Any]]:
        changed = changes([{KERNEL: k, DEPTH: d} for k, d in planned], range(len(planned)))
        return {(change.factor, change.level, change.baseline) for change in changed}

    before = compared_levels(levels)
    for further in itertools.product((1, 3, 5, 7, 9, 11), (2, 4, 8, 16, 32)):
        if further not in levels:
            after = compared_levels([*levels, further])
            assert not {(factor, baseline, level) for factor, level, baseline in before} & after, further
            assert before <= after


def test_what_follows_from_other_keys_is_no_factor_but_is_named() -> None:
    settings = [
        ({"optimizer.momentum": momentum, "optimizer.name": name, RATE: lr}, [accuracy])
        for name, momentum, lr, accuracy in (
            ("adamw", None, 0.1, 0.90), ("adamw", None, 0.2, 0.91), ("sgd", 0.9, 0.1, 0.92), ("sgd", 0.9, 0.2, 0.93),
        )
    ]  # fmt: skip
    comparison = compared(settings, "seed")
    assert comparison.factors == ["optimizer.name", RATE]
    by_factor = {effect.factor: effect for effect in comparison.effects}
    assert comparison.changes_with(by_factor["optimizer.name"]) == ("optimizer.momentum",)
    assert comparison.changes_with(by_factor[RATE]) == ()
    assert len(by_factor["optimizer.name"].pairs) == 2
    assert by_factor["optimizer.name"].estimate == pytest.approx(0.02)


def test_factors_that_never_change_alone_say_so() -> None:
    """In half a fraction of 2 × 2 × 2, each pair of settings differs in two factors or more."""
    levels = [(a, b, (a + b) % 2) for a in (0, 1) for b in (0, 1)]
    settings = [({KERNEL: a, DEPTH: b, "model.d_model": c}, [0.9]) for a, b, c in levels]
    comparison = compared(settings, "seed")
    assert all(comparison.changes_with(effect) for effect in comparison.effects)
    assert compared(settings).effects == []


def test_a_search_has_all_that_it_varied_as_factors() -> None:
    """Each trial has a different learning rate, on which all other keys depend."""
    trials = [(0.001 * 1.3**i, (3, 5, 7)[i % 3], (4, 8)[i % 2]) for i in range(12)]
    settings = [({RATE: lr, KERNEL: k, DEPTH: d}, [0.9 + i / 100]) for i, (lr, k, d) in enumerate(trials)]
    comparison = compared(settings)
    assert set(comparison.factors) == {RATE, KERNEL, DEPTH}
    effect = only(comparison.effects)  # kernels and depths come again after six trials
    assert (effect.factor, effect.level, effect.baseline) == (RATE, trials[6][0], trials[0][0])
    assert effect.estimate == pytest.approx(0.06) and comparison.changes_with(effect) == ()
    assert compared(settings[:6]).effects == []


@pytest.mark.parametrize("depends", [True, False])
def test_effect_that_depends_on_another_factor_is_stated(depends: bool) -> None:
    grid = itertools.product((5, 9), (8, 16))
    means = [({KERNEL: k, DEPTH: d}, 0.9 + 0.05 * (k == 9) * (d == 16 or not depends)) for k, d in grid]
    comparison = compared([(levels, draw(4, i, mean)) for i, (levels, mean) in enumerate(means)])
    assert ("the two effects differ significantly" in words(comparison)) is depends
    assert ("No effect depends significantly" in words(comparison)) is not depends
    (record,) = json.loads(as_json(comparison))["interactions"]
    assert record["estimate"] == pytest.approx(record["at_level"] - record["at_baseline"])
    assert record["low"] < record["estimate"] < record["high"] and record["is_significant"] is depends
