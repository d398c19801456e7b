"""The option of each config group in a run.

It is what Hydra chose, as the run recorded it; runs of older versions know only what they were started with. An
option also fits a run whose config has all values that the option sets: model.kernel_size=5 is kernel=k5, and a run
with dropout.blocks=0.1 is not dropout=none.
"""

from functools import cache
from typing import Any

import yaml
from omegaconf import MISSING

from comparison.runs import Run, equal, flat
from config.schema import CONF, GROUPS, NOT_IDENTITY, Config, is_below, keys_of

RECORDS = ("experiment", "variant")  # what these set, other groups and keys may set as well
ACROSS = ("patch", "kernel", "hardware")  # these set keys of other sections; the rest have a section of their own


def options_of(run: Run) -> dict[str, Any]:
    """Map groups to options; None if nothing was chosen or recorded."""
    chosen = {group: run.overrides[group] for group in GROUPS if group in run.overrides}
    options = {**dict.fromkeys(GROUPS), **chosen, **(run.summary.get("choices") or {})}
    for group in GROUPS:
        if effect_of(group, "none"):
            composed = options[group] if options[group] != "none" else None
            options[group] = "none" if has_effect_of(group, "none", run) else composed
    return options


def has_option(run: Run, group: str, option: str | None) -> bool:
    """Check whether a run was composed with an option, or has all values that it sets."""
    own = options_of(run)[group]
    return own == option or bool(option and own != "none" and has_effect_of(group, option, run))


def has_effect_of(group: str, option: str, run: Run) -> bool:
    effect = effect_of(group, option)
    return bool(effect) and all(
        equal(run.config.get(key), run.config.get(value[2:-1]) if str(value).startswith("${") else value)
        for key, value in effect.items()
    )


@cache
def effect_of(group: str, option: str) -> dict[str, Any]:
    """Collect the keys and values that an option alone sets; nothing for an unknown option."""
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
