"""The runs of a command line: each composed and checked once, before the first starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from config.compose import chosen_options, compose_config
from config.errors import ConfigError, explain
from config.parse import parse_config
from config.schema import Config, Model
from runtime.console import track
from tracking.identity import IMAGE_SIZES, display_name, drop_unnamed, override_texts, run_id, short_text

ONE_FOLDER = ("output_dir", "sweep")  # the keys of the sweep's folder
MOST_VALUES = 8  # the most values of a key that a line lists


@dataclass(frozen=True)
class Job:
    """A run to be launched: its overrides, the composed config, the option chosen from each group."""

    overrides: Sequence[str]
    config: Config
    run_id: str
    choices: Mapping[str, str | None]

    @property
    def name(self) -> str:
        """The run's name in its sweep, by the keys that vary."""
        return display_name(self.overrides, self.config.varied)

    @property
    def epoch_size(self) -> float:
        """Multiply-accumulates of the layers in an epoch, as if the data set had one image."""
        model, data = self.config.model, self.config.data
        positions = ((data.image_size or IMAGE_SIZES.get(data.name, 224)) // model.patch_size) ** 2
        return positions * layer_macs(model) * data.train_fraction * (1 - data.val_fraction)


def layer_macs(model: Model) -> int:
    """Count the multiply-accumulates of all layers at one position."""
    return model.depth * model.d_model * (model.kernel_size**2 + model.d_model)


def parse_overrides(arguments: Sequence[str], params: Mapping[str, Any] | None = None) -> dict[str, Override]:
    """Parse overrides by key: the sweeper's params, then the command line; the last one of a key counts."""
    declared = [f"{key}={value}" for key, value in (params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return {override.get_key_element(): override for override in parser.parse_overrides([*declared, *arguments])}


def check_one_folder(overrides: Mapping[str, Override]) -> None:
    """Check that the runs of the sweep share one folder.

    Raises:
        ConfigError: A key of the folder has several values.
    """
    for key in ONE_FOLDER:
        if key in overrides and overrides[key].is_sweep_override():
            raise one_folder_error(key, overrides[key].get_value_string())


def check_composed_folders(configs: Sequence[Config]) -> None:
    """Check that the composed runs share one folder.

    Raises:
        ConfigError: The runs would get several folders, as with sweep=k${model.kernel_size}.
    """
    for key in ONE_FOLDER:
        if len(places := sorted({getattr(config, key) for config in configs})) > 1:
            raise one_folder_error(key, ", ".join(places[:3]))


def one_folder_error(key: str, value: str) -> ConfigError:
    """Make the error about a sweep with several folders."""
    return ConfigError(f"{key}={value}: the runs of a sweep share one folder; expected one value for all of them")


def split_overrides(overrides: Mapping[str, Override]) -> tuple[dict[str, Override], dict[str, str]]:
    """Split overrides into keys with several values, and keys with one.

    Raises:
        ConfigError: No key has several values.
    """
    several = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    if not several:
        raise ConfigError("no key has several values to choose from. Fix: e.g. model.depth=4,8")
    return several, {key: overrides[key].get_value_element_as_str() for key in overrides if key not in several}


def expand_grid(overrides: Mapping[str, Override]) -> list[list[str]]:
    """List the overrides of every run of a grid, as Hydra's own sweeper does.

    Raises:
        ConfigError: A key has an interval.
    """
    for override in overrides.values():
        if override.is_interval_sweep():
            fix = "list values, or add hydra/sweeper=optuna"
            raise ConfigError(f"{override.input_line}: a grid needs single values. Fix: {fix}")
    return BasicSweeper.split_arguments(list(overrides.values()), None)[0]


def varied_keys(runs: Iterable[Sequence[str]]) -> list[str]:
    """List the keys that differ between runs, in the order of their overrides."""
    texts = [override_texts(run) for run in runs]
    keys = dict.fromkeys(key for run in texts for key in run)
    return [key for key in keys if len({run.get(key) for run in texts}) > 1]


def as_list(values: Iterable[Any]) -> str:
    """Format a list as on the command line, e.g. for `varied`."""
    return f"[{','.join(map(str, values))}]"


def describe_grid(runs: Sequence[Sequence[str]]) -> str:
    """Describe a grid in a line, e.g. "4 runs of kernel_size=5,9 × depth=8,16, all with epochs=5"."""
    texts = [override_texts(run) for run in runs]
    varied = varied_keys(runs)
    axes = []
    for key in varied:
        values = list(dict.fromkeys(run[key] for run in texts))
        few = len(values) <= MOST_VALUES
        axes.append(f"{key.rpartition('.')[2]}={','.join(values)}" if few else f"{len(values)} values of {key}")
    shared = short_text(drop_unnamed({key: value for key, value in texts[0].items() if key not in varied}))
    return f"{len(runs):,} runs{' of ' if axes else ''}{' × '.join(axes)}{f', all with {shared}' if shared else ''}"


@cache
def make_job(app: str, overrides: tuple[str, ...]) -> Job:
    """Compose and check a run; the result is cached, so a launcher starts exactly the run that was checked.

    Raises:
        ConfigError: A value is invalid, or two values are incompatible.
    """
    config = parse_config(compose_config(app, overrides))
    return Job(overrides, config, run_id(config), chosen_options(app, overrides))


def make_jobs(app: str, runs: Sequence[Sequence[str]]) -> list[Job]:
    """Compose and check all runs, with a progress bar.

    Raises:
        ConfigError: A run is invalid; the message names it.
    """
    jobs = []
    for run in track(runs, "checking the runs"):
        try:
            jobs.append(make_job(app, tuple(run)))
        except (HydraException, OmegaConfBaseException, ConfigError) as error:
            raise ConfigError(f"{explain(error)} (run: {' '.join(run)})") from error
    check_composed_folders([job.config for job in jobs])
    return jobs
