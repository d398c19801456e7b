"""Runs to compare, as train.py leaves them on disk; in memory only where there are many."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import yaml

from comparison.results import Comparison
from comparison.runs import Run
from conftest import checked

KERNEL, DEPTH = "model.kernel_size", "model.depth"
REFERENCE = (
    "study.reference=[{where: {model.kernel_size: 5}, value: 0.91}, {where: {model.kernel_size: 9}, value: 0.99},"
    " {where: {model.kernel_size: 9, model.patch_size: 77}, value: 0.1}]",
    "study.metric=test/accuracy",
    "study.source=the paper",
)
TREES: dict[tuple[str, ...], Any] = {}


def write_run(folder: Path, *overrides: str, status: str = "completed", config: str = "", **figures: Any) -> Path:
    """Write a run's folder. `figures` go to its summary, with "__" for "/"."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config or as_yaml(*overrides))
    summary: dict[str, Any] = {
        "status": status,
        "name": " ".join(override.rpartition(".")[2] for override in overrides),
        "overrides": {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in overrides)},
        "images": {"train": 1293, "val": 144, "test": 360},
    }
    summary |= {"parameters": 1000, "macs": 50_000, "seconds": 12.5, "images_per_second": 800.0, "peak_memory": None}
    summary |= {name.replace("__", "/"): value for name, value in figures.items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(
        "epoch,train/loss,train/accuracy,val/loss,val/accuracy,lr,images_per_second,seconds\n"
        "1,2.0,0.3,1.9,0.4,0.01,800,1\n2,0.5,0.8,0.6,0.85,0.01,800,1\n"
    )
    return folder


def as_yaml(*overrides: str) -> str:
    """Return the resolved config as YAML, composed once for all tests."""
    if () not in TREES:
        TREES[()] = asdict(checked("study.reference=[]"))
    tree = deepcopy(TREES[()])
    for override in overrides:
        path, _, value = override.partition("=")
        *sections, key = path.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[key] = yaml.safe_load(value)
    return yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False)


def write_sweep(folder: Path, values: Mapping[tuple[int, int], Sequence[float]], *overrides: str) -> Path:
    """Write runs of (kernel_size, depth), one seed for each val/accuracy; test/accuracy is half a point lower."""
    for (kernel, depth), accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(
                folder / f"kernel_size_{kernel}-depth_{depth}-seed_{seed}",
                f"{KERNEL}={kernel}", f"{DEPTH}={depth}", f"seed={seed}", *overrides,
                best__val__accuracy=accuracy, test__accuracy=accuracy - 0.005, parameters=kernel * depth,
            )  # fmt: skip
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path) -> str:
    return (folder / "comparison.md").read_text()


def names(comparison: Comparison) -> set[str]:
    return {run.folder.name for run in comparison.runs}


def compared(
    settings: Iterable[tuple[Mapping[str, Any], Mapping[int, float] | Sequence[float]]],
    *varied: str,
    failed: Iterable[tuple[Mapping[str, Any], Iterable[int]]] = (),
    error: str = "NotFinite: the training loss became NaN",
    metric: str = "val/accuracy",
    smallest: float | None = None,
) -> Comparison:
    """Compare completed runs, given as levels and the metric by seed.

    Args:
        varied: Keys that vary in their sweep; by default all.
        failed: Levels and seeds of runs that failed with this error.
    """
    figure = metric if metric.startswith("test/") else f"best/{metric}"
    results = [
        (levels, seed, {"status": "completed", figure: value})
        for levels, values in settings
        for seed, value in (values if isinstance(values, Mapping) else dict(enumerate(values))).items()
    ]
    failures = [(levels, seed, {"status": "failed", "error": error}) for levels, seeds in failed for seed in seeds]
    runs = []
    for levels, seed, summary in [*results, *failures]:
        overrides: dict[str, Any] = {**levels, "seed": seed}
        recorded = {"overrides": overrides, "varied": list(varied or overrides)}
        config = {key: value for key, value in overrides.items() if "." in key or key == "seed"}
        runs.append(Run(Path(f"{levels}"), config, {**cast(dict[str, Any], summary), **recorded}))
    return Comparison("test", runs, smallest=smallest)
