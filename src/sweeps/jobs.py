"""The runs of a sweep: from its command to each one's overrides, launched in batches, read back from their folders."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from config.check import check_config
from config.errors import ConfigError
from config.schema import Config
from runtime.files import read_json, write_text
from tracking.identity import IMAGE_SIZES, as_given, display_name, run_id


@dataclass(frozen=True)
class Job:
    """A run to be launched: its overrides as Hydra's launchers take them, and what they compose to."""

    overrides: list[str]
    config: Config
    run_id: str

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary.json as it is now; empty where it has not begun."""
        for path in Path(self.config.output_dir, self.config.sweep).glob(f"*-{self.run_id}/summary.json"):
            return read_json(path)
        return {}

    @property
    def epoch_size(self) -> float:
        """The layers' multiply-accumulates in an epoch, as if the data set had one image."""
        model, data = self.config.model, self.config.data
        positions = ((data.image_size or IMAGE_SIZES.get(data.name, 224)) // model.patch_size) ** 2
        macs = positions * model.depth * model.d_model * (model.kernel_size**2 + model.d_model)
        return macs * data.train_fraction * (1 - data.val_fraction)


def record(folder: Path, runs: Iterable[Job], varied: Sequence[str]) -> None:
    """Write down the runs of a grid, from which comparison/progress.py tells the time left."""
    planned = {
        run.run_id: {
            "name": display_name(run.overrides, varied),
            "data": run.config.data.name,
            "epochs": run.config.trainer.epochs,
            "epoch_size": run.epoch_size,
        }
        for run in runs
    }
    write_text(folder / "sweep.json", json.dumps(planned, indent=2) + "\n")


def announce(config: DictConfig, number: int, total: int, at_once: int = 1) -> str:
    """What is said before a run of a sweep, e.g. "run 3 of 12"; of a grid also the time left, where it is known."""
    if "method" in config.hydra.sweeper:
        return f"run {number + 1} of {runs_of_search(config) or total}"
    from comparison.progress import progress  # takes a second, which --help need not wait for

    now = progress(Path(config.output_dir) / config.sweep, starting=1, at_once=at_once)
    return f"run {number + 1} of {total}" + (f", {now.time_left}" if now and now.time_left else "")


def parse_overrides(arguments: Sequence[str], params: Mapping[str, Any] | None = None) -> dict[str, Override]:
    """Overrides by their keys: the sweeper's own params, then the command line's; of several for a key the last."""
    declared = [f"{key}={value}" for key, value in (params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return {override.get_key_element(): override for override in parser.parse_overrides([*declared, *arguments])}


def split_overrides(overrides: Mapping[str, Override]) -> tuple[dict[str, Override], dict[str, str]]:
    """The keys that are given several values, and the others with their value.

    Raises:
        ConfigError: no key is given several values.
    """
    several = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    if not several:
        raise ConfigError("there is nothing to choose from; give a key several values, e.g. model.depth=4,8")
    return several, {key: overrides[key].get_value_element_as_str() for key in overrides if key not in several}


def expand_grid(overrides: Mapping[str, Override]) -> list[list[str]]:
    """The overrides of every run of a grid, as Hydra's own sweeper makes them.

    Raises:
        ConfigError: a key is given an interval.
    """
    for override in overrides.values():
        if override.is_interval_sweep():
            raise ConfigError(
                f"{override.input_line}: a grid needs single values; for a search add hydra/sweeper=optuna"
            )
    return BasicSweeper.split_arguments(list(overrides.values()), None)[0]


def varied_keys(jobs: Iterable[Sequence[str]]) -> list[str]:
    """The keys that differ between jobs, in the order of their overrides."""
    given = [as_given(job) for job in jobs]
    keys = dict.fromkeys(key for job in given for key in job)
    return [key for key in keys if len({job.get(key) for job in given}) > 1]


def as_list(values: Iterable[Any]) -> str:
    """A list as it is typed, e.g. for `varied`, which tells every job what varies in its sweep."""
    return f"[{','.join(map(str, values))}]"


def make_job(app: str, overrides: Sequence[str]) -> Job:
    """
    Raises:
        ConfigError: the run's values are invalid, or do not fit together.
    """
    config = check_config(compose(app, list(overrides)))
    return Job(list(overrides), config, run_id(config))


def launch(launcher: Launcher, jobs: Iterable[Job], first_number: int) -> None:
    """Run all jobs, each run once; what became of one is in its summary.

    Raises:
        SystemExit: the sweep was asked to stop.
    """
    unique = {job.run_id: job.overrides for job in jobs}
    for returned in launcher.launch(list(unique.values()), initial_job_idx=first_number) if unique else ():
        _ = returned.return_value  # raises what the job did not record itself


def make_folder(config: DictConfig) -> Path:
    """Make the sweep's folder.

    Raises:
        ConfigError: there can be no such folder.
    """
    folder = Path(config.output_dir) / config.sweep
    for key, path in (("output_dir", folder.parent), ("sweep", folder)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{key}={config[key]}: {path}: {error.strerror}; expected a folder to write to"
            ) from error
    return folder


# For sweeps that choose runs by the results of those before.


def runs_of_search(config: DictConfig) -> int:
    """The most runs that a search can have; 0 where the sweep is none."""
    sweeper = config.hydra.sweeper
    return sweeper.get("n_trials", 0) * len(sweeper.get("seeds") or [None])


def monitor_of(configs: Sequence[Config]) -> str:
    """The metric by which runs are chosen.

    Raises:
        ConfigError: they have none in common.
    """
    if not all(config.data.val_fraction for config in configs):
        raise ConfigError("data.val_fraction=0: runs are chosen by their validation; expected above 0")
    if len({config.trainer.monitor for config in configs}) > 1:
        raise ConfigError("trainer.monitor: runs are chosen by it; expected one value")
    return configs[0].trainer.monitor


@contextmanager
def locked_folder(config: DictConfig) -> Iterator[Path]:
    """The sweep's folder, for this process alone.

    Raises:
        ConfigError: there can be no such folder, or another process has it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("hydra/sweeper: several processes were started; expected one, which starts the others")
    folder = make_folder(config)
    try:
        lock = FileLock(folder / "sweep.lock").acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"sweep={config.sweep}: another process chooses the runs there") from None
    with lock:
        yield folder
