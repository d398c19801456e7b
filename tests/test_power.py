"""Tests of the power analysis: what seeds find, and the commands that run and test new ones."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from comparison.power_analysis import Plan
from comparison.results import Comparison, parse_seeds, read
from config.errors import ConfigError
from processes import REPOSITORY
from rendering.commands import train_commands
from rendering.figure import comparison_figure
from rendering.power_text import confirmation, power_lines, question
from rendering.report import as_json
from run_folders import write_run
from tracking.identity import override_values


def three_kernels(folder: Path, seeds: int) -> Comparison:
    """Write kernels 5 and 9 close to each other, and kernel 3 far below; every run took 12.5 s."""
    values = np.random.default_rng(0).normal([[0.900], [0.902], [0.5]], 0.003, (3, 20))
    for kernel, accuracies in zip((5, 9, 3), values, strict=True):
        for seed, value in enumerate(accuracies[:seeds]):
            overrides = (f"model.kernel_size={kernel}", f"seed={seed}", "sweep=kernels")
            write_run(
                folder / f"{kernel}-{seed}", *overrides, overrides=override_values(overrides),
                varied=["model.kernel_size"], best__val__accuracy=value,
            )  # fmt: skip
    return read([folder])


def first(comparison: Comparison) -> Plan:
    return comparison.plans[0]


def test_a_plan_is_for_new_seeds_of_the_settings_in_question(tmp_path: Path) -> None:
    comparison = three_kernels(tmp_path, 5)
    plan = first(comparison)
    asked = question(plan, comparison)
    assert "kernel_size=9" in asked and "kernel_size=5" in asked and plan.size
    assert plan.size.level == pytest.approx(0.05), "of three pairs two are settled"
    assert plan.seeds == tuple(range(5, 5 + (plan.size.seeds_needed or 0)))
    assert plan.runs == 2 * len(plan.seeds) and plan.seconds == pytest.approx(12.5 * plan.runs)
    (command,) = train_commands(plan.settings, plan.seeds)
    assert "model.kernel_size=5,9" in command and f"sweep={tmp_path.name}" in command and "3,5" not in command
    record = json.loads(as_json(comparison))["sample_sizes"][0]
    assert record["runs"] == plan.runs and record["seeds_low"] <= record["seeds_needed"] <= record["seeds_high"]


def test_power_curve_meets_the_difference_at_the_seeds_needed(tmp_path: Path) -> None:
    comparison = three_kernels(tmp_path, 5)
    figure = comparison_figure(comparison)
    assert figure
    (panel,) = (axes for axes in figure.axes if axes.get_xlabel() == "new seeds")
    lines = [np.asarray(line.get_xydata()) for line in panel.lines]
    curves, dots = [line for line in lines if len(line) > 2], [line for line in lines if len(line) == 1]
    assert len(curves) == len(dots) > 0
    for curve, dot in zip(curves, dots, strict=True):
        ((seeds, difference),) = dot
        before, at = np.interp([seeds - 1, seeds], *curve.T)
        assert at < 1.05 * difference and before > 0.95 * difference


def test_two_seeds_have_a_range_and_no_power(tmp_path: Path) -> None:
    comparison = three_kernels(tmp_path, 2)
    size = first(comparison).size
    assert size and size.detectable is None and size.seeds_needed is None and size.seeds_low
    assert len(first(comparison).seeds) == 2 and "80 %" not in " ".join(power_lines(comparison, 5))


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "src/compare.py"), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_new_seeds_are_tested_alone(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    comparison = three_kernels(folder, 4)
    seeds = first(comparison).seeds[:6]
    for kernel, mean in ((5, 0.9), (9, 0.95)):
        for seed in seeds:
            value = mean + np.random.default_rng([kernel, seed]).normal(0, 0.003)
            write_run(
                folder / f"{kernel}-{seed}", f"model.kernel_size={kernel}", f"seed={seed}", best__val__accuracy=value
            )
    span = f"{seeds[0]}-{seeds[-1]}"
    done = compare(folder, "--confirm", span, "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert [row["n"] for row in tree["rows"]] == [6, 6] and tree["differences_from_best"][0]["is_significant"]
    refused = compare(folder, "--confirm", "50-60")
    assert refused.returncode and "--confirm 50-60" in refused.stderr and refused.stderr.count("\n") == 1


def test_the_command_of_a_confirmation_names_folder_and_seeds(tmp_path: Path) -> None:
    plan = first(three_kernels(tmp_path / "a b", 5))
    words = shlex.split(confirmation(plan))
    assert words[2:] == [str(tmp_path / "a b"), "--confirm", f"5-{plan.seeds[-1]}"]


@pytest.mark.parametrize(("text", "seeds"), [("5-7", [5, 6, 7]), ("1,3", [1, 3]), ("0,4-5", [0, 4, 5])])
def test_seeds_of_a_confirmation_are_read(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5-", "7-5", "-1", "1..3"])
def test_wrong_seeds_of_a_confirmation_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--confirm"):
        parse_seeds(text)


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.003), (4, 1e-5)])
def test_without_a_spread_or_a_question_there_is_no_such_panel(tmp_path: Path, seeds: int, noise: float) -> None:
    for kernel, mean in ((5, 0.9), (9, 0.8)):
        for seed, value in enumerate(np.random.default_rng(kernel).normal(mean, noise, seeds)):
            overrides = (f"model.kernel_size={kernel}", f"seed={seed}")
            write_run(tmp_path / f"{kernel}-{seed}", *overrides, best__val__accuracy=value)
    figure = comparison_figure(read([tmp_path]))
    assert figure and not any(axes.get_xlabel() == "new seeds" for axes in figure.axes)


def test_after_a_race_more_seeds_are_the_races(tmp_path: Path) -> None:
    assert len(power_lines(three_kernels(tmp_path, 1), 5)) == 2
    comparison = three_kernels(tmp_path / "outputs", 1)
    folder = comparison.runs[0].folder.parent
    (folder / "race.md").write_text("a race")
    (line,) = power_lines(comparison, 5)
    assert "hydra.sweeper.max_seeds" in line and "train.py" not in line


def test_with_one_seed_two_more_would_give_an_estimate(tmp_path: Path) -> None:
    (plan,) = three_kernels(tmp_path, 1).plans
    assert plan.size is None and plan.runs == 6 and plan.seconds == pytest.approx(75)
    (command,) = train_commands(plan.settings, plan.seeds)
    assert "seed=1,2" in command


@pytest.mark.parametrize("root", ["a, = 'b", "${x}", "[data]", ""])
def test_a_command_gives_a_run_the_values_that_it_had(tmp_path: Path, root: str) -> None:
    for kernel in (5, 9):
        write_run(
            tmp_path / f"{kernel}", f"model.kernel_size={kernel}", varied=["model.kernel_size"],
            overrides={"model.kernel_size": kernel, "data.root": root}, best__val__accuracy=0.9,
        )  # fmt: skip
    (plan,) = read([tmp_path]).plans
    (command,) = train_commands(plan.settings, plan.seeds)
    typed = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(
        shlex.split(command)[3:])}  # fmt: skip
    assert typed["data.root"].value() == root and not typed["data.root"].is_sweep_override()
    assert typed["model.kernel_size"].is_sweep_override()


def test_setting_that_left_a_key_unset_belongs_to_the_grid(tmp_path: Path) -> None:
    for kernel, recorded in ((5, {}), (9, {"model.kernel_size": 9})):
        write_run(tmp_path / f"{kernel}", f"model.kernel_size={kernel}", overrides=recorded, best__val__accuracy=0.9)
    (plan,) = read([tmp_path]).plans
    (command,) = train_commands(plan.settings, plan.seeds)
    assert "model.kernel_size=5,9" in command


def test_commands_that_are_not_shown_are_counted(tmp_path: Path) -> None:
    for kernel in (3, 5, 7, 9, 11):  # no grid: each depth has its kernel
        recorded: dict[str, Any] = {"model.kernel_size": kernel, "model.depth": kernel}
        overrides = [f"{key}={value}" for key, value in recorded.items()]
        recorded |= {"model.norm": "batch"} if kernel == 5 else {}
        write_run(tmp_path / f"{kernel}", *overrides, overrides=recorded, best__val__accuracy=0.9)
    comparison = read([tmp_path])
    (plan,) = comparison.plans
    listed = train_commands(plan.settings, plan.seeds)
    assert sum("model.norm" in command for command in listed) == 1  # where it was typed
    lines = power_lines(comparison, most=3)
    assert len([line for line in lines if "python" in line]) == 3
    assert any("2 more commands" in line for line in lines)


def test_no_accuracies_differ_by_more_than_100_points(tmp_path: Path) -> None:
    for kernel, values in ((5, (0.9, 0.1, 0.5)), (9, (0.3, 0.8, 0.2))):
        for seed, value in enumerate(values):
            overrides = (f"model.kernel_size={kernel}", f"seed={seed}")
            write_run(tmp_path / f"{kernel}-{seed}", *overrides, best__val__accuracy=value)
    comparison = read([tmp_path])
    (plan,) = comparison.plans
    assert plan.size and plan.size.detectable and plan.size.detectable > 1
    assert "80 %" not in "".join(power_lines(comparison, most=3))


def test_settings_of_one_seed_are_planned_a_first_estimate(tmp_path: Path) -> None:
    three_kernels(tmp_path, 4)
    for folder in [*tmp_path.glob("5-[123]"), *tmp_path.glob("9-[123]")]:
        shutil.rmtree(folder)
    plan = first(read([tmp_path]))
    assert plan.size is None and len(plan.seeds) == 2
