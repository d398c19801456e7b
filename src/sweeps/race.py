"""A race instead of a grid: only settings that may still be the best get further seeds (stats/race.py).

The launcher gets the runs of a round together. Results are read from the runs' folders, so the same command resumes a
stopped race and takes the same decisions.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from config.errors import ConfigError
from config.sweepers import Race
from config.text import markdown, markdown_table
from runtime.console import count, duration, print_table, say
from runtime.files import write_text
from stats.race import Outcome, Rules, Run, Standing, standing
from sweeps import launch, plan
from sweeps.impossible import leave_out_impossible
from sweeps.plan import Job
from sweeps.race_findings import Racers, cost_line, dropped_lines, ending, race_record, race_table
from tracking.identity import display_name
from tracking.run_index import RunIndex

TRIES = 2  # attempts at a run that fails for an external reason: memory, node, disk
DIVERGED = "NotFinite"  # the error of a run that diverged (training/metrics.py)


def race(config: DictConfig, launcher: Launcher, arguments: Sequence[str], options: Race) -> set[str]:
    """Run seeds of the settings, round by round, until one setting is the best or a limit is reached.

    Returns:
        The IDs of the first run of each setting, with those of impossible ones.

    Raises:
        ConfigError: The command line is not a valid race; no run has been started.
    """
    index = RunIndex(Path(config.output_dir, config.sweep))
    settings = parse_settings(config, arguments, options)
    run_ids = {setting.run_id for setting in settings}
    settings = leave_out_impossible(settings, index, config)
    if len(settings) < 2:
        raise ConfigError(f"hydra/sweeper=race: only {settings[0].name} is possible; expected several settings")
    first, metric = settings[0].config.seed, launch.monitor_of([setting.config for setting in settings])
    launched: Counter[Run] = Counter()  # attempts since this start, which repeats earlier failed runs

    @cache
    def job(run: Run) -> Job:
        """Compose the run with its seed, as other keys may refer to the seed."""
        return plan.make_job(config.hydra.job.config_name, (*settings[run[0]].overrides, f"seed={first + run[1]}"))

    def result(run: Run) -> Outcome | None:
        """Read a run's result; None until it has ended."""
        summary = index.summary(job(run).run_id)
        seconds = summary.get("seconds") or 0.0
        match summary.get("status"):
            case "completed":
                return Outcome(summary.get("objective", math.nan), seconds)
            case "failed" if str(summary.get("error")).startswith(DIVERGED):
                return Outcome(None, seconds)
            case "failed" if launched[run] >= TRIES:
                return Outcome(math.nan, seconds)
        return None

    def stand() -> Standing:
        """Compute the standing from all results so far."""
        images = validation_images(jobs_so_far, index)
        return standing(result, replace(rules, resolution=1 / images if images else None))

    def record(race: Standing, lines: Sequence[str] = (), progress: str = "") -> None:
        """Write race.json."""
        seeds = {setting: range(len(results)) for setting, results in race.results.items()}
        run_ids = {setting: [job((setting, seed)).run_id for seed in seeds[setting]] for setting in seeds}
        tree = race_record(race, rules, racers, run_ids, lines, progress)
        write_text(folder / "race.json", json.dumps(tree, indent=2))

    jobs_so_far = [job((setting, seed)) for setting in range(len(settings)) for seed in range(2)]
    limits = options.first_seeds, options.max_seeds, options.max_hours, options.smallest
    rules = Rules(len(settings), *limits, lower_is_better=metric == "val/loss")
    with launch.locked_folder(config) as folder:
        say(f"race by {metric}: rounds of {', '.join(map(str, rules.rounds))} seeds")
        racers, started, made = Racers(names_of(settings), metric, None), time.monotonic(), 0
        while (current := stand()).missing:
            per_run = (time.monotonic() - started) / made if made else None
            progress = round_line(current, rules, per_run)
            for line in [*dropped_lines(current, racers), progress]:
                say(line)
            record(current, progress=progress)
            launched.update(current.missing)
            launch.launch_jobs(launcher, map(job, current.missing), index, first_number=len(current.seconds))
            made += len(current.missing)
            if waiting := sum(launched[run] >= TRIES and result(run) is None for run in current.missing):
                say(f"{count(waiting, 'run')} of this round not completed; the same command resumes the race", "yellow")
                return run_ids
        varies = len({of_seed.config.data.split_seed for of_seed in jobs_so_far}) > 1
        racers = replace(racers, images=None if varies else validation_images(jobs_so_far, index))
        lines = [*ending(current, rules, racers), cost_line(current, rules)]
        record(current, lines)
        publish_race(current, racers, lines, folder)
    return run_ids


def parse_settings(config: DictConfig, arguments: Sequence[str], options: Race) -> list[Job]:
    """Parse the command line to the settings, each as a run with its first seed.

    Raises:
        ConfigError: There are fewer than two settings, or they cannot be raced.
    """
    if options.max_seeds < options.first_seeds:
        raise ConfigError(f"hydra.sweeper.max_seeds={options.max_seeds}: expected at least first_seeds")
    overrides = plan.parse_overrides(arguments, options.params)
    if "seed" in overrides and overrides["seed"].is_sweep_override():
        raise ConfigError(f"{overrides['seed'].input_line}: a race chooses the seeds; expected one value, the first")
    runs = plan.expand_grid(overrides)
    varied = plan.as_list([*plan.varied_keys(runs), "seed"])
    app = config.hydra.job.config_name
    settings = plan.make_jobs(app, [[*run, f"varied={varied}"] for run in runs])
    if len({setting.run_id for setting in settings}) < max(2, len(settings)):
        raise ConfigError("hydra/sweeper=race: expected several settings that differ, e.g. model.kernel_size=3,5,7,9")
    return settings


def validation_images(runs: Sequence[Job], index: RunIndex) -> int | None:
    """Count the validation images of the first run that has started."""
    return next((images for run in runs if (images := index.summary(run.run_id).get("images", {}).get("val"))), None)


def names_of(settings: Sequence[Job]) -> list[str]:
    """Name each setting by the keys that vary, including `experiment`."""
    keys = plan.varied_keys(setting.overrides for setting in settings)
    return [display_name(setting.overrides, keys) for setting in settings]


def round_line(race: Standing, rules: Rules, per_run: float | None) -> str:
    """Describe a round, e.g. "round 2: 6 runs of 3 settings, run 13 of at most 54; about 4 min"."""
    runs, done = len(race.missing), len(race.seconds)
    most = done + len(race.ranked) * (rules.max_seeds - race.seeds)
    line = f"round {race.round + 1}: {count(runs, 'run')} of {count(len(race.ranked), 'setting')}"
    line += f", run {done + 1} of at most {most}"
    if per_run is None and race.seconds:
        per_run = float(np.mean(race.seconds))
    if per_run is None:
        return line
    return f"{line}; about {duration(runs * per_run)}, at most {duration((most - done) * per_run)} left"


def publish_race(race: Standing, racers: Racers, lines: Sequence[str], folder: Path) -> None:
    """Print the outcome and the table, and write them to race.md."""
    header, rows = race_table(race, racers)
    title = f"race by {racers.metric}; ± is the mean's 95 % interval, and of a distance that of the race's tests"
    for line in dropped_lines(race, racers):
        say(line)
    print_table(title, header, rows)
    for line in lines:
        say(line)
    page = [f"# {markdown(folder.name)}", "", *map(markdown, lines), "", f"{title}.", "", *markdown_table(header, rows)]
    write_text(folder / "race.md", "\n".join(page))
