"""One run on several processes gives what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batches import BatchKey, BatchOrder
from conftest import command
from distributed import Team
from processes import REPOSITORY

# No norm: BatchNorm over all processes is for GPUs only. SGD: Adam divides gradients by their
# own size, so that it makes much of the rounding of the smallest.
ARGUMENTS = (
    "model.d_model=8", "model.depth=2", "model.norm=none", "optimizer=sgd", "trainer.epochs=2", "trainer.device=cpu",
    "augmentation=paper", "augmentation.random_erasing=0", "data.train_fraction=0.3", "wandb.mode=disabled",
    "trainer.figures=false",
)  # fmt: skip


def torchrun(processes: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, str(REPOSITORY / "src" / "train.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("length", [60, 61, 67])
@pytest.mark.parametrize("size", [2, 3])
def test_a_team_shares_every_batch(length: int, size: int) -> None:
    def keys(team: Team) -> list[BatchKey]:
        return list(BatchOrder(length, 16, seed=3, pairs=True, team=team))

    alone = keys(Team())
    shares = [keys(Team(rank, size)) for rank in range(size)]
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


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    alone = command(*ARGUMENTS, "sweep=one", cwd=tmp_path)
    team = torchrun(2, *ARGUMENTS, "sweep=two", cwd=tmp_path)
    assert (alone.returncode, team.returncode) == (0, 0), alone.stderr + team.stderr
    one, two = (pd.read_csv(next(tmp_path.glob(f"outputs/{sweep}/*/metrics.csv"))) for sweep in ("one", "two"))
    columns = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"]
    np.testing.assert_allclose(one[columns], two[columns], rtol=1e-4)
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/*/summary.json")]
    assert [summary["status"] for summary in summaries] == ["completed"] * 2
    assert summaries[0]["test/loss"] == pytest.approx(summaries[1]["test/loss"], rel=1e-4)
    assert team.stdout.count("epoch 2/2") == 1  # one voice


def test_a_sweep_on_two_processes(tmp_path: Path) -> None:
    done = torchrun(2, "-m", "model.kernel_size=3,5", *ARGUMENTS, "trainer.epochs=1", "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("outputs/s/*/metrics.csv"))) == 2
    assert done.stdout.count("run 2 of 2") == 1


def test_the_processes_must_share_a_name(tmp_path: Path) -> None:
    done = torchrun(2, *ARGUMENTS, cwd=tmp_path)
    assert done.returncode != 0
    assert "set it with sweep=NAME" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_batch_norm_over_processes_without_gpus_is_an_error(tmp_path: Path) -> None:
    done = torchrun(2, *ARGUMENTS, "trainer.sync_batch_norm=true", "sweep=s", cwd=tmp_path)
    assert done.returncode != 0
    assert "trainer.sync_batch_norm=true: PyTorch has it for GPUs only" in done.stdout
