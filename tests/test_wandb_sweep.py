"""Tests of W&B sweeps with the real client: agents train, stop and report, and a comparison reads their runs.

The server is one on this machine (tests/wandb_server.py).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

import wandb_sweep
from config.errors import ConfigError
from conftest import TINY, Finished, checked, command, initialized
from processes import REPOSITORY, environment_of
from tracking.identity import run_id
from wandb_server import WandbServer


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
        server.shutdown()


def describe(
    *arguments: str, method: str = "grid", run_cap: int | None = None, hyperband: int | None = None
) -> dict[str, Any]:
    """Make the sweep's YAML for these overrides."""
    with initialized():
        return wandb_sweep.wandb_sweep(arguments, method, run_cap, hyperband)[1]


def wandb_client(*arguments: str, server: WandbServer, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `wandb ARGUMENTS` in a process that finds this Python as `python`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # An agent looks every 5 seconds.
    quick = "from wandb import wandb_agent; wandb_agent.Agent.POLL_INTERVAL = 0.5; from wandb.cli.cli import cli; cli()"
    return subprocess.run(
        [sys.executable, "-c", quick, *arguments],
        cwd=cwd, env=environment_of(**server.environment, PATH=path), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


# The sweep.


@pytest.mark.parametrize(
    ("method", "values"), [("grid", "model.patch_size=1,7"), ("bayes", "model.patch_size=range(1,8,6)")]
)
def test_impossible_runs_of_a_wandb_sweep_are_named(
    method: str, values: str, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(values, "seed=0", method=method)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("impossible: "))
    assert "model.patch_size=7" in line


def test_agents_are_given_the_runs_of_the_same_sweep_here() -> None:
    """The values are a group, numbers, truth values, null and a list, as the agents' client writes them."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # takes a second

    swept = {
        "dropout": ("none", "head"), "trainer.clip_grad_norm": ("null", "1.0"),
        "model.residual_pointwise": ("true", "false"), "augmentation.scale": ("[0.5,1.0]", "[0.75,1.0]"),
    }  # fmt: skip
    fixed = ("optimizer.lr=1e-05", "trainer.monitor=val/loss")
    sweep = describe(*fixed, *(f"{key}={','.join(values)}" for key, values in swept.items()), "sweep=s")
    *before, after = sweep["command"]
    assert before[:3] == ["${env}", "${interpreter}", "${program}"] and after == "${args_no_hyphens}"
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    parameters = sweep["parameters"]
    assert list(parameters) == list(swept) and {len(space["values"]) for space in parameters.values()} == {2}
    for point in (0, 1):
        assigned = {"args": {key: {"value": space["values"][point]} for key, space in parameters.items()}}
        agents = checked(*before[3:], *create_sweep_command_args(assigned)["args_no_hyphens"])
        ours = checked(*fixed, *(f"{key}={values[point]}" for key, values in swept.items()))
        assert run_id(agents) == run_id(ours) and (agents.sweep, agents.wandb.mode) == ("s", "online")


@pytest.mark.slow
def test_wandb_sweep_takes_an_experiments_values_by_default() -> None:
    sweep = describe("experiment=optimizers", "optimizer.lr=0.01", "seed=range(0,3)")
    assert sweep["parameters"] == {"optimizer": {"values": ["adamw", "adam", "sgd"]}, "seed": {"values": [0, 1, 2]}}
    assert {"experiment=optimizers", "optimizer.lr=0.01"} < set(sweep["command"])
    assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert sweep["description"] == "Which optimizer, and how much does its learning rate matter?"
    variants = describe("experiment=paper_ablation")
    assert len(variants["parameters"]["variant"]["values"]) == 11
    assert variants["metric"]["name"] == "test/accuracy", "it trains on all images, without validation"


@pytest.mark.parametrize(
    ("override", "parameter"),
    [
        (
            "optimizer.lr=tag(log, interval(0.001, 0.1))",
            {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.1},
        ),
        ("dropout.head=interval(0, 0.5)", {"distribution": "uniform", "min": 0.0, "max": 0.5}),
        ("model.depth=interval(2, 8)", {"distribution": "int_uniform", "min": 2, "max": 8}),
        ("model.depth=tag(log, interval(2, 8))", {"distribution": "q_log_uniform_values", "min": 2, "max": 8, "q": 1}),
        ("model.depth=range(2, 8, 3)", {"values": [2, 5]}),
        ("kernel=glob(k*, exclude=k1*)", {"values": ["k3", "k5", "k7", "k9"]}),
    ],
)
def test_a_search_takes_values_from_intervals(override: str, parameter: dict[str, Any]) -> None:
    sweep = describe(override, method="bayes", run_cap=20, hyperband=3)
    assert list(sweep["parameters"].values()) == [parameter]
    assert (sweep["method"], sweep["run_cap"]) == ("bayes", 20)
    assert sweep["early_terminate"] == {"type": "hyperband", "min_iter": 3}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["seed=1"], {}, "no key has several values"),
        (["model.kernel_size=5,0"], {}, "model.kernel_size=0: expected at least 1"),
        (["dropout=none,head", "dropout.rate=0.1,0.2"], {}, "has no effect alone"),
        (["dropout.head=interval(0, 1)"], {"method": "random"}, r"dropout.head=1.0: expected at least 0 and below 1"),
        (["optimizer.lr=interval(0.001, 0.1)"], {}, "a grid needs single values"),
        (["optimizer.lr=interval(0.1, 0.001)"], {"method": "random"}, r"optimizer.lr=interval\(0.1, 0.001\): "),
        (["model.norm=interval(0, 1)"], {"method": "random"}, "does not hold numbers"),
        (["model.depth=2,4", "seed=0,1"], {"method": "bayes"}, "seed=0,1: "),
        (["model.depth=2,4", "data.val_fraction=0"], {"method": "bayes"}, "data.val_fraction=0: "),
        (["model.depth=2,4", "trainer.epochs=3"], {"hyperband": 3}, "expected fewer than trainer.epochs=3"),
        (["model.depth=2,4", "hydra/launcher=side_by_side"], {}, "agents of a W&B sweep start its runs"),
    ],
)
def test_what_cannot_be_swept_over_is_said(arguments: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(*arguments, **options)


@pytest.mark.slow
def test_the_printed_command_makes_the_sweep_that_is_in_the_file(tmp_path: Path, server: WandbServer) -> None:
    arguments = ("model.depth=2,4", "sweep=s", "wandb.project=deep")
    done = command(*arguments, cwd=tmp_path, script="wandb_sweep")
    assert done.stdout.splitlines()[-1] == "wandb sweep outputs/s/wandb_sweep.yaml", done.stderr
    made = wandb_client(*done.stdout.split()[-2:], server=server, cwd=tmp_path)
    assert "wandb agent team/deep/sweep0" in made.stderr
    file = tmp_path / "outputs" / "s" / "wandb_sweep.yaml"
    content = file.read_text()
    assert yaml.safe_load(server.sweeps["sweep0"]["config"]) == yaml.safe_load(content)

    assert command(*arguments, cwd=tmp_path, script="wandb_sweep").returncode == 0
    other = command("seed=0,1", *arguments, cwd=tmp_path, script="wandb_sweep")
    assert other.returncode == 1 and "holds another sweep" in other.stderr and file.read_text() == content
    wrong = command("model.dept=2,4", "sweep=t", cwd=tmp_path, script="wandb_sweep")
    assert wrong.returncode == 1 and "did you mean model.depth?" in wrong.stderr and "Traceback" not in wrong.stderr
    assert not (tmp_path / "outputs" / "t").exists()


# Its runs.


def rows(*arguments: str, cwd: Path, **environment: str) -> list[dict[str, Any]]:
    """Return the rows of a comparison, without the names of their runs."""
    done = command(*arguments, "--json", cwd=cwd, script="compare", **environment)
    assert done.returncode == 0, done.stderr
    return [{key: value for key, value in row.items() if key != "runs"} for row in json.loads(done.stdout)["rows"]]


@pytest.mark.slow
def test_an_agent_trains_stops_and_finds_runs(
    train: Callable[..., Finished], tmp_path: Path, server: WandbServer
) -> None:
    earlier = train("dropout=blocks", "dropout.rate=0.1")
    before = (earlier.folder / "metrics.csv").stat().st_mtime_ns
    arguments = (*TINY, "dropout=blocks,head", "dropout.rate=0.1", "trainer.epochs=2,5000", "output_dir=.")
    made = command(*arguments, "sweep=sweep0", cwd=tmp_path, script="wandb_sweep", **server.environment)
    assert made.stdout.splitlines()[-1] == "wandb agent team/convmixer/sweep0", made.stderr
    points = [("blocks", 2), ("head", 2), ("head", 5000)]
    server.sweeps["sweep0"]["points"] = [{"dropout": dropout, "trainer.epochs": epochs} for dropout, epochs in points]
    server.to_stop = {"sweep0-1"}
    agent = wandb_client("agent", "team/convmixer/sweep0", server=server, cwd=tmp_path)
    assert agent.returncode == 0, agent.stderr

    folders = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("sweep0/*/summary.json")}
    by_id = {summary["wandb_id"]: folder for folder, summary in folders.items()}
    trained, stopped = by_id["sweep0-2"], by_id["sweep0-1"]
    assert set(folders) == {earlier.folder, trained, stopped} and set(server.runs) == {
        "sweep0-1",
        "sweep0-2",
        "sweep0-3",
    }
    for name, folder in (("sweep0-3", earlier.folder), ("sweep0-2", trained)):
        run, summary = server.runs[name], folders[folder]
        assert (run["sweep"], run["groupName"], run["state"]) == ("sweep0", "sweep0", "finished")
        measured = {key: value for key, value in summary.items() if value is not None}  # W&B keeps no null
        assert {key: run["summary"][key] for key in measured} == measured
        history = [json.loads(line) for line in run["history"].values()]
        assert max(row["val/accuracy"] for row in history) == summary["objective"] and len(history) == 2
        config = {key: entry["value"] for key, entry in run["config"].items()}
        assert (config["dropout"], config["dropout.head"]) in (("blocks", 0), ("head", 0.1)), "group and section"
    assert (earlier.folder / "metrics.csv").stat().st_mtime_ns == before, "completed: not trained again"

    assert folders[stopped]["status"] == "interrupted" and (stopped / "checkpoints" / "last.pt").exists()
    run = server.runs["sweep0-1"]
    assert (run["state"], run["summary"]["status"]) == ("failed", "interrupted")
    assert len(run["history"]) == folders[stopped]["epochs"] < 5000

    on_server = rows("--wandb", "team/convmixer/sweep0", cwd=tmp_path, **server.environment)
    assert on_server == rows("sweep0", cwd=tmp_path) and len(on_server) == 3


@pytest.mark.slow
def test_offline_run_is_sent_later_and_compares_as_its_folder(
    train: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = train("wandb.project=later")
    wandb.teardown()  # the client's service writes on after a run's end
    sweep = done.folder.parent.name
    broken = done.folder / "wandb" / "offline-run-20260101_000000-broken"  # is sent first
    broken.mkdir()
    (broken / "run-broken.wandb").write_bytes(b":W&B\xbf\x18\x00")
    (loop,) = re.findall("^for .* done$", (REPOSITORY / "docs" / "wandb.md").read_text(), re.MULTILINE)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = environment_of(**server.environment, PATH=path)
    subprocess.run(loop.replace("outputs/", ""), shell=True, cwd=tmp_path, env=environment, check=False, timeout=300)
    (run,) = server.runs.values()
    assert run["name"] == done.summary["wandb_id"]
    compared = command("--wandb", f"team/later/{sweep}", cwd=tmp_path, script="compare", **server.environment)
    assert compared.returncode == 0 and "no runs" not in compared.stdout, compared.stderr
    written = tmp_path / "outputs" / f"wandb-later-{sweep}"
    assert {path.name for path in written.iterdir()} >= {"comparison.csv", "comparison.md", "comparison.png"}
    (together,) = rows(sweep, "--wandb", "team/later", cwd=tmp_path, **server.environment)
    assert [together] == rows(sweep, cwd=tmp_path), "one run, though read twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "key", "message"),
    [
        ("team/convmixer/s", "", "--wandb team/convmixer/s: No API key configured"),
        ("team/nothing", "0" * 40, "--wandb team/nothing: Could not find project"),
        ("team", "0" * 40, "--wandb team: expected ENTITY/PROJECT or ENTITY/PROJECT/SWEEP"),
    ],
)
def test_wandb_errors_are_reported(tmp_path: Path, server: WandbServer, path: str, key: str, message: str) -> None:
    environment = {**server.environment, "WANDB_API_KEY": key, "HOME": str(tmp_path)}
    done = command("--wandb", path, cwd=tmp_path, script="compare", **environment)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
