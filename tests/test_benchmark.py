"""Tests of benchmark.py: it compares equal work, and its report names what it measured."""

import json
import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from benchmarks import depthwise, doctor, implementations, report, steps
from benchmarks.implementations import Implementation
from config.errors import ConfigError
from conftest import checked, command
from fake_gpu import Counter, count_steps, fake_cuda
from runtime.device import DTYPES, missing_kernels
from training import selection
from training.layer import Backend
from training.model import make_model

SMALL = ["model.d_model=8", "model.depth=2", "model.kernel_size=3", "model.patch_size=2", "data.batch_size=4"]
NHWC = Implementation("authors", channels_last=True)


def test_the_implementations_are_the_same_model() -> None:
    config = checked(*SMALL)
    ours = make_model(config, 3, implementations.CLASSES).eval()
    x = torch.randn(2, 3, 8, 8)
    for source in ("authors", "timm"):
        stock, cpu = Implementation(source), torch.device("cpu")
        peer = implementations.build(stock, implementations.configured(stock, config, cpu), cpu).eval()
        assert type(peer) is not type(ours)
        named = zip(peer.state_dict(), ours.state_dict().values(), strict=True)  # all name their layers in this order
        peer.load_state_dict(dict(named))
        torch.testing.assert_close(peer(x), ours(x))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_peers_run_in_both_formats_eager_and_compiled(device: str) -> None:
    every = implementations.implementations(torch.device(device))
    assert len({each.name for each in every}) == len(every)
    modes = {None, "default"} if device == "cpu" else {None, "default", "reduce-overhead", "max-autotune"}
    for source in ("authors", "timm"):
        ways = {(each.channels_last, each.mode) for each in every if each.source == source}
        assert ways == {(channels_last, mode) for channels_last in (False, True) for mode in modes}
    if device == "cuda":
        for mode in modes - {None}:
            free = {each.may_change_layout for each in every if each.mode == mode and each.channels_last is False}
            assert free == {True, False}


# Measuring.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("autograd has threads for the GPU, so that forks compute no gradients")
    monkeypatch.setattr(steps, "PROCESSES", get_context("fork"))  # with what is imported and set here
    monkeypatch.setattr(steps, "ROUND_SECONDS", {"cpu": 0.01})
    monkeypatch.setattr(steps, "implementations", lambda _: [implementations.PLAIN, NHWC])


def run(results: Path | None) -> list[steps.Record]:
    return list(steps.run(SMALL, results))


@pytest.mark.usefixtures("quick")
def test_training_and_inference_beside_the_peers(tmp_path: Path) -> None:
    records = run(tmp_path / "results.jsonl")
    assert records[0]["setting"] == "ConvMixer-8/2, kernel 3, patch 2, 32×32, batch 4, fp32"
    assert [record["name"] for record in records] == [implementations.PLAIN.name, NHWC.name]
    for record in records:
        for phase in ("training", "inference"):
            assert len(record[phase]["images_per_second"]) == steps.ROUNDS
            assert min(record[phase]["images_per_second"]) > 0
            assert record[phase]["memory"] > 1e6
    table = report.records_table(records)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| authors")]
    assert [row[0] for row in rows] == 2 * [f"| {implementations.PLAIN.name}", f"| {NHWC.name}"]
    assert rows[0][3] == "1.00"  # times as fast as the plain form
    assert "reserved" not in table  # which the CPU has no figure for


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_is_measured_is_kept_at_once_and_not_measured_again(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    for record in steps.run([*SMALL, "model.kernel_size=3,5"], results, ["*NHWC*"]):
        assert report.read_results(results)[-1] == record
    assert [record.get("name") for record in report.read_results(results)] == 2 * [NHWC.name]
    with results.open("a") as file:
        file.write('\n{"setting": "cut off')
    assert [record["name"] for record in run(results)] == [implementations.PLAIN.name]
    assert run(results) == []
    assert len(report.read_results(results)) == 3


def test_results_that_cannot_be_read_are_an_error_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in tmp_path.iterdir():
        with pytest.raises(ConfigError, match=path.name):
            report.read_results(path)
    other = tmp_path / "other.jsonl"
    other.write_text('5\n[]\n{"where": "cpu"}\n')
    assert report.read_results(other) == [{"where": "cpu"}]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", [lambda: 1 / 0, lambda: os._exit(9)], ids=["raises", "ends its process"])
def test_an_implementation_that_fails_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, failure: Callable[[], object]
) -> None:
    build = steps.build
    monkeypatch.setattr(steps, "build", lambda each, *rest: failure() if each == NHWC else build(each, *rest))
    monkeypatch.setattr(steps, "implementations", lambda _: [NHWC, implementations.PLAIN])
    failed, completed = run(None)
    assert (failed["name"], completed["name"]) == (NHWC.name, implementations.PLAIN.name)
    assert failed["error"]
    assert completed["training"]
    assert failed["error"] in report.records_table([failed, completed])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--json"], "--json: "),
        (["overhed"], "overhed: "),
        (["model.kernel_size=0"], "model.kernel_size=0: "),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command(*arguments, cwd=tmp_path, script="benchmark")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.slow
