"""Tests of a run with its selected backend, and of the same run resumed."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Train, summaries
from data.splits import DataSplits, Split
from interruption import configured, signal_at_step
from ops import depthwise_stacked
from pipeline.batches import DistributedBatchSampler
from runtime.distributed import World
from timed_backends import CPU, NHWC, STACKED, TIMES, Clock, layer, selected, warnings
from training import run, selection
from training.layer import REFERENCE, Backend
from training.model import make_model
from training.selection import Selection, select
from training.state import TrainingState
from training.step import TrainStep


class SecondRank(World):
    def broadcast(self, value: object) -> object:
        assert value is None
        return STACKED, {}


def test_all_ranks_take_what_the_first_has_measured(clock: Clock) -> None:
    assert select(layer(), SecondRank(1, 2)).backend == STACKED
    assert clock.computed == []


@pytest.mark.slow
def test_selected_backend_trains_as_if_it_were_set(clock: Clock, train: Train) -> None:
    measured = train("trainer.epochs=1", "dropout=all", "dropout.rate=0.1")
    assert (measured.summary["backend"], measured.summary["channels_last"]) == ("stacked", False)
    assert measured.summary["layer_milliseconds"] == pytest.approx(TIMES)
    assert "stacked NCHW 1.00 ms" in (measured.folder / "train.log").read_text()
    assert (measured.config["model"]["backend"], measured.config["trainer"]["channels_last"]) == ("auto", "auto")
    chosen = train(
        "trainer.epochs=1", "dropout=all", "dropout.rate=0.1", "model.backend=stacked", "trainer.channels_last=false"
    )
    assert chosen.folder.name.rpartition("-")[2] == measured.folder.name.rpartition("-")[2]
    losses = [done.metrics[["train/loss", "val/loss"]].to_numpy().tolist() for done in (measured, chosen)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["last batch", "evaluation", "whole batch"])
def test_backend_that_fails_with_the_runs_network_is_replaced(clock: Clock, train: Train, fails: str) -> None:
    def convolution(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        whole = len(x) == 64
        kinds = {"last batch": not whole, "evaluation": not torch.is_grad_enabled(), "whole batch": len(weight) == 16}
        in_a_run = len(weight) == 16 and not clock.measuring
        if in_a_run and kinds[fails]:
            raise RuntimeError("no kernel for this batch")
        return depthwise_stacked.convolution(x, weight, *rest)

    clock.stacked = convolution
    done = train("trainer.epochs=1", "data.train_fraction=0.2")
    assert done.summary["status"] == "completed", done.summary.get("error")
    assert (done.summary["backend"], done.summary["channels_last"]) == ("reference", True)
    (warning,) = [line for line in (done.folder / "train.log").read_text().splitlines() if "no kernel for this" in line]
    assert "stacked NCHW" in warning
    chosen = train(
        "trainer.epochs=1", "data.train_fraction=0.2", "model.backend=reference", "trainer.channels_last=true"
    )
    losses = [each.metrics[["train/loss", "val/loss"]].to_numpy().tolist() for each in (done, chosen)]
    assert losses[0] == losses[1]


def test_network_that_another_backend_computes_is_found(clock: Clock) -> None:
    measured = selected("model.depth=1", "data.batch_size=4")
    images = Split(np.zeros((10, 6, 6, 3), np.uint8), np.zeros(10, np.int64))
    data = DataSplits(images, None, images, list("abc"), 3, (6, 6), (0.5,) * 3, (0.5,) * 3)
    sampler = DistributedBatchSampler(10, 4, seed=0)
    for config, expected in ((measured.config, None), (NHWC.applied_to(measured.config), "reference")):
        state = TrainingState(make_model(config, 3, 10), config, World(), CPU, measured)
        error = TrainStep(state, data, whole_batch=4).rehearsal_error(sampler)
        assert (error is None) if expected is None else expected in str(error)


# Resuming.


@pytest.mark.slow
def test_resumed_run_keeps_its_backend(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configured(tmp_path, "data.batch_size=40")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        signal_at_step(4, patched)
        run.run(config, [])
    (before,) = summaries(tmp_path / "s")
    clock.milliseconds["reference NCHW"] = 0.1
    shutil.rmtree(tmp_path / "cache")
    run.run(config, [])
    (after,) = summaries(tmp_path / "s")
    assert after["status"] == "completed"
    for key in ("backend", "channels_last", "layer_milliseconds"):
        assert after[key] == before[key]


@pytest.mark.parametrize(
    "changed",
    [{"device": "NVIDIA H200"}, {"backend": "fused"}, {"backend": []}, {"device": None, "extra": 1}],
    ids=["another GPU", "a backend of before", "damaged", "an older checkpoint"],
)
def test_resuming_elsewhere_chooses_again_and_says_so(
    clock: Clock, caplog: pytest.LogCaptureFixture, changed: dict[str, Any]
) -> None:
    before = Selection(layer(), NHWC, {"reference NHWC": 2.0}).state
    assert select(layer(), World(), before).milliseconds == {"reference NHWC": 2.0}
    assert select(layer(), World(), {**before, "layer_milliseconds": [1]}) == Selection(layer(), NHWC)
    assert warnings(caplog) == []
    assert select(layer(), World(), {**before, **changed}).backend == STACKED
    assert len(warnings(caplog)) == 1


def test_resuming_without_triton_chooses_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    banded = Backend("banded", False)
    monkeypatch.setitem(selection.CANDIDATES, "cpu", [REFERENCE, STACKED, banded])
    before = Selection(layer(), banded, {"banded NCHW": 0.1}).state
    assert select(layer(), World(), before).backend == banded
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which is as if there were none on a CPU
    assert select(layer(), World(), before).backend == STACKED
