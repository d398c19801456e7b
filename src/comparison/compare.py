"""Prints the comparison of runs and writes its files."""

import re
from collections.abc import Sequence
from pathlib import Path

from comparison import report
from comparison.results import read
from comparison.runs import Run
from runtime.console import say


def compare(
    folders: Sequence[Path],
    metric: str | None = None,
    sort: str | None = None,
    filters: Sequence[str] = (),
    wandb_paths: Sequence[str] = (),
) -> list[Run]:
    """Print the comparison of all runs below the folders and paths in W&B, and write it into the first folder.

    Raises:
        ConfigError: a metric, key or filter that the runs do not have, or a path that W&B does not have.
    """
    from comparison.figure import comparison_figure  # Matplotlib takes long to import
    from tracking.plots import save

    comparison = read(folders, metric, sort, filters, wandb_paths)
    if not comparison.runs:
        return []
    report.show(comparison)
    folder = folders[0] if folders else Path("outputs", "-".join(["wandb", *wandb_paths[0].split("/")[1:]]))
    # That of some of the runs does not take the place of that of all.
    stem = "-".join(["comparison", *map(in_a_file_name, filters)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.csv").write_text(report.table_csv(comparison))
        (folder / f"{stem}.md").write_text(report.markdown(comparison, stem))
        if figure := comparison_figure(comparison):
            save(figure, folder / f"{stem}.png")
            say(f"→ {folder}/{stem}.png (picture), {stem}.svg, {stem}.md (report), {stem}.csv")
        else:
            say(f"→ {folder}/{stem}.md (report), {stem}.csv")
    except OSError as error:
        say(f"the comparison could not be written: {error}", style="yellow")
    return comparison.runs


def in_a_file_name(condition: str) -> str:
    """A filter in characters that a shell leaves alone: "depth>=8" is depth_from_8."""
    words = {"!=": "_not_", ">=": "_from_", "<=": "_to_", ">": "_above_", "<": "_below_"}
    spelled = re.sub(r"[!<>]=|[<>]", lambda sign: words[sign[0]], condition)
    return re.sub(r"[^\w.=+-]+", "_", spelled)
