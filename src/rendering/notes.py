"""Warnings above the ranking: copies of runs, and results on different images."""

from collections import Counter

from comparison.results import Comparison
from rendering.formatting import several
from runtime.console import count

MOST = 5  # listed copies, and listed sets of images


def notes(comparison: Comparison) -> list[str]:
    copies = [f"{copy.folder} is a copy of {kept.folder}: not counted." for copy, kept in comparison.copies]
    return [*several(copies, MOST), *different_images(comparison)]


def different_images(comparison: Comparison) -> list[str]:
    """Warn if the metric was measured on different images for different settings."""
    part, _, _ = comparison.metric.partition("/")
    keys = {
        "val": ("data.name", "data.root", "data.val_fraction", "data.split_seed"),
        "test": ("data.name", "data.root"),
    }
    sets: Counter[str] = Counter()
    for setting in comparison.valued if part in keys else ():
        values = [f"{key}={setting.levels[key]}" for key in keys[part] if setting.levels.get(key) is not None]
        images = {(run.summary.get("images") or {}).get(part, 0) for run in setting.completed} - {0}
        sets[", ".join([*values, *(count(number, "image") for number in sorted(images))])] += len(setting.completed)
    if len(sets) < 2:
        return []
    listed = "; ".join(several([f"{images} ({count(runs, 'run')})" for images, runs in sets.items()], MOST))
    return [f"Not comparable: {comparison.metric} was measured on different images: {listed}."]
