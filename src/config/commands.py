"""Every config key of evaluate.py, predict.py and export.py; keys of training mean what they mean there.

What is not typed is as the checkpoint says: a run's own data set, precision and classes, the evaluation transform of
a published model (inference/checkpoint.py).
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig

from config.command_line import quoted, task_overrides
from config.errors import check_folders, report_errors
from config.process import prepare_process
from config.schema import ACTIVATION, DEVICE, PRECISION, Data, at_least, key, one_of


@dataclass
class Activation:
    activation: str | None = key(ACTIVATION, None)  # null: as the file says; weights cannot tell


@dataclass
class Compute:
    device: str = key(DEVICE, "auto")
    precision: str = key(PRECISION, "fp32")


@dataclass
class Command:
    checkpoint: str = MISSING  # a run's folder, a sweep's, a file with weights, or the name of a published model
    model: Activation = field(default_factory=Activation)
    data: Data = field(default_factory=Data)
    trainer: Compute = field(default_factory=Compute)
    output: str | None = None  # where the result is written
    overwrite: bool = False  # what is there already


@dataclass
class Evaluate(Command):
    split: str = key(one_of("train", "val", "test"), "test")
    summary: bool = False  # print parameters, multiply-accumulates and activation memory


@dataclass
class Predict(Command):
    images: Any = MISSING  # files, folders, globs, or - for paths from standard input; several as [A,B]
    top: int = key(at_least(1), 5)  # classes for each image
    sheet: int = key(at_least(0), 24)  # images on the contact sheet; 0: none


@dataclass
class Export(Command):
    format: str = key(one_of("onnx", "torch_export", "safetensors", "timm", "authors"))
    fold: bool = True  # BatchNorm into the convolutions, where that is exact; onnx and torch_export only
    normalize: bool = True  # within the program, which takes pixels / 255; onnx and torch_export only


COMMANDS = {"evaluate": Evaluate, "predict": Predict, "export": Export}


def register_commands() -> None:
    """Make the classes known to Hydra; conf/evaluate.yaml and its like refer to them."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"schema_{name}", node=node)


def run_command(name: str, run: Callable[[DictConfig, Sequence[str]], int | None]) -> None:
    """Call `run` of src/NAME.py with conf/NAME.yaml as composed and what was typed; it returns the exit code."""

    @hydra.main(version_base="1.3", config_path="../conf", config_name=name)
    @functools.wraps(run)  # Hydra looks for conf/ from the file of this function
    def main(composed: DictConfig) -> None:
        with report_errors():
            if code := run(composed, task_overrides(HydraConfig.get())):
                sys.exit(code)

    prepare_process()
    register_commands()
    sys.argv[1:] = map(quoted, sys.argv[1:])
    with report_errors():
        check_folders(sys.argv[1:])
        main()
