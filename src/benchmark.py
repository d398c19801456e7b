"""How fast this code is beside its peers, measured on this machine.

python src/benchmark.py                         training step and inference: the authors' plain model, timm's, ours
python src/benchmark.py model.kernel_size=5     of another model, batch, precision
python src/benchmark.py depthwise               a layer in every way to compute it, and what `auto` takes; of a run: its
                                                overrides, e.g. experiment=paper_cifar10
python src/benchmark.py data                    batches: ours beside timm's loader
python src/benchmark.py count                   what a step asks of a GPU, which need not be there
python src/benchmark.py kernels target=sm_90    the fused layer's kernels, compiled for a GPU that need not be there
python src/benchmark.py report results.jsonl    what --results has collected, as Markdown
"""

import argparse
import json
import math
from pathlib import Path

from config.errors import ConfigError, report_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="BENCHMARK|KEY=VALUE", help="left out, the benchmark is steps")
    parser.add_argument("--json", action="store_true", help="print all figures")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep figures here, and measure what is missing")
    parser.add_argument("--only", metavar="PATTERN", action="append", help='of steps, e.g. "ours*"; several: in order')
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing later")
    given = parser.parse_intermixed_args()
    named = bool(given.arguments) and "=" not in given.arguments[0]
    name, *overrides = given.arguments if named else ["steps", *given.arguments]
    if name in ("steps", "depthwise"):
        from benchmarks import report, steps, ways

        if name == "steps":
            measured = steps.run(overrides, given.only or ["*"], given.results, given.seconds)
        else:
            measured = ways.run(overrides, given.results, given.seconds)
        records = []
        for record in measured:
            records.append(record)
            if not given.json:
                print(report.line(record), flush=True)
        records = report.read(given.results) or records
        print(json.dumps(records, indent=2)) if given.json else report.show(records)
    elif given.json:
        raise ConfigError(f"--json: {name} has a table only")
    elif name == "data":
        from benchmarks import batches

        batches.run(overrides)
    elif name == "count":
        from benchmarks import step_counts

        step_counts.run(overrides)
    elif name == "kernels":
        from benchmarks import kernels

        kernels.run(overrides)
    elif name == "report":
        from benchmarks import report

        for file in map(Path, overrides):
            if not file.exists():
                raise ConfigError(f"{file}: there is no such file")
            print(report.markdown(report.read(file)))
    else:
        raise ConfigError(
            f"{name}: there is no such benchmark; expected steps, depthwise, data, count, kernels or report"
        )


if __name__ == "__main__":
    with report_errors():
        main()
