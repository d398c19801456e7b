"""Compare runs: a table, best first, of what differed between them and what came of it.

python src/compare.py outputs/SWEEP [DIR ...]
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import config as cfg
from terminal import print_table, say

FIGURES = ("val/accuracy", "test/accuracy", "parameters", "images_per_second", "seconds")


@dataclass
class Run:
    """A run's folder as read from disk."""

    folder: Path
    config: dict[str, Any]  # "section.key" → value
    summary: dict[str, Any]

    @property
    def status(self) -> str:
        return self.summary.get("status", "unreadable")

    @property
    def figures(self) -> dict[str, Any]:
        best = {"val/accuracy": self.summary.get("best/val/accuracy")}
        return {figure: best.get(figure, self.summary.get(figure)) for figure in FIGURES}


def compare(folders: Sequence[Path]) -> list[Run]:
    """Print the comparison of all runs below the folders; write it into the first as csv and md."""
    runs = sorted(read_runs(folders), key=rank)
    keys = differing_keys(runs)
    header = [*keys, *FIGURES, "status", "run"]
    rows = [
        [*(run.config.get(key) for key in keys), *run.figures.values(), run.status, run.folder.name] for run in runs
    ]
    with (folders[0] / "comparison.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])

    # For a reader: percent, no folder names, and the status only where there is something to say.
    columns = len(header) - (1 if any(run.status != "completed" for run in runs) else 2)
    shown_header = [short(name, keys) if name in keys else heading(name) for name in header[:columns]]
    shown = [[show(name, value) for name, value in zip(header[:columns], row, strict=False)] for row in rows]
    lines = [shown_header, ["---"] * len(shown_header), *shown]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"{len(runs)} runs, best {'validation' if validated(runs) else 'test'} accuracy first"
    (folders[0] / "comparison.md").write_text(f"# {folders[0].name}\n\n{title}\n\n{table}\n")
    print_table(title, shown_header, shown)
    for run in runs:
        if run.status != "completed":
            say(f"{run.status}: {run.folder}  {run.summary.get('error', '')}", style="red")
    say(f"→ {folders[0]}/comparison.csv, comparison.md")
    return runs


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs in or below the folders."""
    found = sorted({path.parent for folder in folders for path in folder.rglob("config.yaml")})
    return [read_run(folder) for folder in found if "wandb" not in folder.parts]


def read_run(folder: Path) -> Run:
    config = dict(cfg.flatten(yaml.safe_load((folder / "config.yaml").read_text())))
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        summary = {"error": str(error)}
    return Run(folder, config, summary)


def rank(run: Run) -> tuple[bool, float]:
    accuracy = run.figures["val/accuracy"] or run.figures["test/accuracy"]
    return run.status != "completed", -(accuracy or 0.0)


def validated(runs: Sequence[Run]) -> bool:
    return any(run.figures["val/accuracy"] is not None for run in runs)


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The config keys that set the runs apart, in the config's order."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    hidden = [key for key in keys for start in cfg.NOT_IDENTITY if key == start or key.startswith(start + ".")]
    return [key for key in keys if key not in hidden and len({json.dumps(run.config.get(key)) for run in runs}) > 1]


def short(key: str, keys: Sequence[str]) -> str:
    """The last word of a key where that is clear."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def heading(figure: str) -> str:
    return f"{figure}, %" if figure.endswith("accuracy") else figure.replace("_", " ")


def show(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("accuracy"):
        return f"{100 * value:.2f}"
    if name in ("parameters", "images_per_second", "seconds"):
        return f"{value:,.0f}"
    return str(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a sweep's folder, or a run's")
    compare(parser.parse_args().folders)
