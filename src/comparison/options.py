"""Which option of each config group a run has, also where nobody typed it.

What was composed follows from the defaults lists of conf/train.yaml and of the experiment, and from
what was typed. `none` is judged by its effect instead: a run has dropout=none when it has no dropout,
whatever was typed, and not when dropout.blocks=0.1 was.
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
    """Group → option, None where there is none."""
    typed = {group: run.overrides[group] for group in GROUPS if group in run.overrides}
    of_experiment = defaults_of(f"experiment/{typed.get('experiment')}")
    options = {**dict.fromkeys(GROUPS), **defaults_of("train"), **of_experiment, **typed}
    for group in GROUPS:
        if (CONF / group / "none.yaml").exists():
            composed = options[group] if options[group] != "none" else None
            options[group] = "none" if has_effect_of(group, "none", run) else composed
    return options


def has_option(run: Run, group: str, option: str | None) -> bool:
    """Whether a run was composed with an option, or has all that it sets: kernel=k5 is model.kernel_size=5."""
    own = options_of(run)[group]
    return own == option or bool(option and own != "none" and has_effect_of(group, option, run))


@cache
def defaults_of(name: str) -> dict[str, str | None]:
    """The options that the defaults list of a file below conf/ chooses; none where there is no such file."""
    chosen: dict[str, str | None] = {}
    for default in yaml_of(name).get("defaults", []):
        if isinstance(default, str):  # another file of the same group
            chosen |= defaults_of(f"{name.rpartition('/')[0]}/{default}")
        else:
            chosen |= {key.removeprefix("override /"): option for key, option in default.items()}
    return {group: option for group, option in chosen.items() if group in GROUPS}


def has_effect_of(group: str, option: str, run: Run) -> bool:
    effect = effect_of(group, option)
    return bool(effect) and all(
        equal(run.config.get(key), run.config.get(value[2:-1]) if str(value).startswith("${") else value)
        for key, value in effect.items()
    )


@cache
def effect_of(group: str, option: str) -> dict[str, Any]:
    """The keys and values that an option alone decides; nothing of an unknown one."""
    tree = yaml_of(f"{group}/{option}")
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


def yaml_of(name: str) -> dict[str, Any]:
    path = CONF / f"{name}.yaml"
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}
