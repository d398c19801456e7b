"""Train ConvMixer: one run, or with -m a sweep of runs and their comparison.

python src/train.py
python src/train.py -m model.kernel_size=5,9 model.depth=8,16
python src/train.py --help
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import config
from errors import one_clear_error


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(composed: DictConfig) -> float | None:
    """One run; Hydra calls this once for every run of a sweep."""
    checked = config.check(composed)
    from run import run  # torch takes seconds to import: not for --help, tab completion or a misspelt key

    return run(checked, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    config.register()
    with one_clear_error():
        main()
