"""Tests of one run on several processes: its results equal those of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from config.errors import ConfigError
from conftest import checked, command, start, summaries, wait_for
from data import datasets
from pipeline.batches import BatchSpec, DistributedBatchSampler, make_eval_loader, make_train_loader
from pipeline.transforms import Normalize
from processes import REPOSITORY, Command
from runtime import device
from runtime.distributed import World, init_distributed, leave_at_once
from training.evaluation import evaluate
from training.model import make_model

# No norm: BatchNorm over all processes is for GPUs only. SGD: Adam divides gradients by their
# own size, so that it makes much of the rounding of the smallest.
ARGUMENTS = (
    "model.d_model=8", "model.depth=2", "model.norm=none", "optimizer=sgd", "trainer.epochs=2", "trainer.device=cpu",
    "augmentation=paper", "augmentation.random_erasing=0", "data.train_fraction=0.3", "wandb.mode=disabled",
    "trainer.figures=false",
)  # fmt: skip
COLUMNS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"]


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launcher, str(REPOSITORY / "src" / "train.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def start_ranks(*arguments: str, cwd: Path) -> list[Command]:
    """Start two ranks of a run without torchrun, which is slower, so that each can get a signal."""
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    return [start(*arguments, cwd=cwd, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in ("0", "1")]


def outputs(ranks: list[Command]) -> list[str]:
    return [process.communicate(timeout=120)[0] for process in ranks]


@pytest.mark.parametrize("length", [60, 61, 67])
@pytest.mark.parametrize("size", [2, 3])
def test_a_team_shares_every_batch(length: int, size: int) -> None:
    def keys(world: World) -> list[BatchSpec]:
        return list(DistributedBatchSampler(length, 16, seed=3, pairs=True, world=world))

    alone = keys(World())
    shares = [keys(World(rank, size)) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    for batch, parts in enumerate(zip(*shares, strict=True)):
        together = np.concatenate([part.indices for part in parts])
        assert sorted(together) == sorted(alone[batch].indices)
        partners = dict(zip(alone[batch].indices, alone[batch].indices[::-1], strict=True))
        seeds = dict(zip(alone[batch].indices, alone[batch].seeds, strict=True))
        for part in parts:
            assert len(part.indices) % 2 == 0
            assert [partners[index] for index in part.indices] == list(part.indices[::-1])
            assert [seeds[index] for index in part.indices] == list(part.seeds)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_team_divides_its_shares_into_as_many_parts(pairs: bool) -> None:
    for size, batch_size, asked in ((1, 12, 5), (2, 10, 5), (2, 12, 3), (3, 16, 4), (3, 6, 6)):
        for length in range(2 * size, 3 * batch_size):
            orders = [DistributedBatchSampler(length, batch_size, 3, pairs, World(rank, size)) for rank in range(size)]
            for batch, keys in enumerate(zip(*orders, strict=True)):
                counts = {order.micro_batches(batch, asked) for order in orders}
                assert len(counts) == 1
                (count,) = counts
                shares = [torch.from_numpy(key.indices) for key in keys]
                for share in shares:
                    parts = share.tensor_split(count)
                    assert len(parts) == count and all(len(part) for part in parts)
                    assert torch.cat(parts).equal(share)
                assert count == min(asked, *map(len, shares))


@pytest.mark.parametrize(
    ("overrides", "size", "error"),
    [
        (["data.batch_size=2"], 2, "data.batch_size=2: .* expected at least 4"),
        (["data.batch_size=5"], 3, "data.batch_size=5: .* expected at least 6"),
        (["data.train_fraction=0.01"], 8, "data.train_fraction=0.01: only 13 training images remain; .* at least 16"),
    ],
)
def test_too_little_for_every_process_is_an_error(overrides: list[str], size: int, error: str) -> None:
    config = checked(*overrides)
    images = datasets.load(config.data, config.model.patch_size)
    with pytest.raises(ConfigError, match=error):
        make_train_loader(images, config, World(0, size))


@pytest.mark.slow
def test_a_sweep_on_two_processes_gives_the_results_of_one(tmp_path: Path) -> None:
    alone = command("model.kernel_size=5", *ARGUMENTS, "data.batch_size=30", "sweep=one", cwd=tmp_path)
    parts = ("data.batch_size=30", "trainer.accumulation_steps=5")  # of 16 and 14 images
    done = torchrun("-m", "model.kernel_size=3,5", *ARGUMENTS, *parts, "sweep=two", cwd=tmp_path)
    assert (alone.returncode, done.returncode) == (0, 0), alone.stderr + done.stdout + done.stderr
    assert len(summaries(tmp_path / "outputs" / "two")) == 2
    of_one, of_team = (next(tmp_path.glob(f"outputs/{sweep}/kernel_size_5*")) for sweep in ("one", "two"))
    metrics = [pd.read_csv(folder / "metrics.csv")[COLUMNS] for folder in (of_one, of_team)]
    np.testing.assert_allclose(metrics[0], metrics[1], rtol=1e-4)
    single, several = (json.loads((folder / "summary.json").read_text()) for folder in (of_one, of_team))
    assert single["status"] == several["status"] == "completed"
    assert single["test/loss"] == pytest.approx(several["test/loss"], rel=1e-4)
    assert done.stdout.count("run 2 of 2") == 1
    assert done.stdout.count("epoch 2/2") == 2  # rank 0 alone logs


TEAM = (
    *ARGUMENTS, "trainer.ema_decay=0.2", "model.norm=batch", "checkpoint.max_share=1", "data.train_fraction=0.2",
    "data.batch_size=8",  # the statistics of four images differ
    "trainer.epochs=9", "trainer.early_stopping.patience=1", "trainer.early_stopping.start_epoch=3",
    "trainer.early_stopping.min_delta=100",  # stops after 4
)  # fmt: skip


@pytest.fixture(scope="module")
def team_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run on two processes, and return its folder."""
    cwd = tmp_path_factory.mktemp("team")
    texts = outputs(start_ranks(*TEAM, "sweep=whole", cwd=cwd))
    assert [summary["status"] for summary in summaries(cwd / "outputs" / "whole")] == ["completed"], texts
    return next(cwd.glob("outputs/whole/*/metrics.csv")).parent


