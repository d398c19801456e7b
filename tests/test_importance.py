"""Tests of importances compared with chance, if no key matters and if one does."""

from collections.abc import Mapping

import numpy as np

from sweeps.importance import importances


def explained(values: np.ndarray, objectives: np.ndarray) -> dict[str, float]:
    """Compute the share of the objectives' variance that a straight line over each key explains."""
    return {key: np.corrcoef(column, objectives)[0, 1] ** 2 for key, column in zip("abc", values, strict=True)}


def searched(matters: float, trials: int = 20, searches: int = 150) -> np.ndarray:
    """Simulate searches whose first key matters so much; return which keys stand out, [searches, keys]."""
    generator, stands_out = np.random.default_rng(0), []
    for _ in range(searches):
        values = generator.normal(0, 1, (3, trials))
        objectives = matters * values[0] + generator.normal(0, 1, trials)

        def shares_of(permuted: np.ndarray, values: np.ndarray = values) -> Mapping[str, float]:
            return explained(values, permuted)

        keys = importances(shares_of, objectives)
        assert list(keys) == sorted(keys, key=lambda key: -keys[key].share)
        stands_out.append([keys[key].stands_out for key in "abc"])
    return np.array(stands_out)


def test_key_stands_out_in_at_most_5_percent_where_none_matters() -> None:
    assert searched(0.0).any(1).mean() <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 150)


def test_a_key_that_matters_stands_out_and_others_do_not() -> None:
    stands_out = searched(2.0).mean(0)
    assert stands_out[0] > 0.5 and stands_out[1:].max() < 0.05
