"""The config of a benchmark, composed as that of a run."""

from hydra import compose, initialize_config_dir

from config.check import check_config
from config.schema import CONF, Config, register


def make_config(overrides: list[str]) -> Config:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check_config(compose("train", overrides))
