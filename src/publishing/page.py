"""The page of a comparison: one interactive HTML file, which opens from disk without a server or a network.

Plotly draws its charts: a library of many years that brings its script in its package, so that nothing is fetched or
built. The script lies once beside the sweeps, not in each page. All else of the page is in page_assets.
"""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from comparison.progress import under_way
from comparison.results import COSTS, Comparison, compared_runs, is_lower_better
from comparison.runs import Run
from comparison.settings import Setting
from rendering.commands import train_commands
from rendering.findings import caveats, effect_name, interaction_lines, result, warnings
from rendering.formatting import HEADINGS, label
from rendering.power_text import question
from runtime.files import read_json, write_text
from stats import Estimate
from tracking import records

PLOTLY = f"plotly-{version('plotly')}.min.js"
ASSETS = Path(__file__).with_name("page_assets")
KINDS = {  # of numbers, by which the page writes them
    "parameters": "count", "macs": "count", "seconds": "seconds",
    "images_per_second": "seconds", "peak_memory": "bytes", "reference": "percent", "difference": "points",
}  # fmt: skip
FILES = ("config.yaml", "metrics.csv", "train.log", "history.png")
CURVES = 500  # runs, those of the best settings: reading more takes long, and nobody tells more curves apart
LOGS = 200  # runs whose log is shown though they completed
COMMANDS = 50  # runs without a result whose command is shown
LINES = 8  # of a log


def render_page(comparison: Comparison, folder: Path, is_watched: bool = False) -> str:
    """Render the page of a comparison in this folder, and put Plotly's script beside the folder where it is missing.

    A page that is watched looks every few seconds for the script of render_update().
    """
    data = page_data(comparison, folder) | {"is_watched": is_watched}
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True)
    return environment.get_template("page.html").render(
        title=data["title"],
        plotly=place_plotly(folder),
        style=Markup((ASSETS / "page.css").read_text()),
        script=Markup("".join((ASSETS / name).read_text() for name in ("choices.js", "charts.js", "page.js"))),
        data=Markup(script_json(data)),
    )


def render_update(comparison: Comparison, folder: Path) -> str:
    """Render a script that a page loads to show what has changed."""
    return f"update({script_json(page_data(comparison, folder))});\n"


def place_plotly(folder: Path) -> str:
    """Write Plotly's script where it is missing, and return its path as seen from the folder.

    It lies beside the folder, once for all sweeps; in the folder where only that can be written to.
    """
    script = files("plotly") / "package_data" / "plotly.min.js"
    for place in ("..", "."):
        path = folder.resolve() / place / PLOTLY
        try:
            if not path.exists():
                write_text(path, script.read_text("utf-8"))
            return f"{place}/{PLOTLY}"
        except OSError as error:
            problem = error
    raise problem


