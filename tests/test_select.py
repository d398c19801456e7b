"""Where a way to compute the model is left open, the fastest correct one is taken. Measured here on the CPU, by a clock
that each test sets."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Finished, checked, summaries
from ops import depthwise_stacked
from runtime.distributed import World
from test_resume import configured, signal_at_step
from training import run, selection
from training.measurements import cache_file
from training.selection import REFERENCE, Selection, Shape, Way, select

CPU = torch.device("cpu")
SHAPE = (4, 3, 6, 6)
NHWC, STACKED = Way("reference", True), Way("stacked", False)
SETTING = ("model.d_model=8", "model.kernel_size=3", "model.patch_size=2")


class Clock:
    """Seconds that each way takes; `timed` are those that have been asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {REFERENCE: 0.003, NHWC: 0.002, STACKED: 0.001}
        self.timed: list[Way] = []
        make_step = selection.make_step

        def note_way(way: Way, *arguments: object) -> Callable[[], list[Tensor]]:
            self.way = way
            return make_step(way, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(selection, "make_step", note_way)
        monkeypatch.setattr(selection, "seconds_of", self.seconds_of)

    def seconds_of(self, *_: object) -> float:
        self.timed.append(self.way)
        return self.seconds[self.way]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(selection.WAYS, "cpu", [REFERENCE, NHWC, STACKED])
    monkeypatch.setattr(selection, "free_memory", lambda: None)  # takes a second
    yield Clock(monkeypatch)


def selected(*overrides: str, shape: Shape = SHAPE) -> Selection:
    return select(checked(*SETTING, *overrides), shape, CPU, World())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fastest_way_is_taken(clock: Clock, precision: str) -> None:
    found = selected(f"trainer.precision={precision}")
    assert found == Selection("stacked", False, {"reference NCHW": 3.0, "reference NHWC": 2.0, "stacked NCHW": 1.0})
    clock.seconds[NHWC] = 0.0001
    assert selected(f"trainer.precision={precision}", "model.kernel_size=4").way == NHWC


def wrong(*_: object) -> Tensor:
    return torch.zeros(8, 1, 3, 3)


def not_a_number(*_: object) -> Tensor:
    return torch.full((8, 1, 3, 3), torch.nan)


def broken(*_: object) -> Tensor:
    raise RuntimeError("no compiler")


def short_of_memory(*_: object) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("gradient", [wrong, not_a_number, broken])
def test_a_way_that_is_wrong_or_fails_is_out_with_one_warning(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gradient: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(depthwise_stacked, "weight_gradient", gradient)
    assert selected() == selected() == Selection("reference", True, {"reference NCHW": 3.0, "reference NHWC": 2.0})
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "stacked NCHW" in warning
    assert ("no compiler" in warning) == (gradient is broken)


def test_a_way_for_which_memory_was_short_is_tried_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(depthwise_stacked, "weight_gradient", short_of_memory)
        assert selected().way == NHWC
    assert selected().way == STACKED
    assert clock.timed == [REFERENCE, NHWC, STACKED]


def test_what_is_set_is_not_measured(clock: Clock) -> None:
    assert selected("model.backend=stacked").way == STACKED
    assert selected("model.backend=reference", "trainer.channels_last=true").way == NHWC
    assert clock.timed == []
    assert selected("model.backend=reference").way == NHWC
    assert clock.timed == [REFERENCE, NHWC]
    assert selected("trainer.channels_last=false").way == STACKED
    assert clock.timed == [REFERENCE, NHWC, STACKED]


@pytest.mark.parametrize(
    ("backend", "overrides", "reason"),
    [
        ("reference", ["model.kernel_size=33"], None),
        ("banded", ["model.kernel_size=33"], "kernels"),
    ],
)
def test_what_cannot_be_had_for_a_model_is_not_tried(backend: str, overrides: list[str], reason: str | None) -> None:
    found = selection.unsupported_reason(Way(backend, False), checked(*SETTING, *overrides), SHAPE, CPU)
    assert (reason in str(found)) if reason else (found is None)


def test_what_was_measured_is_known_to_later_runs_of_the_same_setting(clock: Clock) -> None:
    def timed(*overrides: str, shape: Shape = SHAPE) -> int:
        before = len(clock.timed)
        selected(*overrides, shape=shape)
        return len(clock.timed) - before

    assert timed() == 3
    assert timed() == timed("model.depth=3", "optimizer.lr=0.1", "trainer.compile_mode=max-autotune") == 0
    for other in ("model.d_model=9", "model.kernel_size=5", "model.activation=gelu", "trainer.precision=bf16"):
        assert timed(other) == 3
    assert timed(shape=(5, 3, 6, 6)) == timed(shape=(4, 3, 8, 6)) == 3
    assert timed() == 0


def test_a_damaged_file_of_measurements_is_made_anew(clock: Clock) -> None:
    path = cache_file(CPU)
    path.parent.mkdir(parents=True)
    path.write_text('{"cut')
    assert selected() == selected()
    assert len(clock.timed) == 3
    assert json.loads(path.read_text())


def test_without_a_place_to_keep_measurements_every_run_measures(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert selected() == selected()
    assert len(clock.timed) == 6
    assert "/dev/null" in caplog.text


def test_a_way_that_costs_the_gpu_ends_the_run_and_is_not_tried_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(depthwise_stacked, "convolution", broken)
    with monkeypatch.context() as lost, pytest.raises(RuntimeError, match="stacked NCHW"):
        lost.setattr(selection, "is_gpu_lost", lambda: True)
        selected()
    caplog.clear()
    assert selected().way == NHWC
    assert clock.timed == [REFERENCE, NHWC]
    assert caplog.records == []


def test_without_room_for_float64_the_reference_is_taken(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "error_of", short_of_memory)
    assert selected() == Selection("reference", False)
    assert "CUDA out of memory" in caplog.text


class SecondRank(World):
    def broadcast(self, value: object) -> object:
        assert value is None
        return Selection("stacked", False)


def test_all_ranks_take_what_the_first_has_measured(clock: Clock) -> None:
    assert select(checked(*SETTING), SHAPE, CPU, SecondRank(1, 2)).way == STACKED
    assert clock.timed == []


def test_a_run_says_what_it_takes_and_trains_as_if_it_were_set(clock: Clock, train: Callable[..., Finished]) -> None:
    measured = train("trainer.epochs=1")
    assert (measured.summary["backend"], measured.summary["channels_last"]) == ("stacked", False)
    assert measured.summary["layer_milliseconds"]["stacked NCHW"] == 1.0
    assert "stacked NCHW 1.00 ms" in (measured.folder / "train.log").read_text()
    assert (measured.config["model"]["backend"], measured.config["trainer"]["channels_last"]) == ("auto", "auto")
    chosen = train("trainer.epochs=1", "model.backend=stacked", "trainer.channels_last=false")
    assert chosen.folder.name.rpartition("-")[2] == measured.folder.name.rpartition("-")[2]
    losses = [done.metrics[["train/loss", "val/loss"]].to_numpy().tolist() for done in (measured, chosen)]
    assert losses[0] == losses[1]


def test_a_resumed_run_keeps_its_way(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configured(tmp_path, "data.batch_size=40")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        signal_at_step(4, patched)
        run.run(config, [])
    (before,) = summaries(tmp_path / "s")
    clock.seconds[REFERENCE] = 0.0001
    cache_file(CPU).unlink()
    run.run(config, [])
    (after,) = summaries(tmp_path / "s")
    assert after["status"] == "completed"
    for key in ("backend", "channels_last", "layer_milliseconds"):
        assert after[key] == before[key]
    assert len(clock.timed) == 3
