"""Tests of the options of a search: its space, written as Hydra writes a sweep, and its sampler."""

from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from config.errors import ConfigError
from config.schema import register
from conftest import initialized
from sweeps.launch import monitor_of
from sweeps.plan import parse_overrides, split_overrides
from sweeps.space import check_space, make_space
from sweeps.trials import make_sampler


def space(*arguments: str) -> dict[str, Any]:
    """Return the search space of `python src/train.py -m hydra/sweeper=optuna ARGUMENTS`."""
    register()
    with initialized():
        several, fixed = split_overrides(parse_overrides(["sweep=s", *arguments]))
        distributions = make_space("train", several, fixed)
        monitor_of(check_space("train", distributions, fixed))
    return dict(distributions)


def test_what_hydra_writes_as_a_sweep_is_searched() -> None:
    assert space(
        "optimizer.lr=tag(log, interval(0.001, 1))", "dropout.rate=interval(0, 1e-1)", "dropout=blocks",
        "model.depth=interval(1, 4)", "model.d_model=tag(log, interval(8, 64))", "model.kernel_size=range(3, 10, 2)",
        "trainer.label_smoothing=range(0, 0.3, 0.1)", "optimizer.weight_decay=0,0.01", "augmentation=light,none",
        "trainer.clip_grad_norm=interval(1, 5)", "kernel=glob(k1*)",
    ) == {
        "optimizer.lr": FloatDistribution(0.001, 1, log=True),
        "dropout.rate": FloatDistribution(0, 0.1),
        "model.depth": IntDistribution(1, 4),
        "model.d_model": IntDistribution(8, 64, log=True),
        "model.kernel_size": IntDistribution(3, 9, step=2),
        "trainer.label_smoothing": FloatDistribution(0, 0.2, step=0.1),
        "optimizer.weight_decay": CategoricalDistribution(["0", "0.01"]),
        "augmentation": CategoricalDistribution(["light", "none"]),
        "trainer.clip_grad_norm": FloatDistribution(1, 5),
        "kernel": CategoricalDistribution(["k15"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.name=interval(0, 1)"], r"optimizer.name=interval\(0, 1\): the key does not hold numbers"),
        (["optimizer.lr=interval(0, 0.1)"], r"optimizer.lr=0.0: expected above 0"),
        (["optimizer.lr=tag(log, interval(0, 0.1))"], r"optimizer.lr=tag\(log, interval\(0, 0.1\)\): .*low"),
        (["optimizer.lr=interval(0.1, 0.01)"], r"optimizer.lr=interval\(0.1, 0.01\): .*low"),
        (["dropout.rate=choice(0.1, 1.5)", "dropout=blocks"], r"dropout.rate=1.5: expected at least 0 and below 1"),
        (["model.depth=range(4, 4)"], r"model.depth=range\(4, ?4\): the range is empty"),
        (["model.depth=1,2", "data.val_fraction=0"], r"data.val_fraction=0: "),
        (["model.depth=1,2", "data.val_fraction=0,0.1"], r"data.val_fraction=0: "),
        (["model.depth=1,2", "seed=0,1"], r"seed=0,1: "),
        (["model.depth=1"], r"no key has several values"),
    ],
)
def test_what_cannot_be_searched(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(*arguments)


# Samplers.


@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler", "GPSampler"])
def test_each_sampler_gets_what_it_takes(sampler: str) -> None:
    make_sampler(options_of(f"hydra.sweeper.sampler._target_=optuna.samplers.{sampler}"), seed=0)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["hydra.sweeper.sampler._target_=optuna.samplers.QMCSampler"], ["QMCSampler", "resume", "TPESampler"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.NSGAIISampler"], ["NSGAIISampler", "resume"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.GridSampler"], ["GridSampler"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.NoSampler"], ["NoSampler"]),
        (["hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler", "hydra.sweeper.sampler.n_startup_trials=5"],
         ["RandomSampler", "n_startup_trials"]),
        (["hydra.sweeper.sampler=null"], ["hydra.sweeper.sampler"]),
    ],
)  # fmt: skip
def test_a_sampler_that_cannot_be_used_is_named(overrides: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sampler(options_of(*overrides), seed=0)
    assert all(words in str(caught.value) for words in named), caught.value
    assert "\n" not in str(caught.value)


def options_of(*overrides: str) -> Any:
    with initialized():
        composed = compose("train", ["hydra/sweeper=optuna", *overrides], return_hydra_config=True)
    return OmegaConf.to_object(composed.hydra.sweeper)
