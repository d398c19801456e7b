"""One run, from its config to its record: the training loop, written out."""

import logging
import math
import random
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import config as cfg
import data
from augmentation import MixAndErase, Normalize, credit
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from optimization import make_optimizer, make_scheduler
from record import Record, RunExists, first_line
from terminal import RunProgress

log = logging.getLogger(__name__)

FAILED = math.nan


class NotFinite(RuntimeError):
    """The loss became NaN or infinite."""

    def __init__(self, loss: str, step: int, scheduler: Scheduler) -> None:
        scheduler.step_update(step)
        super().__init__(
            f"the {loss} loss became NaN or infinite at step {step}, learning rate "
            f"{current_lr(scheduler.optimizer):.3g}; a lower optimizer.lr or trainer.clip_grad_norm=1.0 may help"
        )


def run(config: cfg.Config, overrides: list[str]) -> float | None:
    """Train one ConvMixer and record it.

    Returns:
        The objective: the best epoch's `trainer.monitor`; None without validation; NaN if the run failed.
    """
    try:
        record = Record(config, overrides)
    except RunExists as error:
        log.error(str(error))
        return FAILED
    try:
        return train(config, record)
    except KeyboardInterrupt:
        log.warning(f"interrupted {record.name}, kept in {record.folder}")
        record.close(exit_code=130)
        raise
    except Exception as error:
        record.fail(error)
        log.error(f"FAILED {record.name}: {first_line(error)} ({record.folder}/train.log)")
        return FAILED


