"""Tests of races: their winners in simulation, and real ones on digits."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import ttest_rel

from conftest import command, start, summaries, wait_for
from stats.race import Outcome, Rules, Run, Standing, confidence, look_level, standing

RACES = 400
IMAGES = 1797
Values = NDArray[np.float64]  # [settings, seeds]


def race(values: Values, rules: Rules) -> Standing:
    """Run a race on these values; NaN is a failed training."""
    return standing(lambda run: Outcome(None if math.isnan(values[run]) else values[run]), rules)


def draw(means: Sequence[float], spreads: Sequence[float], seeds: int, generator: np.random.Generator) -> Values:
    """Draw validation accuracies; a seed is hard or easy for all settings."""
    noise = generator.normal(0, 1, (len(means), seeds)) * np.array(spreads)[:, None]
    values = np.array(means)[:, None] + noise + generator.normal(0, 0.01, seeds)
    return np.round(values * IMAGES) / IMAGES


def test_looks_have_their_level_together() -> None:
    """Compared with Pocock's table for five looks at equal steps, and with a simulation of our rounds."""
    assert look_level(0.05, (1, 2, 3, 4, 5)) == pytest.approx(0.0158, abs=5e-5)
    assert look_level(0.01, (7,)) == pytest.approx(0.01)
    rounds = Rules(2).rounds
    sums = np.random.default_rng(0).normal(0, 1, (20_000, rounds[-1])).cumsum(1)[:, np.array(rounds) - 1]
    z = np.abs(sums / np.sqrt(rounds)).max(1)
    assert np.mean(z > -ndtri(look_level(0.05, rounds) / 2)) == pytest.approx(0.05, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "spreads"),
    [
        ([0.9, 0.9], [0.005] * 2),
        ([0.9, 0.9, 0.88, 0.88], [0.005] * 4),
        ([0.9, 0.9, 0.88, 0.1], [0.01, 0.002, 0.02, 0.0]),  # one never learns
    ],
)
def test_a_race_of_equals_names_a_winner_in_at_most_5_percent(means: list[float], spreads: list[float]) -> None:
    """Settings 0 and 1 are equal and the best, so any winner is wrong. The bound includes the error of few races."""
    generator, rules = np.random.default_rng(0), Rules(len(means), resolution=1 / IMAGES)
    ends = [race(draw(means, spreads, rules.max_seeds, generator), rules).end for _ in range(RACES)]
    assert ends.count("winner") / RACES <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / RACES)


@pytest.mark.slow
def test_race_takes_fewer_runs_than_a_fixed_design_of_its_power() -> None:
    """The fixed design has equally many seeds of every setting, and one test of the best against each other one."""
    generator, rules = np.random.default_rng(0), Rules(4, resolution=1 / IMAGES)
    tables = [draw([0.9, 0.895, 0.88, 0.87], [0.003] * 4, 40, generator) for _ in range(RACES)]
    races = [race(values, rules) for values in tables]
    right = np.mean([outcome.end == "winner" and outcome.ranked == [0] for outcome in races])
    assert right > 0.95
    assert not any(outcome.end == "winner" and outcome.ranked != [0] for outcome in races)
    runs = np.mean([sum(map(len, outcome.results.values())) for outcome in races])

    def power(seeds: int) -> float:
        best, others = np.array(tables)[:, :1, :seeds], np.array(tables)[:, 1:, :seeds]
        tests = ttest_rel(best, others, axis=2)
        return np.mean(((tests.pvalue < 0.05 / 3) & (tests.statistic > 0)).all(1))

    seeds = next(seeds for seeds in range(3, 41) if power(seeds) >= right)
    print(f"{runs:.1f} runs where the fixed design takes {4 * seeds}, both right in {right:.0%}")
    assert runs < 0.8 * 4 * seeds


