"""The optimizer and the learning rate over the run."""

import torch
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from config import schema


def make_optimizer(model: nn.Module, config: schema.Optimizer) -> Optimizer:
    """The configured optimizer, in its fused form."""
    # One-dimensional parameters are biases and the norms' scales.
    flat = [p for p in model.parameters() if p.ndim == 1]
    rest = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": rest, "weight_decay": config.weight_decay},
        {"params": flat, "weight_decay": config.weight_decay if config.decay_norm_and_bias else 0.0},
    ]
    if isinstance(config, schema.SGD):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    assert isinstance(config, schema.Adam)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True)


class OneCycle(Scheduler):
    """The authors' schedule, piecewise linear in the share of the run that is done.

    0 at the start, the optimizer's rate at 2/5, a twentieth of it at 4/5, 0 at the end
    (locuslab/convmixer-cifar10).
    """

    def __init__(self, optimizer: Optimizer, total_steps: int) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.total_steps = total_steps

    def _get_lr(self, t: int) -> list[float]:
        done = t / self.total_steps
        if done < 2 / 5:
            factor = done / (2 / 5)
        elif done < 4 / 5:
            factor = 1 - (done - 2 / 5) / (2 / 5) * (1 - 1 / 20)
        else:
            factor = (1 - done) / (1 / 5) / 20
        return [lr * max(0.0, factor) for lr in self.base_values]


def make_scheduler(optimizer: Optimizer, config: schema.Scheduler, epochs: int, steps_per_epoch: int) -> Scheduler:
    """A scheduler in timm's interface; `step_update(n)` sets the rate of the n-th step, from 1."""
    if config.name == "one_cycle":
        return OneCycle(optimizer, epochs * steps_per_epoch)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.name,
        num_epochs=epochs,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
        warmup_lr=0.0,
        warmup_epochs=config.warmup_epochs if isinstance(config, schema.WarmedUp) else 0,
        min_lr=config.min_lr if isinstance(config, schema.Cosine) else 0.0,
        decay_epochs=config.decay_epochs if isinstance(config, schema.Step) else None,
        decay_rate=config.decay_rate if isinstance(config, schema.Step) else 1.0,
    )
    assert scheduler is not None
    return scheduler
