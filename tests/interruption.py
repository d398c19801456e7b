"""Small runs within this process, interrupted by a signal at a step."""

import signal
from pathlib import Path

import pytest

from config.schema import Config
from conftest import checked
from training import step

SMALL = ("model.d_model=8", "model.depth=2", "trainer.epochs=3", "data.train_fraction=0.3", "checkpoint.max_share=1",
         "trainer.figures=false")  # fmt: skip


def configured(tmp_path: Path, *overrides: str, sweep: str = "s") -> Config:
    return checked(*SMALL, "checkpoint.keep=all", *overrides, f"output_dir={tmp_path}", f"sweep={sweep}")


def signal_at_step(chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Slurm's warning signal to the process during a step of the run."""
    seed_rngs = step.seed_rngs

    def seed_and_signal(seed: int, number: int, rank: int) -> None:
        seed_rngs(seed, number, rank)
        if number == chosen:
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(step, "seed_rngs", seed_and_signal)
