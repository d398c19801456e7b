"""Benchmark this code and its peers on this machine.

python src/benchmark.py                         training step and inference: the authors' plain model, timm's, ours
python src/benchmark.py model.kernel_size=5     the same with another model, batch size or precision
python src/benchmark.py doctor                  a report of ten lines about this machine, for bug reports
python src/benchmark.py depthwise               one layer with each backend, and the backend that auto selects
python src/benchmark.py data                    data loading: ours compared with timm's loader
python src/benchmark.py kernels target=sm_90    Triton kernels compiled for a GPU, without one
python src/benchmark.py report results.jsonl    results saved with --results as Markdown
"""

import argparse
import json
from importlib import import_module
from pathlib import Path

from config.errors import ConfigError, report_errors
from config.process import prepare_process
from runtime.files import check_place

MEASURED, PRINTED = ("steps", "depthwise"), ("data", "kernels", "report", "doctor")  # each a file in benchmarks/


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="BENCHMARK|KEY=VALUE", help="without BENCHMARK: steps")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--results", type=Path, metavar="FILE", help="save results here, and skip saved ones")
    parser.add_argument("--only", metavar="PATTERN", action="append", help='implementations to measure, e.g. "ours*"')
    options = parser.parse_intermixed_args()
    if options.results:
        check_place(options.results, f"--results={options.results}", "another FILE")
    is_named = bool(options.arguments) and "=" not in options.arguments[0]
    name, *arguments = options.arguments if is_named else ["steps", *options.arguments]
    if name not in (*MEASURED, *PRINTED):
        raise ConfigError(f"{name}: unknown benchmark; expected {', '.join((*MEASURED, *PRINTED))}")
    if options.json and name in PRINTED and name != "doctor":
        raise ConfigError(f"--json: not supported by {name}")
    benchmark = import_module(f"benchmarks.{name}")
    if name in PRINTED:
        benchmark.run(arguments, *([options.json] if name == "doctor" else []))
        return
    from benchmarks import report

    patterns = {"patterns": options.only} if name == "steps" and options.only else {}
    records = []
    for record in benchmark.run(arguments, options.results, **patterns):
        records.append(record)
        if not options.json:
            print(report.line(record), flush=True)
    records = report.read_results(options.results) or records
    print(json.dumps(records, indent=2)) if options.json else report.print_records(records)


if __name__ == "__main__":
    prepare_process()
    with report_errors():
        main()
