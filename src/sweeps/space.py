"""The search space: keys with choices, a range or an interval, as Optuna's distributions."""

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from config.command_line import overrides_of
from config.compose import compose_config
from config.errors import ConfigError
from config.parse import parse_config
from config.schema import Config

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = Mapping[str, Distribution]


def make_space(app: str, searched: Mapping[str, Override], fixed: Mapping[str, str]) -> Space:
    """Make the search space of the keys with several values; `fixed` are the values of the other overridden keys.

    Raises:
        ConfigError: A key cannot be searched over these values.
    """
    space: dict[str, Distribution] = {}
    for key, override in searched.items():
        try:
            if key == "seed":
                raise ValueError("a search would select the luckiest. Fix: one value, or hydra.sweeper.seeds=[0,1,2]")
            space[key] = distribution(app, override, fixed)
        except ValueError as error:  # raised by distribution() or Optuna
            raise ConfigError(f"{override.input_line}: {error}") from error
    return space


def distribution(app: str, override: Override, fixed: Mapping[str, str]) -> Distribution:
    """Make Optuna's distribution of a key's values.

    Raises:
        ValueError: Optuna has no distribution of these values.
    """
    values = override.value()
    if isinstance(values, IntervalSweep):
        assert values.start is not None
        assert values.end is not None
        low, high, log_scale = values.start, values.end, "log" in values.tags
        whole = low == int(low) and high == int(high)
        composed = compose_config(app, overrides_of({**fixed, override.get_key_element(): int(low) if whole else low}))
        typed = OmegaConf.select(composed, override.key_or_group)
        if isinstance(typed, float):
            return FloatDistribution(low, high, log=log_scale)
        if isinstance(typed, int) and whole:
            return IntDistribution(int(low), int(high), log=log_scale)
        raise ValueError("the key does not hold numbers; expected choices, e.g. choice(A, B)")
    if isinstance(values, RangeSweep):
        steps, log_scale = sorted(values.range()), "log" in values.tags
        if not steps:
            raise ValueError("the range is empty")
        if isinstance(steps[0], int):
            return IntDistribution(steps[0], steps[-1], log=log_scale, step=abs(int(values.step)))
        return FloatDistribution(steps[0], steps[-1], log=log_scale, step=abs(values.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def check_space(app: str, space: Space, fixed: Mapping[str, str]) -> list[Config]:
    """Compose and check the config of each of space_ends().

    Raises:
        ConfigError: A config is invalid.
    """
    return [parse_config(compose_config(app, overrides_of(values))) for values in space_ends(space, fixed)]


def space_ends(space: Space, fixed: Mapping[str, str]) -> list[dict[str, Any]]:
    """List every choice and both ends of every interval, each with the first value of the other keys."""
    ends = {
        key: values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)
        for key, values in space.items()
    }
    first = {**{key: values[0] for key, values in ends.items()}, **fixed}
    return [{**first, key: value} for key, values in ends.items() for value in values]
