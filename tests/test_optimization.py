"""Tests of the learning rate at every step, of weight decay, and of steps too small for BatchNorm."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from config.errors import ConfigError, explain
from config.parse import parse_config
from config.schema import CONF, Config
from conftest import Train, checked
from tracking.identity import run_id
from training.model import make_model
from training.optimization import make_optimizer

OwnOptimizer = Callable[[str], Config]  # the fixture


@pytest.fixture
def own_optimizer(tmp_path: Path) -> OwnOptimizer:
    """Return a function that composes `optimizer=mine` with a file of this text."""
    conf = shutil.copytree(CONF, tmp_path / "conf")

    def compose_with(text: str) -> Config:
        (conf / "optimizer" / "mine.yaml").write_text(text)
        with initialize_config_dir(str(conf), version_base="1.3"):
            return parse_config(compose("train", ["sweep=test", "optimizer=mine"]))

    return compose_with


@pytest.mark.parametrize("text", ["_target_: torch.optim.RMSprop\nlr: 0.1\n", "lrr: 0.1\nname: RMSprop\n"])
def test_unknown_key_of_ones_own_file_is_one_line(text: str, own_optimizer: OwnOptimizer) -> None:
    with pytest.raises(HydraException) as error:
        own_optimizer(text)
    line = explain(error.value)
    assert "conf/optimizer/mine.yaml" in line and f"optimizer.{text.partition(':')[0]}" in line and "\n" not in line


# The learning rate. With all images in one batch an epoch is one step, whose rate is in its row.


def rates(train: Train, *overrides: str, epochs: int) -> list[float]:
    done = train("data.batch_size=2000", f"trainer.epochs={epochs}", "optimizer.lr=0.04", *overrides)
    assert done.summary["status"] == "completed", done.summary["error"]
    return list(done.metrics["lr"])


def test_one_cycle_is_the_published_formula_at_every_step(train: Train) -> None:
    expected = np.interp(np.arange(1, 8) / 7, [0, 2 / 5, 4 / 5, 1], [0, 0.04, 0.04 / 20, 0])
    np.testing.assert_allclose(rates(train, "scheduler=one_cycle", epochs=7), expected, atol=1e-12)


@pytest.mark.slow
def test_cosine_begins_where_the_warm_up_ends_and_wastes_no_step(train: Train) -> None:
    assert rates(train, "scheduler=cosine", "scheduler.warmup_epochs=0", epochs=1) == [0.04]
    seen = rates(train, "scheduler=cosine", "scheduler.warmup_epochs=2", epochs=6)
    cosine = [0.04 * (1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    np.testing.assert_allclose(seen, [0.02, 0.04, *cosine], rtol=1e-12)
    ends = rates(train, "scheduler=cosine", "scheduler.warmup_epochs=0", "scheduler.min_lr=0.01", epochs=4)
    np.testing.assert_allclose(ends, [0.01 + 3 / 4 * rate for rate in cosine], rtol=1e-12)


@pytest.mark.slow
def test_step_decays_after_whole_periods(train: Train) -> None:
    seen = rates(train, "scheduler=step", "scheduler.decay_epochs=2", "scheduler.decay_rate=0.5", epochs=5)
    np.testing.assert_allclose(seen, [0.04, 0.04, 0.02, 0.02, 0.01], rtol=1e-12)
    warm = rates(train, "scheduler=step", "scheduler.decay_epochs=3", "scheduler.warmup_epochs=2", epochs=4)
    np.testing.assert_allclose(warm, [0.02, 0.04, 0.04, 0.004], rtol=1e-12)


@pytest.mark.slow
def test_constant_stays_after_the_warm_up(train: Train) -> None:
    assert rates(train, "scheduler=constant", epochs=2) == [0.04] * 2
    warm = rates(train, "scheduler=constant", "scheduler.warmup_epochs=2", epochs=4)
    np.testing.assert_allclose(warm, [0.02, 0.04, 0.04, 0.04], rtol=1e-12)


def test_an_epochs_rate_is_that_of_its_last_step(train: Train) -> None:
    done = train("scheduler=step", "scheduler.decay_epochs=1", "optimizer.lr=0.04")
    np.testing.assert_allclose(done.metrics["lr"], [0.04, 0.004], rtol=1e-12)


def test_a_run_whose_only_step_has_rate_zero_is_an_error(train: Train) -> None:
    done = train("data.batch_size=2000", "trainer.epochs=1")
    assert done.summary["status"] == "failed"
    assert "trainer.epochs=1" in done.summary["error"]
    assert "scheduler=one_cycle" in done.summary["error"]
    assert done.metrics.empty


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["data.batch_size=4", "data.batch_size=6 trainer.accumulation_steps=4"])
def test_batch_norm_of_a_single_value_is_an_error(train: Train, parts: str) -> None:
    overrides = ("patch=p1", "model.patch_size=8", "trainer.epochs=1", *parts.split())  # a position for each image
    done = train(*overrides, "data.train_fraction=1")  # 1,293 images
    assert done.summary["status"] == "failed"
    assert f"{parts.split()[0]}" in done.summary["error"] and "model.norm=layer" in done.summary["error"]
    assert done.summary["error"].startswith("ConfigError")
    assert train(*overrides, "model.norm=layer", "data.train_fraction=0.05").summary["status"] == "completed"


def test_weight_decay_spares_norms_and_biases_by_default() -> None:
    model = make_model(checked(), 1, 10)
    weights, flat = make_optimizer(model, checked().optimizer).param_groups
    assert weights["weight_decay"] == 0.01
    assert flat["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in weights["params"])
    assert len(weights["params"]) + len(flat["params"]) == len(list(model.parameters()))
    assert (
        make_optimizer(model, checked("optimizer.decay_norm_and_bias=true").optimizer).param_groups[1]["weight_decay"]
        == 0.01
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("RMSprop", "{alpha: 0.9, momentum: 0.5}"), ("nadam", "{betas: [0.9, 0.99]}"), ("Rprop", "{}")],
)
def test_own_optimizer_file_trains(name: str, arguments: str, own_optimizer: OwnOptimizer) -> None:
    config = own_optimizer(f"name: {name}\nlr: 0.01\narguments: {arguments}\n")
    optimizer = make_optimizer(make_model(config, 1, 10), config.optimizer)
    assert type(optimizer).__name__.lower() == name.lower()
    assert optimizer.param_groups[0]["lr"] == 0.01
    for key, value in config.optimizer.arguments.items():
        used = optimizer.param_groups[0][key]
        assert (list(used) if isinstance(used, tuple) else used) == value
    assert run_id(config) != run_id(own_optimizer(f"name: {name}\nlr: 0.01\narguments: {{maximize: true}}\n"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name: lion\nlr: 0.01\n", r"optimizer\.name=lion"),
        ("name: RMSprop\nlr: 0.01\narguments: {rho: 0.9}\n", r"optimizer\.arguments\.rho=0\.9.*alpha"),
        ("name: RMSprop\nlr: 0.01\narguments: {lr: 0.9}\n", r"optimizer\.arguments\.lr=0\.9"),
        ("name: RMSprop\nlr: 0.01\narguments: {alpha: high}\n", r"optimizer\.name=RMSprop"),
        ("name: Rprop\nlr: 0.01\nweight_decay: 0.1\n", r"optimizer\.weight_decay=0\.1"),
        ("name: LBFGS\nlr: 0.01\n", r"optimizer\.name=LBFGS"),
        ("defaults: [adamw]\narguments: {betas: [0.9, 0.9]}\n", r"optimizer\.arguments\.betas"),
    ],
)
def test_own_optimizer_that_does_not_fit_is_one_line(text: str, names: str, own_optimizer: OwnOptimizer) -> None:
    with pytest.raises(ConfigError, match=names) as error:
        own_optimizer(text)
    assert "\n" not in str(error.value)


def test_optimizer_of_a_class_takes_further_arguments() -> None:
    config = checked("+optimizer.arguments.amsgrad=true")
    assert make_optimizer(make_model(config, 1, 10), config.optimizer).param_groups[0]["amsgrad"] is True
