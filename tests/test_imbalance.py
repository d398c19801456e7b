"""Tests of imbalanced classes: remarks, metrics, class weights and the balanced sampler."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from comparison.results import Comparison
from comparison.runs import read_runs
from config.errors import ConfigError
from conftest import Train, checked
from data.balance import balanced_order, balanced_weights
from rendering.report import table
from tracking.identity import run_id

COUNTS = {"cat": (40, 12), "dog": (24, 8), "owl": (4, 4), "yak": (3, 1)}  # training and test images


@pytest.fixture
def imbalanced(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for label, (name, counts) in enumerate(COUNTS.items()):
        for part, count in zip(("train", "test"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([i, count]).integers(0, 200, (8, 8, 3)) + 15 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


def test_imbalanced_run_names_classes_and_averages_over_them(
    imbalanced: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    done = train(
        "data=image_folder", f"data.root={imbalanced}", "data.train_fraction=1", "data.val_fraction=0.1",
        "data.batch_size=8", "data.num_workers=0", "trainer.monitor=val/macro_f1", "trainer.class_weights=balanced",
    )  # fmt: skip
    sizes = next(text for text in caplog.messages if "4 classes" in text)
    assert "63 training" in sizes and "8 validation" in sizes and "25 test" in sizes
    assert any("cat" in text and "48.0%" in text for text in caplog.messages)  # of the majority class
    assert any("without validation" in text and text.endswith("owl, yak") for text in caplog.messages)
    assert "yak" in str(done.summary["remarks"])
    assert "class owl: 4 training, 0 validation, 4 test" in (done.folder / "train.log").read_text()

    predictions = np.load(done.folder / "predictions.npy")
    labels, predicted = predictions["label"], predictions["prediction"]
    assert done.summary["test/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert done.summary["test/macro_f1"] == pytest.approx(expected)
    metrics = done.metrics
    assert list(metrics)[:8] == [
        "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second", "seconds",
    ]  # fmt: skip
    assert done.result.objective == metrics["val/macro_f1"].max() == done.summary["best/val/macro_f1"]

    comparison = Comparison("one", read_runs([done.folder]))
    assert comparison.metric == "val/macro_f1"  # what was monitored
    assert "test balanced %" in table(comparison)[0]


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 2, 3], [40, 3, 7])
    weights = balanced_weights(labels, 4)
    assert weights[[0, 2, 3]] == pytest.approx(compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=labels))
    assert weights[labels].mean() == pytest.approx(1)


def test_balanced_epoch_has_each_class_as_often() -> None:
    labels = np.repeat([0, 1, 4], [50, 7, 3])
    order = balanced_order(labels, np.random.default_rng(0))
    assert sorted(Counter(labels[order].tolist()).values()) == [20, 20, 20]
    for label in (0, 1, 4):
        times = np.bincount(order[labels[order] == label], minlength=60)[labels == label]
        assert times.max() - times.min() <= 1
    assert not np.array_equal(order, balanced_order(labels, np.random.default_rng(1)))


@pytest.mark.slow
def test_weighted_loss_is_the_same_in_parts(imbalanced: Path, train: Train) -> None:
    common = (
        "data=image_folder", f"data.root={imbalanced}", "data.train_fraction=1", "data.batch_size=8",
        "data.num_workers=0", "trainer.epochs=1", "trainer.class_weights=balanced", "model.norm=layer",
    )  # fmt: skip
    whole, parts = train(*common), train(*common, "trainer.accumulation_steps=2")
    assert whole.metrics["train/loss"][0] == pytest.approx(parts.metrics["train/loss"][0], rel=1e-4)
    plain = train(*common[:6], *common[7:], "data.sampler=balanced")
    assert math.isfinite(plain.metrics["train/loss"][0])
    assert plain.metrics["train/loss"][0] != whole.metrics["train/loss"][0]
    best = torch.load(plain.folder / "checkpoints" / "best.pt", weights_only=True)
    assert "val/balanced_accuracy" in best["metrics"]


def test_balancing_is_part_of_the_identity_once_set() -> None:
    ids = [run_id(checked(*extra)) for extra in ((), ("data.sampler=balanced",), ("trainer.class_weights=balanced",))]
    assert len(set(ids)) == 3
    assert run_id(checked("data.sampler=shuffled", "trainer.class_weights=none")) == ids[0]
    with pytest.raises(ConfigError, match=r"data\.sampler"):
        checked("data.sampler=balanced", "trainer.class_weights=balanced")
