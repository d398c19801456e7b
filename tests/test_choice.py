"""Tests of checkpoint=outputs/SWEEP: the best run, another place, a filter; and of load() in plain Python."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import training.run
from config.errors import ConfigError
from conftest import TINY, checked, command
from data import datasets
from inference.choice import choose_run
from inference.load import load
from processes import REPOSITORY
from run_folders import write_run

KERNEL = "model.kernel_size"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Write five runs; c and b tie, and c has the smaller model."""
    for name, kernel, objective, parameters in (
        ("a", 3, 0.8, 100), ("b", 5, 0.9, 300), ("c", 7, 0.9, 200), ("d", 9, 0.7, 400),
    ):  # fmt: skip
        write_run(
            tmp_path / "s" / name, f"{KERNEL}={kernel}", "trainer.monitor=val/accuracy", objective=objective,
            parameters=parameters,
        )  # fmt: skip
    write_run(tmp_path / "s" / "e", f"{KERNEL}=11", status="interrupted", objective=1.0)
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("choice", "name"),
    [("", "c"), ("#1", "c"), ("#2", "b"), ("#4", "d"), ("#kernel_size=3", "a"), ("#kernel_size>3#kernel_size<9#2", "b"),
     ("#kernel_size!=7", "b")],
)  # fmt: skip
def test_sweep_stands_for_its_best_run_or_the_chosen_one(
    choice: str, name: str, sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert choose_run(f"{sweep}{choice}") == str(sweep / name)
    assert "val/accuracy" in caplog.text and str(sweep / name) in caplog.text


@pytest.mark.parametrize("choice", ["#0", "#5", "#1#2", "#kernel_size=4", "#kernel=x=", "#nothing=3", "#depth"])
def test_choice_that_fits_no_run_is_named(choice: str, sweep: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"checkpoint={sweep}{choice}")):
        choose_run(f"{sweep}{choice}")


def test_losses_are_ranked_upward_and_other_metrics_refused(sweep: Path) -> None:
    for name, loss in (("f", 0.3), ("g", 0.2)):
        write_run(sweep / name, f"{KERNEL}=2", "trainer.monitor=val/loss", objective=loss)
    assert choose_run(f"{sweep}#kernel_size=2") == str(sweep / "g")
    with pytest.raises(ConfigError, match=r"trainer\.monitor"):
        choose_run(str(sweep))
    write_run(sweep / "h", f"{KERNEL}=1", "seed=1", objective=None)
    write_run(sweep / "i", f"{KERNEL}=1", "seed=2", objective=None)
    with pytest.raises(ConfigError, match="validation"):
        choose_run(f"{sweep}#kernel_size=1")
    assert choose_run(f"{sweep}#kernel_size=1#seed=2") == str(sweep / "i")


def test_files_and_runs_are_left_as_they_are(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "a#1").mkdir()
    for checkpoint in (f"{sweep}/a", f"{tmp_path}/a#1", "convmixer_768_32", f"{tmp_path}/none", f"{sweep}/a/none.pt"):
        assert choose_run(checkpoint) == checkpoint


@pytest.mark.slow
def test_command_and_load_take_the_best_run(tmp_path: Path) -> None:
    for kernel in (3, 5):
        config = checked(*TINY, f"{KERNEL}={kernel}")
        config.output_dir, config.sweep = str(tmp_path / "outputs"), "s"
        training.run.run(config, [f"{KERNEL}={kernel}"])
    split = datasets.read("digits", "").test
    split[0].save(tmp_path / "IMAGE.png")
    done = command(
        "checkpoint=outputs/s#kernel_size=5",
        "images=IMAGE.png",
        "output=p.csv",
        "top=1",
        cwd=tmp_path,
        script="predict",
    )
    assert done.returncode == 0, done.stderr
    assert "kernel_size_5" in done.stdout

    model, classes, transform = load(f"{tmp_path}/outputs/s#kernel_size=5")
    assert classes == [str(digit) for digit in range(10)] and not model.training
    with torch.no_grad():
        probability, best = model(transform(split[0])[None]).softmax(1)[0].max(0)
    row = (tmp_path / "p.csv").read_text().splitlines()[1].split(",")
    assert row[1] == classes[best] and float(row[2]) == pytest.approx(float(probability), abs=1e-6)
    grey16 = Image.fromarray(np.asarray(split[0], np.uint16) * 257)
    torch.testing.assert_close(transform(grey16), transform(split[0]))

    page = (REPOSITORY / "docs" / "models.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "inference.load" in block]
    code = code.replace("outputs/mine", f"{tmp_path}/outputs/s").replace("IMAGE.png", f"{tmp_path}/IMAGE.png")
    with redirect_stdout(printed := io.StringIO()):
        exec(code, {})
    assert printed.getvalue().strip().split()[0] in classes
