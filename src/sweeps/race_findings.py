"""The results of a race in words: dropped settings, the winner, the claims, a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rendering.formatting import figure_text, number_text
from runtime.console import count, duration
from stats import mean
from stats.prediction import rate_bounds
from stats.race import Behind, Rules, Standing, confidence
from tracking.records import Racer, RaceRecord


@dataclass(frozen=True)
class Racers:
    """The settings of a race and their metric."""

    names: Sequence[str]  # of the settings
    metric: str  # e.g. "val/accuracy"
    images: int | None  # number of validation images; None if they vary with the seed

    @property
    def is_accuracy(self) -> bool:
        """True if the metric is a fraction, shown in percent."""
        return self.metric.endswith("accuracy")

    def distance(self, behind: Behind, unit: str = " points") -> str:
        """Format a distance with its interval at the level of the race's tests; empty if failed runs decided."""
        if behind.margin is None:
            return ""
        if not np.isfinite(behind.margin):
            return figure_text(behind.value, self.metric, unit if self.is_accuracy else "")
        margin = figure_text(behind.margin, self.metric, unit if self.is_accuracy else "")
        return f"{figure_text(behind.value, self.metric, '')} ± {margin}"


def dropped_lines(race: Standing, racers: Racers) -> list[str]:
    """Describe the settings that were dropped after the last round."""
    return [
        f"  dropped after {race.seeds} seeds: {racers.names[setting]}, {drop_reason(race, setting, racers)}"
        for setting, dropped in race.dropped.items()
        if dropped.round == race.round
    ]


def drop_reason(race: Standing, setting: int, racers: Racers) -> str:
    """Describe why a setting was dropped."""
    dropped = race.dropped[setting]
    if dropped.behind is None or dropped.leader is None:
        return "none of its runs could be made"
    if distance := racers.distance(dropped.behind):
        return f"{distance} behind {racers.names[dropped.leader]}"
    return f"{failed_text(race, setting)}, {failed_text(race, dropped.leader)} of {racers.names[dropped.leader]}"


def failed_text(race: Standing, setting: int) -> str:
    """Describe failed runs, e.g. "2 of 6 runs failed"."""
    return f"{race.failures(setting)} of {count(len(race.by_seed(setting)), 'run')} failed"


def ending(race: Standing, rules: Rules, racers: Racers) -> list[str]:
    """Describe the winner with the claims about it, or the reason why there is none."""
    if race.end == "failed":
        return ["No winner: no setting has a run that completed."]
    leader, left = racers.names[race.ranked[0]], f"{count(len(race.ranked), 'setting')} still in question"
    match race.end:
        case "winner":
            return [f"Winner: {leader}.", *claim_lines(race, racers)]
        case "unsteady":
            failures, runs = race.failures(race.ranked[0]), len(race.by_seed(race.ranked[0]))
            return [
                f"No winner: {leader} is ahead of all others, but {failures} of its {runs} runs failed, and up to "
                f"{rate_bounds(failures, runs)[1]:.0%} of new ones may."
            ]
        case "smallest":
            remaining = f"the {len(race.ranked)} settings that remain"
            return [f"No winner: {remaining} differ by less than smallest={rules.smallest}."]
        case "max_seeds":
            line = f"No winner: {left} at max_seeds={rules.max_seeds}."
        case _:
            line = f"No winner: {left}; another round would exceed max_hours={rules.max_hours}."
    if (chance := confidence(race, rules)) is not None:
        line += f" {leader} leads, and is the best with a probability of {min(chance, 0.99):.0%}."
    return [line]


def claim_lines(race: Standing, racers: Racers) -> list[str]:
    """Describe the claims about the winner and their limits."""
    winner = race.ranked[0]
    runs, images = len(race.by_seed(winner)), racers.images
    on = f"on these {images:,} validation images" if images else "on validation images that change with the seed"
    lines = [
        f"It is the best {on}: where results scatter normally over seeds, or with heavier tails, races are wrong in "
        "about 5 % of cases."
    ]
    leads = [dropped.behind.value for dropped in race.dropped.values() if dropped.behind and dropped.behind.margin]
    if images and racers.metric.endswith("accuracy") and leads:
        chance = images_margin(float(np.mean(race.completed(winner))), min(leads), images)
        if min(leads) < chance:
            lines.append(
                f"On other images another setting may be the best: leads of up to {100 * chance:.2f} points can be "
                "owed to the choice of the images. data.split_seed=${seed} races on many choices."
            )
    lines.append(f"None of its {runs} runs failed: up to {rate_bounds(0, runs)[1]:.0%} of new ones may.")
    if lost := [racers.names[setting] for setting, dropped in race.dropped.items() if dropped.leader is None]:
        lines.append(f"Not judged, as none of their runs could be made: {', '.join(lost)}.")
    return lines


def images_margin(accuracy: float, lead: float, images: int) -> float:
    """Bound the lead that the choice of images alone can cause, at 95 %, given the winner's accuracy and lead.

    Two models can differ only on images that one of them misclassifies.
    """
    return 1.96 * math.sqrt(max(0.0, 2 * (1 - accuracy) + lead) / images)


def race_table(race: Standing, racers: Racers) -> tuple[list[str], list[list[str]]]:
    """Make the header and a row for each setting, in the order of table_order()."""
    unit = " %" if racers.is_accuracy else ""
    header = ["setting", "seeds", f"{racers.metric}{unit}", "behind the leader", "outcome"]
    rows = []
    for setting in table_order(race):
        dropped = race.dropped.get(setting)
        behind = dropped.behind if dropped else race.behind.get(setting)
        outcome = "winner" if race.end == "winner" else "in question"
        if dropped:
            outcome = f"{'dropped' if dropped.behind else 'could not be run'} in round {dropped.round}"
        if race.failures(setting):
            outcome += f"; {failed_text(race, setting)}"
        result = number_text(mean(race.completed(setting)), racers.metric, unit="")
        runs = str(len(race.by_seed(setting)))
        rows.append([racers.names[setting], runs, result, racers.distance(behind, "") if behind else "", outcome])
    return header, rows


def table_order(race: Standing) -> list[int]:
    """List the settings still in question by rank, then the dropped settings, the latest first."""
    return [*race.ranked, *sorted(race.dropped, key=lambda setting: -race.dropped[setting].round)]


def race_record(
    race: Standing,
    rules: Rules,
    racers: Racers,
    run_ids: Mapping[int, Sequence[str]],
    lines: Sequence[str],
    progress: str,
) -> RaceRecord:
    """Describe a race in race.json, which the page of its comparison shows.

    Args:
        run_ids: The IDs of each setting's runs.
        lines: The findings; empty before the end of the race.
        progress: The current round; empty at the end of the race.
    """
    _, rows = race_table(race, racers)
    settings: list[Racer] = [
        {
            "name": name, "seeds": len(race.results[setting]), "value": value, "behind": behind, "outcome": outcome,
            "is_dropped": setting in race.dropped, "runs": list(run_ids[setting]),
        }
        for setting, (name, _, value, behind, outcome) in zip(table_order(race), rows, strict=True)
    ]  # fmt: skip
    rounds = list(rules.rounds[: race.round])
    return {"progress": progress, "lines": list(lines), "rounds": rounds, "settings": settings}


def cost_line(race: Standing, rules: Rules) -> str:
    """Describe the cost of the race compared with a grid of all seeds."""
    runs, grid = len(race.seconds), rules.settings * rules.max_seeds
    return f"{count(runs, 'run')} in {duration(sum(race.seconds))}; all seeds of all settings would have been {grid}."
