"""The config of a benchmark, composed as that of a run."""

from pathlib import Path

from hydra import compose, initialize_config_dir

import config as cfg

CONF = Path(__file__).parents[2] / "conf"


def make_config(overrides: list[str]) -> cfg.Config:
    cfg.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cfg.check(compose("train", overrides))
