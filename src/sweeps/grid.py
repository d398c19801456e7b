"""A grid: every combination of the values, except runs that were completed before."""

from collections.abc import Sequence
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from config.sweepers import Grid
from runtime.claims import join_sweep
from runtime.console import say
from sweeps.impossible import leave_out_impossible
from sweeps.launch import is_first, launch_jobs, make_folder, not_completed, record_grid
from sweeps.plan import as_list, describe_grid, expand_grid, make_jobs, parse_overrides, varied_keys
from tracking.run_index import RunIndex


def grid(config: DictConfig, launcher: Launcher, arguments: Sequence[str], options: Grid) -> set[str]:
    """Check all runs, then launch the runs that are not completed.

    Returns:
        The IDs of all runs, with those of impossible ones.

    Raises:
        ConfigError: A run is invalid; no run has been started.
    """
    runs = expand_grid(parse_overrides(arguments, options.params))
    varied = varied_keys(runs)
    if is_first():
        join_sweep(Path(config.output_dir, config.sweep))
        say(f"sweep {config.sweep}: {describe_grid(runs)} → {config.output_dir}/{config.sweep}")
    jobs = make_jobs(config.hydra.job.config_name, [[*run, f"varied={as_list(varied)}"] for run in runs])
    jobs = list({job.run_id: job for job in jobs}.values())
    index = RunIndex(Path(config.output_dir, config.sweep))
    possible = leave_out_impossible(jobs, index, config)
    folder = make_folder(config)
    if is_first():
        record_grid(folder, possible, varied)
    missing = not_completed(possible, index)
    if completed := len(possible) - len(missing):
        say(f"{completed:,} of {len(jobs):,} runs completed before; {len(missing):,} to run")
    size = options.max_batch_size or len(missing)
    for start in range(0, len(missing), size or 1):
        launch_jobs(launcher, missing[start : start + size], index, first_number=start)
    return {job.run_id for job in jobs}
