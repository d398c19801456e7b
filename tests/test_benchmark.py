"""The benchmark compares like with like, and says what it measured."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.models.convmixer
import torch

from benchmarks import operators, steps
from benchmarks.counting import Counter, fake_cuda
from conftest import checked, command
from ops.depthwise import BACKENDS
from training.model import make_model

SMALL = ("model.d_model=8", "model.depth=2", "model.kernel_size=3", "model.patch_size=2")


def test_the_contestants_are_the_same_model() -> None:
    config = checked(*SMALL)
    ours = make_model(config, 3, steps.CLASSES).eval()
    x = torch.randn(2, 3, 8, 8)
    for peer in (steps.authors_model(config.model), steps.timms_model(config.model)):
        assert isinstance(peer, torch.nn.Sequential | timm.models.convmixer.ConvMixer)
        named = zip(peer.state_dict(), ours.state_dict().values(), strict=True)  # all name their layers in this order
        peer.load_state_dict(dict(named))
        torch.testing.assert_close(peer.eval()(x), ours(x))


def test_training_and_inference_beside_the_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contestants = {name: steps.CONTESTANTS[name] for name in ("authors' plain form", "ours")}
    monkeypatch.setattr(steps, "CONTESTANTS", contestants)
    monkeypatch.setattr(steps, "ROUNDS", 2)
    monkeypatch.setattr(steps, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(steps, "measured_roofs", lambda *_: (1e10, 1e11))
    steps.run([*SMALL, "data.batch_size=4"], as_json=True)
    figures = json.loads(capsys.readouterr().out)
    assert "ConvMixer-8/2, kernel 3, patch 2, 32×32, batch 4, fp32" in figures["setting"]
    assert figures["failed"] == {}
    for what in ("training", "inference"):
        assert list(figures[what]) == list(contestants)
        for turns in figures[what].values():
            assert len(turns) == 2
            assert all(turn["images_per_second"] > 0 and turn["peak_memory"] > 1e6 for turn in turns)


def breaks(*_: object) -> torch.nn.Module:
    raise MemoryError("no room for the model")


def ends_its_process(*_: object) -> torch.nn.Module:
    os._exit(9)


def test_a_contestant_that_fails_leaves_the_others_their_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contestants = {"first": breaks, "second": ends_its_process, "ours": steps.ours}
    monkeypatch.setattr(steps, "CONTESTANTS", contestants)
    monkeypatch.setattr(steps, "ROUNDS", 1)
    monkeypatch.setattr(steps, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(steps, "measured_roofs", lambda *_: (1e10, 1e11))
    steps.run([*SMALL, "data.batch_size=4"])
    printed = capsys.readouterr().out
    assert "first: MemoryError: no room for the model" in printed
    assert "second: its process was ended" in printed
    assert [line.split()[0] for line in printed.splitlines() if "%" in line] == ["ours", "ours"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["depthwise", "model.kernel_size=5"], "model.kernel_size=5: depthwise has its own shapes"),
        (["data", "--json"], "--json: data has a table only"),
        (["model.kernel_size=0"], "model.kernel_size=0: expected at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command(*arguments, cwd=tmp_path, script="benchmark")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")


def test_the_floor_is_that_of_the_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    """ConvMixer-256/8, kernel 9, patch 1 on an H200: a floor near 68,000 images a second, bound by memory."""
    monkeypatch.setattr(steps, "measured_roofs", lambda *_: (4.3e12, 790e12))
    config = checked("model=convmixer_256_8", "model.kernel_size=9", "model.patch_size=1", "trainer.precision=bf16")
    floor = steps.floors(config, torch.device("cpu"))
    assert floor["training"] == pytest.approx(4.3e12 / (16 * 8 * 512 * 1024))
    assert 60_000 < floor["training"] < 70_000


def test_every_backend_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(operators, "CPU_SHAPES", [(2, 4, 5, 3)])
    operators.run()
    printed = capsys.readouterr().out
    assert all(backend in printed for backend in BACKENDS)
    assert "2×4×5×5" in printed


# Counting, on fake tensors.


def test_operations_bytes_and_waits_of_a_step_are_counted_without_a_gpu() -> None:
    with fake_cuda():
        model = torch.nn.Linear(8, 4, device="cuda")
        x = torch.randn(2, 8, device="cuda")
        with Counter() as counter:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(x).float().square().sum()
            loss.backward()
        assert counter.synchronizations == []
        (product,) = [call for call in counter.calls if call.name == "aten.addmm.default"]
        assert {operand.dtype for operand in (*product.inputs, *product.outputs)} == {torch.bfloat16}
        assert product.bytes_moved == 2 * (4 + 2 * 8 + 4 * 8 + 2 * 4)
        assert counter.operations > 5
        assert model.weight.grad is not None
        assert model.weight.grad.device.type == "cuda"


@pytest.mark.parametrize(
    ("waits", "times"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x[0]) > bool(x[1] > 0), 2),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1.0, 2.0], device="cuda") + x, 1),
        (lambda x: torch.ones(2).to("cuda", non_blocking=True) + x, 0),
        (lambda x: x.to(torch.bfloat16) @ x.to(torch.bfloat16), 0),
    ],
)
def test_what_makes_the_host_wait_is_found(waits: Callable[[torch.Tensor], object], times: int) -> None:
    with fake_cuda(), Counter() as counter:
        waits(torch.randn(2, device="cuda"))
    assert len(counter.synchronizations) == times
