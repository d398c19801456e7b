"""Compare runs: settings, effects with their significance, and costs.

python src/compare.py outputs/SWEEP [DIR ...]
python src/compare.py outputs/SWEEP --metric test/accuracy --filter "kernel_size>3" --sort seconds
python src/compare.py outputs/SWEEP --images
python src/compare.py outputs/SWEEP --watch
python src/compare.py --wandb ENTITY/PROJECT/SWEEP

Writes comparison.html, .csv, .md, .png, .svg and comparison-runs.csv into the first folder; without one, into
outputs/wandb-PROJECT-SWEEP. With --images: images.csv and images.png, and images.json for the page.
"""

import argparse
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from comparison.disk import disk_lines
from comparison.progress import under_way
from comparison.results import parse_seeds, read
from config.errors import ConfigError, check_folders_exist, report_errors
from config.process import prepare_process
from publishing.publish import publish, write_page
from publishing.watch import serve, watch
from rendering.images import compare_images
from rendering.report import as_json
from runtime.console import say
from runtime.files import check_place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="folder of a sweep or a run")
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT[/SWEEP]", action="append", default=[],
        help="runs on W&B's server; SWEEP is the name of a sweep, or the ID of a W&B sweep",
    )  # fmt: skip
    parser.add_argument("--metric", metavar="KEY", help="metric to compare, e.g. test/accuracy")
    parser.add_argument("--sort", metavar="KEY", help="order of the rows: a config key, or a metric, best first")
    parser.add_argument(
        "--filter", metavar="KEY=VALUE", action="append", default=[], help="keep these runs; also !=, >, <, >=, <="
    )
    parser.add_argument(
        "--images", action="store_true", help="list the test images that the best setting and each factor win and lose"
    )
    parser.add_argument(
        "--smallest", metavar="SIZE", type=float,
        help="smallest difference that matters; in points for accuracies, e.g. 0.3",
    )  # fmt: skip
    parser.add_argument(
        "--confirm", metavar="SEEDS", help="test once on these new seeds alone, e.g. 5-14: see the power analysis"
    )
    parser.add_argument("--watch", action="store_true", help="update comparison.html until all runs have ended")
    parser.add_argument("--serve", action="store_true", help="serve comparison.html on 127.0.0.1 until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON, and write nothing")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for the files, instead of the first DIR")
    options = parser.parse_args()
    if not options.folders and not options.wandb:
        parser.error("expected DIR or --wandb ENTITY/PROJECT")
    if options.images and not options.folders:
        parser.error("--images: expected DIR, whose runs keep their predictions")
    if (options.watch or options.serve) and (not options.folders or options.json):
        parser.error("--watch, --serve: expected DIR, whose page is written, and not --json")
    if options.watch and options.output:
        parser.error("--output: the page of --watch is written into the sweep's own folder")
    with report_errors():
        check_folders_exist(options.folders)
        seeds = parse_seeds(options.confirm) if options.confirm else ()
        of_wandb = [Path("outputs", "-".join(["wandb", *path.split("/")[1:]])) for path in options.wandb]
        folder = options.output or [*options.folders, *of_wandb][0]
        if not options.json:
            check_place(folder, str(folder), "--output DIR, or --json, which writes nothing")
        filters = [*options.filter, *([f"confirmed={options.confirm}"] if options.confirm else [])]
        read_again = partial(
            read, options.folders, options.metric, options.sort, options.filter, options.wandb, options.smallest, seeds
        )
        if options.serve:
            serve(folder, filters)
        if options.watch:
            watch(read_again, folder, filters)
        comparison = read_again()
        if options.images:
            compare_images(comparison, folder)
            write_page(comparison, folder, filters)
        elif options.json:
            print(as_json(comparison))
        else:
            publish(comparison, folder, filters)
            running = [f"{folder}: {progress}" for folder in options.folders if (progress := under_way(folder))]
            for line in [*running, *disk_lines(options.folders, comparison.runs)]:
                say(line)
            if not comparison.runs and (options.filter or not running):
                where = " and ".join(map(str, [*options.folders, *options.wandb]))
                raise ConfigError(f"{where}: no runs here{' that fit' if options.filter else ''}")
        if options.serve:
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


if __name__ == "__main__":
    prepare_process()
    main()
