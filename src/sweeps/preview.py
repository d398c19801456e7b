"""The plan of a sweep (plan=true): its runs, their status, their estimated time, and which are impossible."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from config.command_line import overrides_of
from config.errors import ConfigError, explain, first_line
from config.schema import SGD, Config
from config.sweepers import Grid, Race, Search
from runtime.console import duration, print_table, say, si, track
from runtime.files import read_json
from sweeps.impossible import print_problems
from sweeps.plan import as_list, expand_grid, layer_macs, make_job, parse_overrides, split_overrides, varied_keys
from tracking import records
from tracking.identity import display_name, folder_name, override_texts
from tracking.run_index import RunIndex

SIMILAR = 4  # runs whose multiply-accumulates differ by less than this factor have similar rates
CIFAR = {"cifar10": 10, "cifar100": 100}  # number of classes, for plans before the download


@dataclass(frozen=True)
class PreviewedRun:
    """A run of a plan; figures that are unknown, or those of an impossible run, are None."""

    name: str
    run_id: str | None
    folder: str | None
    status: str  # in the run's summary, else "new" or "impossible"
    overrides: Sequence[str]
    parameters: int | None = None
    macs: int | None = None  # multiply-accumulates of an image's forward pass
    seconds: float | None = None  # estimated from completed runs on the same data
    bytes: int | None = None  # estimated size of the checkpoints during training
    problem: str | None = None  # the reason why the run is impossible


def planned_overrides(config: DictConfig, arguments: Sequence[str], options: Grid | Race | Search) -> tuple[Any, str]:
    """List the overrides of all runs that are determined before the start, with a note on later runs."""
    parsed = parse_overrides(arguments, options.params)
    match options:
        case Grid():
            runs = expand_grid(parsed)
            return with_varied(runs, varied_keys(runs)), ""
        case Race():
            settings, seed = expand_grid(parsed), config.seed
            seeds = range(seed, seed + options.first_seeds)
            runs = [[*setting, f"seed={seed}"] for setting in settings for seed in seeds]
            return with_varied(runs, varied_keys(runs)), f"the first round; {options.max_seeds} seeds at most"
        case Search():
            from sweeps.space import make_space, space_ends  # takes seconds

            searched, fixed = split_overrides(parsed)
            space = make_space(config.hydra.job.config_name, searched, fixed)
            runs = [overrides_of(values) for values in space_ends(space, fixed)]
            trials = f"{options.n_trials} trials within {', '.join(str(text.input_line) for text in searched.values())}"
            return with_varied(runs, [*space]), f"the ends of the space; {trials}"


def with_varied(runs: Sequence[Sequence[str]], varied: Sequence[str]) -> list[list[str]]:
    """Add the override `varied`, which names the runs."""
    return [[*run, f"varied={as_list(varied)}"] for run in runs]


def preview(app: str, folder: Path, runs: Sequence[Sequence[str]], note: str, as_json: bool) -> None:
    """Print the plan of a sweep, as a table or as JSON; the note is on runs that are not determined yet.

    Raises:
        SystemExit: A run is impossible.
    """
    index, rates = RunIndex(folder), completed_runs(folder.parent)
    overrides = [[text for text in run if not text.startswith("plan=")] for run in runs]
    planned = [plan_run(app, of_run, index, rates) for of_run in track(overrides, "planning")]
    unique = list({run.run_id or run.name: run for run in planned}.values())
    impossible = sum(run.status == "impossible" for run in unique)
    left = [run for run in unique if run.status not in ("completed", "impossible")]
    totals = {
        "runs": len(unique), "completed": sum(run.status == "completed" for run in unique), "to_run": len(left),
        "impossible": impossible, "bytes": sum(run.bytes or 0 for run in left),
        "seconds": sum(run.seconds for run in left if run.seconds) if all(run.seconds for run in left) else None,
    }  # fmt: skip
    if as_json:
        print(json.dumps({"folder": str(folder), "note": note, **totals, "planned": [asdict(run) for run in unique]}))
    else:
        print_plan(folder, unique, totals, note)
    if impossible:
        sys.exit(f"{impossible:,} of {len(unique):,} runs are impossible")


def print_plan(folder: Path, runs: Sequence[PreviewedRun], totals: dict[str, Any], note: str) -> None:
    """Print the plan as a table with its totals below."""
    header = ["run", "ID", "status", "params", "MACs", "time", "disk"]
    rows = [
        [
            run.name, run.run_id or "", run.status,
            "" if run.parameters is None else si(run.parameters), "" if run.macs is None else si(run.macs),
            "" if run.seconds is None else duration(run.seconds), "" if run.bytes is None else f"{si(run.bytes)}B",
        ]
        for run in runs
    ]  # fmt: skip
    print_table(f"plan of {folder}{f': {note}' if note else ''}", header, rows, best_first=False)
    print_problems("impossible", {run.name: run.problem for run in runs if run.problem})
    time = "time unknown, as no similar run has completed"
    if totals["seconds"] is not None:
        time = f"about {duration(totals['seconds'])} one after the other"
    say(f"{totals['to_run']:,} of {totals['runs']:,} runs to run: {time}, {si(totals['bytes'])}B of checkpoints")


def plan_run(
    app: str, overrides: list[str], index: RunIndex, rates: Mapping[str, Sequence[tuple[int, float]]]
) -> PreviewedRun:
    """Compose a run and estimate its size and time; `rates` are those of completed_runs()."""
    varied = override_texts(overrides).get("varied", "[]").strip("[]").split(",")
    name = display_name(overrides, [key for key in varied if key])
    try:
        job = make_job(app, tuple(overrides))
        data = dataset(job.config.data.name, job.config.data.root, job.config.data.skip_unreadable)
        parameters, macs, images = model_size(job.config, *data)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ConfigError and DataError are ValueErrors
        problem = explain(error) if not isinstance(error, ConfigError) else first_line(error)
        return PreviewedRun(name, None, None, "impossible", overrides, problem=problem)
    config = job.config
    status = index.summary(job.run_id).get("status", "new")
    path = index.folders.get(job.run_id, index.sweep / f"{folder_name(name)}-{job.run_id}")
    rate = seconds_per_mac(macs, rates.get(config.data.name, ()))
    seconds = None if rate is None else rate * macs * images * config.trainer.epochs
    of_state = 2 if isinstance(config.optimizer, SGD) else 3  # numbers for each parameter
    size = 4 * parameters * (1 + 2 * of_state)  # best.pt; last.pt and previous.pt with their states
    return PreviewedRun(name, job.run_id, str(path), status, overrides, parameters, macs, seconds, size)


@cache
def dataset(name: str, root: str, skip_unreadable: bool) -> tuple[int, int, tuple[int, int], int]:
    """Return channels, classes, image size and number of training images, without a download.

    Raises:
        DataError: The images cannot be read.
    """
    from data import datasets  # takes seconds
    from data.image_files import DataError

    try:
        data = datasets.read(name, root, download=False, skip_unreadable=skip_unreadable)
    except DataError:
        if name in CIFAR:  # The first run downloads it.
            return 3, CIFAR[name], (32, 32), 50_000
        raise
    return data.channels, len(data.classes), data.image_size, len(data.train)


def model_size(
    config: Config, channels: int, n_classes: int, image_size: tuple[int, int], images: int
) -> tuple[int, int, int]:
    """Return parameters, multiply-accumulates of an image's forward pass, and images in an epoch.

    Raises:
        DataError: The patch size does not divide the images.
    """
    from data.image_files import check_patch_size

    model, data = config.model, config.data
    height, width = (data.image_size,) * 2 if data.image_size else image_size
    check_patch_size(model.patch_size, (height, width), data.name)
    d, kernel, patch = model.d_model, model.kernel_size**2, channels * model.patch_size**2
    norm = 0 if model.norm == "none" else 2 * d
    parameters = patch * d + d + norm + model.depth * (kernel * d + d * d + 2 * (d + norm)) + d * n_classes + n_classes
    positions = (height // model.patch_size) * (width // model.patch_size)
    macs = positions * (patch * d + layer_macs(model)) + d * n_classes
    return parameters, macs, round(images * data.train_fraction * (1 - data.val_fraction))


def completed_runs(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Collect multiply-accumulates and seconds per multiply-accumulate of completed runs, by data set."""
    runs: dict[str, list[tuple[int, float]]] = {}
    for sweep in output_dir.glob("*/sweep.json"):
        index = RunIndex(sweep.parent)
        for run_id, run in read_json(sweep, dict[str, records.PlannedRun]).items():
            summary = index.summary(run_id)
            macs, seconds = summary.get("macs"), summary.get("seconds")
            images = summary.get("images", {}).get("train", 0) * summary.get("epochs", 0)
            if summary.get("status") == "completed" and macs and seconds and images > 0:
                runs.setdefault(run["data"], []).append((macs, seconds / (macs * images)))
    return runs


def seconds_per_mac(macs: int, runs: Sequence[tuple[int, float]]) -> float | None:
    """Return the median over runs of similar size, as small runs spend most of their time outside the layers."""
    similar = [rate for size, rate in runs if macs / SIMILAR <= size <= macs * SIMILAR]
    return statistics.median(similar) if similar else None
