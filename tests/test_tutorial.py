"""Tests of the tutorial: script and notebook are equal, both run, and the shipped outputs are complete."""

import re
import shlex
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest
from nbformat import NotebookNode

from conftest import checked, command, summaries
from processes import REPOSITORY
from tracking.identity import run_id

SCRIPT = REPOSITORY / "experiments" / "convmixer-experiment-cifar10.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
SMALL = "trainer.epochs=1 model.d_model=16 model.depth=2 data.train_fraction=0.2"
PICTURES = [
    "augmentation", "confusion_matrix", "depthwise_kernels", "images", "loss", "patch_embedding_filters", "predictions",
]  # fmt: skip


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: NotebookNode) -> str:
    assert all(output.get("name") != "stderr" for output in outputs(notebook)), "a reader would see warnings"
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def shown(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def test_script_and_notebook_hold_the_same_cells() -> None:
    cells = [
        [(cell.cell_type, cell.source) for cell in notebook.cells]
        for notebook in (jupytext.read(SCRIPT), nbformat.read(NOTEBOOK, as_version=4))
    ]
    assert cells[0] == cells[1], "make the notebook anew, as experiments/README.md says"


def test_what_is_shipped_was_executed_in_order_and_is_whole() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for output in outputs(notebook)} == {"stream", "execute_result"}, "an error among them"
    assert not re.search(r"(?<![\w.:/])/\w+/|\x1b", printed(notebook)), "a path of one machine, or a terminal's codes"
    assert len(shown(notebook)) == len(PICTURES)
    assert NOTEBOOK.stat().st_size < 1.5e6


@pytest.mark.slow
def test_tutorial_uses_digits_where_cifar10_is_out_of_reach(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    finished = command(
        cwd=tmp_path, script=f"../experiments/{SCRIPT.stem}",
        TUTORIAL=f"{SMALL} data.root={tmp_path}/data output_dir={tmp_path}",
        http_proxy=nowhere, https_proxy=nowhere, no_proxy="",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "cifar10 is missing or damaged and cannot be downloaded" in finished.stdout
    assert "digits: 8×8 pixels" in finished.stdout

    runs = {summary["name"]: summary for summary in summaries(tmp_path / "tutorial")}
    assert list(runs) == ["dropout=all", "dropout=none"]
    for name, summary in runs.items():
        assert summary["status"] == "completed"
        accuracy = f"{summary['test/accuracy']:.2%}"
        assert re.search(rf"{name} +{accuracy} of 360 test images \({accuracy}", finished.stdout), name
    points = 100 * (runs["dropout=all"]["test/accuracy"] - runs["dropout=none"]["test/accuracy"])
    assert f"Dropout instead of none: {points:+.2f} ±" in finished.stdout
    assert sorted(path.stem for path in (tmp_path / "tutorial" / "figures").glob("*.png")) == PICTURES

    (line,) = re.findall(r"^python src/train.py -m (.*)$", finished.stdout, re.MULTILINE)
    repeated = [argument for argument in shlex.split(line) if not re.match("dropout=|seed=", argument)]
    for dropout in ("none", "all"):
        run = run_id(checked(*repeated, f"dropout={dropout}", "seed=0"))
        assert list((tmp_path / "tutorial").glob(f"*-{run}")), "the command would train it once more"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTORIAL", f"{SMALL} data=digits patch=p1 output_dir={tmp_path}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = jupytext.read(SCRIPT)
    nbclient.execute(notebook, cwd=str(SCRIPT.parent), timeout=300)
    assert "digits: 8×8 pixels" in printed(notebook)
    assert len(shown(notebook)) == len(PICTURES)
    assert [summary["status"] for summary in summaries(tmp_path / "tutorial")] == ["completed"] * 2
