"""How fast this code is beside its peers, measured on this machine.

python src/benchmark.py                         training step and inference: the authors' plain model, timm's, ours
python src/benchmark.py model.kernel_size=5     of another model, batch, precision
python src/benchmark.py doctor                  what this machine can do, in ten lines, for a bug report; of a run: its
                                                overrides, e.g. experiment=paper_cifar10
python src/benchmark.py depthwise               a layer with each backend, and what `auto` takes
python src/benchmark.py data                    batches: ours beside timm's loader
python src/benchmark.py kernels target=sm_90    Triton's kernels, compiled for a GPU that need not be there
python src/benchmark.py report results.jsonl    what --results has collected, as Markdown
"""

import argparse
import json
from importlib import import_module
from pathlib import Path

from config.errors import ConfigError, report_errors
from config.process import prepare_process

MEASURED, PRINTED = ("steps", "depthwise"), ("data", "kernels", "report", "doctor")  # each a file in benchmarks/


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="BENCHMARK|KEY=VALUE", help="left out, the benchmark is steps")
    parser.add_argument("--json", action="store_true", help="print all figures")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep figures here, and measure what is missing")
    parser.add_argument("--only", metavar="PATTERN", action="append", help='of steps, e.g. "ours*"; several: in order')
    given = parser.parse_intermixed_args()
    named = bool(given.arguments) and "=" not in given.arguments[0]
    name, *arguments = given.arguments if named else ["steps", *given.arguments]
    if name not in (*MEASURED, *PRINTED):
        raise ConfigError(f"{name}: there is no such benchmark; expected {', '.join((*MEASURED, *PRINTED))}")
    if given.json and name in PRINTED and name != "doctor":
        raise ConfigError(f"--json: {name} has a table only")
    benchmark = import_module(f"benchmarks.{name}")
    if name in PRINTED:
        benchmark.run(arguments, *([given.json] if name == "doctor" else []))
        return
    from benchmarks import report

    options = {"patterns": given.only} if name == "steps" and given.only else {}
    records = []
    for record in benchmark.run(arguments, given.results, **options):
        records.append(record)
        if not given.json:
            print(report.line(record), flush=True)
    records = report.read(given.results) or records
    print(json.dumps(records, indent=2)) if given.json else report.show(records)


if __name__ == "__main__":
    prepare_process()
    with report_errors():
        main()
