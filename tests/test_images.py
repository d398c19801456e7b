"""Tests of `compare.py --images`: the test images that the best setting and each factor win and lose."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from comparison.image_differences import Predictions, image_differences, read_predictions
from comparison.results import read
from config.errors import ConfigError
from data.datasets import read as read_data
from rendering import image_sheet
from rendering.images import compare_images
from run_folders import DEPTH, KERNEL, write_run

RECORD = [("label", np.uint16), ("prediction", np.uint16), ("probability", np.float32)]
LABELS = read_data("digits", "data").test.labels


def sweep(
    folder: Path, accuracies: Mapping[tuple[int, int], float], *overrides: str, seeds: int = 2
) -> dict[tuple[int, int], np.ndarray]:
    """Write runs of (kernel_size, depth) on the digits; return "classified correctly", [seeds, images], by setting."""
    generator, by_setting = np.random.default_rng(0), {}
    for (kernel, depth), accuracy in accuracies.items():
        correct = generator.random((seeds, len(LABELS))) < accuracy
        for seed, right in enumerate(correct):
            predictions = np.zeros(len(LABELS), RECORD)
            predictions["label"], predictions["prediction"] = LABELS, np.where(right, LABELS, (LABELS + 1) % 10)
            test = float(right.mean())
            figures: dict[str, Any] = {"best__val__accuracy": accuracy - seed / 1000, "test__accuracy": test}
            levels = (f"{KERNEL}={kernel}", f"{DEPTH}={depth}", f"seed={seed}")
            run = write_run(folder / f"{kernel}-{depth}-{seed}", *levels, *overrides, **figures)
            np.save(run / "predictions.npy", predictions)
        by_setting[kernel, depth] = correct
    return by_setting


def test_three_questions_have_an_interval_each(tmp_path: Path) -> None:
    correct = sweep(tmp_path, {(5, 8): 0.9, (3, 8): 0.7})
    best, other = correct[5, 8], correct[3, 8]
    comparison = read([tmp_path])
    predictions = read_predictions(comparison)
    (difference,) = image_differences(comparison, predictions)  # the only effect is the same difference
    gains = difference.gains
    assert gains.other_images.p == pytest.approx(ttest_rel(best.mean(0), other.mean(0)).pvalue, abs=1e-6)
    assert difference.p_new_runs == pytest.approx(ttest_rel(best.mean(1), other.mean(1)).pvalue, abs=1e-6)
    assert gains.both.margin and gains.new_runs.margin and gains.both.margin >= gains.new_runs.margin
    wrong_in_one_way = np.mean([a != b for a in best for b in other])
    assert predictions.disagreement(difference.pairs) == pytest.approx(wrong_in_one_way)
    of_seeds = np.mean([best[0] != best[1], other[0] != other[1]])
    assert predictions.disagreement_of_seeds(difference.settings) == pytest.approx(of_seeds)


def test_nothing_differs_where_all_runs_predict_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, {(5, 8): 1.0, (3, 8): 1.0})
    (difference,) = image_differences(comparison := read([tmp_path]), read_predictions(comparison))
    assert difference.p_new_runs == difference.p_both == 1 and difference.clear == 0
    compare_images(comparison, tmp_path)
    assert "one seed" not in capsys.readouterr().out


def test_a_row_agrees_with_itself_where_a_seed_is_missing(tmp_path: Path) -> None:
    """Points, images and intervals are those of the common seeds."""
    correct = sweep(tmp_path, {(5, 8): 0.9, (3, 8): 0.7}, seeds=3)
    shutil.rmtree(tmp_path / "3-8-2")
    (difference,) = image_differences(comparison := read([tmp_path]), read_predictions(comparison))
    gains = correct[5, 8][:2].mean(0) - correct[3, 8][:2].mean(0)
    assert difference.gains.by_image == pytest.approx(gains)
    assert difference.gains.both.value == difference.gains.new_runs.value == pytest.approx(gains.mean())


@pytest.mark.slow
def test_a_factor_wins_and_loses_images_with_all_else_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {(5, 8): 0.95, (9, 8): 0.9, (5, 16): 0.85, (9, 16): 0.8}
    correct = {setting: runs.mean(0) for setting, runs in sweep(tmp_path, settings).items()}
    compare_images(read([tmp_path]), tmp_path)
    table = pd.read_csv(tmp_path / "images.csv")
    out = capsys.readouterr().out
    gains = {
        "kernel_size 9 instead of 5": (correct[9, 8] - correct[5, 8] + correct[9, 16] - correct[5, 16]) / 2,
        "depth 16 instead of 8": (correct[5, 16] - correct[5, 8] + correct[9, 16] - correct[9, 8]) / 2,
    }
    assert table["comparison"].nunique() == 3, "and the best against the next"
    for name, of_images in gains.items():
        assert name in out
        rows = table[table["comparison"] == name].set_index("image")
        assert rows["gain"].to_dict() == pytest.approx({i: gain for i, gain in enumerate(of_images) if gain})
        assert rows["false_discovery_rate"].between(0, 1).all()
        assert rows["gain"].is_monotonic_increasing and (rows["label"] == LABELS[rows.index]).all()


def test_the_clearest_images_are_shown_with_what_the_runs_say(tmp_path: Path) -> None:
    correct = sweep(tmp_path, {(5, 8): 0.9, (3, 8): 0.7}, seeds=4)
    comparison = read([tmp_path])
    predictions = read_predictions(comparison)
    (difference,) = image_differences(comparison, predictions)
    gains = correct[5, 8].mean(0) - correct[3, 8].mean(0)
    assert gains[difference.won[0]] == gains.max() and gains[difference.lost[0]] == gains.min()
    assert len(difference.won) == np.sum(gains > 0) and len(difference.lost) == np.sum(gains < 0)

    images, classes = image_sheet.read_test_images(comparison.runs[0], predictions.labels)
    figure = image_sheet.image_sheet([("", difference)], predictions, images, classes)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 12
    for axes, i in zip(shown, [*difference.won[:6], *difference.lost[:6]], strict=True):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), np.asarray(images[i]))
        name, predicted, right = axes.get_title().splitlines()
        assert name == str(LABELS[i])
        before, after = correct[3, 8][:, i].mean(), correct[5, 8][:, i].mean()
        assert right.startswith(f"{100 * before:.0f} → {100 * after:.0f} ")
        assert before == 0.5 or (predicted.partition(" ")[0] == name) is bool(before > 0.5)


def test_of_two_equal_gains_the_surer_is_clearer(tmp_path: Path) -> None:
    def runs(prediction: int, probabilities: list[float]) -> np.ndarray:
        records = np.zeros(3, RECORD)
        records["prediction"], records["probability"] = prediction, probabilities
        return records

    sweep(tmp_path, {(5, 8): 0.9, (3, 8): 0.7}, seeds=1)
    labels = np.zeros(3, np.uint16)
    comparison = read([tmp_path])
    best, other = comparison.valued
    records = {best: {0: runs(0, [0.6, 0.9, 0.7])}, other: {0: runs(1, [0, 0, 0])}}
    (difference,) = image_differences(comparison, Predictions(labels, records))
    assert difference.won.tolist() == [1, 2, 0] and not len(difference.lost)


@pytest.mark.parametrize("data", ["data.name=cifar10", "data.name=image_folder", "data.name=digits"])
def test_without_the_images_the_table_is_written_alone(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images were moved, or the digits have changed; none are downloaded."""
    root = tmp_path / "data"
    sweep(tmp_path / "s", {(5, 8): 0.9, (3, 8): 0.7}, data, f"data.root={root}", seeds=1)
    for path in tmp_path.glob("s/*/predictions.npy"):
        np.save(path, np.load(path)[: -1 if "digits" in data else None])
    compare_images(read([tmp_path / "s"]), tmp_path / "s")
    assert f"data.root={root}" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "s" / "images.csv").exists() and not (tmp_path / "s" / "images.png").exists()
    assert not root.exists()


def test_runs_without_predictions_or_of_other_images_are_refused(tmp_path: Path) -> None:
    sweep(tmp_path, {(5, 8): 0.9, (3, 8): 0.7})
    changed = np.load(tmp_path / "3-8-0" / "predictions.npy")
    changed["label"] = 0
    np.save(tmp_path / "3-8-0" / "predictions.npy", changed)
    with pytest.raises(ConfigError, match="different images"):
        compare_images(read([tmp_path]), tmp_path)
    (tmp_path / "5-8-1" / "predictions.npy").unlink()
    with pytest.raises(ConfigError, match=r"predictions\.npy"):
        compare_images(read([tmp_path]), tmp_path)
