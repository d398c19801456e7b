"""Fixtures and functions for all tests: runs composed by Hydra and trained on digits, each test in its own folder."""

import gc
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import interpreter  # noqa: F401 (must precede imports of kernels)
import training.start  # noqa: F401 (imports faster than the modules below alone)
from config.compose import compose_config
from config.parse import parse_config
from config.schema import Config, register
from data import datasets
from processes import REPOSITORY, Command, environment_of
from training import run

pytest_plugins = ["timed_backends"]  # the fixture `clock`
TIMES = ["images_per_second", "seconds"]  # columns of metrics.csv that differ between equal runs
TINY = (
    "model.d_model=16", "model.depth=2", "data.train_fraction=0.1", "trainer.epochs=2", "trainer.device=cpu",
    "trainer.figures=false",
)  # fmt: skip

register()

# Files whose tests start processes and wait for them; all their tests are marked slow.
PROCESSES = ("test_launchers", "test_resume", "test_search")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in PROCESSES:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    items.sort(key=lambda item: not item.get_closest_marker("slow"))  # Slow tests start first, which ends sooner.


@pytest.fixture(autouse=True, scope="session")
def quick_processes() -> None:
    """Use one thread, as tests run in parallel, and prepare autograd, garbage collection and the log."""
    torch.set_num_threads(1)
    # A fake CUDA tensor would make autograd start threads for it first, and forks could compute no gradients.
    torch.zeros(1, requires_grad=True).sum().backward()
    gc.freeze()  # Every run collects garbage, which would otherwise scan all imported modules.
    logging.getLogger().setLevel(logging.INFO)  # Hydra sets the same level for commands.


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(autouse=True)
def no_command_outlives_its_test() -> Iterator[None]:
    yield
    while Command.started:
        Command.started.pop().end()


def checked(*overrides: str) -> Config:
    """Return the config of `python src/train.py OVERRIDES`."""
    return deepcopy(composed(overrides, os.environ.get("WANDB_MODE")))


@cache  # Many tests share a config.
def composed(overrides: tuple[str, ...], wandb_mode: str | None) -> Config:
    """Compose and parse a config; `wandb_mode`, the environment's, is part of the cache's key."""
    with initialized():
        return parse_config(compose_config("train", ["sweep=test", *overrides]))


@contextmanager
def initialized() -> Iterator[None]:
    """Initialize Hydra with one loader for all tests, so that files are merged once for each choice of groups."""
    loaded = hydra()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GlobalHydra.instance(), "hydra", loaded)
        yield


@cache
def hydra() -> Hydra:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        loaded = GlobalHydra.instance().hydra
    assert loaded
    return loaded


@dataclass
class Finished:
    """A run's folder, read back."""

    folder: Path
    result: run.Result

    @property
    def metrics(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "metrics.csv")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config.yaml").read_text())


Train = Callable[..., Finished]  # the fixture `train`


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Finished]:
    """Train within this process; each call makes a sweep of one run."""

    def start(*overrides: str) -> Finished:
        sweep = f"sweep{len(list(tmp_path.glob('sweep*')))}"
        config = checked(*TINY, *overrides)
        config.output_dir, config.sweep = str(tmp_path), sweep
        result = run.run(config, list(overrides))
        (folder,) = [path.parent for path in (tmp_path / sweep).glob("*/config.yaml")]
        return Finished(folder, result)

    return start


LETTERS = ("cat", "dog", "owl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a small image folder: train and val, 12×12 pixels, three classes."""
    datasets.read.cache_clear()
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(LETTERS):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 60, (12, 12, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def load_folder(root: Path, *overrides: str, patch_size: int = 2) -> datasets.DataSplits:
    """Load an image folder's data with the config of `data=image_folder data.root=ROOT OVERRIDES`."""
    return datasets.load(checked("data=image_folder", f"data.root={root}", *overrides).data, patch_size)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run on digits once and return its folder, which tests must not change."""
    output = f"output_dir={tmp_path_factory.mktemp('out')}"
    config = checked(*TINY, "model.kernel_size=4", "data.train_fraction=1", "trainer.epochs=1", output)
    with pytest.MonkeyPatch.context() as quiet:
        quiet.setenv("WANDB_MODE", "disabled")
        run.run(config, [])
    (summary,) = Path(config.output_dir).glob("*/*/summary.json")
    return summary.parent


def command(*arguments: str, cwd: Path, script: str = "train", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python src/SCRIPT.py ARGUMENTS` in a process to its end."""
    process = Command(script, arguments, cwd, environment_of(**environment))
    out, err = process.communicate(timeout=300)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*arguments: str, cwd: Path, **environment: str) -> Command:
    """Start `python src/train.py ARGUMENTS` in a process; its errors are in its output."""
    return Command("train", arguments, cwd, environment_of(**environment), errors="stdout")


def wait_for(condition: Callable[[], object], process: Command, seconds: float = 120) -> None:
    """Wait until a condition is true; fail if the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metrics(sweep: Path) -> dict[str, str]:
    """Read the metrics of every run by its ID, without the time columns, as text to the last digit."""
    return {
        path.parent.name.rpartition("-")[2]: pd.read_csv(path, dtype=str).drop(columns=TIMES).to_csv()
        for path in sorted(sweep.glob("*/metrics.csv"))
    }


def summaries(sweep: Path) -> list[dict[str, Any]]:
    """Read the summaries of a sweep's runs, ordered by folder."""
    return [json.loads(path.read_text()) for path in sorted(sweep.glob("*/summary.json"))]
