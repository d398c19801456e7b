"""Tests of the claims of comparisons, by a part of experiments/calibration with fixed seeds."""

import sys
from pathlib import Path

import pytest

from processes import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "experiments" / "calibration"))

import comparisons
import table
from designs import Design


@pytest.mark.parametrize(
    "design",
    [
        Design(6, 3, "equal", "none"),
        Design(6, 3, "1:2", "a fifth", chance="hard seeds"),
        Design(12, 2, "one x 10", "none"),
        Design(3, 5, "diverging", "one"),
        Design(6, 2, "ties", "none"),
    ],
    ids=str,
)
def test_statements_about_equal_settings_are_seldom_wrong(design: Design) -> None:
    """No claim is refuted by 60 simulated studies."""
    assert [rate for rate in comparisons.errors(design, range(60)) if rate.is_refuted] == []


@pytest.mark.parametrize("design", [Design(6, 3, "1:2", "one"), Design(12, 2, "one x 10")], ids=str)
def test_interactions_are_seldom_found_where_none_is(design: Design) -> None:
    assert [rate for rate in comparisons.interactions(design, range(60)) if rate.is_refuted] == []


def test_settings_far_behind_are_found() -> None:
    (rate,) = comparisons.misses(range(25))
    assert not rate.is_refuted


def test_the_set_that_may_hold_the_best_holds_it() -> None:
    rate, statements = comparisons.true_best(Design(6, 3), 2.0, range(60))
    assert not rate.is_refuted
    assert statements["best"] > 5, "the case should make statements"


def test_rates_that_were_written_add_up_with_further_studies(tmp_path: Path) -> None:
    """The sums are those of one simulation of all studies."""
    design = Design(2, 3)
    table.write(tmp_path / "rates.csv", {"power": (4, comparisons.power(design, range(4)))})
    studies, rates = table.read(tmp_path / "rates.csv")["power"]
    more = comparisons.power(design, range(studies, 6))
    assert [old + new for old, new in zip(rates, more, strict=True)] == comparisons.power(design, range(6))