def train(config: cfg.Config, record: Record) -> float | None:
    started = time.perf_counter()
    seed_everything(config.seed)
    device = choose_device(config.trainer.device)

    images = data.load(config.data, config.model.patch_size)
    training = data.training_batches(images, config)
    validation = data.evaluation_batches(images.val, images, config) if images.val else None
    testing = data.evaluation_batches(images.test, images, config)
    normalize = Normalize(images, device)
    mix_and_erase = MixAndErase(config.augmentation, len(images.classes), device)

    model = make_model(config, images.channels, len(images.classes)).to(device)
    if config.trainer.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.optimizer)
    scheduler = make_scheduler(optimizer, config.scheduler, config.trainer.epochs, len(training))
    scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")
    average = make_average(model, config.trainer.ema_decay)
    evaluated = average.module if average else model
    network = cast(nn.Module, torch.compile(model)) if config.trainer.compile else model

    parameters = sum(p.numel() for p in model.parameters())
    record.update(
        parameters=parameters,
        macs=count_macs(config, images),
        device=describe(device),
        images={"train": len(images.train), "val": len(images.val or ()), "test": len(images.test)},
    )
    reset_peak_memory(device)
    log.info(
        f"{record.name}: ConvMixer-{config.model.d_model}/{config.model.depth}, {parameters / 1e6:.2f} M parameters; "
        f"{config.data.name} {images.image_size[0]}×{images.image_size[1]}, {len(images.train):,} images to train on; "
        f"{describe(device)}, {config.trainer.precision}"
    )

    best = Best(config.trainer.monitor)
    patience = Patience(config.trainer.early_stopping)
    with RunProgress(config.trainer.epochs, len(training)) as progress:
        for epoch in range(1, config.trainer.epochs + 1):
            epoch_started = time.perf_counter()
            cast(data.BatchOrder, training.sampler).epoch = epoch

            # One epoch of training. Sums stay on the device: nothing in this loop waits for it,
            # but for a look at the numbers once a second.
            network.train()
            sums = Sums(device)
            for step, (pixels, labels) in enumerate(to_device(training, device), start=1):
                update = (epoch - 1) * len(training) + step
                scheduler.step_update(update)
                inputs, targets = mix_and_erase(normalize(pixels), labels)
                inputs = memory_format(inputs, config)
                for part, target in split_batch(inputs, targets, config.trainer.accumulation_steps):
                    with autocast(device, config.trainer.precision):
                        logits = network(part)
                        loss = F.cross_entropy(logits, target, label_smoothing=config.trainer.label_smoothing)
                    scaler.scale(loss * (len(target) / len(labels))).backward()
                    sums.add(loss.detach(), logits.detach(), target, update)
                if config.trainer.clip_grad_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), config.trainer.clip_grad_norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if average:
                    average.update_parameters(model)
                if progress.is_due():
                    loss_so_far, accuracy_so_far = sums.read(scheduler)
                    rate = step * config.data.batch_size / (time.perf_counter() - epoch_started)
                    progress.show(epoch, step, loss_so_far, accuracy_so_far, current_lr(optimizer), rate)
            train_loss, train_accuracy = sums.read(scheduler)
            images_per_second = len(images.train) / (time.perf_counter() - epoch_started)

            # Validation, the epoch's row, and the checkpoints.
            val_loss, val_accuracy = None, None
            if validation is not None:
                val_loss, val_accuracy = evaluate(evaluated, validation, normalize, config, device)
                if not math.isfinite(val_loss):
                    raise NotFinite("validation", update, scheduler)
            row = {
                "epoch": epoch,
                "train/loss": train_loss,
                "train/accuracy": train_accuracy,
                "val/loss": val_loss,
                "val/accuracy": val_accuracy,
                "lr": current_lr(optimizer),
                "images_per_second": images_per_second,
                "seconds": time.perf_counter() - started,
            }
            record.add_epoch(row)
            checkpoint = {
                "model": evaluated.state_dict(),
                "config": asdict(config),
                "classes": images.classes,
                "channels": images.channels,
                "image_size": list(images.image_size),
                "mean": list(images.mean),
                "std": list(images.std),
                "metrics": row,
            }
            record.save("last", checkpoint)
            if best.is_beaten_by(row):
                record.save("best", checkpoint)
                record.update(**best.figures())
            log.info(describe_epoch(row, config.trainer.epochs), extra={"file_only": progress.live.is_started})
            if patience.is_over(epoch, val_loss):
                log.info(f"  stopped early after epoch {epoch}: val/loss has not fallen for {patience.waited} epochs")
                break

    # The test set is looked at once, with the best epoch's weights.
    evaluated.load_state_dict(record.load("best", device)["model"])
    test_loss, test_accuracy = evaluate(evaluated, testing, normalize, config, device)
    seconds = time.perf_counter() - started
    record.complete(
        **{"test/loss": test_loss, "test/accuracy": test_accuracy},
        objective=best.value,
        peak_memory=peak_memory(device),
        seconds=seconds,
        images_per_second=float(np.median([row["images_per_second"] for row in record.rows])),
    )
    validated = f"{best.row['val/accuracy']:.2%} validation, " if images.val else ""
    log.info(f"  {validated}{test_accuracy:.2%} test (epoch {best.row['epoch']}) in {seconds:.0f} s → {record.folder}")
    return best.value


def make_model(config: cfg.Config, channels: int, n_classes: int) -> ConvMixer:
    """The configured ConvMixer, from a layer, an embedding and a head."""
    model, dropout = config.model, config.dropout
    layer = ConvMixerLayer(
        model.d_model,
        model.kernel_size,
        activation=model.activation,
        norm=model.norm,
        residual_depthwise=model.residual_depthwise,
        residual_pointwise=model.residual_pointwise,
        dropout=dropout.blocks,
        stochastic_depth=dropout.stochastic_depth,
    )
    patch_emb = ConvPatchEmbeddings(
        model.d_model, model.patch_size, channels, activation=model.activation, norm=model.norm
    )
    classification = ConvClassificationHead(model.d_model, n_classes, dropout=dropout.head)
    return ConvMixer(layer, model.depth, patch_emb, classification)


