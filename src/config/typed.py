"""Type checks of files: a TypedDict describes each file, config/schema.py the configs."""

import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, NotRequired, TypeVar

import yaml
from annotated_types import Interval, Predicate
from typing_extensions import TypedDict

from config.schema import OPTIMIZERS, SCHEDULERS, Config, is_below

Kind = TypeVar("Kind")
Whole = Annotated[int, Interval(ge=-(2**63), lt=2**63)]  # a number in JSON may have 400 digits
Finite = Annotated[float, Interval(ge=-sys.float_info.max, le=sys.float_info.max)]
NOT_FINITE = dict.fromkeys(("less_than", "less_than_equal", "greater_than_equal"), "expected a finite number")
EXPECTED = {**NOT_FINITE, "predicate_failed": "expected plain, finite values"}  # by pydantic's type of error
DEEPEST = 30  # levels of a config; many thousands exhaust libyaml's stack
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


def is_plain(value: Any, deepest: int = DEEPEST) -> bool:
    """Return True if a value can be written as JSON with finite numbers and 64-bit integers."""
    if isinstance(value, (list, tuple)):
        return deepest > 0 and all(is_plain(part, deepest - 1) for part in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and is_plain([*value.values()], deepest)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


Plain = Annotated[Any, Predicate(is_plain)]


def strict(kind: Kind) -> Kind:
    """Configure a TypedDict: text like "5" is not a number, and unknown keys, of other versions, are allowed."""
    setattr(kind, "__pydantic_config__", {"strict": True, "extra": "allow"})  # noqa: B010 (mypy knows no such attribute)
    return kind


@strict
class Published(TypedDict):
    """A published value, an entry of study.reference."""

    where: NotRequired[dict[str, Plain]]
    value: Finite


def check_type(kind: Any, value: Any) -> Any:
    """Check that a value has a type, and return it unchanged.

    Raises:
        ValueError: The value has another type; the message is one line that begins with the key.
    """
    from pydantic import ValidationError

    try:
        adapter(kind).validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        path = errors[0]["loc"]  # below the key it also names the alternative types
        key = ".".join(map(str, path if errors[0]["type"] == "missing" else path[:1]))
        texts = [EXPECTED.get(part["type"], part["msg"]) for part in errors if part["loc"][:1] == path[:1]]
        text = " or ".join(dict.fromkeys(texts[:3])).replace("Input should be", "expected")
        raise ValueError(f"{key}: {text}".removeprefix(": ")) from None
    return value


@cache
def adapter(kind: Any) -> Any:
    """Make pydantic's validator of a type."""
    from pydantic import TypeAdapter  # takes a tenth of a second, which --help need not wait for

    return TypeAdapter(kind)


def check_config_types(values: Mapping[str, Any]) -> None:
    """Check the types of a config that was read from a file; keys of other versions may have any plain value.

    Args:
        values: The config as "section.key" → value.

    Raises:
        ValueError: A value has another type than its key, or is not finite.
    """
    kind = config_types()
    single = [key for key, hint in kind.__annotations__.items() if typing.get_origin(hint) is not dict]
    for key in values.keys() - kind.__annotations__.keys():
        if is_below(key, single) or any(is_below(other, [key]) for other in single):
            raise ValueError(f"{key}: expected {'one value' if is_below(key, single) else 'a section'}")
    check_type(kind, values)


@cache
def config_types() -> Any:
    """Make a TypedDict of the types of all config keys."""
    sections = [Config(optimizer=optimizer()) for optimizer in OPTIMIZERS.values()]
    sections += [Config(scheduler=scheduler()) for scheduler in SCHEDULERS.values()]
    keys = {key: hint for section in sections for key, hint in types_of(section).items()}
    keys["study.reference"] = list[Published]
    make: Any = TypedDict  # mypy only accepts it with literal keys
    return strict(make("config", keys, total=False, extra_items=Plain))


def types_of(section: Any, prefix: str = "") -> dict[str, Any]:
    """Collect the type of every key below a section by its full name."""
    hints = typing.get_type_hints(type(section))
    keys: dict[str, Any] = {}
    for item in fields(section):
        value = getattr(section, item.name)
        below = types_of(value, f"{prefix}{item.name}.") if is_dataclass(value) else {}
        keys |= below or {prefix + item.name: bounded(hints[item.name])}
    return keys


def bounded(hint: Any) -> Any:
    """Narrow a type to finite numbers, and integers to 64 bits."""
    if isinstance(hint, types.UnionType):
        return typing.Union[tuple(map(bounded, typing.get_args(hint)))]  # noqa: UP007
    if arguments := typing.get_args(hint):
        return typing.get_origin(hint)[tuple(map(bounded, arguments))]
    return {int: Whole, float: Finite, Any: Plain}.get(hint, hint)


def load_yaml(text: str) -> Any:
    """Read a tree of plain values, as train.py writes its configs.

    Raises:
        ValueError: The text has tags, is nested too deeply, or has aliases, which can expand to billions of values.
        YAMLError: The text is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=YamlLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise ValueError("YAML aliases and tags are not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
    return yaml.load(text, Loader=YamlLoader)
