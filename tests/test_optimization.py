"""The learning rate at every step, weight decay, and what a step's BatchNorm needs."""

import math

import numpy as np
import pytest

from conftest import Train, checked
from training.model import make_model
from training.optimization import make_optimizer

# The learning rate. With all images in one batch an epoch is one step, whose rate is in its row.


def rates(train: Train, *overrides: str, epochs: int) -> list[float]:
    done = train("data.batch_size=2000", f"trainer.epochs={epochs}", "optimizer.lr=0.04", *overrides)
    assert done.summary["status"] == "completed", done.summary["error"]
    return list(done.metrics["lr"])


def test_one_cycle_is_the_published_formula_at_every_step(train: Train) -> None:
    expected = np.interp(np.arange(1, 8) / 7, [0, 2 / 5, 4 / 5, 1], [0, 0.04, 0.04 / 20, 0])
    np.testing.assert_allclose(rates(train, "scheduler=one_cycle", epochs=7), expected, atol=1e-12)


def test_cosine_begins_where_the_warm_up_ends_and_wastes_no_step(train: Train) -> None:
    assert rates(train, "scheduler=cosine", "scheduler.warmup_epochs=0", epochs=1) == [0.04]
    seen = rates(train, "scheduler=cosine", "scheduler.warmup_epochs=2", epochs=6)
    cosine = [0.04 * (1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    np.testing.assert_allclose(seen, [0.02, 0.04, *cosine], rtol=1e-12)
    ends = rates(train, "scheduler=cosine", "scheduler.warmup_epochs=0", "scheduler.min_lr=0.01", epochs=4)
    np.testing.assert_allclose(ends, [0.01 + 3 / 4 * rate for rate in cosine], rtol=1e-12)


def test_step_decays_after_whole_periods(train: Train) -> None:
    seen = rates(train, "scheduler=step", "scheduler.decay_epochs=2", "scheduler.decay_rate=0.5", epochs=5)
    np.testing.assert_allclose(seen, [0.04, 0.04, 0.02, 0.02, 0.01], rtol=1e-12)
    warm = rates(train, "scheduler=step", "scheduler.decay_epochs=3", "scheduler.warmup_epochs=2", epochs=4)
    np.testing.assert_allclose(warm, [0.02, 0.04, 0.04, 0.004], rtol=1e-12)


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


@pytest.mark.parametrize("parts", ["data.batch_size=4", "data.batch_size=6 trainer.accumulation_steps=4"])
def test_batch_norm_of_a_single_value_is_an_error_before_the_first_step(train: Train, parts: str) -> None:
    overrides = ("patch=p1", "model.patch_size=8", "trainer.epochs=1", *parts.split())  # a position for each image
    done = train(*overrides, "data.train_fraction=1")  # 1,293 images
    assert done.summary["status"] == "failed"
    assert f"{parts.split()[0]}" in done.summary["error"] and "model.norm=layer" in done.summary["error"]
    assert done.summary["error"].startswith("ConfigError")
    assert train(*overrides, "model.norm=layer", "data.train_fraction=0.05").summary["status"] == "completed"


def test_weight_decay_spares_norms_and_biases_unless_told_otherwise() -> None:
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
