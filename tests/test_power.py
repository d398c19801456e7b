"""The price of an answer, against statsmodels' power classes, and by simulation where none fits."""

import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from statsmodels.stats.power import TTestIndPower, TTestPower

from comparison.figure import comparison_figure
from comparison.least_squares import Estimate, SeedModel
from comparison.power import MOST, POWER, Design
from comparison.price import Price, price_lines, prices
from comparison.report import as_json
from comparison.results import read
from run_folders import write_run
from tracking.identity import parse_overrides

LEVELS = (0.05, 0.05 / 3, 0.05 / 45)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 1.5])
def test_seeds_needed_agree_with_statsmodels_to_a_seed(effect: float, level: float) -> None:
    """Two settings with the same seeds, and with seeds of their own; the effect in standard deviations."""
    paired, independent = Design(1.0, 1, level).seeds_for(effect), Design(math.sqrt(2), 2, level).seeds_for(effect)
    assert paired and independent
    for power, seeds in ((TTestPower().power, paired), (TTestIndPower().power, independent)):
        assert power(effect, seeds - 1, level) < POWER <= power(effect, seeds, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seeds", [5, 8, 20])
def test_detectable_differences_agree_with_statsmodels(seeds: int, level: float) -> None:
    difference = Design(1.0, 1, level).detectable(seeds)
    one_tail = TTestPower().power(difference, seeds, level / 2, alternative="larger")  # the other one is NaN in SciPy
    assert one_tail == pytest.approx(POWER, abs=1e-5)


@pytest.mark.parametrize("by_seed", [True, False])
def test_the_power_of_an_effect_over_several_settings_agrees_with_simulation(by_seed: bool) -> None:
    """A factor of two levels crossed with one of three: six settings in one model, for which there is no class."""
    generator, n, level = np.random.default_rng(0), 1000, 0.01
    weights = np.array([1, 1, 1, -1, -1, -1]) / 3

    def simulate(seeds: int) -> Estimate:
        """The effect is one standard deviation of the noise; seeds differ by much more than that."""
        values = generator.normal(0, 1, (6, seeds)) + (weights > 0)[:, None]
        if by_seed:
            return SeedModel(values + generator.normal(0, 5, seeds)).difference(weights)
        apart = np.full((6, 6, seeds), np.nan)  # every setting has seeds of its own
        apart[range(6), range(6)] = values
        return SeedModel(apart.reshape(6, -1)).difference(weights)

    change = simulate(5)
    assert change.by_seed == by_seed and change.std
    estimated = Design.of(change, 6, level)
    design = replace(estimated, scale=estimated.scale / change.std)  # as if the noise were known
    seeds = design.seeds_for(1.0)
    assert seeds
    shown = [np.mean([(simulate(planned).p or 1) < level for _ in range(n)]) for planned in (seeds - 1, seeds)]
    error = 3 * math.sqrt(POWER * (1 - POWER) / n)
    assert shown[0] < POWER + error and POWER - error < shown[1]


def test_what_would_take_thousands_of_seeds_has_no_price() -> None:
    design = Design(1.0, 1, 0.05)
    assert design.seeds_for(0.0) is None
    assert design.seeds_for(0.99 * design.detectable(MOST)) is None
    assert design.seeds_for(design.detectable(MOST)) == MOST


def three_kernels(folder: Path, seeds: int) -> list[Price]:
    """Kernels 5 and 9 close to each other, kernel 3 far below; every run took 12.5 s."""
    values = np.random.default_rng(0).normal([[0.900], [0.904], [0.5]], 0.003, (3, 20))
    for kernel, own in zip((5, 9, 3), values, strict=True):
        for seed, value in enumerate(own[:seeds]):
            overrides = (f"model.kernel_size={kernel}", f"seed={seed}", "sweep=kernels")
            told = {"overrides": parse_overrides(overrides), "varied": ["model.kernel_size"]}
            write_run(folder / f"{kernel}-{seed}", *overrides, **told, best__val__accuracy=value)
    return prices(read([folder]))


def test_a_comparison_says_what_an_answer_would_take(tmp_path: Path) -> None:
    found = three_kernels(tmp_path, 5)
    best = found[0]
    assert "kernel_size=9" in best.question and "kernel_size=5" in best.question and best.seeds_needed
    assert best.level == pytest.approx(0.05 / 2), "of three pairs one is settled"
    assert best.runs == 2 * (best.seeds_needed - 5) and best.seconds == pytest.approx(12.5 * best.runs)
    (command,) = best.commands
    for part in (
        "model.kernel_size=5,9",
        "sweep=kernels",
        f"{best.seeds_needed}" if best.seeds_needed > 13 else "seed=5",
    ):
        assert part in command
    assert all(not one.is_significant for one in found[1:])
    assert json.loads(as_json(read([tmp_path])))["prices"][0]["runs"] == best.runs


def test_the_figure_has_a_curve_that_reaches_each_difference_at_the_seeds_needed(tmp_path: Path) -> None:
    found = sorted(three_kernels(tmp_path, 5), key=lambda one: one.seeds_needed or math.inf)
    figure = comparison_figure(read([tmp_path]))
    assert figure
    (panel,) = (axes for axes in figure.axes if axes.get_xlabel() == "seeds")
    curves = [line for line in panel.lines if len(line.get_xdata()) > 2]
    needed = [line for line in panel.lines if len(line.get_xdata()) == 1][1::2]
    assert len(curves) == len(needed) == len(found) > 0
    for one, curve, dot in zip(found, curves, needed, strict=True):
        (seeds,), (difference,) = dot.get_xdata(), dot.get_ydata()
        assert (seeds, difference) == (one.seeds_needed, pytest.approx(100 * abs(one.difference)))
        before, at = np.interp([seeds - 1, seeds], curve.get_xdata(), curve.get_ydata())
        assert at < 1.01 * difference and before > 0.99 * difference


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.003), (4, 1e-5)])
def test_without_a_spread_or_a_question_there_is_no_such_panel(tmp_path: Path, seeds: int, noise: float) -> None:
    for kernel, mean in ((5, 0.9), (9, 0.8)):
        for seed, value in enumerate(np.random.default_rng(kernel).normal(mean, noise, seeds)):
            overrides = (f"model.kernel_size={kernel}", f"seed={seed}")
            write_run(tmp_path / f"{kernel}-{seed}", *overrides, best__val__accuracy=value)
    figure = comparison_figure(read([tmp_path]))
    assert figure and not any(axes.get_xlabel() == "seeds" for axes in figure.axes)


