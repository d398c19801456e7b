"""Remove what no result needs: failed runs, superseded ones, and the states of completed runs. Lists first, then asks.

python src/clean.py outputs/SWEEP [DIR ...]
python src/clean.py outputs --yes
"""

import argparse
import sys
from pathlib import Path

from comparison.disk import find_removable, remove
from comparison.runs import read_runs
from config.errors import check_folders_exist, report_errors
from config.process import prepare_process
from runtime.console import print_table, say, si


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a sweep's folder, or a run's")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    options = parser.parse_args()
    with report_errors():
        check_folders_exist(options.folders)
        clean(options.folders, options.yes)


def clean(folders: list[Path], yes: bool) -> None:
    items = list(find_removable(read_runs(folders)))
    if not items:
        say("nothing to remove")
        return
    rows = [[str(item.run.folder), f"{si(item.bytes)}B", item.reason] for item in items]
    print_table(f"to remove, {si(sum(item.bytes for item in items))}B", ["run", "size", "why"], rows, best_first=False)
    if not yes and not (sys.stdin.isatty() and input("Remove them? [y/N] ").strip().lower() in ("y", "yes")):
        say("nothing removed" + ("" if sys.stdin.isatty() else "; --yes removes without asking"))
        return
    for item in items:
        if not remove(item):
            say(f"kept {item.run.folder}: a process has it, or it has changed", "yellow")


if __name__ == "__main__":
    prepare_process()
    main()
