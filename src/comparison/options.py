"""The option of each config group that a run has.

It is Hydra's choice, which the run recorded, or follows from its overrides. A run also has an option if its config has
all values that the option sets: model.kernel_size=5 is kernel=k5, dropout.blocks=0.1 is not dropout=none.
"""

from functools import cache
from typing import Any

import yaml
from omegaconf import MISSING

from comparison.runs import Run, equal, flat
from config.schema import CONF, GROUPS, NOT_IDENTITY, Config, is_below, keys_of

RECORDS = ("experiment", "variant")  # groups whose options set keys of other groups, too
ACROSS = ("patch", "kernel", "hardware")  # groups without a config section of the same name


def options_of(run: Run) -> dict[str, Any]:
    """Return the option of each group; None without a choice or a record of it."""
    overridden = {group: run.overrides[group] for group in GROUPS if group in run.overrides}
    options = {**dict.fromkeys(GROUPS), **overridden, **(run.summary.get("choices") or {})}
    for group in GROUPS:
        if effect_of(group, "none"):
            composed = options[group] if options[group] != "none" else None
            options[group] = "none" if has_effect_of(group, "none", run) else composed
    return options


def has_option(run: Run, group: str, option: str | None) -> bool:
    """Check if a run was composed with an option, or has all values that it sets."""
    chosen = options_of(run)[group]
    return chosen == option or bool(option and chosen != "none" and has_effect_of(group, option, run))


def has_effect_of(group: str, option: str, run: Run) -> bool:
    effect = effect_of(group, option)
    return bool(effect) and all(
        equal(run.config.get(key), run.config.get(value[2:-1]) if str(value).startswith("${") else value)
        for key, value in effect.items()
    )


@cache
def effect_of(group: str, option: str) -> dict[str, Any]:
    """Return the keys and values that an option alone sets; none for an unknown option."""
    path = next((path for path in (CONF / group).glob("*.yaml") if path.stem == option), None)
    tree = yaml.safe_load(path.read_text()) or {} if path else {}
    tree.pop("defaults", None)
    if group in RECORDS or not tree:
        return {}
    if group not in ACROSS:
        tree = {group: tree}
    defaults = {key: value for key, value, _ in keys_of(Config()) if key.startswith(f"{group}.") and value != MISSING}
    return {
        key: value
        for key, value in (defaults | flat(tree)).items()
        if key != "dropout.rate" and not is_below(key, NOT_IDENTITY)
    }