def test_a_layer_in_every_way_and_what_auto_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(depthwise, "CPU_BACKENDS", [*depthwise.CPU_BACKENDS, Backend("banded", False)])
    settings = ["data=cifar10", "data.image_size=8", "data.batch_size=4", "model.d_model=128", "model.kernel_size=3,7"]
    first, second = depthwise.run(settings, results)
    left_out = first["backends"].pop("banded NCHW")
    assert left_out["reason"]
    assert set(first["backends"]) == {
        f"{backend} {layout}" for backend in ("reference", "stacked") for layout in ("NCHW", "NHWC")
    }
    assert all(each["milliseconds"] > 0 and each["error"] < 0.01 for each in first["backends"].values())
    assert (first["auto"], second["auto"]) == ("reference NHWC", "stacked NHWC")
    assert list(depthwise.run(settings, results)) == []
    table = report.records_table(report.read_results(results))
    assert all(part in table for part in (first["depthwise"], second["depthwise"], left_out["reason"]))


# The doctor.

LINES = ["software", "GPU", "driver", "compiler", "memory", "cores", "disk", "W&B", "layer", "run"]


@pytest.mark.slow
def test_doctor_gives_ten_lines_and_the_same_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selection, "ROUND_SECONDS", 0.001)
    monkeypatch.setenv("CC", "/nonexistent/cc")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    doctor.run([*SMALL, "data.image_size=8"])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == LINES
    doctor.run([*SMALL, "data.image_size=8", "model.backend=banded", "model.kernel_size=33"], as_json=True)
    shown = capsys.readouterr().out
    report = json.loads(shown)
    assert list(report) == [*LINES, "auto", "backends"]
    assert all("/nonexistent/cc: " in each for each in (text, report["compiler"]))
    assert "kernels up to 31" in report["run"]
    assert "0123456789" not in text + shown


def test_doctor_answers_where_nothing_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(depthwise.selection, "measure", full)
    monkeypatch.setattr(doctor.shutil, "disk_usage", full)
    doctor.run([*SMALL, "data.image_size=8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == LINES
    assert sum("No space left" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("capability", "wheel", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80"], False),
        ((8, 9), ["sm_75", "sm_80", "sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((10, 3), ["sm_90a", "sm_100"], True),
        ((12, 1), ["sm_90", "compute_90"], True),
        ((7, 0), ["sm_80", "compute_80"], False),
        ((9, 4), ["gfx90a", "gfx942"], True),
    ],
)
def test_gpu_without_kernels_in_the_wheel_is_one_line(
    capability: tuple[int, int], wheel: list[str], runs: bool
) -> None:
    reason = missing_kernels(capability, wheel)
    assert (reason is None) if runs else all(each in str(reason) for each in wheel)


# Counting, on fake tensors.


def test_counter_counts_a_steps_operations_without_a_gpu() -> None:
    with fake_cuda():
        model = torch.nn.Linear(8, 4, device="cuda")
        x = torch.randn(2, 8, device="cuda")
        with Counter() as counter:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(x).float().square().sum()
            loss.backward()
        assert counter.synchronizations == []
        (product,) = [call for call in counter.calls if call.name == "aten.addmm.default"]
        assert product.dtypes == {torch.bfloat16}
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


@pytest.mark.parametrize("options", [[], ["trainer.precision=fp16", "trainer.ema_decay=0.9"]], ids=" ".join)
def test_step_never_waits_and_keeps_its_precision(options: list[str]) -> None:
    small = ["model.d_model=8", "model.depth=1", "data.batch_size=8", "hardware=any"]
    config = checked("experiment=paper_cifar10", *small, "trainer.precision=bf16", *options)
    counters = count_steps(config, steps=2)
    assert [counter.synchronizations for counter in counters] == [[], []]
    dtype = DTYPES[config.trainer.precision]
    convolutions = [call for call in counters[-1].calls if "convolution" in call.name]
    assert len(convolutions) == 2 * 3  # patch embedding, depthwise, pointwise; forward and backward
    assert set().union(*(call.dtypes for call in convolutions)) == {dtype}
    assert any("foreach_norm" in call.name for call in counters[-1].calls)  # all gradients at once


def test_averaging_the_weights_is_one_operation() -> None:
    small = ["data=digits", "model.d_model=8", "model.depth=2", "augmentation=none"]
    without, averaged = (
        count_steps(checked(*small, *options), steps=1)[0] for options in ([], ["trainer.ema_decay=0.9"])
    )
    assert averaged.operations - without.operations == 1