@pytest.mark.slow
@pytest.mark.xdist_group("team")
def test_a_team_goes_on_as_if_it_had_never_stopped(tmp_path: Path, team_run: Path) -> None:
    arguments = (*TEAM, "checkpoint.minutes=1e-6")  # whenever it can be
    ranks = start_ranks(*arguments, "sweep=parts", cwd=tmp_path)
    sweep = tmp_path / "outputs" / "parts"
    wait_for(lambda: any(path.read_text().count("\n") > 1 for path in sweep.glob("*/metrics.csv")), ranks[0])
    ranks[1].send_signal(signal.SIGUSR1)
    texts = outputs(ranks)
    assert [process.returncode for process in ranks] == [128 + signal.SIGUSR1] * 2, texts
    (last,) = sweep.glob("*/checkpoints/last.pt")
    state = torch.load(last)  # within an epoch, but for bad luck
    texts = outputs(start_ranks(*arguments, "sweep=parts", cwd=tmp_path))
    assert f"resumes after step {state['step']} of epoch {state['epoch']}" in texts[0]

    undisturbed, resumed = (pd.read_csv(folder / "metrics.csv") for folder in (team_run, last.parents[1]))
    np.testing.assert_allclose(
        undisturbed[COLUMNS], resumed[COLUMNS], rtol=1e-5
    )  # the order in which losses are added up differs


