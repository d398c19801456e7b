"""The recipe of an experiment: what it composes to by itself, whatever is overridden on the command line."""

from functools import cache
from typing import Any

from omegaconf import OmegaConf

from config.compose import compose_config
from config.schema import NOT_RECIPE, flatten, is_below


@cache
def recipe_of(experiment: str) -> dict[str, Any]:
    """Config key → value; without the keys that have no effect in this recipe.

    Raises:
        HydraException: there is no such experiment.
    """
    keys = dict(flatten(OmegaConf.to_container(compose_config("train", [f"experiment={experiment}"]), resolve=True)))
    left_out = [*NOT_RECIPE]
    if not keys["data.val_fraction"]:
        left_out.append("trainer.monitor")
    if keys["trainer.early_stopping.patience"] is None:
        left_out += ["trainer.early_stopping.min_delta", "trainer.early_stopping.start_epoch"]
    return {key: value for key, value in keys.items() if not is_below(key, left_out)}
