"""A race instead of a grid: seeds go to the settings that may still be the best (sweeps/race_rules.py).

A round's runs go to the launcher together. Their results are read from their folders, so the same command resumes a
race that was stopped, and takes the same decisions.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from comparison.formatting import count, duration, figure_text, number_text
from comparison.least_squares import Estimate, mean
from comparison.report import markdown_table
from config.errors import ConfigError
from config.sweepers import Race
from runtime.console import print_table, say
from runtime.files import write_text
from sweeps import jobs
from sweeps.jobs import Job
from sweeps.race_rules import Result, Rules, Run, Standing, margin, standing
from tracking.identity import display_name


def race(config: DictConfig, launcher: Launcher, arguments: Sequence[str], options: Race) -> None:
    """Run seeds of the settings, round by round, until one is the best or nothing more is to be decided.

    Raises:
        ConfigError: what is asked for cannot be raced; nothing has been started.
    """
    settings = parse(config, arguments, options)
    keys = jobs.varied_keys(setting.overrides for setting in settings)
    names = [display_name(setting.overrides, keys) for setting in settings]
    first, metric = settings[0].config.seed, jobs.monitor_of([setting.config for setting in settings])
    limits = options.first_seeds, options.max_seeds, options.max_hours, options.smallest
    rules = Rules(len(settings), *limits, lower_is_better=metric == "val/loss")
    launched: set[Run] = set()  # at this start: one that failed before is tried again

    @cache
    def job(run: Run) -> Job:
        app, seed = config.hydra.job.config_name, first + run[1]
        return jobs.make_job(app, [*settings[run[0]].overrides, f"seed={seed}"])  # other keys may refer to the seed

    def result(run: Run) -> Result | None:
        summary = job(run).summary
        match summary.get("status"):
            case "completed":
                return Result(summary["objective"], summary["seconds"])
            case "failed" if run in launched:
                return Result(math.nan, summary.get("seconds", 0.0))
            case _:
                return None

    with jobs.locked_folder(config) as folder:
        say(f"race by {metric}: rounds of {', '.join(map(str, rules.rounds))} seeds, tests at p < {rules.level:.2g}")
        while (now := standing(result, rules)).missing:
            tell_dropped(now, rules, names, metric)
            say(f"round {now.round + 1}: {count(len(now.missing), 'run')} of {count(len(now.ranked), 'setting')}")
            launched |= set(now.missing)
            jobs.launch(launcher, map(job, now.missing), first_number=sum(map(len, now.results.values())))
            if waiting := sum(result(run) is None for run in now.missing):
                say(f"{count(waiting, 'run')} of this round not completed; the same command resumes the race", "yellow")
                return
        tell_dropped(now, rules, names, metric)
        report(now, rules, names, metric, folder)


def parse(config: DictConfig, arguments: Sequence[str], options: Race) -> list[Job]:
    """The settings, each with its first seed.

    Raises:
        ConfigError: they are not several, or cannot be raced.
    """
    if options.max_seeds < options.first_seeds:
        raise ConfigError(f"hydra.sweeper.max_seeds={options.max_seeds}: expected at least first_seeds")
    overrides = jobs.parse_overrides(arguments, options.params)
    if "seed" in overrides and overrides["seed"].is_sweep_override():
        raise ConfigError(f"{overrides['seed'].input_line}: a race chooses the seeds; expected one value, the first")
    runs = jobs.expand_grid(overrides)
    varied = jobs.as_list([*jobs.varied_keys(runs), "seed"])
    app = config.hydra.job.config_name
    settings = [jobs.make_job(app, [*run, f"sweep={config.sweep}", f"varied={varied}"]) for run in runs]
    if len({setting.run_id for setting in settings}) < max(2, len(settings)):
        raise ConfigError("hydra/sweeper=race: expected several settings that differ, e.g. model.kernel_size=3,5,7,9")
    return settings


# What it says.


def tell_dropped(now: Standing, rules: Rules, names: Sequence[str], metric: str) -> None:
    """Which settings were dropped after the last round."""
    for setting, gone in now.dropped.items():
        if gone.round == now.round:
            behind = f"{behind_text(gone.behind, rules, metric)} behind {names[gone.leader]}" if gone.behind else ""
            say(f"  dropped after {now.seeds} seeds: {names[setting]}, {behind or 'a run failed'}")


def behind_text(behind: Estimate, rules: Rules, metric: str, unit: str = " points") -> str:
    """A distance with the interval at the level of the race's tests."""
    unit = unit if metric.endswith("accuracy") else ""
    return f"{figure_text(behind.value, metric, '')} ± {figure_text(margin(behind, rules), metric, unit)}"


def ending(now: Standing, rules: Rules, names: Sequence[str]) -> str:
    """Which setting won, or why none did."""
    left = f"{count(len(now.ranked), 'setting')} still in question"
    match now.end:
        case "winner":
            return (
                f"Winner: {names[now.ranked[0]]}. Every other setting is significantly worse, or had a run that failed."
            )
        case "smallest":
            return (
                f"No winner: the {len(now.ranked)} settings that remain differ by less than smallest={rules.smallest}."
            )
        case "max_seeds":
            return f"No winner: {left} at max_seeds={rules.max_seeds}."
        case "max_hours":
            return f"No winner: {left}; another round would exceed max_hours={rules.max_hours}."
        case _:
            return "No winner: every setting had a run that failed."


def report(now: Standing, rules: Rules, names: Sequence[str], metric: str, folder: Path) -> None:
    """The outcome and the table, on the terminal and in race.md."""
    unit = " %" if metric.endswith("accuracy") else ""
    header = ["setting", "seeds", f"{metric}{unit}", "behind the leader", "outcome"]
    rows = []
    for setting in (*now.ranked, *sorted(now.dropped, key=lambda setting: -now.dropped[setting].round)):
        gone, found = now.dropped.get(setting), now.results[setting]
        behind = gone.behind if gone else now.behind.get(setting)
        if gone:
            outcome = f"{'dropped' if gone.behind else 'failed'} in round {gone.round}"
        else:
            outcome = "winner" if now.end == "winner" else "in question"
        values = [result.value for result in found if not math.isnan(result.value)]
        rows.append(
            [
                names[setting],
                str(len(found)),
                number_text(mean(values), metric, ""),
                behind_text(behind, rules, metric, "") if behind else "",
                outcome,
            ]
        )
    runs, grid = len(now.seconds), rules.settings * rules.max_seeds
    cost = f"{count(runs, 'run')} in {duration(sum(now.seconds))}; all seeds of all settings would have been {grid}."
    title = f"race by {metric}; ± is the mean's 95 % interval, and of a distance that of the race's tests"
    print_table(title, header, rows)
    lines = [ending(now, rules, names), cost]
    for line in lines:
        say(line)
    page = [f"# {folder.name}", "", *lines, "", f"{title}.", "", *markdown_table(header, rows)]
    write_text(folder / "race.md", "\n".join(page))
