"""Tests of plan=true: the runs, their status and time, and which are impossible."""

import json
from pathlib import Path

import pytest

from conftest import TINY, checked, command
from sweeps.impossible import problem_of
from sweeps.preview import model_size, seconds_per_mac
from training.summary import summarize

GRID = ("-m", "patch=p1,p7", "seed=0,1", *TINY, "wandb.mode=disabled")


@pytest.mark.slow
def test_plan_lists_what_exists_and_what_is_impossible(tmp_path: Path) -> None:
    single = ("patch=p1", *GRID[3:], "sweep=s", "checkpoint.keep=all")
    assert command(*single, cwd=tmp_path).returncode == 0
    (trained,) = tmp_path.glob("outputs/s/*/summary.json")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    table = command(*GRID, "sweep=s", "plan=true", cwd=tmp_path)
    assert table.returncode == 1 and "2 of 4 runs are impossible" in table.stderr
    assert "model.patch_size=7" in table.stdout and table.stdout.count("does not divide") == 1
    plan = json.loads(command(*GRID, "sweep=s", "plan=json", cwd=tmp_path).stdout)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before, "a plan writes nothing"
    assert [run["status"] for run in plan["planned"]] == ["completed", "new", "impossible", "impossible"]
    done, new = plan["planned"][:2]
    summary = json.loads(trained.read_text())
    assert (done["run_id"], Path(done["folder"])) == (
        trained.parent.name.rpartition("-")[2],
        trained.parent.relative_to(tmp_path),
    )
    assert (done["parameters"], done["macs"]) == (summary["parameters"], summary["macs"])
    assert (plan["runs"], plan["completed"], plan["to_run"], plan["impossible"]) == (4, 1, 1, 2)
    overrides = [override.replace("=False", "=false") for override in new["overrides"]]  # as Hydra writes it
    assert overrides == ["patch=p1", "seed=1", *GRID[3:], "sweep=s", "varied=[patch,seed]"]
    checkpoints = sum(path.stat().st_size for path in trained.parent.glob("checkpoints/*.pt"))
    assert 0 < done["bytes"] < checkpoints


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["model.depth=3"], ["depth=3"]),
        (["-m", "model.depth=2,3", "hydra/sweeper=race"], [f"depth={d} seed={s}" for d in (2, 3) for s in range(4)]),
        (["-m", "model.depth=choice(2,3)", "optimizer.lr=interval(0.01,0.1)", "hydra/sweeper=optuna"], None),
    ],
    ids=["run", "race", "search"],
)
def test_plan_of_a_run_a_race_and_a_search(tmp_path: Path, arguments: list[str], names: list[str] | None) -> None:
    done = command(*arguments, "plan=json", "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert not list(tmp_path.iterdir())
    if names:
        assert [run["name"] for run in plan["planned"]] == names
    else:
        assert {run["name"].partition(" ")[0] for run in plan["planned"]} == {"depth=2", "depth=3"}
        assert "20 trials" in plan["note"]


def test_problem_of_a_run_on_a_folder_of_images(folder: Path) -> None:
    """The fixture's images have 12×12 pixels."""

    def problem(*overrides: str, root: Path = folder, local: bool = True) -> str:
        return problem_of(checked("data=image_folder", f"data.root={root}", *overrides), local) or ""

    assert "model.patch_size=7" in problem("patch=p7") and "1, 2, 3, 4, 6, 12" in problem("patch=p7")
    assert not problem("patch=p4") and not problem("patch=p7", "data.image_size=28")
    assert problem("data.image_size=28", root=folder / "nowhere").startswith(f"data.root={folder / 'nowhere'}")
    assert not problem("data.image_size=28", root=folder / "nowhere", local=False), "a node may have the folder"
    assert "model.patch_size=7" in problem("patch=p7", "data.image_size=27", root=folder / "nowhere", local=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.kernel_size=4"], ["patch=p2", "model.norm=layer"], ["model.norm=none", "data.image_size=16"],
        ["model.d_model=7", "model.depth=1"], ["model.patch_size=8"],
    ],
)  # fmt: skip
def test_planned_size_is_that_of_the_model(overrides: list[str]) -> None:
    config = checked(*overrides, "data.val_fraction=0.25", "data.train_fraction=0.5")
    side = config.data.image_size or 8
    total = summarize(config, 3, 10, (side, side))[-1]
    assert model_size(config, 3, 10, (8, 8), 800) == (total.parameters, total.macs, 300)


def test_time_is_estimated_from_runs_of_similar_size() -> None:
    assert seconds_per_mac(100, []) is None
    assert seconds_per_mac(100, [(100, 2.0), (90, 4.0), (80, 3.0), (1, 50.0)]) == 3.0
    assert seconds_per_mac(1000, [(100, 2.0)]) is None


def test_config_of_a_sweep_is_refused_in_one_line(tmp_path: Path) -> None:
    done = command("-m", "seed=0,1", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --cfg") and "plan=true" in done.stderr and done.stderr.count("\n") == 1
