"""Compare runs: what differed, what helped, how sure that is, and what it cost.

python src/compare.py outputs/SWEEP [DIR ...]
python src/compare.py outputs/SWEEP --metric test/accuracy --filter "kernel_size>3" --sort seconds
python src/compare.py --wandb ENTITY/PROJECT/SWEEP

Writes comparison.csv, comparison.md, comparison.png and comparison.svg into the first folder; without one, into
outputs/wandb-PROJECT-SWEEP.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import config as cfg
from comparison import report
from comparison.results import read
from comparison.runs import Run
from terminal import say


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
    from plots import save

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="a sweep's folder, or a run's")
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT[/SWEEP]", action="append", default=[],
        help="runs on W&B's server; SWEEP is our name of a sweep or the id of a W&B sweep",
    )  # fmt: skip
    parser.add_argument("--metric", metavar="KEY", help="what is compared, e.g. test/accuracy")
    parser.add_argument("--sort", metavar="KEY", help="order of the rows: a config key, or a figure, its best first")
    parser.add_argument(
        "--filter", metavar="KEY=VALUE", action="append", default=[], help="keep these runs; also !=, >, <, >=, <="
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and write nothing")
    given = parser.parse_args()
    if not given.folders and not given.wandb:
        parser.error("expected DIR or --wandb ENTITY/PROJECT")
    try:
        for folder in given.folders:
            if not folder.is_dir():
                raise cfg.ConfigError(f"{folder}: there is no such folder")
        if given.json:
            print(report.as_json(read(given.folders, given.metric, given.sort, given.filter, given.wandb)))
        elif not compare(given.folders, given.metric, given.sort, given.filter, given.wandb):
            raise cfg.ConfigError(
                f"{' and '.join(map(str, [*given.folders, *given.wandb]))}: no runs here"
                + (" that fit" if given.filter else "")
            )
    except cfg.ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