def test_with_one_seed_two_more_would_give_an_estimate(tmp_path: Path) -> None:
    (price,) = three_kernels(tmp_path, 1)
    assert price.detectable is None and price.seeds_needed is None
    assert price.runs == 6 and price.seconds == pytest.approx(75)
    (command,) = price.commands
    assert "seed=1,2" in command


@pytest.mark.parametrize("root", ["a, = 'b", "${x}", "[data]", ""])
def test_a_command_gives_a_run_the_values_that_it_had(tmp_path: Path, root: str) -> None:
    for kernel in (5, 9):
        told = {"overrides": {"model.kernel_size": kernel, "data.root": root}, "varied": ["model.kernel_size"]}
        write_run(tmp_path / f"{kernel}", f"model.kernel_size={kernel}", **told, best__val__accuracy=0.9)
    ((command,),) = (price.commands for price in prices(read([tmp_path])))
    typed = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(
        shlex.split(command)[3:])}  # fmt: skip
    assert typed["data.root"].value() == root and not typed["data.root"].is_sweep_override()
    assert typed["model.kernel_size"].is_sweep_override()


def test_a_setting_that_left_a_key_at_its_value_belongs_to_the_grid(tmp_path: Path) -> None:
    for kernel, told in ((5, {}), (9, {"model.kernel_size": 9})):
        write_run(tmp_path / f"{kernel}", f"model.kernel_size={kernel}", overrides=told, best__val__accuracy=0.9)
    ((command,),) = (price.commands for price in prices(read([tmp_path])))
    assert "model.kernel_size=5,9" in command


def test_commands_that_are_not_shown_are_counted(tmp_path: Path) -> None:
    for kernel in (3, 5, 7, 9, 11):  # no grid: each depth has its kernel
        told = {"model.kernel_size": kernel, "model.depth": kernel}
        overrides = [f"{key}={value}" for key, value in told.items()]
        told |= {"model.norm": "batch"} if kernel == 5 else {}
        write_run(tmp_path / f"{kernel}", *overrides, overrides=told, best__val__accuracy=0.9)
    comparison = read([tmp_path])
    (price,) = prices(comparison)
    assert sum("model.norm" in command for command in price.commands) == 1  # where it was typed
    lines = price_lines(comparison, most=3)
    assert len([line for line in lines if "python" in line]) == 3
    assert any("2 more commands" in line for line in lines)


def test_no_accuracies_differ_by_more_than_100_points(tmp_path: Path) -> None:
    for kernel, values in ((5, (0.9, 0.1)), (9, (0.8, 0.3))):
        for seed, value in enumerate(values):
            overrides = (f"model.kernel_size={kernel}", f"seed={seed}")
            write_run(tmp_path / f"{kernel}-{seed}", *overrides, best__val__accuracy=value)
    comparison = read([tmp_path])
    (price,) = prices(comparison)
    assert price.detectable and price.detectable > 1
    assert "points or more" not in "".join(price_lines(comparison, most=3))
    assert "can show no difference" in "".join(price_lines(comparison, most=3))


def test_settings_of_one_seed_are_judged_by_the_spread_of_similar_ones(tmp_path: Path) -> None:
    three_kernels(tmp_path, 4)
    for folder in [*tmp_path.glob("5-[123]"), *tmp_path.glob("9-[123]")]:
        shutil.rmtree(folder)
    best = prices(read([tmp_path]))[0]
    assert best.seeds == 1 and best.detectable
