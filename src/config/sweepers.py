"""Every config key of hydra/sweeper=basic, optuna and race; conf/hydra/sweeper explains the keys of the last two."""

from dataclasses import dataclass
from typing import Any

from config.schema import PROBABILITY, Constraint, above, at_least, key, one_of

SEEDS = Constraint(
    "different numbers, at least 0, e.g. [0,1,2]", lambda seeds: 0 < len(seeds) == len(set(seeds)) and min(seeds) >= 0
)


@dataclass
class Grid:
    max_batch_size: int | None = key(at_least(1), None)  # runs passed to the launcher at once; null: all
    params: dict[str, Any] | None = None
    method: str = "sweeps.grid.grid"
    _target_: str = "hydra_plugins.sweeper.Sweeps"


@dataclass
class Search:
    n_trials: int = key(at_least(1))
    n_jobs: int = key(at_least(1))
    seed: int = key(at_least(0))
    seeds: list[int] | None = key(SEEDS, None)
    sampler: Any = None
    pruner: str = key(one_of("none", "median", "hyperband"))
    finish_pruned: float = key(PROBABILITY)
    params: dict[str, Any] | None = None
    method: str = "sweeps.search.search"
    _target_: str = "hydra_plugins.sweeper.Sweeps"

    @property
    def n_seeds(self) -> int:
        """The number of runs of a complete trial."""
        return len(self.seeds or [None])


@dataclass
class Race:
    first_seeds: int = key(at_least(3))
    max_seeds: int = key(at_least(3))
    max_hours: float | None = key(above(0), None)
    smallest: float | None = key(above(0), None)
    params: dict[str, Any] | None = None
    method: str = "sweeps.race.race"
    _target_: str = "hydra_plugins.sweeper.Sweeps"
