"""The simulated rates as a file, and as the table in README.md."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from rates import Rate

COLUMNS = (
    "part", "studies", "statement", "design", "at_least", "at_most", "simulated", "low", "high", "count", "cases",
)  # fmt: skip
README = Path(__file__).with_name("README.md")
START, END = "<!-- written by calibrate.py -->\n", "<!-- end -->\n"

Done = dict[str, tuple[int, list[Rate]]]  # of each part: the studies so far, and their rates


def read(path: Path) -> Done:
    done: Done = {}
    for row in csv.DictReader(path.open()) if path.exists() else ():
        rate = Rate(
            row["statement"], row["design"], float(row["count"]), float(row["cases"]),
            float(row["at_least"]), float(row["at_most"]), is_share=not row["low"],
        )  # fmt: skip
        done.setdefault(row["part"], (int(row["studies"]), []))[1].append(rate)
    return done


def write(path: Path, done: Done) -> None:
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for part, (studies, rates) in done.items():
            for rate in rates:
                low, high = ("", "") if rate.is_share else (f"{end:.4f}" for end in rate.interval)
                numbers = rate.at_least, rate.at_most, f"{rate.simulated:.4f}", low, high, rate.count, rate.of
                table.writerow([part, studies, rate.statement, rate.design, *numbers])
    draft.replace(path)


def summarize(done: Done) -> None:
    """Write the table into README.md: each statement in its worst design."""
    text = README.read_text()
    before, rest = text.split(START)
    README.write_text(before + START + "\n".join(lines(done)) + "\n" + END + rest.split(END)[1])


def lines(done: Mapping[str, tuple[int, list[Rate]]]) -> Iterable[str]:
    claims: dict[tuple[str, str], list[Rate]] = defaultdict(list)
    for _, rates in done.values():
        for rate in rates:
            if rate.of:
                claims[rate.statement, rate.claim].append(rate)
    yield "| statement | claimed | on average | worst, with its 95 % interval | in | held | refuted |"
    yield "| --- | --- | ---: | ---: | --- | ---: | ---: |"
    for (statement, claim), rates in claims.items():
        worst = max(rates, key=excess)
        average = sum(rate.count for rate in rates) / sum(rate.of for rate in rates)
        low, high = worst.interval
        interval = "" if worst.is_share else f" ({low:.1%} to {high:.1%})"
        yield (
            f"| {statement} | {claim or 'nothing'} | {average:.1%} | {worst.simulated:.1%}{interval} | {worst.design} "
            f"| {sum(rate.holds for rate in rates)} of {len(rates)} | {sum(rate.is_refuted for rate in rates)} |"
        )


def excess(rate: Rate) -> float:
    """Compute the distance of a rate from the claimed bounds."""
    over = rate.simulated - rate.at_most if rate.at_most != 1 else -1.0
    return max(over, rate.at_least - rate.simulated if rate.at_least else -1.0)
