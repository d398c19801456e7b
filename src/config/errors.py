"""Bad input gets one clear error, without a traceback."""

import argparse
import difflib
import errno
import os
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from config.schema import CONF, GROUPS, flatten
from config.text import printable, shell

# Python 3.14 checks the help of every option; of one, Hydra 1.3.8 has no text (facebookresearch/hydra issue 3121).
if hasattr(argparse.ArgumentParser, "_check_help"):
    check_help = argparse.ArgumentParser._check_help

    def check_text(parser: Any, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check_help(parser, action)

    argparse.ArgumentParser._check_help = check_text


class ConfigError(ValueError):
    """Invalid input; the message names the key, the value and what would be right."""


HYDRA_FOLDERS = ("hydra.job.chdir", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")
HYDRA_FOLDERS_FIX = "output_dir=DIR sweep=NAME, or output=PATH for evaluate.py, predict.py and export.py"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of errors that a full disk raises
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


def check_options(arguments: Sequence[str]) -> None:
    """Checks what Hydra answers with a traceback or a paragraph: a group's option that is no word, a forgotten -m.

    Raises:
        ConfigError: there is one.
    """
    check_folders(arguments)
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    if is_sweep and {"--cfg", "-c"} & set(arguments):
        raise ConfigError(
            "--cfg: shows the config of one run; with -m, plan=true lists the runs, plan=json with all keys"
        )
    for override in OverridesParser.create().parse_overrides(
        [text for text in arguments if "=" in text and text[0] != "-"]
    ):
        key, sweep = override.key_or_group, override.is_sweep_override()
        if sweep and not is_sweep and not override.is_hydra_override():
            raise ConfigError(
                f"{override.input_line}: several values; add -m to sweep over them, or write them as a list, [A,B]"
            )
        if key not in (*GROUPS, "hydra/launcher", "hydra/sweeper") or override.is_delete():
            continue
        for option in getattr(override.value(), "list", [override.value()]):  # of a ChoiceSweep
            if option is None or isinstance(option, bool | int | float):
                options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
                raise ConfigError(f"{key}={shown(option)}: expected one of {options}; or leave it out")


def check_folders(arguments: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: a key of Hydra's own folders is set.
    """
    for text in arguments:
        if text.lstrip("+~").partition("=")[0] in HYDRA_FOLDERS:
            raise ConfigError(f"{text}: folders are not named by Hydra's keys. Fix: {HYDRA_FOLDERS_FIX}")


def check_are_folders(paths: Iterable[Path]) -> None:
    """
    Raises:
        ConfigError: one of the paths is no folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: there is no such folder")


def explain(error: Exception) -> str:
    """What is wrong and what would be right, in terms of the keys that were typed."""
    if isinstance(error, OverrideParseException) and "=" in error.override:
        name, _, value = error.override.partition("=")
        quoted = QuotedString(value.strip("'\""), Quote.double).with_quotes()
        return f"{error.override}: Hydra cannot read this value as it is. Fix: {shell(f'{name}={quoted}')}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: there is no such option; expected one of {', '.join(error.options)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    key = getattr(cause, "full_key", None)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and key:
        tree = OmegaConf.to_container(cause.parent_node._get_root())
        return f"{key}: unknown key; {suggest(key, [path for path, _ in flatten(tree)])}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{key}: has no value yet; set it with {key}=VALUE"
    if isinstance(cause, ValidationError) and key and is_dataclass(cause.object_type):
        hint = typing.get_type_hints(cause.object_type)[key.rpartition(".")[2]]
        return f"{key}={shown(cause.value)}: expected {described(hint)}"
    return str(error).partition("\nConfig search path")[0].strip()  # Hydra's own words


def shown(value: Any) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def described(hint: Any) -> str:
    """A key's type in words."""
    if isinstance(hint, types.UnionType):
        return " or ".join(described(part) for part in typing.get_args(hint))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return words.get(hint) or f"a {(typing.get_origin(hint) or hint).__name__}"


def suggest(unknown: str, keys: Sequence[str]) -> str:
    """What may have been meant by an unknown key; `keys` are all that the command has."""
    section, _, name = unknown.rpartition(".")
    prefix = f"{section}." if section else ""
    siblings = list(dict.fromkeys(key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)))
    if not section:
        groups = GROUPS if "seed" in keys else ()  # of train.py
        siblings = [*groups, *(key for key in siblings if key not in (*groups, "hydra"))]
    similar = [prefix + sibling for sibling in difflib.get_close_matches(name, siblings, n=1)]
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name and not key.startswith("hydra.")]
    if meant := similar or elsewhere:
        return f"did you mean {meant[0]}?"
    return f"{section or 'the config'} has {', '.join(siblings) or 'no keys'}"


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
