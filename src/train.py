"""Train ConvMixer: one run, or with -m a sweep of runs and their comparison.

python src/train.py
python src/train.py -m model.kernel_size=5,9 model.depth=8,16
python src/train.py --help
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from config.command_line import quote_for_hydra, task_overrides
from config.errors import check_arguments, report_errors
from config.parse import parse_config
from config.process import prepare_process
from config.schema import GROUPS, register
from sweeps.launch import is_named, is_named_by_time, make_folder, name_by_time
from sweeps.preview import preview


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(composed: DictConfig) -> None:
    """Train one run. With -m, Hydra calls hydra_plugins/sweeper.py instead."""
    hydra_config = HydraConfig.get()
    overrides = task_overrides(hydra_config)
    with report_errors():
        config = parse_config(composed)
        is_named(overrides)
        if config.plan:
            preview("train", Path(config.output_dir, config.sweep), [overrides], note="", as_json=config.plan == "json")
            return
        if is_named_by_time(composed):
            name_by_time(config)
        make_folder(config)
        from training.start import run  # takes seconds, which --help and a misspelt key need not wait for

        result = run(config, overrides, {group: hydra_config.runtime.choices.get(group) for group in GROUPS})
    if result.is_error:
        sys.exit(1)


if __name__ == "__main__":
    prepare_process()
    register()
    sys.argv[1:] = map(quote_for_hydra, sys.argv[1:])
    with report_errors():
        check_arguments(sys.argv[1:])
        main()
