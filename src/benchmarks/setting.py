"""The config of a benchmark, composed as that of a run."""

from hydra import compose, initialize_config_dir

import config as cfg


def make_config(overrides: list[str]) -> cfg.Config:
    cfg.register()
    with initialize_config_dir(str(cfg.CONF), version_base="1.3"):
        return cfg.check(compose("train", overrides))
