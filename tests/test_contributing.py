"""Tests of CONTRIBUTING.md's recipes: all are applied to a copy of the repository, and a run with all trains."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.io import savemat

from conftest import checked
from processes import REPOSITORY, environment_of
from tracking.identity import run_id

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## One change of each kind")[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
RECIPE = re.compile(r"^\*\*(An? .+?)\*\*", re.M)
USED = {  # what the run uses of each recipe
    "trainer.clip_grad_value": 0.1, "model.norm": "group", "model.kernel_size": 11, "optimizer.name": "RAdam",
    "scheduler.name": "polynomial", "augmentation.grayscale": 0.5, "trainer.monitor": "val/top5",
    "model.backend": "fft", "study.name": "stem", "data.name": "svhn",
}  # fmt: skip
COMMAND = (
    "variant=group_norm", "kernel=k11", "optimizer=radam", "scheduler=polynomial", "experiment=stem", "data=svhn",
    "augmentation.grayscale=0.5", "trainer.clip_grad_value=0.1", "trainer.monitor=val/top5", "model.backend=fft",
    "patch=p4", "model.d_model=8", "model.depth=1", "trainer.epochs=2", "data.num_workers=0", "trainer.figures=false",
    "data.hflip=0", "wandb.mode=disabled", "sweep=s",
)  # fmt: skip
RUNS = """
import runpy, sys
from pathlib import Path

def run(script, *arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")

run("src/train.py", *sys.argv[1:])
(summary,) = Path("outputs", "s").glob("*/summary.json")
run("src/evaluate.py", f"checkpoint={summary.parent}", "output=evaluated")
"""
CHECKS = """
import torch
from config.compose import compose_config
from config.parse import parse_config
from config.schema import CONF, register
from hydra import initialize_config_dir
from ops.depthwise import depthwise
from tracking.identity import run_id

x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
for k in (1, 4, 5, 9):
    weight = torch.randn(3, 1, k, k, dtype=torch.float64, requires_grad=True)
    outputs = [depthwise(x, weight, torch.ones(3, dtype=torch.float64), name) for name in ("fft", "reference")]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), (x, weight)) for y in outputs))
register()
with initialize_config_dir(str(CONF), version_base="1.3"):
    print(run_id(parse_config(compose_config("train", ()))))
"""


def apply(language: str, block: str, root: Path) -> None:
    """Apply a block of code: a diff, or a new file whose path is in its first line."""
    if language != "diff":
        path, _, text = block.partition("\n")
        assert not (root / path.removeprefix("# ")).exists()
        (root / path.removeprefix("# ")).write_text(text)
        return
    for hunk in re.split(r"^--- ", block, flags=re.M)[1:]:
        path, _, text = hunk.partition("\n")
        lines = text.splitlines()
        before, after = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        source = (root / path).read_text()
        assert source.count(before) == 1, f"{path}: {before}"
        (root / path).write_text(source.replace(before, after))


def python(code: str, *words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=environment_of(PYTHONPATH=str(cwd / "src")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_recipe_has_code() -> None:
    recipes = RECIPE.split(PAGE)[1:]
    assert len(recipes) >= 20
    assert [title for title, text in zip(recipes[::2], recipes[1::2], strict=True) if not BLOCK.search(text)] == []


@pytest.mark.slow
def test_a_run_with_all_recipes_trains_and_evaluates(tmp_path: Path) -> None:
    for folder in ("src", "conf"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for language, block in BLOCK.findall(PAGE):
        apply(language, block, tmp_path)
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for part, images in (("train", 200), ("test", 40)):
        pixels = generator.integers(0, 256, (32, 32, 3, images), dtype=np.uint8)
        savemat(tmp_path / "data" / f"{part}_32x32.mat", {"X": pixels, "y": np.arange(images)[:, None] % 10 + 1})

    *_, identity = python(RUNS + CHECKS, *COMMAND, cwd=tmp_path).splitlines()
    assert identity == run_id(checked()), "runs without the new keys keep their IDs"
    (written,) = tmp_path.glob("outputs/s/*/summary.json")
    run_folder, summary = written.parent, json.loads(written.read_text())
    config = pd.json_normalize(yaml.safe_load((run_folder / "config.yaml").read_text())).iloc[0]
    assert {key: config[key] for key in USED} == USED
    assert {"val/top5"} <= {*pd.read_csv(run_folder / "metrics.csv")}
    assert summary["status"] == "completed"
    evaluated = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert evaluated["test/accuracy"] == pytest.approx(summary["test/accuracy"])
