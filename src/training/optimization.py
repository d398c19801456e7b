"""The optimizer, its parameter groups and the learning rate schedule."""

import math
import re
from collections import defaultdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from config import schema
from config.errors import ConfigError
from config.optimizers import optimizer_arguments, optimizer_class
from config.schema import Config, Cosine, Step, WarmedUp
from pipeline.batches import DistributedBatchSampler

FROZEN = {  # values of trainer.freeze, and the parameters that each keeps fixed
    "none": r"(?!)",
    "all_but_head": r"(?!classification)",
    "depthwise": r".*\.depth_wise_conv\.",
    "pointwise": r".*\.point_wise_conv\.",
    "patch_emb": r"patch_emb\.",
}


def freeze(model: nn.Module, which: str) -> None:
    """Exclude the parameters of trainer.freeze from training."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not re.match(FROZEN[which], name))


def train_mode(model: nn.Module) -> None:
    """Set training mode, except in frozen modules, which stay without dropout and keep their statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def make_optimizer(model: nn.Module, config: schema.Optimizer) -> Optimizer:
    """Make the configured optimizer. Its first parameter group has the configured learning rate."""
    alike = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_norm_or_bias = parameter.ndim == 1
            layers = layers_below_head(model, name) if config.layer_decay < 1 else 0
            alike[layers, is_norm_or_bias].append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": 0.0 if is_norm_or_bias and not config.decay_norm_and_bias else config.weight_decay,
            "lr_scale": config.layer_decay**layers,
        }
        for (layers, is_norm_or_bias), parameters in sorted(alike.items())
    ]
    make: Any = optimizer_class(config.name)
    return make(groups, lr=config.lr, **optimizer_arguments(config))


def layers_below_head(model: nn.Module, name: str) -> int:
    """Count a parameter's distance from the head: 0 in the head, 1 in the last layer, depth + 1 in the embedding."""
    depth = sum(".depth_wise_conv.weight" in other for other, _ in model.named_parameters())
    if layer := re.match(r"conv_mixer_layers\.(\d+)\.", name):
        return depth - int(layer[1])
    return 0 if name.startswith("classification") else depth + 1


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Compute the learning rate of a step of the run; the first step is 1.

    `one_cycle` follows the authors (locuslab/convmixer-cifar10): linear from 0 to optimizer.lr at 2/5 of the run, to
    optimizer.lr / 20 at 4/5, to 0 at the end. The other schedules rise linearly to optimizer.lr at the last warm-up
    step. The next step has the same rate and starts the decay.
    """
    schedule, lr = config.scheduler, config.optimizer.lr
    total = config.trainer.epochs * steps_per_epoch
    if not isinstance(schedule, WarmedUp):
        return lr * one_cycle(step / total)
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step <= warmup:
        return step * (lr / warmup)
    done = step - 1
    if isinstance(schedule, Cosine):
        cosine = math.cos(math.pi * (done - warmup) / (total - warmup))
        return schedule.min_lr + (lr - schedule.min_lr) * (1 + cosine) / 2
    if isinstance(schedule, Step):
        periods = done / (schedule.decay_epochs * steps_per_epoch)
        return lr * schedule.decay_rate ** math.floor(periods + 1e-9)  # a rounding error must not lower a whole number
    return lr


def one_cycle(done: float) -> float:
    """Compute the fraction of optimizer.lr after a fraction of the run."""
    if done < 2 / 5:
        return done / (2 / 5)
    if done < 4 / 5:
        return 1 - (done - 2 / 5) / (2 / 5) * (1 - 1 / 20)
    return max(0.0, (1 - done) / (1 / 5) / 20)


def check_schedule(config: Config, steps_per_epoch: int) -> None:
    """Check that the run has a step with a learning rate above 0.

    Raises:
        ConfigError: The run has one step, with learning rate 0.
    """
    if config.trainer.epochs * steps_per_epoch == 1 and not learning_rate(config, 1, 1):
        raise ConfigError(
            f"trainer.epochs=1: the run has a single step, in which scheduler={config.scheduler.name} has learning "
            "rate 0; expected more epochs, a smaller data.batch_size or another scheduler"
        )


def check_batch_statistics(config: Config, sampler: DistributedBatchSampler, image_size: tuple[int, int]) -> None:
    """Check that BatchNorm has at least two values of each channel in every step.

    Raises:
        ConfigError: Some micro-batch has one image with one patch.
    """
    height, width = image_size
    if config.model.norm != "batch" or height * width > config.model.patch_size**2:
        return
    for batch in (0, len(sampler) - 1):
        parts = sampler.micro_batches(batch, config.trainer.accumulation_steps)
        if sampler.smallest_share(batch) // parts < 2:
            raise ConfigError(
                f"data.batch_size={config.data.batch_size}, trainer.accumulation_steps="
                f"{config.trainer.accumulation_steps}: leave a single image to a step's BatchNorm, and "
                f"model.patch_size={config.model.patch_size} makes a single position of it; expected two images or "
                f"more of {sampler.length:,} in every part, or model.norm=layer"
            )


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
