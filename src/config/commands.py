"""Every config key of evaluate.py, predict.py and export.py, except those that they share with train.py.

Keys that are not overridden are taken from the checkpoint: a run's data set, precision and classes, or a published
model's evaluation transform (inference/checkpoint.py).
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

from config.command_line import quote_for_hydra, task_overrides
from config.errors import check_arguments, report_errors
from config.process import prepare_process
from config.schema import ACTIVATION, DEVICE, PRECISION, Data, at_least, key, one_of


@dataclass
class Activation:
    activation: str | None = key(ACTIVATION, None)  # for files that do not name it; null: the file's


@dataclass
class Compute:
    device: str = key(DEVICE, "auto")
    precision: str = key(PRECISION, "fp32")


@dataclass
class Command:
    checkpoint: str = MISSING  # a run's folder, a sweep's folder, a file with weights, or a published model's name
    model: Activation = field(default_factory=Activation)
    data: Data = field(default_factory=Data)
    trainer: Compute = field(default_factory=Compute)
    output: str | None = None  # path of the result
    overwrite: bool = False  # replace an existing result


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
    fold: bool = True  # fold BatchNorm into the convolutions where that is exact; onnx and torch_export only
    normalize: bool = True  # the program normalizes its input, pixels / 255; onnx and torch_export only


COMMANDS = {"evaluate": Evaluate, "predict": Predict, "export": Export}


def register_commands() -> None:
    """Register the schemas with Hydra, for the defaults lists of conf/evaluate.yaml, predict.yaml and export.yaml."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"schema_{name}", node=node)


def run_command(name: str, run: Callable[[DictConfig, Sequence[str]], int | None]) -> None:
    """Compose conf/NAME.yaml, call `run` with it and the overrides of the command line, and exit with its result."""

    @hydra.main(version_base="1.3", config_path="../conf", config_name=name)
    @functools.wraps(run)  # Hydra resolves ../conf relative to this function's file
    def main(composed: DictConfig) -> None:
        with report_errors():
            if code := run(composed, task_overrides(HydraConfig.get())):
                sys.exit(code)

    prepare_process()
    register_commands()
    sys.argv[1:] = map(quote_for_hydra, sys.argv[1:])
    with report_errors():
        check_arguments(sys.argv[1:], can_sweep=False)
        main()
