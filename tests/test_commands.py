"""Tests of printed commands: the runs that they start when they are typed."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose

from comparison.results import Comparison, read
from comparison.runs import WandbRun
from config.command_line import override, quote_for_hydra
from config.parse import parse_config
from config.schema import Config
from conftest import initialized
from rendering.commands import train_commands
from rendering.power_text import confirmation
from run_folders import write_run
from sweeps import plan
from tracking.identity import override_values


def expanded(command: str) -> list[Config]:
    """Compose the runs of a `python src/train.py -m …` as Hydra does, with its experiment's sweep."""
    python, script, multirun, *arguments = shlex.split(command)
    assert (python, script, multirun) == ("python", "src/train.py", "-m")
    with initialized():
        typed = plan.parse_overrides(arguments)
        single = [str(override.input_line) for override in typed.values() if not override.is_sweep_override()]
        params = compose("train", single, return_hydra_config=True).hydra.sweeper.params
        task = [argument for argument in arguments if "hydra." not in argument]
        runs = plan.expand_grid(plan.parse_overrides(task, params))
        return [parse_config(compose("train", run)) for run in runs]


def settings_of_runs(folder: Path, *runs: tuple[str, ...], **summary: Any) -> list[Any]:
    """Write runs with these overrides, and return their settings."""
    for number, overrides in enumerate(runs):
        with initialized():
            config = parse_config(compose("train", [*overrides, "sweep=s"]))
        recorded = {"overrides": override_values(overrides), **summary}
        write_run(folder / str(number), config=yaml.safe_dump(asdict(config)), **recorded, best__val__accuracy=0.9)
    return read([folder]).settings


@pytest.mark.slow
def test_a_command_names_every_key_of_the_experiments_sweep(tmp_path: Path) -> None:
    study = "experiment=paper_kernel_sweep"
    settings = settings_of_runs(tmp_path, (study, "optimizer.lr=0.01"), (study, "optimizer.lr=0.02"))
    (command,) = train_commands(settings, [1, 2])
    runs = expanded(command)
    assert sorted((run.seed, run.optimizer.lr) for run in runs) == [(1, 0.01), (1, 0.02), (2, 0.01), (2, 0.02)]
    assert {run.model.kernel_size for run in runs} == {9}


@pytest.mark.parametrize("choices", [{}, {"choices": {"experiment": "paper_ablation", "variant": None}}])
def test_a_group_that_nobody_chose_from_is_not_swept(tmp_path: Path, choices: dict[str, Any]) -> None:
    settings = settings_of_runs(tmp_path, ("experiment=paper_ablation",), **choices)
    (command,) = train_commands(settings, [1])
    assert [run.seed for run in expanded(command)] == [1]


@pytest.mark.parametrize("text", ["why, and what?", "it's (#3) [a] ${x}", "null and void", "=", "12"])
def test_notes_need_no_quotes_of_hydras(text: str) -> None:
    assert override_values([quote_for_hydra(f"notes={text}")]) == {"notes": text}
    assert quote_for_hydra("notes=null") == "notes=null" and quote_for_hydra('notes="a, b"') == 'notes="a, b"'
    assert quote_for_hydra("model.depth=4,8") == "model.depth=4,8"


def test_an_experiment_that_is_gone_has_no_command(tmp_path: Path) -> None:
    write_run(tmp_path / "a", overrides={"experiment": "gone"}, best__val__accuracy=0.9)
    assert train_commands(read([tmp_path]).settings, [1]) == ()


@pytest.mark.parametrize(
    "value",
    ["a, = 'b", "${x}", "[data]", "", "~", "null", "12", "1e-3", "true", "José (x)", "C:\\", 'x"', "$HOME", "a b", "#1",
     [1.0, 0.5], ["a,b", "1", None, True], (1.0, 1.0), {"a": "b c"}, None, True, 1e-05, -3],
)  # fmt: skip
def test_hydra_reads_the_value_that_was_written(value: Any) -> None:
    read_back = override_values(shlex.split(shlex.join([override("key", value)])))["key"]
    assert read_back == (list(value) if isinstance(value, tuple) else value)
    assert type(read_back) is (list if isinstance(value, tuple) else type(value))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"+hydra.callbacks.x._target_": "os.system", "model._target_": "x", "notes": "y"}, ["model.depth=8"]),
        ({"optimizer.arguments.x=1 y": 1, "model.depth": "8,$(id)"}, ["'model.depth=\"8,$(id)\"'"]),
        ({"data.split_seed": "${seed}"}, ["model.depth=8", "'data.split_seed=${seed}'"]),
        ({"data.root": "${oc.env:HOME}"}, None),
        ({"optimizer.arguments": {"a": ["${oc.env:HOME}"]}}, None),
        ({"experiment": "../../elsewhere/mine"}, None),
    ],
)
def test_a_colleagues_record_offers_only_keys_of_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], expected: list[str] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "outputs/test/a", overrides={"model.depth": 8, **overrides}, best__val__accuracy=0.9)
    printed = train_commands(read([Path("outputs")]).settings, [1])
    if expected is None:
        assert printed == ()
    else:
        assert printed == (" ".join(["python src/train.py -m", *expected, "sweep=test seed=1"]),)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("outputs/s", ["sweep=s"]),
        ("outputs/renamed", ["sweep=renamed"]),
        ("elsewhere/s", ["output_dir=elsewhere", "sweep=s"]),
    ],
)
def test_new_seeds_join_the_sweep_where_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kernel in (5, 9):
        for seed in range(3):
            levels = {"model.kernel_size": kernel, "seed": seed}
            write_run(
                tmp_path / folder / f"{kernel}-{seed}", f"model.kernel_size={kernel}", f"seed={seed}", "sweep=s",
                "output_dir=outputs", overrides=levels, varied=list(levels), best__val__accuracy=0.8 + seed / kernel,
            )  # fmt: skip
    (plan,) = read([Path(folder)]).plans
    (command,) = train_commands(plan.settings, plan.seeds)
    assert shlex.split(command)[3:-1] == ["model.kernel_size=5,9", *expected]
    assert shlex.split(confirmation(plan))[2] == folder


def test_new_seeds_of_runs_on_a_server_are_compared_there() -> None:
    runs = []
    for kernel in (5, 9):
        for seed in range(3):
            levels = {"model.kernel_size": kernel, "seed": seed}
            summary = {"status": "completed", "best/val/accuracy": 0.8 + seed / kernel, "overrides": levels}
            runs.append(WandbRun(Path("team/convmixer", f"{kernel}-{seed}"), {**levels, "sweep": "s"}, summary, None))
    (plan,) = Comparison("val/accuracy", runs).plans
    assert shlex.split(train_commands(plan.settings, plan.seeds)[0])[3:-1] == ["model.kernel_size=5,9", "sweep=s"]
    assert shlex.split(confirmation(plan))[2:4] == ["--wandb", "team/convmixer/s"]
