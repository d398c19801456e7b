"""Make a W&B sweep of a study. Agents on any machine fetch and train its runs.

python src/wandb_sweep.py experiment=dropout seed=0,1,2
python src/wandb_sweep.py 'optimizer.lr=tag(log, interval(0.001, 0.1))' sweep=lr --method bayes --run-cap 20

The overrides are those of `python src/train.py -m`. Writes OUTPUT_DIR/SWEEP/wandb_sweep.yaml. With wandb.mode=online,
also creates the sweep on the server. Prints the next command at the end.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override, Transformer

from config.command_line import override as named
from config.command_line import overrides_of, quote_for_hydra
from config.errors import ConfigError, first_line, report_errors
from config.process import prepare_process
from config.schema import CONF, Config, register
from config.text import printable, shell
from runtime.console import say
from runtime.files import write_text
from sweeps import launch, plan
from sweeps.impossible import problem_of

APP = "train"


def wandb_sweep(
    arguments: Sequence[str], method: str, run_cap: int | None, hyperband: int | None
) -> tuple[Config, dict[str, Any]]:
    """Make the config of the first run, and W&B's description of the sweep.

    Raises:
        ConfigError: No key is swept, or the method does not support the values.
    """
    overrides = parse(arguments)
    swept, fixed = plan.split_overrides(overrides)
    intervals = [override for override in swept.values() if override.is_interval_sweep()]
    if method == "grid":
        if intervals:
            line = intervals[0].input_line
            raise ConfigError(f"{line}: a grid needs single values; expected --method random or bayes")
        configs = [job.config for job in plan.make_jobs(APP, plan.expand_grid(overrides))]
    else:
        from sweeps.space import check_space, make_space  # takes seconds

        space = make_space(APP, swept, fixed)
        configs = check_space(APP, space, fixed)
    for problem in dict.fromkeys(filter(None, (problem_of(config, local=False) for config in configs))):
        say(f"impossible: {problem}", "red")
    parameters = {
        key: interval(space[key])
        if override.is_interval_sweep()
        else {"values": list(override.sweep_iterator(as_argument))}
        for key, override in swept.items()
    }
    first = configs[0]
    if method == "bayes" or hyperband:
        launch.monitor_of(configs)
    if hyperband and hyperband >= first.trainer.epochs:
        raise ConfigError(f"--hyperband {hyperband}: expected fewer than trainer.epochs={first.trainer.epochs}")
    validated = all(config.data.val_fraction for config in configs)
    metric = first.trainer.monitor if validated else "test/accuracy"
    # All runs share the name, also if it is the time of day.
    fixed = {**fixed, "sweep": first.sweep, "varied": plan.as_list(swept), "wandb.mode": "online"}
    described = {
        "name": first.sweep,
        "description": first.study.question,
        "project": first.wandb.project,
        "entity": first.wandb.entity,
        "program": str(Path(sys.argv[0]).with_name("train.py")),
        "method": method,
        "metric": {"name": metric, "goal": "minimize" if metric == "val/loss" else "maximize"},
        "run_cap": run_cap,
        "early_terminate": {"type": "hyperband", "min_iter": hyperband} if hyperband else None,
        "parameters": parameters,
        "command": ["${env}", "${interpreter}", "${program}", *overrides_of(fixed), "${args_no_hyphens}"],
    }
    return first, {key: value for key, value in described.items() if value is not None}


def parse(arguments: Sequence[str]) -> dict[str, Override]:
    """Parse the arguments, with the experiment's sweep parameters as defaults.

    Raises:
        ConfigError: An override is for Hydra's sweeper or launcher.
    """
    overrides = plan.parse_overrides(arguments).values()
    for override in overrides:
        if override.is_hydra_override():
            raise ConfigError(f"{override.input_line}: the agents of a W&B sweep start its runs; leave it out")
    single = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    composed = compose(APP, single, return_hydra_config=True)
    if not any(override.get_key_element() == "sweep" for override in overrides):
        arguments = [*arguments, named("sweep", composed.sweep)]  # the time of day of each run would be another
    return plan.parse_overrides(arguments, composed.hydra.sweeper.params)


def interval(distribution: Any) -> dict[str, Any]:
    """Convert a distribution of Optuna to W&B's format."""
    limits = {"min": distribution.low, "max": distribution.high}
    if isinstance(distribution.low, float):
        return {"distribution": "log_uniform_values" if distribution.log else "uniform", **limits}
    if distribution.log:
        return {"distribution": "q_log_uniform_values", **limits, "q": 1}
    return {"distribution": "int_uniform", **limits}


def as_argument(value: Any) -> Any:
    """Format a value so that Hydra parses the agent's KEY=VALUE as this value."""
    return value if isinstance(value, int | float) else Transformer.str(value)


def save(sweep: Mapping[str, Any], file: Path) -> None:
    """Write the sweep to a file.

    Raises:
        ConfigError: The file holds another sweep.
    """
    text = yaml.safe_dump(sweep, sort_keys=False, width=120)
    if file.exists() and not (file.is_file() and file.read_bytes() == text.encode()):
        raise ConfigError(f"{file}: holds another sweep; choose another name with sweep=NAME, or remove the file")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def create(sweep: dict[str, Any], config: Config) -> str:
    """Create the sweep on the server, and return ENTITY/PROJECT/ID.

    Raises:
        wandb.Error: There is no login, or the server cannot be reached or refuses.
    """
    import wandb

    sweep_id = wandb.sweep(sweep, entity=config.wandb.entity, project=config.wandb.project)
    return f"{config.wandb.entity or wandb.Api().default_entity}/{config.wandb.project}/{sweep_id}"


def positive(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE[,VALUE]", help="as for `python src/train.py -m`")
    parser.add_argument(
        "--method", choices=("grid", "random", "bayes"), default="grid", help="method that chooses the next run"
    )
    parser.add_argument("--run-cap", type=positive, metavar="N", help="most runs of all agents together")
    parser.add_argument(
        "--hyperband", type=positive, metavar="EPOCH", help="stop the worse two thirds at this epoch, at 3 times it, …"
    )
    options = parser.parse_intermixed_args()
    overrides = [*map(quote_for_hydra, options.overrides)]
    register()
    with report_errors(), initialize_config_dir(str(CONF), version_base="1.3"):
        config, sweep = wandb_sweep(overrides, options.method, options.run_cap, options.hyperband)
        file = Path(config.output_dir) / config.sweep / "wandb_sweep.yaml"
        save(sweep, file)
    say(f"W&B sweep {config.sweep}: {options.method} over {' '.join(sweep['parameters'])} → {file}")
    later = shell("wandb", "sweep", str(file))
    if config.wandb.mode != "online":
        say(later)
        return
    from wandb import Error

    try:
        say(shell("wandb", "agent", create(sweep, config)))
    except Error as error:
        sys.exit(printable(f"error: W&B: {first_line(error)}\nlater: {later}", kept="\n"))


if __name__ == "__main__":
    prepare_process()
    main()
