"""Content of files, checked against types: a TypedDict for each file; for a config, the types of config/schema.py."""

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
Whole = Annotated[int, Interval(ge=-(2**63), lt=2**63)]  # JSON has numbers of 400 digits, too
Finite = Annotated[float, Interval(ge=-sys.float_info.max, le=sys.float_info.max)]
NOT_FINITE = dict.fromkeys(("less_than", "less_than_equal", "greater_than_equal"), "expected a finite number")
EXPECTED = {**NOT_FINITE, "predicate_failed": "expected plain, finite values"}  # by pydantic's kind of error
DEEPEST = 30  # levels of a config; many thousands exhaust libyaml's stack
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


def is_plain(value: Any, deepest: int = DEEPEST) -> bool:
    """Check for what JSON can say, with finite numbers of usual size."""
    if isinstance(value, (list, tuple)):
        return deepest > 0 and all(is_plain(part, deepest - 1) for part in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and is_plain([*value.values()], deepest)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


Plain = Annotated[Any, Predicate(is_plain)]


def strict(kind: Kind) -> Kind:
    """Make a TypedDict one in which "5" is no number, and which may have further keys, those of other versions."""
    setattr(kind, "__pydantic_config__", {"strict": True, "extra": "allow"})  # noqa: B010 (mypy knows no such attribute)
    return kind


@strict
class Published(TypedDict):
    """An entry of study.reference: a value that others measured."""

    where: NotRequired[dict[str, Plain]]
    value: Finite


def check_type(kind: Any, value: Any) -> Any:
    """Return the value as it is.

    Raises:
        ValueError: it is of another type; in one line, which begins with the key.
    """
    from pydantic import ValidationError

    try:
        adapter(kind).validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        path = errors[0]["loc"]  # within a value it also names the types that were tried
        key = ".".join(map(str, path if errors[0]["type"] == "missing" else path[:1]))
        texts = [EXPECTED.get(one["type"], one["msg"]) for one in errors if one["loc"][:1] == path[:1]]
        text = " or ".join(dict.fromkeys(texts[:3])).replace("Input should be", "expected")
        raise ValueError(f"{key}: {text}".removeprefix(": ")) from None
    return value


@cache
def adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # takes a tenth of a second, which --help need not wait for

    return TypeAdapter(kind)


def check_config_types(values: Mapping[str, Any]) -> None:
    """Check a config that was read from a file, as "section.key" → value; keys of other versions need only be plain.

    Raises:
        ValueError: a value is of another type than its key, or not finite.
    """
    kind = config_types()
    single = [key for key, hint in kind.__annotations__.items() if typing.get_origin(hint) is not dict]
    for key in values.keys() - kind.__annotations__.keys():
        if is_below(key, single) or any(is_below(other, [key]) for other in single):
            raise ValueError(f"{key}: expected {'one value' if is_below(key, single) else 'a section'}")
    check_type(kind, values)


@cache
def config_types() -> Any:
    sections = [Config(optimizer=optimizer()) for optimizer in OPTIMIZERS.values()]
    sections += [Config(scheduler=scheduler()) for scheduler in SCHEDULERS.values()]
    keys = {key: hint for section in sections for key, hint in types_of(section).items()}
    keys["study.reference"] = list[Published]
    make: Any = TypedDict  # mypy knows it as a special form alone
    return strict(make("config", keys, total=False, extra_items=Plain))


def types_of(section: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every key below a section, by its full name."""
    hints = typing.get_type_hints(type(section))
    keys: dict[str, Any] = {}
    for item in fields(section):
        value = getattr(section, item.name)
        below = types_of(value, f"{prefix}{item.name}.") if is_dataclass(value) else {}
        keys |= below or {prefix + item.name: bounded(hints[item.name])}
    return keys


def bounded(hint: Any) -> Any:
    """The type without NaN, infinite numbers and those of hundreds of digits."""
    if isinstance(hint, types.UnionType):
        return typing.Union[tuple(map(bounded, typing.get_args(hint)))]  # noqa: UP007
    if arguments := typing.get_args(hint):
        return typing.get_origin(hint)[tuple(map(bounded, arguments))]
    return {int: Whole, float: Finite, Any: Plain}.get(hint, hint)


def load_yaml(text: str) -> Any:
    """Read a tree of plain values, as train.py writes its configs.

    Raises:
        ValueError: it has tags, is very deep, or repeats parts of itself, which can stand for billions of values.
        YAMLError: it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=YamlLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise ValueError("YAML aliases and tags are not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
    return yaml.load(text, Loader=YamlLoader)
