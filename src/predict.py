"""Predict the classes of image files with a checkpoint, ours or a published one.

python src/predict.py checkpoint=outputs/SWEEP/RUN images=FOLDER
python src/predict.py checkpoint=convmixer_768_32 'images="photos/*.jpg"' output=photos.json
python src/predict.py --help
"""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from config.commands import Predict, register_commands
from config.errors import report_errors

SKIPPED = 2  # exit code: some images could not be read


@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
def main(composed: DictConfig) -> None:
    with report_errors():
        if run(composed, HydraConfig.get().overrides.task):
            sys.exit(SKIPPED)


def run(composed: DictConfig, overrides: Sequence[str]) -> int:
    # torch takes seconds to import: not for --help or a misspelt key
    from inference.checkpoint import load_checkpoint
    from inference.prediction import predict

    settings, checkpoint = load_checkpoint(composed, overrides, Predict)
    return predict(checkpoint, settings)


if __name__ == "__main__":
    register_commands()
    with report_errors():
        main()
