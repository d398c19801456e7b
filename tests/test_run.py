"""Tests of one run: it learns, repeats exactly, obeys its switches, and records its results."""

import io
import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich import get_console, reconfigure

from conftest import TIMES, Finished, Train, checked
from data import datasets
from ops.depthwise import BACKENDS, TRITON
from pipeline.batches import make_eval_loader, make_train_loader
from runtime.console import Handler
from runtime.distributed import World
from tracking.run_folder import COLUMNS
from training.layer import Layer
from training.model import make_model, memory_format
from training.preview import caption
from training.selection import select
from training.state import TrainingState
from training.step import TrainStep


@pytest.mark.slow
def test_digits_are_learned(train: Train) -> None:
    small = ("model.d_model=32", "model.depth=4", "model.kernel_size=3")
    done = train(*small, "data.train_fraction=1", "trainer.epochs=8")
    assert done.summary["status"] == "completed"
    assert done.summary["test/accuracy"] >= 0.96
    assert done.result.objective == done.summary["best/val/accuracy"] == done.metrics["val/accuracy"].max()


@pytest.mark.slow
def test_the_record(train: Train) -> None:
    done = train("model.kernel_size=3", "seed=1", "checkpoint.max_share=1")
    names = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "metrics.csv", "summary.json", "checkpoints/best.pt", "history.png",
        "train.log", "predictions.npy", "predictions.csv", "wrong_images.csv",
    }  # fmt: skip
    assert list(done.metrics.columns) == list(COLUMNS)
    assert list(done.metrics["epoch"]) == [1, 2]
    assert done.config["model"]["kernel_size"] == 3
    assert done.config["augmentation"]["hflip"] == 0.0  # resolved
    summary, last = done.summary, done.metrics.iloc[-1]
    assert summary["epochs"] == 2
    assert summary["last/val/loss"] == pytest.approx(last["val/loss"], abs=1e-12)
    assert summary["parameters"] == sum(p.numel() for p in make_model(checked(*TINY_SIZE), 1, 10).parameters())
    assert summary["overrides"] == {"model.kernel_size": 3, "seed": 1, "checkpoint.max_share": 1}
    assert (summary["backend"], summary["channels_last"]) == ("auto", True)
    assert "epoch 2/2" in (done.folder / "train.log").read_text()
    assert done.folder.name.startswith("kernel_size_3-seed_1-")


TINY_SIZE = ("model.d_model=16", "model.depth=2", "model.kernel_size=3")


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend not in TRITON])
def test_multiply_accumulates_are_counted(train: Train, backend: str) -> None:
    done = train(*TINY_SIZE, f"model.backend={backend}")
    positions = 8 * 8
    per_layer = positions * 16 * (3 * 3 + 16)
    assert done.summary["macs"] == positions * 16 + 2 * per_layer + 16 * 10


@pytest.mark.slow
def test_the_best_checkpoint_is_what_was_tested(train: Train) -> None:
    done = train("trainer.epochs=4")
    checkpoint = torch.load(done.folder / "checkpoints" / "best.pt", weights_only=True)
    best = done.metrics.loc[done.metrics["val/accuracy"].idxmax()]
    assert checkpoint["metrics"]["val/accuracy"] == pytest.approx(best["val/accuracy"])
    model = make_model(checked("model.d_model=16", "model.depth=2"), checkpoint["channels"], 10)
    model.load_state_dict(checkpoint["model"])


def test_the_predictions_are_those_of_the_tested_weights(train: Train) -> None:
    done = train("data.train_fraction=0.3")
    predictions = np.load(done.folder / "predictions.npy")
    assert predictions.dtype.names == ("label", "prediction", "probability")
    assert predictions.nbytes == 8 * 360
    np.testing.assert_array_equal(predictions["label"], datasets.load(checked().data, 1).test.labels)
    assert (predictions["label"] == predictions["prediction"]).mean() == pytest.approx(done.summary["test/accuracy"])
    assert -np.log(predictions["probability"]).mean() == pytest.approx(done.summary["test/loss"], rel=1e-5)


