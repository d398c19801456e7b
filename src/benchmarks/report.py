"""What benchmarks/steps.py has found, as tables: on the terminal, and in Markdown for experiments/speed."""

import json
import statistics
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from runtime.console import print_table, say, si

Record = dict[str, Any]
HEADER = ("images/s", "range", "× plain", "of the roofline", "memory")


def read(results: Path | None) -> list[Record]:
    """The lines of a file of results, without any that was cut off; none where there is no file yet."""
    records = []
    for text in results.read_text().splitlines() if results and results.exists() else ():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(text))
    return records


def line(record: Record) -> str:
    """A result, as soon as it is there."""
    if "name" not in record:
        return f"{record['setting']}; {record['where']}"
    if "error" in record:
        return f"  {record['name']}: {record['error']}"
    training, inference = (f"{median(record, what):,.0f}" for what in ("training", "inference"))
    memory = record["training"]["memory"]
    return f"  {record['name']}: {training} images/s in training" + (
        f" with {si(memory)}B, {inference} in inference" if memory else f", {inference} in inference"
    )


def show(records: list[Record]) -> None:
    for title, tables, notes in chapters(records):
        say(title, "bold")
        for what, rows in tables.items():
            print_table("", (what, *HEADER), rows)
        for note in notes:
            say(note)


def markdown(records: list[Record]) -> str:
    parts = []
    for title, tables, notes in chapters(records):
        parts.append(f"**{title}**")
        for what, rows in tables.items():
            header = f"| {' | '.join((what, *HEADER))} |\n| --- |{' ---: |' * len(HEADER)}"
            parts.append("\n".join([header, *(f"| {' | '.join(row)} |" for row in rows)]))
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def chapters(records: list[Record]) -> Iterator[tuple[str, dict[str, list[tuple[str, ...]]], list[str]]]:
    """For every setting on every machine a title, the rows of training and of inference, and notes."""

    def setting(record: Record) -> tuple[str, str]:
        return record["setting"], record["where"]

    for (name, where), group in groupby(sorted(records, key=setting), key=setting):
        found = list(group)
        measured = [record for record in found if "training" in record]
        (known,) = [record for record in found if "rooflines" in record]
        highest = next(iter(known["rooflines"].values()))
        tables = {
            what: [row(record, measured, what, highest[what]) for record in measured]
            for what in ("training", "inference")
        }
        failures = [f"{record['name']}: {record['error']}" for record in found if "error" in record]
        yield f"{name}; {where}", tables, [*about_roofline(known), *best(measured), *failures]


def median(record: Record, what: str) -> float:
    return statistics.median(record[what]["images_per_second"])


def row(record: Record, all_records: list[Record], what: str, roofline: float) -> tuple[str, ...]:
    rates, memory = record[what]["images_per_second"], record[what]["memory"]
    plain = [median(other, what) for other in all_records if "as published" in other["name"]]
    return (
        record["name"],
        f"{median(record, what):,.0f}",
        f"{min(rates):,.0f}–{max(rates):,.0f}",
        f"{median(record, what) / plain[0]:.2f}" if plain else "",
        f"{median(record, what) / roofline:.0%}",
        f"{si(memory)}B" if memory else "",
    )


def best(measured: list[Record]) -> Iterator[str]:
    """Ours beside the best of what there is without this repository."""
    for what in ("training", "inference"):
        sides = [[r for r in measured if r["name"].startswith("ours") is mine] for mine in (True, False)]
        if all(sides):
            ours, stock = (max(side, key=lambda record: median(record, what)) for side in sides)
            ratio = median(ours, what) / median(stock, what)
            yield f"{what}: {ours['name']} is {ratio:.2f} times as fast as the best of stock PyTorch, {stock['name']}"


def about_roofline(known: Record) -> Iterator[str]:
    rates = known["rates"]
    yield (
        f"measured: {si(rates['bandwidth'])}B/s of memory, {si(rates['matrix'])}FLOP/s of matrix products, "
        f"{si(rates['plain'])}FLOP/s of them in fp32 without tensor cores"
    )
    for name, bound in known["rooflines"].items():
        rooflines = ", ".join(f"{what} {rate:,.0f} images/s" for what, rate in bound.items())
        yield f"roofline{name and ', ' + name}: {rooflines}"
    if known["activation"] < 2 * rates["cache"]:
        yield (
            f"an activation of {si(known['activation'])}B is near the cache's {si(rates['cache'])}B: "
            "the bound by memory may be beaten"
        )