@pytest.mark.slow
def test_a_setting_with_failed_runs_is_never_named_the_winner() -> None:
    """The better setting fails in a tenth of its runs. It stays in question, so there is no winner."""
    generator, rules = np.random.default_rng(0), Rules(2, resolution=1 / IMAGES)
    wrong, ends = 0, Counter[str]()
    for _ in range(200):
        values = draw([0.91, 0.9], [0.006] * 2, rules.max_seeds, generator)
        values[0, generator.random(rules.max_seeds) < 0.1] = np.nan
        outcome = race(values, rules)
        ends[outcome.end] += 1
        wrong += outcome.end == "winner" and (outcome.ranked[0] == 1 or outcome.failures(0) > 0)
    assert wrong == 0 and ends["unsteady"] and ends["max_seeds"]


def test_a_setting_that_mostly_fails_is_dropped() -> None:
    values = draw([0.92, 0.9, 0.9], [0.003] * 3, 20, np.random.default_rng(0))
    values[0, np.arange(20) % 4 > 0] = values[1] = np.nan
    outcome = race(values, Rules(3, resolution=1 / IMAGES))
    assert (outcome.end, outcome.ranked) == ("winner", [2])
    assert all(gone.behind and gone.behind.margin is None for gone in outcome.dropped.values())
    assert outcome.dropped[1].round <= outcome.dropped[0].round
    assert race(np.full((2, 4), np.nan), Rules(2)).end == "failed"


def test_missing_runs_do_not_count_against_their_setting() -> None:
    """The better setting loses a fifth of its runs to the machine, and wins as often as without that."""
    generator, rules, named = np.random.default_rng(0), Rules(3, resolution=1 / IMAGES), Counter[tuple[int, ...]]()
    for _ in range(100):
        values = draw([0.91, 0.9, 0.95], [0.006] * 3, rules.max_seeds, generator)
        values[0, generator.random(rules.max_seeds) < 0.2] = np.nan
        values[2] = np.nan
        outcome = standing(lambda run, values=values: Outcome(values[run]), rules)  # type: ignore[misc]
        assert outcome.dropped[2].leader is None and outcome.dropped[2].round == 1
        named[tuple(outcome.ranked)] += outcome.end == "winner"
    assert named[(0,)] >= 85 and named[(1,)] <= 5


@pytest.mark.slow
def test_confidence_in_the_leader_is_right_as_often_as_it_says() -> None:
    """True means differ as much as runs do; races that end without a winner count."""
    generator, rules, claimed, right = np.random.default_rng(0), Rules(4, max_seeds=9, resolution=1 / IMAGES), [], []
    for _ in range(150):
        means = generator.normal(0.9, 0.004, 4)
        outcome = race(draw(means.tolist(), [0.004] * 4, 9, generator), rules)
        if outcome.end == "max_seeds":
            claimed.append(confidence(outcome, rules) or 0.0)
            right.append(outcome.ranked[0] == means.argmax())
    assert len(claimed) > 80 and np.std(claimed) > 0.1
    assert np.mean(right) == pytest.approx(np.mean(claimed), abs=0.12)
    sure = np.array(claimed) > 0.85
    assert np.mean(np.array(right)[sure]) > 0.85


def test_decisions_follow_from_the_results_alone() -> None:
    """A race with some of its results stands where it stood when it had only these, and continues in the same way."""
    rules = Rules(4, smallest=0.002)
    values = draw([0.9, 0.9, 0.85, 0.8], [0.003] * 4, rules.max_seeds, np.random.default_rng(1))
    whole = race(values, rules)
    results: dict[Run, Outcome] = {}
    while missing := standing(results.get, rules).missing:
        results |= {run: Outcome(values[run]) for run in missing[:1]}  # killed after every run
    assert standing(results.get, rules) == whole
    assert len(results) == sum(map(len, whole.results.values())) == whole.seeds * 2 + 8
    assert whole.dropped.keys() == {2, 3}


def test_it_ends_at_what_it_was_given() -> None:
    values = draw([0.9, 0.9, 0.9], [0.003] * 3, 20, np.random.default_rng(0))
    assert race(values, Rules(3)).end == "max_seeds"
    assert race(values, Rules(3, max_seeds=4)).seeds == 4
    assert race(values, Rules(3, smallest=0.1)).end == "smallest"
    assert race(values, Rules(3, smallest=0.1)).seeds == 4
    hourly = standing(lambda run: Outcome(values[run], 3600), Rules(3, max_hours=18.5))
    assert (hourly.end, hourly.seeds) == ("max_hours", 6)


