"""Sentences and commands of a power analysis."""

from dataclasses import asdict
from typing import Any

from comparison.power_analysis import Plan
from comparison.results import Comparison
from comparison.runs import Run, WandbRun
from config.command_line import command_line
from rendering.commands import short_path, train_commands
from rendering.findings import effect_name, is_race
from rendering.formatting import change_text, label
from runtime.console import count, duration
from stats.sample_size import MOST

COMMANDS = 3  # most commands below a plan
ONCE = "Test new seeds once, when all have run: looking after each is no fresh test."
MORE = "A race decides which settings need more seeds: run its command again with a higher hydra.sweeper.max_seeds."


def power_lines(comparison: Comparison, most: int) -> list[str]:
    if comparison.plans and is_race(comparison):
        return [MORE]
    lines = []
    for i, plan in enumerate(comparison.plans[:most]):
        listed = train_commands(plan.settings, plan.seeds)
        hidden = len(listed) - COMMANDS
        more = [f"# … and {count(hidden, 'more command')}"] if hidden > 0 else []
        confirm = [confirmation(plan)] if plan.size and plan.size.seeds_needed and listed else []
        lines.append(plan_line(plan, comparison, is_first=i == 0))
        lines += [f"  {line}" for line in [*listed[:COMMANDS], *more, *confirm]]
    if len(comparison.plans) > most:
        lines.append(f"… and {len(comparison.plans) - most} more in comparison.md")
    if any(plan.seeds and plan.size and plan.size.seeds_needed for plan in comparison.plans):
        lines.append(ONCE)
    return lines


def question(plan: Plan, comparison: Comparison) -> str:
    if plan.effect:
        return effect_name(plan.effect, comparison)
    return " against ".join(label(setting, comparison) for setting in plan.settings)


def plan_line(plan: Plan, comparison: Comparison, is_first: bool) -> str:
    """State a plan, e.g. "k=5 against k=9: 0.31 points seen; 5 seeds find 0.84 or more; about 9 new ones …"."""
    size, metric = plan.size, comparison.metric
    runs = f": {count(plan.runs, 'more run')}" + (f", {duration(plan.seconds)}" if plan.seconds is not None else "")
    if size is None:
        return f"{count(len(plan.seeds), 'more seed')} of each setting would show how much results vary{runs}."
    line = f"{question(plan, comparison)}: {change_text(abs(plan.difference), metric)[1:]} seen"
    beyond = f"more than {MOST:,}"
    likely = f"{size.seeds_low or beyond} to {size.seeds_high or beyond}"
    if size.detectable is None:
        return f"{line}; {likely} new seeds may be needed. {len(plan.seeds)} more would narrow this{runs}."
    is_possible = size.detectable < 1 or not metric.endswith("accuracy")
    power = " (80 % power)" if is_first else ""
    finds = f"find {change_text(size.detectable, metric)[1:]} or more{power}" if is_possible else "find nothing"
    line += f"; {size.seeds:.3g} seeds {finds}"
    if plan.is_answered:
        return f"{line}."
    if not plan.seeds:
        return f"{line}; {beyond} new ones would be needed."
    return f"{line}; about {size.seeds_needed} new ones are needed ({likely}){runs}."


def confirmation(plan: Plan) -> str:
    """Make the command that tests the new seeds."""
    sources = dict.fromkeys(source_of(run) for setting in plan.settings for run in setting.runs)
    seeds = f"{plan.seeds[0]}-{plan.seeds[-1]}"
    return command_line("compare", *(word for words in sources for word in words), "--confirm", seeds)


def source_of(run: Run) -> tuple[str, ...]:
    """Return the words that name a run's sweep to compare.py."""
    if isinstance(run, WandbRun):
        return "--wandb", "/".join([*run.folder.parts[:2], str(run.config.get("sweep", ""))])
    return (short_path(run.folder.parent),)


def plan_record(plan: Plan, comparison: Comparison) -> dict[str, Any]:
    """Convert a plan to a record for JSON."""
    size = {} if plan.size is None else asdict(plan.size)
    return {
        "question": question(plan, comparison), "difference": plan.difference, "is_answered": plan.is_answered,
        **size, "new_seeds": plan.seeds, "runs": plan.runs, "seconds": plan.seconds,
        "commands": train_commands(plan.settings, plan.seeds),
    }  # fmt: skip
