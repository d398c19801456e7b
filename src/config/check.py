"""Checks a composed config: every constraint of config/schema.py, and what must fit together."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from config.errors import ConfigError, shown, suggest
from config.optimizers import check_optimizer
from config.recipe import recipe_of
from config.schema import SGD, Config, WarmedUp, flatten, keys_of
from config.typed import Published, check_type
from config.wandb_switches import default_mode, default_tags


def check_config(composed: DictConfig) -> Config:
    """A run's composed config as typed objects, with the recipe that its study's references are for.

    Raises:
        ConfigError: a value is outside its constraint, or two do not fit together.
    """
    config = cast(Config, check_keys(composed))
    config.wandb.mode, config.wandb.tags = config.wandb.mode or default_mode(), config.wandb.tags or default_tags()
    check_constraints(config.wandb, "wandb.")
    check_together(config)
    study = config.study
    if study.reference:
        try:
            check_type(list[Published], study.reference)
        except ValueError as error:
            raise ConfigError(
                f"study.reference: {error}; expected a list of {{where: {{KEY: VALUE}}, value: NUMBER}}"
            ) from error
    if study.reference and study.name and not study.where:
        try:
            study.where = {**recipe_of(study.name)}
        except HydraException as error:
            raise ConfigError(
                f"study.name={study.name}: expected the NAME of a conf/experiment/NAME.yaml, whose recipe the "
                "references are for, or the recipe in study.where"
            ) from error
    return config


def check_keys(composed: DictConfig) -> Any:
    """A composed config as objects of its schema's classes.

    Raises:
        ConfigError: there is no such key, or its value is outside its constraint.
    """
    config: Any = OmegaConf.to_object(composed)
    known = dict(flatten(asdict(config)))
    for path, _ in flatten(OmegaConf.to_container(composed)):
        if path not in known:  # appended with +key=value
            raise ConfigError(f"{path}: unknown key; {suggest(path, list(known))}")
    check_constraints(config)
    return config


def check_constraints(section: Any, prefix: str = "") -> None:
    """
    Raises:
        ConfigError: a value is outside its constraint.
    """
    for path, value, constraint in keys_of(section, prefix):
        if constraint and value is not None and not constraint.holds(value):
            raise ConfigError(f"{path}={shown(value)}: expected {constraint.expected}")


def check_together(config: Config) -> None:
    model, dropout, data, trainer = config.model, config.dropout, config.data, config.trainer
    augmentation = config.augmentation
    if dropout.rate and not (dropout.blocks or dropout.head or dropout.stochastic_depth):
        raise ConfigError(
            f"dropout.rate={dropout.rate}: there is no place for it; "
            "choose dropout=blocks, head, all or stochastic_depth"
        )
    if dropout.stochastic_depth and not (model.residual_depthwise or model.residual_pointwise):
        raise ConfigError(
            f"dropout.stochastic_depth={dropout.stochastic_depth}: needs a residual branch to drop, "
            "model.residual_depthwise=true or model.residual_pointwise=true"
        )
    if (augmentation.mixup or augmentation.cutmix) and data.batch_size % 2:
        raise ConfigError(f"data.batch_size={data.batch_size}: mixup and cutmix pair images; expected an even number")
    if model.pretrained and not (Path(model.pretrained).exists() or re.fullmatch(r"convmixer_\w+", model.pretrained)):
        raise ConfigError(
            f"model.pretrained={model.pretrained}: there is no such file; expected a run's folder, a file, or "
            "the name of a published model, e.g. convmixer_768_32"
        )
    if (data.mean is None) != (data.std is None):
        raise ConfigError(f"data.mean={shown(data.mean)}, data.std={shown(data.std)}: give both, or null for both")
    if trainer.early_stopping.patience is not None and not data.val_fraction:
        raise ConfigError(
            f"trainer.early_stopping.patience={trainer.early_stopping.patience}: "
            "needs a validation set, data.val_fraction above 0"
        )
    if trainer.accumulation_steps > data.batch_size:
        raise ConfigError(
            f"trainer.accumulation_steps={trainer.accumulation_steps}: "
            f"expected at most data.batch_size={data.batch_size}"
        )
    if (
        trainer.compile
        and trainer.accumulation_steps > 1
        and trainer.compile_mode in ("reduce-overhead", "max-autotune")
    ):
        raise ConfigError(
            f"trainer.compile_mode={trainer.compile_mode}: its CUDA graphs overwrite the gradients that "
            f"trainer.accumulation_steps={trainer.accumulation_steps} adds up. Fix: trainer.compile_mode=default"
        )
    if isinstance(config.scheduler, WarmedUp) and config.scheduler.warmup_epochs >= trainer.epochs:
        raise ConfigError(
            f"scheduler.warmup_epochs={config.scheduler.warmup_epochs}: "
            f"expected fewer than trainer.epochs={trainer.epochs}"
        )
    if isinstance(config.optimizer, SGD) and config.optimizer.nesterov and not config.optimizer.momentum:
        raise ConfigError("optimizer.nesterov=true: needs optimizer.momentum above 0")
    if trainer.class_weights == data.sampler == "balanced":
        raise ConfigError(
            "trainer.class_weights=balanced: data.sampler=balanced balances the classes already. Fix: one of the two"
        )
    check_optimizer(config.optimizer)
