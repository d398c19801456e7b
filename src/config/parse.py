"""Parser of composed configs: typed objects, each value within its constraint, and all of them compatible."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from config.errors import ConfigError, format_value, suggest
from config.optimizers import check_optimizer
from config.recipe import recipe_of
from config.schema import SGD, Config, WarmedUp, flatten, keys_of
from config.typed import Published, check_type, is_plain
from config.wandb_switches import default_mode, default_tags


def parse_config(composed: DictConfig) -> Config:
    """Convert a run's composed config to typed objects, with W&B's defaults and its study's recipe.

    Raises:
        ConfigError: A value is outside its constraint, or two values are incompatible.
    """
    config = cast(Config, parse_keys(composed))
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


def parse_keys(composed: DictConfig) -> Any:
    """Convert a composed config to objects of its schema's classes, and check each value alone.

    Raises:
        ConfigError: A key is unknown, or its value is outside its constraint.
    """
    config: Any = OmegaConf.to_object(composed)
    keys = dict(flatten(asdict(config)))
    for path, _ in flatten(OmegaConf.to_container(composed)):
        if path not in keys:  # appended with +key=value
            raise ConfigError(f"{path}: unknown key; {suggest(path, list(keys))}")
    check_constraints(config)
    return config


def check_constraints(section: Any, prefix: str = "") -> None:
    """Check each value of a section of the config against its constraint.

    Args:
        section: An object of a class in config/schema.py or config/sweepers.py.
        prefix: The start of its keys' full names, e.g. "model.".

    Raises:
        ConfigError: A value is outside its constraint.
    """
    for path, value, constraint in keys_of(section, prefix):
        if constraint and value is not None and not constraint.holds(value):
            raise ConfigError(f"{path}={format_value(value)}: expected {constraint.expected}")
        if not is_plain(value):  # It could be written, but not read back.
            raise ConfigError(f"{path}={format_value(value)}: expected finite numbers of at most 64 bits")


def check_together(config: Config) -> None:
    """Check that the values of a run's config are compatible.

    Raises:
        ConfigError: Two values are incompatible.
    """
    model, dropout, data, trainer = config.model, config.dropout, config.data, config.trainer
    augmentation = config.augmentation
    if dropout.rate and not (dropout.blocks or dropout.head or dropout.stochastic_depth):
        raise ConfigError(
            f"dropout.rate={dropout.rate}: has no effect alone. Fix: dropout=blocks, head, all or stochastic_depth"
        )
    if dropout.stochastic_depth and not (model.residual_depthwise or model.residual_pointwise):
        raise ConfigError(
            f"dropout.stochastic_depth={dropout.stochastic_depth}: the model has no residual branch to drop. "
            "Fix: model.residual_depthwise=true or model.residual_pointwise=true"
        )
    if (augmentation.mixup or augmentation.cutmix) and data.batch_size % 2:
        raise ConfigError(f"data.batch_size={data.batch_size}: mixup and cutmix pair images; expected an even number")
    if model.pretrained and not (Path(model.pretrained).exists() or re.fullmatch(r"convmixer_\w+", model.pretrained)):
        raise ConfigError(
            f"model.pretrained={model.pretrained}: no such file; expected a run's folder, a file, or "
            "the name of a published model, e.g. convmixer_768_32"
        )
    if (data.mean is None) != (data.std is None):
        raise ConfigError(
            f"data.mean={format_value(data.mean)}, data.std={format_value(data.std)}: "
            "expected values for both, or null for both"
        )
    if trainer.early_stopping.patience is not None and not data.val_fraction:
        raise ConfigError(
            f"trainer.early_stopping.patience={trainer.early_stopping.patience}: "
            "there is no validation set. Fix: data.val_fraction above 0"
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
        raise ConfigError("optimizer.nesterov=true: expected optimizer.momentum above 0")
    if trainer.class_weights == data.sampler == "balanced":
        raise ConfigError(
            "trainer.class_weights=balanced: data.sampler=balanced already balances the classes. Fix: use one of them"
        )
    check_optimizer(config.optimizer)
