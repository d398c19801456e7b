"""One training step on one batch: augment, forward, backward, clip, update, average."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from config.errors import first_line
from data.balance import balanced_weights
from data.splits import DataSplits
from ops import depthwise
from pipeline.batches import DistributedBatchSampler
from pipeline.transforms import MixAndErase, Normalize
from runtime.device import autocast, is_gpu_lost
from runtime.rng import seed_rngs
from runtime.timing import Spans
from training.measurements import forget
from training.model import memory_format, wrap
from training.optimization import set_lr, train_mode
from training.state import TrainingState

log = logging.getLogger(__name__)

MIN_SPANS = 5  # timed steps of an epoch that the check of a measurement needs
MAX_SLOWDOWN = 1.5  # of a step over its layers; embedding, head and loss take far less than half of a layer's time


class TrainStep:
    """A training step, which never synchronizes the device.

    Args:
        state: Weights, optimizer and metrics, which each step changes.
        data: The data set, for its mean, standard deviation and classes.
        whole_batch: Number of images over all ranks in every batch except the last of an epoch.
    """

    def __init__(self, state: TrainingState, data: DataSplits, whole_batch: int) -> None:
        self.state, self.config, self.world, self.whole_batch = state, state.config, state.world, whole_batch
        self.normalize = Normalize(data, state.device, memory_format(state.config))
        self.mix_and_erase = MixAndErase(state.config.augmentation, len(data.classes), state.device)
        self.network = wrap(state.model, state.config, state.world)
        self.class_weights: Tensor | None = None
        if state.config.trainer.class_weights == "balanced":
            weights = balanced_weights(data.train.labels, len(data.classes))
            self.class_weights = torch.from_numpy(weights).to(state.device)
        is_measured = state.selection and state.selection.milliseconds
        self.spans = Spans(state.device) if is_measured else None  # steps of the first epoch

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss over images; class weights scale each image's loss without changing the divisor."""
        smoothing, weights = self.config.trainer.label_smoothing, self.class_weights
        if weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum") / len(targets)

    def __call__(self, pixels: Tensor, labels: Tensor, step: int, lr: float, batch_size: int, parts: int) -> None:
        """Train on one batch.

        Args:
            pixels: This rank's share of the batch, uint8 [images, channels, height, width], on the device.
            labels: Class numbers [images].
            step: Number of the step in the run, from 1.
            lr: Learning rate of this step.
            batch_size: Number of images of the batch over all ranks.
            parts: Number of micro-batches for gradient accumulation.
        """
        state, trainer = self.state, self.config.trainer
        set_lr(state.optimizer, lr)
        seed_rngs(self.config.seed, step, self.world.rank)
        inputs, targets = self.mix_and_erase(self.normalize(pixels), labels)
        if trainer.compile:
            torch.compiler.cudagraph_mark_step_begin()  # CUDA graphs may overwrite outputs of the last step
        micro_batches = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        with self.spans.note() if self.spans and batch_size == self.whole_batch else nullcontext():
            for i, (part, target) in enumerate(micro_batches, start=1):
                with self.compiled_or_eager(batch_size), self.gradient_exchange(is_last=i == parts):
                    with autocast(state.device, trainer.precision):
                        logits = self.network(part)
                        loss = self.loss(logits, target)
                    loss_weight = len(target) * self.world.size / batch_size  # DDP averages over ranks
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
        """Make a context in which ranks average gradients only in the last micro-batch's backward pass."""
        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext()

    def compiled_or_eager(self, batch_size: int) -> AbstractContextManager[Any]:
        """Make a context that compiles whole batches and runs the smaller last batch of an epoch eagerly."""
        if not self.config.trainer.compile:
            return nullcontext()
        return torch.compiler.set_stance("default" if batch_size == self.whole_batch else "force_eager")

    def rehearsal_error(self, sampler: DistributedBatchSampler) -> str | None:
        """Rehearse a step, and return the error if the network cannot be computed with the selected backend."""
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
        """Run the network on random images in every batch size and mode of the run; restore the model's buffers.

        Args:
            smaller: Number of images of a micro-batch in an epoch's last batch.
            evaluated: Number of images of a batch in evaluation.

        Raises:
            RuntimeError: The network used another backend than the selected one.
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
        """Drop the measurement if the steps of the first epoch took far longer than it promised."""
        selection, spans, self.spans = self.state.selection, self.spans, None
        if not (selection and spans and len(spans.marks) >= MIN_SPANS):
            return
        model, trainer = self.config.model, self.config.trainer
        expected = selection.milliseconds[str(selection.backend)] * model.depth * trainer.accumulation_steps
        milliseconds = 1000 * spans.median_seconds()
        if milliseconds > MAX_SLOWDOWN * expected:
            log.warning(
                f"forward and backward take {milliseconds:.1f} ms, {milliseconds / expected:.1f} times as long as "
                f"measured for the layers with {selection.backend}: later runs measure again"
            )
            if self.world.rank == 0:
                forget(selection.layer)
