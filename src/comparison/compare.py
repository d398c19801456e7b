"""Prints the comparison of runs and writes its files."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison import report
from comparison.results import Comparison, read
from comparison.runs import Run
from config.errors import ConfigError
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
        ConfigError: a metric, key or filter that the runs do not have, a path that W&B does not have, or a folder that
            cannot be written to.
    """
    comparison = read(folders, metric, sort, filters, wandb_paths)
    if not comparison.runs:
        return []
    report.show(comparison)
    folder = folders[0] if folders else Path("outputs", "-".join(["wandb", *wandb_paths[0].split("/")[1:]]))
    # That of some of the runs does not take the place of that of all.
    stem = "-".join(["comparison", *map(in_a_file_name, filters)])
    try:
        names = write(comparison, folder, stem)
    except OSError as error:
        raise ConfigError(f"{folder}: the comparison cannot be written there: {error.strerror or error}") from error
    say(f"→ {folder}/{', '.join(names)}")
    return comparison.runs


def write(comparison: Comparison, folder: Path, stem: str) -> list[str]:
    """Write all files of a comparison, or none: whatever interrupts it leaves those of the last one.

    Returns:
        their names, the picture first.
    """
    from comparison.figure import comparison_figure  # Matplotlib takes long to import
    from tracking.plots import save

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".comparison-", dir=folder) as name:
        temporary = Path(name)
        if figure := comparison_figure(comparison):
            save(figure, temporary / f"{stem}.png")
        (temporary / f"{stem}.md").write_text(report.markdown(comparison, stem))
        (temporary / f"{stem}.csv").write_text(report.table_csv(comparison))
        files = [path for suffix in ("png", "svg", "md", "csv") if (path := temporary / f"{stem}.{suffix}").exists()]
        for path in files:
            path.replace(folder / path.name)
    return [path.name for path in files]


def in_a_file_name(condition: str) -> str:
    """A filter in characters that a shell leaves alone: "depth>=8" is depth_from_8."""
    words = {"!=": "_not_", ">=": "_from_", "<=": "_to_", ">": "_above_", "<": "_below_"}
    spelled = re.sub(r"[!<>]=|[<>]", lambda sign: words[sign[0]], condition)
    return re.sub(r"[^\w.=+-]+", "_", spelled)
