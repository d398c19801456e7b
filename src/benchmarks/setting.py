"""The configs of a benchmark, composed like those of runs."""

import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from config.parse import parse_config
from config.schema import CONF, Config, register
from training.layer import Layer, Shape
from training.selection import images_at_once


def make_configs(overrides: list[str]) -> list[Config]:
    """Make the configs of a grid, as `-m` does. If a key is overridden twice, the last override counts."""
    parser = OverridesParser.create()
    parsed = {override.get_key_element(): override for override in parser.parse_overrides(overrides)}
    (grid,) = BasicSweeper.split_arguments(list(parsed.values()), max_batch_size=None)
    return [make_config(swept) for swept in grid]


def make_config(overrides: list[str]) -> Config:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse_config(compose("train", overrides))


def layer_of(config: Config, device: torch.device) -> Layer:
    return Layer(config, shape_of(config), device)


def shape_of(config: Config) -> Shape:
    """Compute the shape of a batch of RGB images, of 32×32 if data.image_size is not set."""
    side = config.data.image_size or 32
    return images_at_once(config, config.data.batch_size, 3, (side, side))