def count_macs(config: cfg.Config, images: data.ImageData) -> int:
    """Multiply-accumulates of one image's forward pass, in convolutions and the classifier."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = make_model(config, images.channels, len(images.classes)).eval()
        model(torch.empty(1, images.channels, *images.image_size))
    return counter.get_total_flops() // 2


def make_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of the weights; BatchNorm's statistics are averaged likewise."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Any], normalize: Normalize, config: cfg.Config, device: torch.device
) -> tuple[float, float]:
    """Mean loss (without label smoothing) and accuracy."""
    model.eval()
    sums = Sums(device)
    for pixels, labels in to_device(batches, device):
        with autocast(device, config.trainer.precision):
            logits = model(memory_format(normalize(pixels), config))
            loss = F.cross_entropy(logits, labels)
        sums.add(loss, logits, labels)
    return sums.read()


class Sums:
    """Loss and accuracy so far, summed on the device; reading them waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device)
        self.first_bad = torch.zeros((), device=device, dtype=torch.int64)
        self.seen = 0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, update: int = 0) -> None:
        self.loss += loss * len(targets)
        self.correct += credit(logits, targets)
        is_first = ~loss.isfinite() & (self.first_bad == 0)
        self.first_bad += is_first * update
        self.seen += len(targets)

    def read(self, scheduler: Scheduler | None = None) -> tuple[float, float]:
        """Mean loss and accuracy.

        Raises:
            NotFinite: the training loss was NaN or infinite at some step.
        """
        if self.first_bad.item():
            assert scheduler is not None
            raise NotFinite("training", int(self.first_bad), scheduler)
        return float(self.loss) / self.seen, float(self.correct) / self.seen


class Best:
    """The best epoch so far; without validation, the last."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.row: dict[str, Any] = {}

    @property
    def value(self) -> float | None:
        return self.row[self.monitor]

    def is_beaten_by(self, row: dict[str, Any]) -> bool:
        if self.row and self.value is not None and self.rank(row) <= self.rank(self.row):
            return False
        self.row = row
        return True

    def rank(self, row: dict[str, Any]) -> tuple[float, float]:
        """Higher is better; an equal accuracy is decided by the loss."""
        if self.monitor == "val/loss":
            return -row["val/loss"], row["val/accuracy"]
        return row["val/accuracy"], -row["val/loss"]

    def figures(self) -> dict[str, Any]:
        keys = ("epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy")
        return {f"best/{key}": self.row[key] for key in keys}


class Patience:
    """Early stopping on val/loss."""

    def __init__(self, config: cfg.EarlyStopping) -> None:
        self.config = config
        self.lowest = math.inf
        self.waited = 0

    def is_over(self, epoch: int, val_loss: float | None) -> bool:
        if self.config.patience is None or val_loss is None or epoch < self.config.start_epoch:
            return False
        if val_loss < self.lowest - self.config.min_delta:
            self.lowest, self.waited = val_loss, 0
        else:
            self.waited += 1
        return self.waited >= self.config.patience


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """The device asked for; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: it is not to be had here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise cfg.ConfigError(f"trainer.device={name}: not available on this machine; expected auto or {there}")
    return torch.device(name)


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: start the process's peak anew


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the run's highest: of the GPU's tensors, else of the process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        (kib,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(kib) * 1024
    return None


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def memory_format(inputs: Tensor, config: cfg.Config) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if config.trainer.channels_last else inputs


def split_batch(inputs: Tensor, targets: Tensor, parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(inputs.chunk(parts), targets.chunk(parts), strict=True)


def to_device(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device; on CUDA the next one is copied while this one is worked on."""
    if device.type != "cuda":
        for pixels, labels in batches:
            yield pixels.to(device), labels.to(device)
        return
    copies = torch.cuda.Stream(device)
    current = torch.cuda.current_stream(device)
    ready = None
    for batch in batches:
        with torch.cuda.stream(copies):
            coming = tuple(part.to(device, non_blocking=True) for part in batch)
        if ready is not None:
            yield ready
        current.wait_stream(copies)
        for part in coming:
            part.record_stream(current)
        ready = coming
    if ready is not None:
        yield ready


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    validated = "" if row["val/loss"] is None else f", val {row['val/loss']:.3f} {row['val/accuracy']:.1%}"
    return (
        f"  epoch {row['epoch']}/{epochs}: train {row['train/loss']:.3f} {row['train/accuracy']:.1%}{validated}, "
        f"lr {row['lr']:.2g}, {row['images_per_second']:,.0f} images/s"
    )
