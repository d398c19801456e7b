"""Evaluate a checkpoint of a run, or a published one: accuracy, loss, each class, calibration, confusion matrix.

python src/evaluate.py checkpoint=outputs/SWEEP/RUN
python src/evaluate.py checkpoint=convmixer_768_32 data=imagenet data.root=DIR
python src/evaluate.py --help
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from config.commands import run_command
from config.errors import ConfigError
from runtime.files import check_new

log = logging.getLogger(__name__)


def run(composed: DictConfig, overrides: Sequence[str]) -> None:
    # Imported late: torch takes seconds, which --help and a misspelt key need not wait for.
    from inference import evaluation, report
    from inference.checkpoint import open_checkpoint

    folder = Path(composed.output or f"outputs/evaluation/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    check_new([folder], composed.overwrite, is_folder=True)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "evaluation.json").exists():
        raise ConfigError(f"output={folder}: contains files that are not of an evaluation; expected another name")
    checkpoint = open_checkpoint(composed, overrides)
    settings = checkpoint.settings
    data, split = evaluation.load_data(checkpoint, settings.split, overrides)
    for remark in data.remarks:
        log.info(f"  {remark}")
    if settings.summary:
        report.print_summary(checkpoint, data.image_size)
    result = evaluation.evaluate_split(checkpoint, data, split)
    report.write_report(result, folder, checkpoint, settings, split)


if __name__ == "__main__":
    run_command("evaluate", run)
