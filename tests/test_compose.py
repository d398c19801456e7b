"""Tests of composing a sweep's runs: every config equals Hydra's."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from config.compose import compose_config, compose_groups
from config.errors import explain
from config.parse import parse_config
from config.schema import GROUPS
from conftest import initialized
from processes import shipped

VALUES = [
    "model.depth=3",
    "optimizer.lr=0.02",
    "data.mean=[0.5]",
    "data.std=[0.25]",
    "seed=7",
    "sweep=s",
    "varied=[seed]",
]
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in shipped(f"{group}/*.yaml")]
NEEDS_ROOT = re.compile("data=image_folder|data=imagenet|experiment=imagenet_")
ODD = [
    "dropout=blocks dropout.rate=0.3",
    "dropout.rate=0.3 dropout=all dropout.head=0.1",
    "seed=1 seed=2",
    "model={depth: 3}",
    "experiment=paper_cifar10 trainer.epochs=3 hardware=any kernel=k5 model.kernel_size=7",
    "experiment=paper_ablation variant=layer_norm",
    "scheduler=step scheduler.decay_epochs=1.5",
    "augmentation.scale=[0.5,1]",
    "augmentation.auto_augment=null",
    "trainer.channels_last=true",
    "trainer.channels_last=auto",
    "optimizer.lr=1",
    "optimizer.lr=1e-3",
    "data.root='a, b=c'",
    "sweep=${seed}",
    "model.d_model=${model.depth}",
    "study.where={model.norm: layer}",
    "study.reference=[{where: {}, value: 0.5}]",
    "wandb.tags=[a,b]",
    "+model.width=3",
    "++model.depth=3",
    "~augmentation.scale",
    "~experiment",
    "+model.width=3 model.width=4",
    "hydra.sweeper.max_batch_size=2 seed=3",
    "hydra/sweeper=race hydra.sweeper.max_seeds=5 model.depth=2",
    "model.depht=3",
    "model.depth=deep",
    "kernel=k6",
    "kernel=null",
    "model@here.depth=3",
    "optimizer@optimizer=sgd",
    "seed=1,2",
    "seed=[",
    "experiment=[paper_cifar10]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def config_dir() -> Iterator[None]:
    with initialized():
        yield


def split(overrides: str) -> list[str]:
    return re.split(r" (?=[+~]*[\w.@/]+=)", overrides)


def result(composed: Any, overrides: list[str]) -> Any:
    """Return everything about a config: values and interpolations as written, resolved as objects; or the error."""
    try:
        config = composed("train", overrides)
        return (
            OmegaConf.to_container(config),
            OmegaConf.to_object(config),
            OmegaConf.is_struct(config),
        )
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return type(error), explain(error)


@pytest.mark.parametrize("overrides", [*OPTIONS, *ODD])
def test_config_equals_hydras_and_each_option_is_valid(overrides: str) -> None:
    arguments = [*VALUES, *split(overrides)]
    assert result(compose_config, arguments) == result(compose, arguments)
    if overrides in OPTIONS:
        root = ["data.root=somewhere"] if NEEDS_ROOT.match(overrides) else []
        assert parse_config(compose_config("train", [overrides, *root]))


def test_runs_share_groups_and_nothing_else() -> None:
    compose_groups.cache_clear()
    first, second = (compose_config("train", [f"seed={seed}", "sweep=s"]) for seed in (1, 2))
    first.wandb.tags.append("mine")
    assert (first.seed, second.seed, second.wandb.tags) == (1, 2, [])
    assert compose_groups.cache_info().misses == 1