def test_the_lowest_loss_wins() -> None:
    values = draw([0.5, 0.4, 0.3], [0.003] * 3, 20, np.random.default_rng(0))
    values[2, :3] = math.nan
    outcome = race(values, Rules(3, lower_is_better=True))
    assert outcome.dropped[0].leader == 1 and 0 in outcome.dropped
    values[2] = math.nan
    assert race(values, Rules(3, lower_is_better=True)).ranked == [1]


def test_without_any_spread_nothing_is_dropped() -> None:
    assert race(np.array([[0.9], [0.8]]) * np.ones(20), Rules(2)).end == "max_seeds"


# Real ones.

DIGITS = (
    "-m", "hydra/sweeper=race", "hydra.sweeper.first_seeds=3", "hydra.sweeper.max_seeds=4",
    "optimizer.lr=0.03,0.04,0.00001", "model.d_model=16", "model.depth=1", "trainer.epochs=2",
    "data.batch_size=32", "data.num_workers=0", "trainer.figures=false", "wandb.mode=disabled", "sweep=r",
)  # fmt: skip


@pytest.mark.slow
def test_killed_race_resumes_and_drops_the_bad_setting(tmp_path: Path) -> None:
    """Two learning rates train equally well, and one hardly trains."""
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


SMALL = (*DIGITS, "hydra.sweeper.max_seeds=3", "data.train_fraction=0.1", "trainer.epochs=1")


@pytest.mark.slow
def test_a_race_tells_failures_of_training_from_others(tmp_path: Path) -> None:
    """One rate diverges in every run. A run of another cannot write its metrics, and is repeated once."""
    rates = "optimizer.lr=0.03,0.04,1e12"
    command(*SMALL, rates, cwd=tmp_path)
    (broken,) = tmp_path.glob("outputs/r/*0.04*seed_1-*")
    (broken / "summary.json").unlink()
    (broken / "metrics.csv").unlink()
    (broken / "metrics.csv").mkdir()
    done = command(*SMALL, rates, cwd=tmp_path)
    assert done.returncode == 1, "not all runs completed"
    assert (done.stdout + done.stderr).count("FAILED lr=0.04 seed=1") == 2
    assert "FAILED lr=1e" not in done.stdout + done.stderr, "a training that diverged is a result"
    rows = {
        row.split("|")[1].strip(): row
        for row in (tmp_path / "outputs/r/race.md").read_text().splitlines()
        if "|" in row
    }
    (diverged,) = (row for name, row in rows.items() if name.startswith("lr=1"))
    assert "3 of 3 runs failed" in diverged
    assert "| 2 |" in rows["lr=0.04"] and "failed" not in rows["lr=0.04"]


@pytest.mark.slow
def test_a_race_of_experiments_names_them(tmp_path: Path) -> None:
    done = command(
        *(word for word in SMALL if not word.startswith(("optimizer", "model"))), "experiment=annotated,convmixerlib",
        "hardware=any", "data=digits", "model=convmixer_64_8", "trainer.monitor=val/accuracy",
        "model.d_model=8", "model.depth=1", cwd=tmp_path,
    )  # fmt: skip
    table = next(tmp_path.glob("outputs/r/race.md"), None)
    assert table, done.stdout + done.stderr
    assert "experiment=annotated" in table.read_text() and "experiment=convmixerlib" in table.read_text()


@pytest.mark.slow
def test_a_race_needs_no_name_and_follows_its_seeds(tmp_path: Path) -> None:
    small = ("data.split_seed=${seed}", "hydra.sweeper.max_seeds=3", "data.train_fraction=0.1", "trainer.epochs=1")
    unnamed = [word for word in DIGITS if not word.startswith("sweep=")]
    done = command(*unnamed, *small, "optimizer.lr=0.03,0.04", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run 1 of at most 6" in done.stdout and "run 6 of 6 by the end of this round" in done.stdout
    assert "| in question |" in next(tmp_path.glob("outputs/*/race.md")).read_text()


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
