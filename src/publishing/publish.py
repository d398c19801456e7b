"""Files of a comparison in its sweep's folder: page, figures, Markdown, tables."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison.results import Comparison
from config.errors import ConfigError
from publishing.page import render_page
from rendering.report import page_of, print_comparison, runs_csv, table_csv
from runtime.console import say
from runtime.files import write_text

SUFFIXES = (".html", ".png", ".svg", ".md", ".csv", "-runs.csv")


def publish(comparison: Comparison, folder: Path, filters: Sequence[str] = ()) -> None:
    """Write the files of a comparison into the folder, and print it; the filters of its runs are in the files' names.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    if not comparison.runs:
        return
    try:
        names = write_files(comparison, folder, stem_of(filters))
    except OSError as error:
        print_comparison(comparison)
        raise ConfigError(f"{folder}: the comparison cannot be written there: {error.strerror or error}") from error
    print_comparison(comparison)
    say(f"→ {folder}/{', '.join(names)}")


def write_page(comparison: Comparison, folder: Path, filters: Sequence[str] = (), is_watched: bool = False) -> None:
    """Write the page alone; see render_page().

    Raises:
        ConfigError: The folder cannot be written to.
    """
    try:
        write_text(folder / f"{stem_of(filters)}.html", render_page(comparison, folder, is_watched))
    except OSError as error:
        raise ConfigError(f"{folder}: the page cannot be written there: {error.strerror or error}") from error


def stem_of(filters: Sequence[str]) -> str:
    """Name the files of a comparison, so that a filtered comparison never replaces that of all runs."""
    return "-".join(["comparison", *map(in_a_file_name, filters)])


def write_files(comparison: Comparison, folder: Path, stem: str) -> list[str]:
    """Write all files of a comparison; if it is interrupted, the old files stay.

    Returns:
        The names of the files, the page first.
    """
    from rendering.figure import comparison_figure  # imports Matplotlib, which takes seconds
    from tracking.plots import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".comparison-", dir=folder) as name:
        temporary = Path(name)
        write_text(temporary / f"{stem}.md", page_of(comparison, stem))
        write_text(temporary / f"{stem}.csv", table_csv(comparison))
        write_text(temporary / f"{stem}-runs.csv", runs_csv(comparison))
        write_text(temporary / f"{stem}.html", render_page(comparison, folder))
        if figure := comparison_figure(comparison):
            save_figure(figure, temporary / f"{stem}.png")
        files = [path for suffix in SUFFIXES if (path := temporary / f"{stem}{suffix}").exists()]
        for path in files:
            path.replace(folder / path.name)
    return [path.name for path in files]


def in_a_file_name(condition: str) -> str:
    """Write a filter without special characters of the shell, e.g. "depth>=8" as depth_from_8."""
    words = {"!=": "_not_", ">=": "_from_", "<=": "_to_", ">": "_above_", "<": "_below_"}
    spelled = re.sub(r"[!<>]=|[<>]", lambda sign: words[sign[0]], condition)
    return re.sub(r"[^\w.=+-]+", "_", spelled)
