"""The recipe of an experiment: the config that it composes to without further overrides."""

from functools import cache
from typing import Any

from omegaconf import OmegaConf

from config.compose import compose_config
from config.schema import NOT_RECIPE, flatten, is_below


@cache
def recipe_of(experiment: str) -> dict[str, Any]:
    """Return the values of an experiment's config by key, without keys that have no effect in this recipe.

    Raises:
        HydraException: The experiment does not exist.
    """
    keys = dict(flatten(OmegaConf.to_container(compose_config("train", [f"experiment={experiment}"]), resolve=True)))
    ignored = [*NOT_RECIPE]
    if not keys["data.val_fraction"]:
        ignored.append("trainer.monitor")
    if keys["trainer.early_stopping.patience"] is None:
        ignored += ["trainer.early_stopping.min_delta", "trainer.early_stopping.start_epoch"]
    return {key: value for key, value in keys.items() if not is_below(key, ignored)}