def equal_metrics(first: Finished, second: Finished) -> bool:
    return first.metrics.drop(columns=TIMES).equals(second.metrics.drop(columns=TIMES))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics(train: Train) -> None:
    overrides = ("dropout=all", "augmentation=randaugment", "data.train_fraction=0.3")
    first = train(*overrides)
    assert equal_metrics(first, train(*overrides, "data.num_workers=1"))
    assert not equal_metrics(first, train(*overrides, "seed=1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adam"],
        ["optimizer=sgd", "scheduler=cosine"],
        ["scheduler=step", "scheduler.decay_epochs=1"],
        ["scheduler=constant", "scheduler.warmup_epochs=1"],
        ["augmentation=none"],
        ["augmentation=simple"],
        ["dropout=stochastic_depth"],
        ["trainer.precision=bf16"],
        ["trainer.precision=fp16"],
        ["trainer.channels_last=false"],
        ["trainer.clip_grad_norm=1.0", "trainer.label_smoothing=0.1"],
        ["trainer.ema_decay=0.9"],
        ["trainer.accumulation_steps=5"],
        ["model.norm=layer", "model.activation=gelu", "model.residual_pointwise=true"],
        ["data.val_fraction=0"],
        ["data.image_size=16", "model.patch_size=2", "data.crop_fraction=0.9"],
    ],
    ids=" ".join,
)
def test_every_switch_trains(train: Train, overrides: list[str]) -> None:
    done = train(*overrides, "data.train_fraction=0.4")
    assert done.summary["status"] == "completed", done.summary.get("error")
    assert done.metrics["train/loss"].iloc[-1] < done.metrics["train/loss"].iloc[0]


@pytest.mark.slow
def test_compiled_training_gives_the_same_run(train: Train) -> None:
    plain, compiled = (
        train("trainer.epochs=1", "model.depth=1", f"trainer.compile={value}") for value in ("false", "true")
    )
    assert compiled.metrics["train/loss"][0] == pytest.approx(plain.metrics["train/loss"][0], rel=1e-3)


