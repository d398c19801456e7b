"""Commands that the program prints: each value is quoted for Hydra, then each word for the shell."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from config.errors import shown
from config.text import shell


def task_overrides(hydra: Any) -> list[str]:
    """The overrides as they were typed: reading them one by one would resolve ${…} in them."""
    return cast(list[str], OmegaConf.to_container(hydra.overrides.task, resolve=False))


def command_line(script: str, *words: str) -> str:
    """A command for the shell, e.g. "python src/train.py -m seed=1,2"."""
    return shell("python", f"src/{script}.py", *words)


def override(key: str, *values: Any) -> str:
    """An override from which Hydra reads exactly these values; several are a sweep."""
    return f"{key}={','.join(map(as_text, values))}"


def quoted(argument: str) -> str:
    """Quote what Hydra cannot read as a word: the # of checkpoint=SWEEP#CHOICE, the text of notes=…"""
    key, _, value = argument.partition("=")
    is_text = key == "notes" or (key == "checkpoint" and "#" in value and "," not in value)
    return override(key, value) if is_text and value not in ("", "null") and value[0] not in "\"'" else argument


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Join keys with values that are as Hydra reads them."""
    return [f"{key}={value}" for key, value in values.items()]


def as_text(value: Any) -> str:
    """A value as Hydra reads it back."""
    if isinstance(value, str):
        return value if reads_as_itself(value) else QuotedString(value, Quote.double).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_text(part)}' for key, part in value.items())}}}"
    return shown(value)


@lru_cache(maxsize=4096)
def reads_as_itself(text: str) -> bool:
    """Whether Hydra reads the word as this text, not as a number, a list or several values."""
    try:
        return OverridesParser.create().parse_override(f"key={text}").value() == text and bool(text)
    except HydraException:
        return False


def span(seeds: Sequence[int]) -> str:
    """The override of the seeds: seed=5,6,7, or seed=range(5,31) where they are many in a row."""
    is_range = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"seed=range({seeds[0]},{seeds[-1] + 1})" if is_range and len(seeds) > 8 else override("seed", *seeds)