def script_json(data: Any) -> str:
    """Write data as JSON that ends no script element and is JavaScript, too."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c")


def page_data(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """Collect what the page shows; page_assets/page.js reads it."""
    settings, metric = comparison.settings, comparison.metric
    place = {run: i for i, run in enumerate(run for setting in settings for run in setting.runs)}
    drawn = curves(comparison)
    names = [name for name in comparison.figures if any(setting.estimate(name) for setting in settings)]
    sweeps = {run.folder.parent for run in comparison.runs}
    sweep = sweeps.pop() if len(sweeps) == 1 else folder
    search = read_json(sweep / "search.json", records.SearchRecord)
    race = read_json(sweep / "race.json", records.RaceRecord)
    images = read_json(folder / "images.json", records.Pictures)
    shared = settings[0].runs[0].config if settings else {}
    return {
        "title": comparison.title,
        "metric": metric,
        "percent": metric.endswith("accuracy"),
        "lower": is_lower_better(metric),
        "written": datetime.now().isoformat(),
        "progress": under_way(sweep),
        "answer": race.get("lines") or result(comparison),  # the tests of a race allow for its looks
        "caveats": [*warnings(comparison), *caveats(comparison)],
        "keys": [{"key": key, "name": comparison.short(key)} for key in comparison.factors],
        "columns": [
            {"key": name, "name": heading, "kind": number_kind(name, metric), "is_cost": name in COSTS}
            for name, heading in headings(comparison, names).items()
        ],
        "curves": {"metric": curve_metric(metric), "percent": curve_metric(metric).endswith("accuracy")},
        "settings": [
            {
                "name": label(setting, comparison),
                "levels": [plain(setting.levels[key]) for key in comparison.factors],
                "n": len(setting.by_seed(metric)),
                "values": {name: estimate_record(setting.estimate(name)) for name in names}
                | {name: value and {"value": value, "low": None, "high": None}
                   for name, value in further_values(setting, comparison).items()},
                "probability_best": rounded(comparison.probability_best(setting)),
                "runs": [place[run] for run in setting.runs],
                "curve": mean_curve([drawn[run] for run in setting.runs if run in drawn]),
            }
            for setting in settings
        ],
        "runs": [
            run_record(run, i, setting, names, drawn, folder, len(place))
            for i, setting in enumerate(settings)
            for run in setting.runs
        ],
        "effects": [
            {
                "name": effect_name(effect, comparison), "estimate": effect.estimate, "low": effect.low,
                "high": effect.high, "is_significant": effect.is_significant,
            }
            for effect in comparison.effects
        ],
        "interactions": interaction_lines(comparison),
        "power": [
            {
                "question": question(plan, comparison), "seeds": [n for n, _ in plan.curve],
                "detectable": [rounded(difference) for _, difference in plan.curve], "seen": plan.difference,
            }
            for plan in comparison.plans if plan.curve
        ],
        "search": search or None,
        "race": race or None,
        "images": images if images.get("runs") == compared_runs(comparison) else None,
        "shared": {key: plain(value) for key, value in shared.items() if key not in comparison.keys and key != "seed"},
    }  # fmt: skip


def headings(comparison: Comparison, names: Sequence[str]) -> dict[str, str]:
    """Name the columns: results, what is compared with them, costs."""
    results = {name: HEADINGS.get(name, name) for name in names}
    costs = {name: results.pop(name) for name in COSTS if name in results}
    if comparison.analysis.is_adjusted:
        results["adjusted"] = "adjusted"
    if any(setting.reference for setting in comparison.settings):
        results |= {"reference": "reference %", "difference": "difference"}
    return results | costs


def further_values(setting: Setting, comparison: Comparison) -> dict[str, float | None]:
    """Return the mean that is adjusted for missing runs, and what others published."""
    adjusted = {"adjusted": comparison.mean(setting)} if comparison.analysis.is_adjusted else {}
    reference = setting.reference
    return adjusted | ({"reference": reference.value, "difference": reference.difference} if reference else {})


def curve_metric(metric: str) -> str:
    """Name the column of metrics.csv that is drawn: a test metric has no value by epoch."""
    return metric if metric.startswith(("val/", "train/")) else "val/accuracy"


def curves(comparison: Comparison) -> dict[Run, list[float]]:
    """Read the metric by epoch of the first CURVES completed runs, best settings first."""
    column = curve_metric(comparison.metric)
    runs = [run for setting in comparison.valued for run in setting.completed][:CURVES]
    columns = {run: run.epochs.get(column) for run in runs}
    return {
        run: [float(f"{value:.4g}") for value in values]
        for run, values in columns.items()
        if values is not None and np.isfinite(values.to_numpy(float)).all()
    }


def mean_curve(values: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Average the seeds, as far as all have come; the band goes from the lowest to the highest."""
    if not values:
        return None
    table = np.array([curve[: min(map(len, values))] for curve in values])
    band = {"low": table.min(0).tolist(), "high": table.max(0).tolist()} if len(values) > 1 else {}
    return {"epoch": list(range(1, table.shape[1] + 1)), "mean": table.mean(0).round(5).tolist(), **band}


def run_record(
    run: Run,
    place: int,
    setting: Setting,
    names: Sequence[str],
    drawn: dict[Run, list[float]],
    folder: Path,
    total: int,
) -> dict[str, Any]:
    """Describe one run of the setting at this place; `total` is the number of runs."""
    is_complete = run.status == "completed"
    has_log = not is_complete or total <= LOGS
    commands = train_commands([setting], [run.seed]) if not is_complete and total <= COMMANDS else ()
    inside = run.folder.is_relative_to(folder.resolve())
    is_local = run.folder.is_dir()
    return {
        "name": run.folder.name, "id": run.run_id, "setting": place, "seed": run.seed,
        "status": run.status, "reason": run.reason,
        "folder": str(run.folder.relative_to(folder.resolve()) if inside else run.folder),
        "values": {name: rounded(run.figure(name)) for name in names},
        "curve": drawn.get(run),
        "files": [name for name in FILES if is_local and (run.folder / name).exists()],
        "log": last_lines(run.folder / "train.log") if has_log and is_local else [],
        "command": next(iter(commands), None),
        "notes": str(run.config.get("notes") or ""),
    }  # fmt: skip


def last_lines(path: Path) -> list[str]:
    """Read the end of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return file.read().decode("utf-8", "replace").splitlines()[-LINES:]
    except OSError:
        return []


def estimate_record(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "low": rounded(estimate.low), "high": rounded(estimate.high)}


def number_kind(name: str, metric: str) -> str:
    """Return how the page writes a figure."""
    name = metric if name == "adjusted" else name
    return "percent" if name.endswith("accuracy") else KINDS.get(name, "number")


def rounded(number: float | None) -> float | None:
    """Round to six digits, more than a page shows; return None for numbers that JSON does not have."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.6g}")


def plain(value: Any) -> Any:
    """Return a config's value as JSON has it."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
