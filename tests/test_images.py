"""Which images the best setting wins and loses, from the predictions that runs keep."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from comparison.formatting import p_text
from comparison.images import compare_images
from comparison.results import read
from config.errors import ConfigError
from run_folders import write_run

RECORD = [("label", np.uint16), ("prediction", np.uint16), ("probability", np.float32)]


def sweep(folder: Path, accuracies: dict[int, float]) -> list[np.ndarray]:
    """Two seeds of every kernel size, on 200 images; [seeds, images] of "classified correctly" for each."""
    generator, labels, found = np.random.default_rng(0), np.arange(200) % 10, []
    for kernel, accuracy in accuracies.items():
        correct = generator.random((2, 200)) < accuracy
        for seed, right in enumerate(correct):
            predictions = np.zeros(200, RECORD)
            predictions["label"], predictions["prediction"] = labels, np.where(right, labels, (labels + 1) % 10)
            figures = {"best__val__accuracy": accuracy - seed / 1000, "test__accuracy": float(right.mean())}
            run = write_run(folder / f"{kernel}-{seed}", f"model.kernel_size={kernel}", f"seed={seed}", **figures)
            np.save(run / "predictions.npy", predictions)
        found.append(correct)
    return found


def test_two_tests_for_two_questions(tmp_path: Path) -> None:
    best, other = sweep(tmp_path, {5: 0.9, 3: 0.7})
    text = "\n".join(compare_images(read([tmp_path]), tmp_path))
    assert p_text(ttest_rel(best.mean(0), other.mean(0)).pvalue) in text  # on these images
    assert p_text(ttest_rel(best.mean(1), other.mean(1)).pvalue) in text  # for another training run
    assert f"{np.mean([a != b for a in best for b in other]):.1%}" in text  # wrong ones are wrong in one way here
    assert f"{np.mean([best[0] != best[1], other[0] != other[1]]):.1%}" in text
    table = pd.read_csv(tmp_path / "images.csv").set_index("image")
    gains = best.mean(0) - other.mean(0)
    assert table.gain.to_dict() == {i: gain for i, gain in enumerate(gains) if gain}


def test_runs_without_predictions_or_of_other_images_are_refused(tmp_path: Path) -> None:
    sweep(tmp_path, {5: 0.9, 3: 0.7})
    changed = np.load(tmp_path / "3-0" / "predictions.npy")
    changed["label"] = 0
    np.save(tmp_path / "3-0" / "predictions.npy", changed)
    with pytest.raises(ConfigError, match="different images"):
        compare_images(read([tmp_path]), tmp_path)
    (tmp_path / "5-1" / "predictions.npy").unlink()
    with pytest.raises(ConfigError, match=r"predictions\.npy"):
        compare_images(read([tmp_path]), tmp_path)
