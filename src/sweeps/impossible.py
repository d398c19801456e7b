"""Runs that no machine can train: their patch size does not divide the images, or the images cannot be read."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from config.errors import ConfigError, first_line
from config.schema import Config, Data
from runtime.console import say
from sweeps.launch import is_first
from sweeps.plan import Job
from tracking.identity import IMAGE_SIZES
from tracking.run_index import RunIndex


def leave_out_impossible(jobs: Sequence[Job], index: RunIndex, config: DictConfig) -> list[Job]:
    """Return the jobs that are possible or completed; name the others, as name_impossible() does."""
    left = {job.name: job.config for job in jobs if index.summary(job.run_id).get("status") != "completed"}
    impossible = name_impossible("left out", left, len(jobs), config)
    return [job for job in jobs if job.name not in impossible]


def name_impossible(title: str, runs: Mapping[str, Config], total: int, config: DictConfig) -> Collection[str]:
    """Print the problems of impossible runs, and return their names.

    Args:
        title: The first word of each line.
        runs: The runs that have not completed, by name.
        total: The number of all runs.

    Raises:
        ConfigError: No run is possible, or one is impossible and on_failure=stop.
    """
    local = is_local(config)
    problems = {name: problem for name, run in runs.items() if (problem := problem_of(run, local))}
    is_none_left = bool(problems) and len(problems) == total
    if is_none_left and len({*problems.values()}) == 1:
        raise ConfigError(next(iter(problems.values())))
    if is_first():
        print_problems(title, problems)
    if is_none_left:
        raise ConfigError(f"sweep={config.sweep}: no run is possible; none was started")
    if problems and config.on_failure == "stop":
        raise ConfigError(f"on_failure=stop: {len(problems):,} of {total:,} runs are impossible; none was started")
    return problems


def is_local(config: DictConfig) -> bool:
    """Return True if the runs train on this machine; Slurm's nodes may have a folder that it lacks."""
    return "wait" not in config.hydra.launcher


def problem_of(config: Config, local: bool = True) -> str | None:
    """Return the reason why a run cannot be trained on its images; None if it can.

    Args:
        local: The run trains on this machine, so its images can be looked at.
    """
    from data.image_files import DataError, check_patch_size, split_folders  # NumPy and Pillow, for sweeps only

    data, side = config.data, config.data.image_size or IMAGE_SIZES.get(config.data.name)
    try:
        if data.name == "image_folder" and local:
            split_folders(Path(data.root))
        if side or local:
            size = (side, side) if side else shared_size(data.root, data.skip_unreadable)
            check_patch_size(config.model.patch_size, size, data.name)
    except DataError as error:
        return first_line(error)
    return None


@cache
def shared_size(root: str, skip_unreadable: bool) -> tuple[int, int]:
    """Return the size at which a model sees the images of a folder if data.image_size=null.

    Raises:
        DataError: The images cannot be read.
    """
    from data.datasets import read_configured  # takes seconds

    return read_configured(Data(name="image_folder", root=root, skip_unreadable=skip_unreadable)).image_size


def print_problems(title: str, problems: Mapping[str, str]) -> None:
    """Print one line for each problem, with the names of its runs; `problems` are by the run's name."""
    for problem in dict.fromkeys(problems.values()):
        names = [name for name in problems if problems[name] == problem]
        more = f" and {len(names) - 3:,} more" if names[3:] else ""
        say(f"{title}: {problem} ({', '.join(names[:3])}{more})", "red")
