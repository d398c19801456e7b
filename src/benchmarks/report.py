"""Results of benchmarks: a file of JSON lines, tables on the terminal and in Markdown."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from config.errors import ConfigError, first_line
from config.typed import check_type
from runtime.console import print_table, say, si
from runtime.device import describe
from runtime.files import read_text

Record = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header, rows
Chapter = tuple[str, list[Table], list[str]]  # title, tables and notes of a setting on a machine


def describe_machine(device: torch.device) -> str:
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{describe(device)}{threads}, torch {torch.__version__}"


def save_record(record: Record, results: Path | None) -> Record:
    if results:
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a") as file:
            file.write("\n" + json.dumps(record))  # a new line, even if the last one was cut off
    return record


def read_results(results: Path | None) -> list[Record]:
    """Read a file of results without lines that were cut off; a missing file has none.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        text = read_text(results) if results and results.exists() else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"{results}: {first_line(error)}. Fix: a file that --results has written") from error
    records = []
    for line in text.splitlines():
        with suppress(ValueError):
            records.append(check_type(Record, json.loads(line)))
    return records


def line(record: Record) -> str:
    """Format a result as one line."""
    if "depthwise" in record:
        return f"  {record['depthwise']}: auto takes {record['auto']}"
    if "error" in record:
        return f"  {record['name']}: {record['error']}"
    training, inference = (f"{median(record, phase):,.0f}" for phase in ("training", "inference"))
    return f"  {record['name']}: {training} images/s in training, {inference} in inference"


def run(files: list[str]) -> None:
    for file in map(Path, files):
        if not file.exists():
            raise ConfigError(f"{file}: file not found")
        print(records_table(read_results(file)))


def print_records(records: list[Record]) -> None:
    for title, tables, notes in chapters(records):
        say(title, "bold")
        for header, rows in tables:
            print_table("", header, rows)
        for note in notes:
            say(note)


def records_table(records: list[Record]) -> str:
    parts = []
    for title, tables, notes in chapters(records):
        parts.append(f"**{title}**")
        for header, rows in tables:
            lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part for part in parts if part)


def chapters(records: list[Record]) -> Iterator[Chapter]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        subject = "One layer, forward and backward" if "depthwise" in record else record["setting"]
        groups[f"{subject}; {record['where']}"].append(record)
    for title, group in groups.items():
        yield depthwise_chapter(title, group) if "depthwise" in group[0] else steps_chapter(title, group)


# A layer with each backend.


def depthwise_chapter(title: str, settings: list[Record]) -> Chapter:
    names = list(dict.fromkeys(name for record in settings for name in record["backends"]))

    def table(quantity: str, key: str, form: str) -> Table:
        rows = []
        for record in settings:
            values = [record["backends"].get(name, {}).get(key) for name in names]
            figures = ("" if value is None else format(value, form) for value in values)
            rows.append((record["depthwise"], *figures, record["auto"]))
        return (quantity, *names, "auto takes"), rows

    tables = [table("milliseconds", "milliseconds", ".2f"), table("error against float64", "error", ".1%")]
    excluded = [
        f"{record['depthwise']}, {name} is excluded: {backend['reason']}"
        for record in settings
        for name, backend in record["backends"].items()
        if backend["reason"]
    ]
    return title, tables, excluded


# Steps.


def steps_chapter(title: str, records: list[Record]) -> Chapter:
    measured = [record for record in records if "training" in record]
    tables = [rates_table(phase, measured) for phase in ("training", "inference") if measured]
    failures = [f"{record['name']}: {record['error']}" for record in records if "error" in record]
    return title, tables, [*best(measured), *failures]


def rates_table(phase: str, measured: list[Record]) -> Table:
    plain = [median(record, phase) for record in measured if "as published" in record["name"]]
    rows = []
    for record in measured:
        rate, rates = median(record, phase), record[phase]["images_per_second"]
        sizes = [record[phase][key] for key in ("memory", "reserved") if record[phase][key]]
        rows.append((
            record["name"], f"{rate:,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}",
            f"{rate / plain[0]:.2f}" if plain else "", *(f"{si(size)}B" for size in sizes),
        ))  # fmt: skip
    header = (phase, "images/s", "range", "× plain", "memory", "reserved")  # "reserved" on a GPU only
    return header[: len(rows[0])], rows


def median(record: Record, phase: str) -> float:
    return statistics.median(record[phase]["images_per_second"])


def best(measured: list[Record]) -> Iterator[str]:
    """Compare ours with the fastest implementation of stock PyTorch."""
    for phase in ("training", "inference"):
        sides = [[r for r in measured if r["name"].startswith("ours") is mine] for mine in (True, False)]
        if all(sides):
            ours, stock = (max(side, key=lambda record: median(record, phase)) for side in sides)
            ratio = median(ours, phase) / median(stock, phase)
            yield f"{phase}: {ours['name']} is {ratio:.2f} times as fast as the best of stock PyTorch, {stock['name']}"
