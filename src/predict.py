"""Predict the classes of image files with a checkpoint of a run, or a published one.

python src/predict.py checkpoint=outputs/SWEEP/RUN images=FOLDER
python src/predict.py checkpoint=convmixer_768_32 'images="photos/*.jpg"' output=photos.json
python src/predict.py --help
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from config.commands import run_command

SKIPPED = 2  # exit code if some images could not be read


def run(composed: DictConfig, overrides: Sequence[str]) -> int:
    # Imported late: torch takes seconds, which --help and a misspelt key need not wait for.
    from inference.checkpoint import open_checkpoint
    from inference.prediction import predict

    checkpoint = open_checkpoint(composed, overrides)
    return SKIPPED if predict(checkpoint, checkpoint.settings) else 0


if __name__ == "__main__":
    run_command("predict", run)
