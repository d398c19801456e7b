"""Bad input gets one clear error, without a traceback."""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

from hydra.errors import HydraException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from config.schema import GROUPS, Config, keys_of


class ConfigError(ValueError):
    """A value that cannot be; the message names the key, the value and what would be right."""


FULL_ERRORS = os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn what Hydra raises into one line; HYDRA_FULL_ERROR=1 shows the whole traceback instead.

    Also within Hydra's main function, which would otherwise say something of its own.
    """
    if FULL_ERRORS:
        yield
        return
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing
    try:
        yield
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        sys.exit(f"error: {explain(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def explain(error: Exception) -> str:
    """What is wrong and what would be right, in terms of the keys that were typed."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    message = str(error)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        section = cause.object_type if is_dataclass(cause.object_type) else None
        siblings = [item.name for item in fields(section)] if section else []
        return f"{cause.full_key}: there is no such key; {suggest(cause.full_key, siblings)}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key}: has no value yet; set it with {cause.full_key}=VALUE"
    if isinstance(cause, ValidationError) and cause.full_key:
        return f"{cause.full_key}{wrong_type(str(cause).splitlines()[0])}"
    unknown_group = re.match(r"Could not override '([^'@]+)'", message)
    if unknown_group:
        return f"{unknown_group[1]}: there is no such key or group; {suggest(unknown_group[1])}"
    unknown_option = re.search(r"Could not find '(.+)/([^/]+)'\s+Available options in .*:\n((?:\t.*\n?)+)", message)
    if unknown_option:
        group, option, there = unknown_option[1], unknown_option[2], unknown_option[3].split()
        return f"{group}={option}: there is no such option; expected one of {', '.join(there)}"
    several = re.match(r"Ambiguous value for argument '(.+)'", message)
    if several:
        return f"{several[1]}: several values; add -m to sweep over them, or write them as a list, [A,B]"
    # Hydra's own words, without its search path and its traceback.
    return re.split(r"\n\s*\n?Config search path", message)[0].strip()


TYPES = {"integer": "a whole number", "float": "a number", "bool": "true or false"}  # by OmegaConf's words for them


def wrong_type(message: str) -> str:
    """OmegaConf's message about a value, in words like those about a value out of its limit."""
    told = re.match(r"Value '(.*?)'(?: of type '\w+')? (?:could not be converted to|is not a valid) (\w+)", message)
    expected = TYPES.get(told[2].lower()) if told else None
    return f"={told[1]}: expected {expected}" if told and expected else f": {message}"


def parent(path: str) -> str:
    return path.rpartition(".")[0]


def suggest(unknown: str, siblings: Sequence[str] = ()) -> str:
    """What may have been meant by a key that does not exist; `siblings` are the keys beside it."""
    section, _, name = unknown.rpartition(".")
    known = [path for path, *_ in keys_of(Config())]
    same_name = [path for path in known if path.rpartition(".")[2] == name]
    if section and siblings:
        similar = [f"{section}.{sibling}" for sibling in difflib.get_close_matches(name, siblings, n=1)]
    else:
        siblings = [*GROUPS, "trainer", "checkpoint", "wandb", "study", "seed", "on_failure", "output_dir", "sweep"]
        similar = difflib.get_close_matches(unknown, siblings, n=1)
    if close := similar or same_name:
        return f"did you mean {close[0]}?"
    return f"{section or 'the config'} has {', '.join(siblings)}"


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
