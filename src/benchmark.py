"""How fast this code is beside its peers, measured side by side on this machine.

python src/benchmark.py                         training step and inference: the authors' plain model, timm's, ours
python src/benchmark.py model.kernel_size=5     of another model; --json prints all figures
python src/benchmark.py depthwise               the depthwise convolution: every backend, shape by shape
python src/benchmark.py data                    batches: ours beside timm's loader
python src/benchmark.py overhead                what a run's record and checkpoints cost it
"""

import sys

from config.errors import ConfigError, report_errors

if __name__ == "__main__":
    with report_errors():
        arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
        name, *overrides = arguments if arguments and "=" not in arguments[0] else ["steps", *arguments]
        if "--json" in sys.argv and name != "steps":
            raise ConfigError(f"--json: {name} has a table only")
        if overrides and name == "depthwise":
            raise ConfigError(f"{overrides[0]}: depthwise has its own shapes and takes no overrides")
        if name == "steps":
            from benchmarks import steps

            steps.run(overrides, as_json="--json" in sys.argv)
        elif name == "depthwise":
            from benchmarks import operators

            operators.run()
        elif name == "data":
            from benchmarks import batches

            batches.run(overrides)
        elif name == "overhead":
            from benchmarks import overhead

            overhead.run(overrides)
        else:
            raise ConfigError(f"{name}: there is no such benchmark; expected steps, depthwise, data or overhead")
