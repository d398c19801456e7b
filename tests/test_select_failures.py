"""Tests of backends that compute wrongly, fail or end their process, and of when they are tried again."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from conftest import command
from ops import depthwise_reference, depthwise_stacked
from processes import REPOSITORY
from timed_backends import NHWC, SETTING, STACKED, TIMES, Clock, Computation, layer, selected, warnings
from training import measurements, selection
from training.layer import REFERENCE
from training.measurements import cache_file


def wrong(x: Tensor, *rest: Any) -> Tensor:
    return torch.zeros_like(x)


def wrong_at_the_end(x: Tensor, *rest: Any) -> Tensor:
    y = depthwise_stacked.convolution(x, *rest)
    return torch.cat([y[:-1], 0 * y[-1:]])


def not_a_number(x: Tensor, *rest: Any) -> Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize("batch", [4, 128, 37])
@pytest.mark.parametrize("computation", [wrong, wrong_at_the_end, not_a_number])
def test_wrong_backend_is_left_out_with_one_warning(
    clock: Clock, caplog: pytest.LogCaptureFixture, computation: Computation, batch: int
) -> None:
    clock.stacked = computation
    assert selected(batch=batch).backend == selected(batch=batch).backend == NHWC
    (warning,) = warnings(caplog)
    assert "stacked NCHW" in warning


# Errors that pass.


def out_of_memory(*_: Any) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def no_space(*_: Any) -> Tensor:
    raise OSError(28, "No space left on device")


def compiled_by_cc(x: Tensor, *rest: Any) -> Tensor:
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-x", "c", "-E", "-"], input=b"int one;", stdout=subprocess.DEVNULL, check=True)
    return depthwise_stacked.convolution(x, *rest)


@pytest.mark.parametrize("computation", [out_of_memory, no_space, compiled_by_cc])
def test_backend_is_tried_again_after_an_error_that_passes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, computation: Computation
) -> None:
    clock.stacked = computation
    with monkeypatch.context() as context:
        context.setenv("CC", "/nonexistent/cc")
        assert selected().backend == NHWC
        assert selected().backend == NHWC
    assert len([text for text in warnings(caplog) if "stacked NCHW" in text]) == 2
    if computation is not compiled_by_cc:
        clock.stacked = depthwise_stacked.convolution
    selection = selected()
    assert selection.backend == STACKED
    assert selection.milliseconds == pytest.approx(TIMES)
    assert clock.measured(selected) == set()


def test_nothing_is_remembered_where_the_reference_fails_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock.stacked = wrong
    with monkeypatch.context() as context:
        context.setattr(depthwise_reference, "convolution", out_of_memory)
        selection = selected()
    assert (selection.backend, selection.milliseconds) == (REFERENCE, {})
    assert "CUDA out of memory" in caplog.text
    clock.stacked = depthwise_stacked.convolution
    assert selected().backend == STACKED


# Backends that end their process.


SCRIPT = """
import os, runpy, signal, sys
from types import SimpleNamespace
from ops import depthwise, depthwise_stacked
from training import selection
from training.layer import REFERENCE, Backend

def convolution(x, *rest):
    {end}
    return depthwise_stacked.convolution(x, *rest)

depthwise.IMPLEMENTATION["stacked"] = SimpleNamespace(**{{**vars(depthwise_stacked), "convolution": convolution}})
selection.CANDIDATES["cpu"] = [REFERENCE, Backend("stacked", False)]
selection.SECONDS[False] = 0
runpy.run_path({train!r}, run_name="__main__")
"""


TINY = (*SETTING, "model.depth=1", "trainer.epochs=1", "data.train_fraction=0.1", "trainer.device=cpu",
        "trainer.figures=false", "sweep=s")  # fmt: skip


def trained(folder: Path, end: str, *overrides: str) -> tuple[int | None, str, dict[str, Any]]:
    """Train a run whose `stacked` backend starts with some code; return exit code, output and summary."""
    script = folder / "script"
    script.with_suffix(".py").write_text(SCRIPT.format(end=end, train=str(REPOSITORY / "src" / "train.py")))
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "WANDB_MODE": "disabled"}
    done = command(*TINY, *overrides, cwd=folder, script=str(script), **environment)
    newest = max((folder / "outputs" / "s").glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    return done.returncode, done.stdout + done.stderr, json.loads(newest.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.abort()", "os._exit(0)"])
def test_backend_that_ends_its_process_is_tried_once(tmp_path: Path, end: str) -> None:
    _, _, summary = trained(tmp_path, end)
    assert summary["status"] == "interrupted"
    for other in ("seed=0", "model.kernel_size=5"):
        code, output, summary = trained(tmp_path, end, other)
        assert (code, summary["status"], summary["backend"]) == (0, "completed", "reference"), output
        assert output.count("stacked NCHW: ended its process") == 1


@pytest.mark.slow
def test_signal_while_measuring_ends_the_run_not_the_backend(tmp_path: Path) -> None:
    code, output, summary = trained(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)")
    assert (code, summary["status"]) == (143, "interrupted"), output
    _, output, summary = trained(tmp_path, "pass")
    assert {"reference NCHW", "stacked NCHW"} == summary["layer_milliseconds"].keys(), output


def test_backend_that_another_process_tries_is_not_left_out(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    selected()
    attempt = cache_file(layer()).with_name("another.cpu.attempt")
    attempt.write_text("stacked NCHW")
    with FileLock(attempt.with_suffix(".lock")):
        assert selected("model.kernel_size=5").backend == STACKED
    assert selected("model.kernel_size=5").backend == NHWC  # that process has died
    (warning,) = warnings(caplog)
    Path(warning.partition("delete ")[2]).unlink()
    assert selected("model.kernel_size=5").backend == STACKED


def broken(*_: Any) -> Tensor:
    raise RuntimeError("an illegal memory access was encountered")


def test_backend_that_loses_the_gpu_is_not_tried_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.stacked = broken
    with monkeypatch.context() as lost, pytest.raises(RuntimeError, match="stacked NCHW"):
        for module in (selection, measurements):
            lost.setattr(module, "is_gpu_lost", lambda: True)
        selected()
    assert clock.measured(selected) == {"reference NCHW", "reference NHWC"}
    assert clock.measured(selected) == set()