@pytest.mark.slow
def test_a_signal_to_one_process_stops_the_team_after_an_epoch(tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "data.batch_size=2000", "trainer.epochs=1000")  # epochs of one step
    ranks = start_ranks(*arguments, "sweep=s", cwd=tmp_path)
    wait_for(
        lambda: any(path.read_text().count("\n") > 1 for path in tmp_path.glob("outputs/s/*/metrics.csv")), ranks[0]
    )
    ranks[1].send_signal(signal.SIGUSR1)
    texts = outputs(ranks)
    assert [process.returncode for process in ranks] == [128 + signal.SIGUSR1] * 2, texts
    (summary,) = summaries(tmp_path / "outputs" / "s")
    assert summary["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.xdist_group("team")
def test_a_team_validates_the_weights_that_it_keeps(team_run: Path) -> None:
    summary = json.loads((team_run / "summary.json").read_text())
    config = checked(*TEAM)
    images = datasets.load(config.data, config.model.patch_size)
    assert images.val
    model = make_model(config, images.channels, len(images.classes))
    model.load_state_dict(torch.load(team_run / "checkpoints" / "best.pt")["model"])
    cpu = torch.device("cpu")
    batches = make_eval_loader(images.val, images, config)
    validated = evaluate(model, batches, Normalize(images, cpu), "fp32", cpu, World(), iter)
    assert validated.metrics == pytest.approx((summary["best/val/loss"], summary["best/val/accuracy"]), rel=1e-6)


@pytest.mark.slow
def test_the_processes_must_share_a_name(tmp_path: Path) -> None:
    ranks = start_ranks(*ARGUMENTS, cwd=tmp_path)
    assert all("Fix: sweep=NAME" in text for text in outputs(ranks))
    assert [process.returncode for process in ranks] == [1, 1]
    assert not (tmp_path / "outputs").exists()


def test_batch_norm_over_processes_without_gpus_is_an_error(tmp_path: Path) -> None:
    ranks = start_ranks(*ARGUMENTS, "trainer.sync_batch_norm=true", "sweep=s", cwd=tmp_path)
    assert "error: trainer.sync_batch_norm=true: PyTorch has it for GPUs only" in outputs(ranks)[0]
    assert not list(tmp_path.glob("outputs/s/*")), "said before the run has a folder"
    assert [process.returncode for process in ranks] == [1, 1]


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"),
    [(4, None, 0), (4, "0", 0), (4, "3", 3), (1, "3", 0)],
    ids=["one process", "torchrun, first", "torchrun, last", "Slurm, a GPU for each task"],
)
def test_a_rank_takes_its_gpu_among_those_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: str | None, expected: int
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    monkeypatch.setattr(device, "assign_gpu", lambda: 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    device.choose_device("cuda")
    assert taken == [expected]


def test_a_gpu_without_bf16_is_named_with_what_to_set_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    monkeypatch.setattr(device, "assign_gpu", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 2080 Ti")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(ConfigError, match=r"trainer.precision=bf16: NVIDIA GeForce RTX 2080 Ti .*fp16 or fp32"):
        device.choose_device("auto", "bf16")
    assert device.choose_device("auto", "fp16").type == "cuda"


def test_slurms_gpus_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES is kept, which submitit would set to the rank's number."""
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "0",
           "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost",
           "SLURM_NODELIST": "localhost", "SUBMITIT_EXECUTOR": "slurm"}  # fmt: skip
    with monkeypatch.context() as patched:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patched.setenv(name, "")  # to be restored
            patched.delenv(name)
        for name, value in {**job, "CUDA_VISIBLE_DEVICES": "4,5,6,7"}.items():
            patched.setenv(name, value)
        patched.setattr("submitit.slurm.slurm.SlurmJobEnvironment.hostnames", ["localhost"])
        patched.setattr(torch.distributed, "init_process_group", lambda *_: None)
        patched.setattr(torch.distributed, "get_rank", lambda: 3)
        world = init_distributed.__wrapped__()
        leave_at_once()
        assert (world.rank, world.size) == (3, 4)
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LOCAL_RANK"]) == ("4,5,6,7", "3")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_ranks(tmp_path: Path) -> None:
    ranks = start_ranks(*ARGUMENTS, "optimizer.lr=1e30", "data.batch_size=8", "sweep=s", cwd=tmp_path)
    texts = outputs(ranks)
    assert [process.returncode for process in ranks] == [1, 1], texts
    (summary,) = summaries(tmp_path / "outputs" / "s")
    assert summary["status"] == "failed"
    assert "NaN or infinite" in summary["error"]
