"""One step of the optimizer on one batch: augment, forward, backward, clip, update, average."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data.splits import DataSplits
from data.transforms import MixAndErase, Normalize
from runtime.device import autocast
from runtime.rng import seed_rngs
from training.model import memory_format, wrap
from training.optimization import set_lr
from training.state import TrainingState


class TrainStep:
    """Nothing in a step waits for the device.

    Args:
        state: what it changes: weights, optimizer, metrics.
        data: for the images' mean and deviation, and the number of classes.
        whole_batch: images of a batch that is not the last, over all ranks.
    """

    def __init__(self, state: TrainingState, data: DataSplits, whole_batch: int) -> None:
        self.state, self.config, self.world, self.whole_batch = state, state.config, state.world, whole_batch
        self.normalize = Normalize(data, state.device, memory_format(state.config))
        self.mix_and_erase = MixAndErase(state.config.augmentation, len(data.classes), state.device)
        self.network = wrap(state.model, state.config, state.world, state.device)

    def __call__(self, pixels: Tensor, labels: Tensor, step: int, lr: float, batch_size: int, parts: int) -> None:
        """
        Args:
            pixels: this rank's share of a batch, uint8 [images, channels, height, width], on the device.
            labels: [images].
            step: of the run, from 1.
            batch_size: images of the batch over all ranks.
            parts: micro-batches to process the share in.
        """
        state, trainer = self.state, self.config.trainer
        set_lr(state.optimizer, lr)
        seed_rngs(self.config.seed, step, self.world.rank)
        inputs, targets = self.mix_and_erase(self.normalize(pixels), labels)
        if trainer.compile:
            torch.compiler.cudagraph_mark_step_begin()  # whatever CUDA graphs returned in the last step is done with
        micro_batches = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for i, (part, target) in enumerate(micro_batches, start=1):
            with self.compiled_or_eager(batch_size), self.gradient_exchange(is_last=i == parts):
                with autocast(state.device, trainer.precision):
                    logits = self.network(part)
                    loss = F.cross_entropy(logits, target, label_smoothing=trainer.label_smoothing)
                loss_weight = len(target) * self.world.size / batch_size  # DDP takes the mean over ranks
                state.scaler.scale(loss * loss_weight).backward()
            state.metrics.add(loss.detach(), logits.detach(), target, step)
        if trainer.clip_grad_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), trainer.clip_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        if state.ema:
            state.ema.update(step)

    def gradient_exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, in the backward pass of the last micro-batch."""
        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext()

    def compiled_or_eager(self, batch_size: int) -> AbstractContextManager[Any]:
        """Compiled for the shape of a whole batch; the smaller last one of an epoch is not worth another graph."""
        if not self.config.trainer.compile:
            return nullcontext()
        return torch.compiler.set_stance("default" if batch_size == self.whole_batch else "force_eager")
