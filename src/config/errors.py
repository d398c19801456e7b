"""Errors about input: one clear line each, without a traceback."""

import argparse
import difflib
import errno
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from config.schema import CONF, GROUPS, flatten, is_below
from config.text import printable, shell

# Python 3.14 checks that every option's help is a string; one of Hydra 1.3.8's is not (facebookresearch/hydra 3121).
if hasattr(argparse.ArgumentParser, "_check_help"):
    check_help = argparse.ArgumentParser._check_help

    def check_text(parser: Any, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check_help(parser, action)

    argparse.ArgumentParser._check_help = check_text


class ConfigError(ValueError):
    """Invalid input; the message names the key, the value and what is expected."""


HYDRA_FOLDERS = ("hydra.job.chdir", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")
HYDRA_FOLDERS_FIX = "output_dir=DIR sweep=NAME, or output=PATH for evaluate.py, predict.py and export.py"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of errors that a full disk raises
FULL_ERRORS = os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def report_errors() -> Iterator[None]:
    """End the process with one line for an error of the input; HYDRA_FULL_ERROR=1 shows the traceback instead.

    Inside Hydra's main function this also replaces the messages that Hydra would print.
    """
    if FULL_ERRORS:
        yield
        return
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing.
    try:
        yield
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        kept = "" if isinstance(error, ConfigError) else "\n"  # of Hydra's own words
        sys.exit(f"error: {printable(explain(error), kept)}")
    except OSError as error:  # no permission, no such folder, no space left
        if error.filename is None and error.errno not in FULL:
            raise
        sys.exit(f"error: {printable(f'{error.filename}: ' * bool(error.filename))}{error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def check_arguments(arguments: Sequence[str], can_sweep: bool = True) -> None:
    """Check the words of the command line for mistakes that Hydra reports with a traceback or a paragraph.

    Raises:
        ConfigError: A number is too large, -m comes without `can_sweep` or with --cfg, or see check_override().
    """
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    if is_sweep and not can_sweep:
        raise ConfigError("-m: only train.py has sweeps. Fix: a command for each value")
    if is_sweep and {"--cfg", "-c"} & set(arguments):
        raise ConfigError(
            "--cfg: shows the config of one run. Fix: with -m, plan=true lists the runs, plan=json with all keys"
        )
    for text in arguments:
        if re.search(r"\b\d[\d_]{299}", text):  # neither Python's int() nor a float holds many more
            raise ConfigError(f"{text.partition('=')[0]}: the number is too large")
    for override in OverridesParser.create().parse_overrides(
        [text for text in arguments if text[:1] == "~" or ("=" in text and text[0] != "-")]
    ):
        check_override(override)
        if override.is_sweep_override() and not is_sweep and not override.is_hydra_override():
            fix = f"{'add -m to sweep over them, or ' * can_sweep}write a list, [A,B]"
            raise ConfigError(f"{override.input_line}: several values. Fix: {fix}")


def check_override(override: Override) -> None:
    """Check the key of an override, and that a group's options are words.

    Raises:
        ConfigError: It has no key, sets Hydra's folders, removes a key, or an option is not a word.
    """
    text, key, value = override.input_line or "", override.key_or_group, override.value()
    if not key:
        raise ConfigError(f"{text!r}: expected KEY=VALUE")
    if any(is_below(folder, [key]) for folder in HYDRA_FOLDERS):
        raise ConfigError(f"{text}: Hydra's keys do not set the folders here. Fix: {HYDRA_FOLDERS_FIX}")
    if key not in (*GROUPS, "hydra/launcher", "hydra/sweeper"):
        if override.is_delete() and not override.is_hydra_override():
            raise ConfigError(f"{text}: only the option of a group can be removed. Fix: {key}=VALUE")
        return
    if override.is_delete() and "=" not in text:
        return
    values = getattr(value, "list", [value])  # of a ChoiceSweep
    if not override.is_delete() and key in GROUPS:  # A list chooses several options.
        values = [part for value in values for part in (value if isinstance(value, list) else [value])]
    if any(value is None or isinstance(value, bool | int | float | list | dict) for value in values):
        raise ConfigError(f"{text}: expected one of {', '.join(list_options(key))}, or no {key}")


def list_options(group: str) -> list[str]:
    """List the options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def check_folders_exist(paths: Iterable[Path]) -> None:
    """Check that each path is a folder.

    Raises:
        ConfigError: A path is not a folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder")


def explain(error: Exception) -> str:
    """Format an error in terms of the config's keys: the problem, and the fix or what is expected."""
    if isinstance(error, OverrideParseException):
        name, equals, value = error.override.partition("=")
        if not equals:
            return f"{error.override!r}: expected KEY=VALUE"
        quoted = QuotedString(value.strip("'\""), Quote.double).with_quotes()
        return f"{error.override}: Hydra cannot read this value without quotes. Fix: {shell(f'{name}={quoted}')}"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: unknown option; expected one of {', '.join(error.options or list_options(group))}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    key = getattr(cause, "full_key", None)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and key:
        tree = OmegaConf.to_container(cause.parent_node._get_root())
        return f"{key}: unknown key; {suggest(key, [path for path, _ in flatten(tree)])}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{key}: has no value. Fix: {key}=VALUE"
    if isinstance(cause, ValidationError) and key and is_dataclass(cause.object_type):
        hint = typing.get_type_hints(cause.object_type)[key.rpartition(".")[2]]
        return f"{key}={format_value(cause.value)}: expected {type_in_words(hint)}"
    if in_file := re.match(r"In '([^']+)': \w*Key\w*Error.*\n.*\n\s*full_key: (\S+)", str(error)):
        fix = "keys are in src/config/schema.py; optimizers of torch.optim: docs/train.md"
        return f"conf/{in_file[1]}.yaml: {in_file[2]}: unknown key; {fix}"
    return str(error).partition("\nConfig search path")[0].strip()


def format_value(value: Any) -> str:
    """Format a value as on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def type_in_words(hint: Any) -> str:
    """Describe the type of a config key."""
    if isinstance(hint, types.UnionType):
        return " or ".join(type_in_words(part) for part in typing.get_args(hint))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return words.get(hint) or f"a {(typing.get_origin(hint) or hint).__name__}"


def suggest(unknown: str, keys: Sequence[str]) -> str:
    """Suggest the most similar of all keys of the command for an unknown one, or list the keys of its section."""
    section, _, name = unknown.rpartition(".")
    prefix = f"{section}." if section else ""
    siblings = list(dict.fromkeys(key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)))
    if not section:
        groups = GROUPS if "seed" in keys else ()  # Only train.py has groups, and a seed.
        siblings = [*groups, *(key for key in siblings if key not in (*groups, "hydra"))]
    similar = [prefix + sibling for sibling in difflib.get_close_matches(name, siblings, n=1)]
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name and not key.startswith("hydra.")]
    if candidates := similar or elsewhere:
        return f"did you mean {candidates[0]}?"
    return f"{section or 'the config'} has {', '.join(siblings) or 'no keys'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]
