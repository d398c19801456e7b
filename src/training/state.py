"""The training state: model, optimizer, metrics and counters, saved in and loaded from a checkpoint."""

import time
from typing import Any

import torch
from torch import nn

from config.schema import Config
from runtime.distributed import World
from training.metrics import MetricAccumulator
from training.model import EMA
from training.optimization import make_optimizer
from training.selection import Selection


class Stopwatch:
    """A stopwatch whose seconds continue when a run is resumed."""

    def __init__(self) -> None:
        self.before = 0.0
        self.started: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (time.perf_counter() - self.started if self.started is not None else 0.0)

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.before, self.started = self.seconds, None


class TrainingState:
    """The state of a run between two steps.

    Attributes:
        model: The model in training, on its device.
        config: The resolved config, with the selected backend and memory format.
        selection: The selection of the backend, with its measurements; None in benchmarks.
        ema: The average of the model's weights, or None.
        metrics: Sums over this epoch's images so far, on this rank.
        epoch: The current epoch, from 1.
        step: The number of completed steps of the epoch.
        epoch_clock: Seconds of the epoch.
        clock: Seconds of the run.
    """

    def __init__(
        self, model: nn.Module, config: Config, world: World, device: torch.device, selection: Selection | None = None
    ) -> None:
        self.model, self.config, self.world, self.device, self.selection = model, config, world, device, selection
        self.optimizer = make_optimizer(model, config.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")
        self.ema = None if config.trainer.ema_decay is None else EMA(model, config.trainer.ema_decay)
        self.clock = Stopwatch()
        self.epoch = 0
        self.begin_epoch()

    @property
    def evaluated(self) -> nn.Module:
        """The model to validate, save and test: the average if there is one."""
        return self.ema.module if self.ema else self.model

    def begin_epoch(self) -> None:
        """Move on to the first step of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.metrics = MetricAccumulator(self.device)
        self.epoch_clock = Stopwatch()

    def state_dict(self) -> dict[str, Any]:
        """Collect the state; all ranks call it together, because metrics are summed over them, and rank 0 saves it."""
        return {
            "model": self.model.state_dict(),
            "ema": {"module": self.ema.module.state_dict()} if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metrics": self.metrics.all_reduced(self.world).state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "selection": self.selection and self.selection.state,
            "epoch_seconds": self.epoch_clock.seconds,
            "seconds": self.clock.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"]["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.world.rank == 0:  # saved metrics are sums over all ranks
            self.metrics.load_state_dict(state["metrics"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.epoch_clock.before, self.clock.before = state["epoch_seconds"], state["seconds"]