@pytest.mark.slow
def test_sweep_compiles_each_setting_but_no_smaller_batch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo compiles one piece of code a few times at most. Its graphs are made, but not compiled to C++."""
    compile_with = torch.compile

    def compile_quickly(model: torch.nn.Module, dynamic: bool, options: dict[str, Any]) -> object:
        assert options["layout_optimization"] is False
        assert set(options) > {"max_autotune"}
        return compile_with(model, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    graphs = []
    overrides = ("model.depth=1", "model.d_model=4", "data.batch_size=60", "trainer.epochs=1")
    for kernel_size in range(1, 5):
        torch._dynamo.utils.counters.clear()
        with torch._dynamo.config.patch(recompile_limit=2):
            done = train(
                *overrides, f"model.kernel_size={kernel_size}", "trainer.compile=true", "trainer.channels_last=false",
                "trainer.compile_mode=max-autotune",
            )  # fmt: skip
        assert done.summary["status"] == "completed", done.summary["error"]
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1] * 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("value", "channels_last"), [("auto", True), ("true", True), ("false", False)])
def test_a_step_computes_in_the_memory_format_asked_for(value: str, channels_last: bool, channels: int) -> None:
    config = checked(*TINY_SIZE, f"trainer.channels_last={value}", "augmentation=paper")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, channels), dtype=np.uint8)
    split = datasets.Split(images, np.arange(8))
    data = datasets.DataSplits(
        split, None, split, list("01234567"), channels, (8, 8), (0.5,) * channels, (0.25,) * channels
    )
    cpu = torch.device("cpu")
    config = select(Layer(config, (8, channels, 8, 8), cpu), World()).config
    model = make_model(config, channels, 8).to(memory_format=memory_format(config))
    state = TrainingState(model, config, World(), cpu)
    seen: list[torch.Tensor] = []
    for layer in model.conv_mixer_layers:
        layer.get_submodule("depth_wise_conv").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    TrainStep(state, data, whole_batch=8)(pixels, torch.arange(8), step=1, lr=0.01, batch_size=8, parts=1)
    for grid in seen:
        assert grid.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert grid.is_contiguous() != channels_last
    assert len(seen) == 2


@pytest.mark.slow
def test_accumulation_is_the_same_step_without_batch_statistics(train: Train) -> None:
    overrides = ("model.norm=none", "data.train_fraction=0.2")
    whole, parts = train(*overrides), train(*overrides, "trainer.accumulation_steps=4")
    columns = ["train/loss", "val/loss"]
    np.testing.assert_allclose(whole.metrics[columns], parts.metrics[columns], rtol=1e-3)


def test_the_average_of_the_weights_is_what_is_evaluated(train: Train) -> None:
    done = train("trainer.ema_decay=0.999", "data.train_fraction=0.2")
    assert done.metrics["val/accuracy"].iloc[-1] < 0.5  # the average has hardly moved from the initial weights


def test_without_validation_the_last_weights_are_tested(train: Train) -> None:
    done = train("data.val_fraction=0")
    assert done.result.objective is None
    assert done.metrics["val/accuracy"].isna().all()
    assert done.summary["best/epoch"] == 2
    assert 0 < done.summary["test/accuracy"] <= 1


@pytest.mark.slow
def test_early_stopping(train: Train) -> None:
    done = train(
        "trainer.epochs=9", "trainer.early_stopping.patience=2", "trainer.early_stopping.min_delta=100",
        "trainer.early_stopping.start_epoch=2", "trainer.monitor=val/loss", "data.train_fraction=0.2",
    )  # fmt: skip
    assert list(done.metrics["epoch"]) == [1, 2, 3, 4]  # epoch 2 counts first, 3 and 4 do not improve on it
    assert done.summary["status"] == "completed"
    assert done.result.objective == done.metrics["val/loss"].min()


def test_a_loss_that_is_not_finite_stops_the_run(train: Train) -> None:
    done = train("optimizer=sgd", "optimizer.lr=1e30", "model.norm=none", "scheduler=constant")
    assert done.result == ("failed", None)
    assert done.summary["status"] == "failed"
    assert "loss became NaN or infinite at step" in done.summary["error"]
    assert "learning rate 1e+30" in done.summary["error"]
    assert "Traceback" in done.summary["traceback"]
    assert "Traceback" in (done.folder / "train.log").read_text()


def test_a_gpu_that_no_longer_answers_ends_the_sweep(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", answer)
    monkeypatch.setattr(torch.cuda, "empty_cache", answer)
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: answer())
    with pytest.raises(SystemExit):
        train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_an_error(train: Train) -> None:
    error = train("trainer.device=cuda").summary["error"]
    assert "trainer.device=cuda: not available on this machine; expected auto or cpu" in error


def test_memory_is_pinned_for_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, pinned in (("cpu", False), ("auto", True), ("cuda", True)):
        config = checked(f"trainer.device={name}")
        data = datasets.load(config.data, 1)
        loaders = make_train_loader(data, config), make_eval_loader(data.test, data, config)
        assert [loader.pin_memory for loader in loaders] == [pinned] * 2


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["cpu", "device"])
def test_preview_shows_the_augmentation_and_changes_no_number(train: Train, pipeline: str) -> None:
    common = ("augmentation=paper", "trainer.epochs=1", f"data.pipeline={pipeline}", "data.batch_size=32")
    plain, drawn = train(*common), train(*common, "trainer.figures=true")
    pd.testing.assert_frame_equal(plain.metrics.drop(columns=TIMES), drawn.metrics.drop(columns=TIMES))
    assert not (plain.folder / "augmentation.png").exists()
    preview = drawn.folder / "augmentation.png"
    with Image.open(preview) as image:
        assert image.width > 900 and len(np.unique(np.asarray(image.convert("L")))) > 30
    if pipeline == "cpu":
        other_seed = train(*common, "trainer.figures=true", "seed=1")
        assert (other_seed.folder / "augmentation.png").read_bytes() == preview.read_bytes()
        without = train(*common, "trainer.figures=true", "augmentation=none")
        assert (without.folder / "augmentation.png").read_bytes() != preview.read_bytes()


def test_epochs_stay_on_a_terminal_above_the_progress_bar(train: Train) -> None:
    terminal = io.StringIO()
    console = get_console()
    before = dict(vars(console))
    handler = Handler()
    logging.getLogger().addHandler(handler)
    try:
        reconfigure(file=terminal, force_terminal=True, width=200)
        done = train("trainer.device=cpu")
    finally:
        logging.getLogger().removeHandler(handler)
        vars(console).update(before)
    assert all(f"epoch {epoch}/2: train" in terminal.getvalue() for epoch in (1, 2))
    assert done.summary["peak_memory"] is None  # the process's, not the run's


def test_captions_name_the_shares_of_mixed_classes() -> None:
    assert caption(torch.tensor([0, 1, 0]), ["a", "b", "c"]) == "b"
    assert caption(torch.tensor([0.3, 0.0, 0.7]), ["a", "b", "c" * 30]) == f"{'c' * 17}… 0.70\na 0.30"
