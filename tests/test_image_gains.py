"""Tests of differences over runs and images: between equal settings, and where images truly differ."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from stats.images import ImageGains, image_gains

Correct = dict[str, dict[int, np.ndarray]]


def draw(
    generator: np.random.Generator,
    settings: int,
    seeds: int,
    images: int,
    spread: float,
    gain: np.ndarray | float = 0.0,
) -> Correct:
    """Draw settings of equal quality, except for the first one's gain by image; runs and images vary in quality."""
    easy = generator.normal(1.5, 1.5, images)
    return {
        f"s{a}": {
            seed: easy + (gain if a == 0 else 0.0) + generator.normal(0, spread) + generator.normal(0, 1, images) > 0
            for seed in range(seeds)
        }
        for a in range(settings)
    }


def test_each_error_is_the_textbooks_where_there_is_one() -> None:
    """With two settings and shared seeds, nothing is pooled: the tests are paired t tests by image and by seed."""
    correct = draw(np.random.default_rng(0), 2, 4, 300, 0.3)
    first, second = (np.array(list(runs.values()), dtype=float) for runs in correct.values())
    gains = image_gains(correct, [("s0", "s1")])
    assert gains.by_image == pytest.approx(first.mean(0) - second.mean(0))
    assert gains.new_runs.value == gains.both.value == pytest.approx(gains.by_image.mean())
    assert gains.other_images.p == pytest.approx(ttest_rel(first.mean(0), second.mean(0)).pvalue)
    assert gains.new_runs.p == pytest.approx(ttest_rel(first.mean(1), second.mean(1)).pvalue)
    assert gains.both.error and gains.other_images.error and gains.new_runs.error
    assert gains.both.error >= max(gains.other_images.error, gains.new_runs.error)
    parts = gains.other_images.error**2 + gains.new_runs.error**2
    assert gains.both.error**2 <= parts


def test_a_missing_seed_leaves_points_and_images_in_agreement() -> None:
    correct = draw(np.random.default_rng(1), 2, 4, 300, 0.5)
    del correct["s1"][3]
    shared = {a: {seed: runs[seed] for seed in range(3)} for a, runs in correct.items()}
    pair = [("s0", "s1")]
    assert image_gains(correct, pair).by_image == pytest.approx(image_gains(shared, pair).by_image)
    strangers = {"s0": correct["s0"], "s1": {10 + seed: run for seed, run in correct["s1"].items()}}
    a, b = (np.array([run.mean() for run in runs.values()]) for runs in strangers.values())
    assert image_gains(strangers, pair).new_runs.value == pytest.approx(a.mean() - b.mean())
    assert image_gains(strangers, pair).new_runs.p == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue, abs=0.1)


def test_one_seed_shows_no_spread_over_runs_and_lists_nothing() -> None:
    gains = image_gains(draw(np.random.default_rng(2), 2, 1, 300, 0.3), [("s0", "s1")])
    assert gains.new_runs.p is None and gains.both.p is None and gains.other_images.p is not None
    assert gains.by_chance == np.sum(gains.by_image != 0) and (gains.rates == 1).all()


def test_images_with_equal_results_are_tied() -> None:
    right = np.ones(50, dtype=bool)
    gains = image_gains({"a": {0: right, 1: right}, "b": {0: right, 1: right}}, [("a", "b")])
    assert gains.other_images.p == gains.new_runs.p == gains.both.p == 1.0
    assert gains.by_chance == 0 and (gains.rates == 1).all()


def simulated(count: int, **design: float) -> list[ImageGains]:
    generator = np.random.default_rng(3)
    return [image_gains(draw(generator, **design), [("s0", "s1")]) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "seeds", "spread"), [(2, 2, 0.3), (2, 3, 0.1), (6, 2, 0.5), (4, 3, 0.3), (2, 5, 0.3)]
)
def test_a_setting_against_itself_differs_in_at_most_5_percent(settings: int, seeds: int, spread: float) -> None:
    """Of 400 simulations, at most 5 % have a significant test, and at most 10 % a list with a rate of 10 %."""
    studies = simulated(400, settings=settings, seeds=seeds, images=144, spread=spread)
    allowed = 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / len(studies))
    for kind in ("new_runs", "both"):
        assert np.mean([getattr(gains, kind).p < 0.05 for gains in studies]) < allowed
    assert np.mean([(gains.rates <= 0.1).any() for gains in studies]) <= 0.1
    listed = np.mean([np.sum(gains.by_image != 0) for gains in studies])
    assert np.mean([gains.by_chance for gains in studies]) == pytest.approx(listed, rel=0.05)


def test_list_of_images_keeps_its_false_discovery_rate() -> None:
    """Only the first setting is right on 50 of 500 images, with eight seeds of each setting."""
    generator, gain, shares, lengths = np.random.default_rng(4), np.zeros(500), [], []
    gain[:50] = 4.0
    for _ in range(40):
        correct = draw(generator, 2, 8, 500, 0.1, gain)
        for runs in correct.values():
            for run in runs.values():
                run[:50] &= generator.random(50) < 0.95
        for run in correct["s1"].values():
            run[:50] = generator.random(50) < 0.05
        listed = image_gains(correct, [("s0", "s1")]).rates <= 0.1
        shares.append(listed[50:].sum() / max(1, listed.sum()))
        lengths.append(listed[:50].mean())
    assert np.mean(lengths) > 0.8
    assert np.mean(shares) <= 0.1


def test_a_factor_is_dealt_within_the_settings_that_it_connects() -> None:
    """Two pairs have different accuracies. No permutation mixes them, and a shared baseline counts once."""
    generator = np.random.default_rng(5)
    good, bad = draw(generator, 2, 3, 200, 0.1, 0.0), draw(generator, 2, 3, 200, 0.1, 0.0)
    correct = {f"good {a}": runs for a, runs in good.items()}
    correct |= {f"bad {a}": {seed: np.zeros(200, bool) for seed in runs} for a, runs in bad.items()}
    both = image_gains(correct, [("good s0", "good s1"), ("bad s0", "bad s1")])
    of_pair = image_gains(correct, [("good s0", "good s1")])
    assert both.by_image == pytest.approx(of_pair.by_image / 2)
    assert both.by_chance == pytest.approx(of_pair.by_chance, rel=0.1), "the bad ones add nothing"
    star = draw(generator, 3, 3, 200, 0.1)
    gains = image_gains(star, [("s1", "s0"), ("s2", "s0")])
    a, b, c = (np.mean(list(runs.values()), axis=0) for runs in star.values())
    assert gains.by_image == pytest.approx((b + c) / 2 - a)
