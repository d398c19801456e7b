"""Commands that the program prints, with each value quoted for Hydra and each word for the shell."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from config.errors import format_value
from config.text import shell


def task_overrides(hydra: Any) -> list[str]:
    """Return the overrides of the command line, with each ${…} unresolved."""
    return cast(list[str], OmegaConf.to_container(hydra.overrides.task, resolve=False))


def command_line(script: str, *words: str) -> str:
    """Format a command for the shell, e.g. "python src/train.py -m seed=1,2"."""
    return shell("python", f"src/{script}.py", *words)


def override(key: str, *values: Any) -> str:
    """Format an override from which Hydra reads exactly these values; several values are a sweep."""
    return f"{key}={','.join(map(as_text, values))}"


def quote_for_hydra(argument: str) -> str:
    """Quote for Hydra what it cannot read as a word: the # of checkpoint=SWEEP#CHOICE, the text of notes=TEXT."""
    key, _, value = argument.partition("=")
    is_text = key == "notes" or (key == "checkpoint" and "#" in value and "," not in value)
    return override(key, value) if is_text and value not in ("", "null") and value[0] not in "\"'" else argument


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Format overrides from values that are already as Hydra reads them."""
    return [f"{key}={value}" for key, value in values.items()]


def as_text(value: Any) -> str:
    """Format a value as Hydra reads it."""
    if isinstance(value, str):
        return value if reads_as_itself(value) else QuotedString(value, Quote.double).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_text(part)}' for key, part in value.items())}}}"
    return format_value(value)


@lru_cache(maxsize=4096)
def reads_as_itself(text: str) -> bool:
    """Return True if Hydra reads the word as this text, not as a number, a list or several values."""
    try:
        return OverridesParser.create().parse_override(f"key={text}").value() == text and bool(text)
    except HydraException:
        return False


def seed_override(seeds: Sequence[int]) -> str:
    """Format the override of the seeds: seed=5,6,7, or for more than eight in a row seed=range(5,31)."""
    is_range = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"seed=range({seeds[0]},{seeds[-1] + 1})" if is_range and len(seeds) > 8 else override("seed", *seeds)
