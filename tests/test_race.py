"""Races: whom they name in a thousand simulated ones, and real ones on digits."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy.stats import binomtest, ttest_rel

from comparison.least_squares import CONFIDENCE
from conftest import command, start, summaries, wait_for
from sweeps.race_rules import Result, Rules, Run, Standing, standing

RACES = 1000
Values = NDArray[np.float64]  # [settings, seeds]


def race(values: Values, rules: Rules) -> Standing:
    return standing(lambda run: Result(values[run]), rules)


def draw(means: Sequence[float], spreads: Sequence[float], seeds: int, generator: np.random.Generator) -> Values:
    """Validation accuracies of 1,797 images; seeds are hard or easy for all settings alike."""
    noise = generator.normal(0, 1, (len(means), seeds)) * np.array(spreads)[:, None]
    values = np.array(means)[:, None] + noise + generator.normal(0, 0.01, seeds)
    return np.round(values * 1797) / 1797


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "spreads"),
    [
        ([0.9, 0.9], [0.005] * 2),
        ([0.9] * 4, [0.005] * 4),
        ([0.9, 0.9, 0.88, 0.88], [0.005] * 4),
        ([0.9, 0.9, 0.88, 0.1], [0.01, 0.002, 0.02, 0.0]),  # one never learns
    ],
)
def test_a_race_of_equals_names_a_winner_in_at_most_5_percent(means: list[float], spreads: list[float]) -> None:
    """Settings 0 and 1 are equal and the best: any winner is wrong."""
    generator, rules = np.random.default_rng(0), Rules(len(means))
    ends = [race(draw(means, spreads, rules.max_seeds, generator), rules).end for _ in range(RACES)]
    found = binomtest(ends.count("winner"), RACES)
    interval = found.proportion_ci(0.95)
    print(f"wrong winners: {found.statistic:.1%} [{interval.low:.1%}, {interval.high:.1%}]")
    assert interval.high <= 0.05


def test_a_race_saves_runs_beside_the_fixed_design_of_the_same_power() -> None:
    """The fixed design: as many seeds for every setting, and one look, at a level for all comparisons with the best."""
    generator, rules = np.random.default_rng(0), Rules(4)
    tables = [draw([0.9, 0.895, 0.88, 0.87], [0.003] * 4, 40, generator) for _ in range(RACES)]
    races = [race(values, rules) for values in tables]
    right = np.mean([found.end == "winner" and found.ranked == [0] for found in races])
    assert right > 0.8
    assert not any(found.end == "winner" and found.ranked != [0] for found in races)
    runs = np.mean([sum(map(len, found.results.values())) for found in races])

    def power(seeds: int) -> float:
        best, others = np.array(tables)[:, :1, :seeds], np.array(tables)[:, 1:, :seeds]
        tests = ttest_rel(best, others, axis=2)
        return np.mean(((tests.pvalue < (1 - CONFIDENCE) / 3) & (tests.statistic > 0)).all(1))

    seeds = next(seeds for seeds in range(3, 41) if power(seeds) >= right)
    print(f"{runs:.1f} runs where the fixed design takes {4 * seeds}, both right in {right:.0%}")
    assert runs < 0.8 * 4 * seeds


def test_decisions_follow_from_the_results_alone() -> None:
    """A race that has some of its results stands where it stood when it had them, and goes the same way."""
    rules = Rules(4, smallest=0.002)
    values = draw([0.9, 0.9, 0.85, 0.8], [0.003] * 4, rules.max_seeds, np.random.default_rng(1))
    whole = race(values, rules)
    known: dict[Run, Result] = {}
    while missing := standing(known.get, rules).missing:
        known |= {run: Result(values[run]) for run in missing[:1]}  # killed after every run
    assert standing(known.get, rules) == whole
    assert len(known) == sum(map(len, whole.results.values())) == whole.seeds * 2 + 8
    assert whole.dropped.keys() == {2, 3}


def test_it_ends_at_what_it_was_given() -> None:
    values = draw([0.9, 0.9, 0.9], [0.003] * 3, 20, np.random.default_rng(0))
    assert race(values, Rules(3)).end == "max_seeds"
    assert race(values, Rules(3, max_seeds=4)).seeds == 4
    assert race(values, Rules(3, smallest=0.1)).end == "smallest"
    assert race(values, Rules(3, smallest=0.1)).seeds == 4
    hourly = standing(lambda run: Result(values[run], 3600), Rules(3, max_hours=18.5))
    assert (hourly.end, hourly.seeds) == ("max_hours", 6)


def test_the_lowest_loss_wins_and_a_failed_run_drops_its_setting() -> None:
    values = draw([0.5, 0.4, 0.3], [0.003] * 3, 20, np.random.default_rng(0))
    values[2, 3] = math.nan
    found = race(values, Rules(3, lower_is_better=True))
    assert (found.end, found.ranked) == ("winner", [1])
    assert found.dropped[2].behind is None and found.dropped[0].leader == 1
    assert race(np.full((2, 4), np.nan), Rules(2)).end == "failed"


def test_without_any_spread_nothing_is_dropped() -> None:
    assert race(np.array([[0.9], [0.8]]) * np.ones(20), Rules(2)).end == "max_seeds"


# Real ones.

DIGITS = (
    "-m", "hydra/sweeper=race", "hydra.sweeper.first_seeds=3", "hydra.sweeper.max_seeds=4",
    "optimizer.lr=0.03,0.04,0.00001", "model.d_model=16", "model.depth=1", "trainer.epochs=2",
    "data.batch_size=32", "data.num_workers=0", "trainer.figures=false", "wandb.mode=disabled", "sweep=r",
)  # fmt: skip


@pytest.mark.slow
def test_a_race_on_digits_that_is_killed_resumes_and_spends_its_seeds_on_the_good_settings(tmp_path: Path) -> None:
    """Two learning rates that train equally well, and one that hardly trains."""
    sweep = tmp_path / "outputs" / "r"
    process = start(*DIGITS, cwd=tmp_path)
    wait_for(lambda: len(list(sweep.glob("*/checkpoints/best.pt"))) == 3, process)
    process.kill()
    process.communicate()
    done = command(*DIGITS, "hydra/launcher=side_by_side", "hydra.launcher.n_jobs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    seeds = Counter(yaml.safe_load(path.read_text())["optimizer"]["lr"] for path in sweep.glob("*/config.yaml"))
    assert seeds == {0.03: 4, 0.04: 4, 1e-5: 3}, "the worse one gets no more"
    assert [summary["status"] for summary in summaries(sweep)] == ["completed"] * 11
    table = (sweep / "race.md").read_text()
    assert table.count("dropped in round 1") == 1 and "max_seeds=4" in table and "| winner |" not in table
    assert "race.md" in (sweep / "comparison.md").read_text(), "its p values do not allow for the race's looks"
    again = command(*DIGITS, cwd=tmp_path)
    assert "ConvMixer-16/1" not in again.stdout  # nothing is run
    assert (sweep / "race.md").read_text() == table


@pytest.mark.slow
def test_a_race_needs_no_name_and_follows_its_seeds(tmp_path: Path) -> None:
    small = ("data.split_seed=${seed}", "hydra.sweeper.max_seeds=3", "data.train_fraction=0.1", "trainer.epochs=1")
    unnamed = [word for word in DIGITS if not word.startswith("sweep=")]
    done = command(*unnamed, *small, "optimizer.lr=0.03,0.04", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| in question |" in next(tmp_path.glob("outputs/*/race.md")).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        "hydra.sweeper.first_seeds=2",
        "hydra.sweeper.max_seeds=3",
        "hydra.sweeper.smallest=-0.1",
        "seed=0,1",
        "data.val_fraction=0",
    ],
)
def test_a_wrong_race_is_one_line_before_anything_starts(tmp_path: Path, wrong: str) -> None:
    done = command("-m", "hydra/sweeper=race", "model.kernel_size=3,5", wrong, "sweep=r", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {wrong}")
    assert not list(tmp_path.glob("outputs/r/*"))
