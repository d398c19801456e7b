"""One step of the optimizer on one batch: augment, forward, backward, clip, update, average."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from config.errors import first_line
from data.balance import balanced_weights
from data.batches import DistributedBatchSampler
from data.splits import DataSplits
from data.transforms import MixAndErase, Normalize
from ops import depthwise
from runtime.device import autocast, is_gpu_lost
from runtime.rng import seed_rngs
from runtime.timing import Spans
from training.measurements import forget
from training.model import memory_format, wrap
from training.optimization import set_lr, train_mode
from training.state import TrainingState

log = logging.getLogger(__name__)

FEWEST_SPANS = 5  # of whole batches in an epoch, to judge a measurement by
SLOWER = 1.5  # than the layers' times: the embedding, the head and the loss take far less than that


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
        self.class_weights: Tensor | None = None
        if state.config.trainer.class_weights == "balanced":
            weights = balanced_weights(data.train.labels, len(data.classes))
            self.class_weights = torch.from_numpy(weights).to(state.device)
        is_measured = state.selection and state.selection.milliseconds
        self.spans = Spans(state.device) if is_measured else None  # of whole batches, until they are checked

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over images, so that parts of a batch add up to it, also with weights of their classes."""
        smoothing, weights = self.config.trainer.label_smoothing, self.class_weights
        if weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum") / len(targets)

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
        with self.spans.note() if self.spans and batch_size == self.whole_batch else nullcontext():
            for i, (part, target) in enumerate(micro_batches, start=1):
                with self.compiled_or_eager(batch_size), self.gradient_exchange(is_last=i == parts):
                    with autocast(state.device, trainer.precision):
                        logits = self.network(part)
                        loss = self.loss(logits, target)
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

    def rehearsal_error(self, sampler: DistributedBatchSampler) -> str | None:
        """Rehearse; say why the run's network cannot be computed with the selected backend, None if it can."""
        last, parts = len(sampler) - 1, self.config.trainer.accumulation_steps
        smaller = sampler.smallest_share(last) // sampler.micro_batches(last, parts)
        try:
            self.rehearse(smaller, evaluated=-(-self.config.data.batch_size // self.world.size))
        except Exception as error:
            if is_gpu_lost():
                raise
            return first_line(error)
        return None

    def rehearse(self, smaller: int, evaluated: int) -> None:
        """Compute random images in each way in which the run does, and leave the model as it was.

        Args:
            smaller: images of a micro-batch in the last batch.
            evaluated: images of a batch in evaluation.

        Raises:
            RuntimeError: another backend than the selected one computes them.
        """
        state, selection = self.state, self.state.selection
        assert selection
        whole, *image = selection.layer.shape
        before = [buffer.clone() for buffer in state.model.buffers()]
        depthwise.COMPUTED.clear()
        train_mode(self.network)
        for images, batch_size in ((whole, self.whole_batch), (smaller, 0)):
            with self.compiled_or_eager(batch_size), self.gradient_exchange(is_last=False):
                with autocast(state.device, self.config.trainer.precision):
                    logits = self.network(self.random_images(images, *image))
                state.scaler.scale(logits.float().square().mean()).backward()
        state.optimizer.zero_grad()
        state.evaluated.eval()
        with torch.no_grad(), autocast(state.device, self.config.trainer.precision):
            state.evaluated(self.random_images(evaluated, *image))
        with torch.no_grad():
            for buffer, values in zip(state.model.buffers(), before, strict=True):
                buffer.copy_(values)
        if others := set(depthwise.COMPUTED) - {selection.backend.name}:
            raise RuntimeError(f"computed with {', '.join(sorted(others))} instead")

    def random_images(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.state.device).to(memory_format=memory_format(self.config))

    def check_measurement(self) -> None:
        """After the first epoch: if a step takes far longer than its layers were measured to take, forget that."""
        selection, spans, self.spans = self.state.selection, self.spans, None
        if not (selection and spans and len(spans.marks) >= FEWEST_SPANS):
            return
        model, trainer = self.config.model, self.config.trainer
        promised = selection.milliseconds[str(selection.backend)] * model.depth * trainer.accumulation_steps
        found = 1000 * spans.median_seconds()
        if found > SLOWER * promised:
            log.warning(
                f"forward and backward take {found:.1f} ms, {found / promised:.1f} times as long as the layers were "
                f"measured to take with {selection.backend}: later runs measure again"
            )
            if self.world.rank == 0:
                forget(selection.layer)
