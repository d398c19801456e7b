"""The keys of conf/hydra/sweeper/optuna.yaml."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.samplers import BaseSampler

from config.errors import ConfigError, shown
from sweeps import jobs
from tracking.trial import PRUNERS


@dataclass(frozen=True)
class SearchOptions:
    """
    Raises:
        ConfigError: one of them is out of its range.
    """

    n_trials: int
    n_jobs: int
    seed: int
    seeds: Sequence[int] | None
    sampler: Callable[..., BaseSampler]
    pruner: str
    finish_pruned: float
    params: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        for name, low in (("n_jobs", 1), ("seed", 0)):  # n_trials: by jobs.runs_of_search, before
            jobs.check_whole(f"hydra.sweeper.{name}", getattr(self, name), low)
        if self.seeds is not None and not are_seeds(self.seeds):
            raise ConfigError(
                f"hydra.sweeper.seeds={shown(self.seeds)}: expected different whole numbers, e.g. [0,1,2], or null"
            )
        try:
            self.sampler(seed=self.seed)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"hydra.sweeper.sampler: {error}") from error
        if self.pruner not in PRUNERS:
            raise ConfigError(f"hydra.sweeper.pruner={shown(self.pruner)}: expected one of {', '.join(PRUNERS)}")
        if not isinstance(self.finish_pruned, int | float) or not 0 <= self.finish_pruned <= 1:
            raise ConfigError(f"hydra.sweeper.finish_pruned={shown(self.finish_pruned)}: expected a share, from 0 to 1")

    @property
    def n_seeds(self) -> int:
        """Runs of a trial that gets all of its seeds."""
        return len(self.seeds or (None,))


def are_seeds(values: Any) -> bool:
    """Whether they are whole numbers, no two of them the same."""
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and 0 < len(values) == len(set(values))
        and all(type(value) is int and value >= 0 for value in values)  # true is no seed
    )
