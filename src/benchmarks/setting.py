"""The configs of a benchmark, composed as those of runs."""

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from config.check import check_config
from config.schema import CONF, Config, register


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of every run of a grid, as `-m` makes them: `a=1,2` gives `a=1` and `a=2`."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    (grid,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return grid


def make_config(overrides: list[str]) -> Config:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check_config(compose("train", overrides))
