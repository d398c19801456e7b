"""Tests of one run's record in Weights & Biases, written by the real client."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import wandb_files
from conftest import Train, start, wait_for
from runtime.console import RunProgress
from test_run import TINY_SIZE
from tracking import wandb_logger
from tracking.run_folder import COLUMNS


@pytest.mark.slow
def test_wandb_offline_holds_what_the_folder_holds(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = train(
        "model.kernel_size=3", "trainer.figures=true", "wandb.project=kernels", "wandb.tags=[a,b]", "notes=a first try"
    )
    seen = wandb_files.read(done.folder)
    assert (seen["name"], seen["group"], seen["project"]) == ("kernel_size=3", done.folder.parent.name, "kernels")
    assert seen["tags"] == ["a", "b"]
    assert seen["notes"] == done.summary["notes"] == "a first try"
    assert {key: seen["config"][key] for key in done.config} == done.config
    rows = [row for row in seen["history"] if "epoch" in row]
    history = pd.DataFrame(rows)[list(COLUMNS)]
    np.testing.assert_allclose(history, done.metrics, rtol=1e-9)
    for key in ("status", "best/val/accuracy", "test/accuracy", "last/train/loss", "parameters"):
        assert seen["summary"][key] == pytest.approx(done.summary[key]) if key != "status" else "completed"
    for name in ("patch_embedding_filters", "depthwise_kernels", "confusion_matrix"):
        assert seen["summary"][f"figures/{name}._type"] == "image-file"
        assert (done.folder / "figures" / f"{name}.png").stat().st_size > 5000
        (copy,) = done.folder.glob(f"wandb/offline-run-*/files/media/images/figures/{name}_*.png")
        assert copy.samefile(done.folder / "figures" / f"{name}.png"), "stored once"


@pytest.mark.slow
def test_wandb_shows_how_an_epoch_goes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(RunProgress, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(wandb_logger, "PROGRESS_SECONDS", 0.0)
    done = train("data.batch_size=64")  # 130 images
    seen = pd.DataFrame(wandb_files.read(done.folder)["history"])
    assert list(seen["images"]) == [64, 128, 130, 194, 258, 260]
    assert list(seen["_step"]) == list(seen["images"])
    assert list(seen["epoch"].dropna()) == [1, 2]
    last = seen[seen["images"] == 260].iloc[0]
    assert last["progress/loss"] == pytest.approx(last["train/loss"])
    assert last["progress/accuracy"] == pytest.approx(last["train/accuracy"])
    assert last["progress/lr"] == pytest.approx(last["lr"])
    assert (seen["progress/images_per_second"] > 0).all()


@pytest.mark.slow
def test_a_server_out_of_reach_costs_seconds_and_a_warning(tmp_path: Path) -> None:
    process = start(
        *TINY_SIZE, "trainer.epochs=1", "data.train_fraction=0.1", "wandb.mode=online", "sweep=s", cwd=tmp_path,
        WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40,
    )  # fmt: skip
    wait_for(lambda: [*tmp_path.glob("outputs/s/*/config.yaml")], process)
    started = time.monotonic()
    output = process.communicate(timeout=200)[0]
    took = time.monotonic() - started
    assert process.returncode == 0, output
    assert "W&B is out of reach" in output
    (folder,) = [path.parent for path in tmp_path.glob("outputs/s/*/config.yaml")]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert took < summary["seconds"] + 60  # 15 for the server
    epochs = [row["epoch"] for row in wandb_files.read(folder)["history"] if "epoch" in row]  # and no progress
    assert epochs == [1]


def test_disabled_leaves_no_wandb_files(train: Train) -> None:
    assert not (train().folder / "wandb").exists()
