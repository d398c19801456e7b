"""The description that our files contain with the weights: config, classes, and the images that the model expects."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Required

from annotated_types import Gt, Interval, Len
from typing_extensions import TypedDict

from config import schema
from config.command_line import override
from config.parse import check_constraints
from config.schema import flatten
from config.typed import Finite, Whole, check_config_types, check_type, strict
from weights.layouts import Architecture, LayoutError

# Keys of `model` that do not define the architecture.
NOT_THE_MODEL = ("pretrained", "backend")
SECTIONS = ("model", "data", "trainer")
MODEL_KEYS = {"d_model", "depth", "kernel_size", "patch_size", "activation"}  # keys that every config of a run has
Row = dict[str, float | None]  # a row of metrics.csv


@strict
class Sections(TypedDict):
    """The sections of a run's config that an exported file keeps."""

    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]


@strict
class Saved(TypedDict, total=False):
    """The content of our files without the weights."""

    config: Required[Sections]
    classes: list[str] | None
    labels: list[str] | None
    image_size: Annotated[Sequence[Annotated[int, Interval(ge=1, le=65_535)]], Len(2, 2)] | None
    mean: Sequence[Finite] | None
    std: Sequence[Annotated[Finite, Gt(0)]] | None
    metrics: Row
    rows: list[Row]
    step: Whole


@dataclass(frozen=True)
class Description:
    """The description of weights.

    Attributes:
        config: The run's config, with the sections model, data and trainer.
        model: The section `model` of the config.
        classes: Names of the classes in the data set; None if unknown.
        labels: Readable names of the classes; None if unknown.
        image_size: Height and width of the training images; None if unknown.
        mean, std: Mean and deviation of each channel in normalization; None if unknown.
        epoch: Row of metrics.csv for the weights' epoch; empty for a state within an epoch.
    """

    config: dict[str, Any]
    model: schema.Model
    classes: list[str] | None
    labels: list[str] | None
    image_size: tuple[int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    epoch: dict[str, Any]


def read_description(content: Mapping[str, Any], architecture: Architecture) -> Description | None:
    """Read the description; None for other programs' files, which may have equal keys.

    Raises:
        LayoutError: The description is damaged, contradicts the weights, or is of a version with another model.
    """
    config: Any = content.get("config")
    model: Any = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or not model.keys() >= MODEL_KEYS:
        return None
    try:
        saved: Saved = check_type(Saved, content)
        check_config_types(dict(flatten({section: config[section] for section in SECTIONS})))
    except ValueError as error:
        raise LayoutError(f"its description is damaged: {error}") from None
    size, mean, std = saved.get("image_size"), saved.get("mean"), saved.get("std")
    description = Description(
        config=dict(config),
        model=read_model(model, architecture),
        classes=saved.get("classes"),
        labels=saved.get("labels") or saved.get("classes"),
        image_size=(size[0], size[1]) if size else None,
        mean=tuple(mean) if mean and std else None,
        std=tuple(std) if mean and std else None,
        epoch=epoch_of(saved),
    )
    for name, values, expected in (
        ("classes", description.classes, architecture.n_classes),
        ("labels", description.labels, architecture.n_classes),
        ("mean", description.mean, architecture.channels),
        ("std", description.std, architecture.channels),
    ):
        if values is not None and len(values) != expected:
            raise LayoutError(f"it names {len(values)} {name}, but its weights have {expected}")
    return description


def read_model(saved: Mapping[str, Any], architecture: Architecture) -> schema.Model:
    names = {item.name for item in fields(schema.Model)}
    if unknown := [key for key in saved if key not in names]:
        raise LayoutError(f"its model has model.{unknown[0]}, which this version does not know")
    model = schema.Model(**{key: value for key, value in saved.items() if key not in NOT_THE_MODEL})
    if differing := differences(model, architecture.with_norm(model.norm).model_keys):
        raise LayoutError(f"it says {differing[0]} of a {architecture}")
    check_constraints(model, "model.")
    return model


def epoch_of(saved: Saved) -> dict[str, Any]:
    """Return the metrics of the weights' epoch: the best epoch's, or the last row of a state after an epoch."""
    if "rows" not in saved:
        return saved.get("metrics") or {}
    return saved["rows"][-1] if saved["rows"] and not saved.get("step") else {}


def described(model: schema.Model) -> dict[str, Any]:
    """Select the keys of `model` that define the architecture."""
    return {key: value for key, value in asdict(model).items() if key not in NOT_THE_MODEL}


def differences(model: schema.Model, expected: Mapping[str, Any]) -> list[str]:
    """List the overrides in which a model differs from the expected keys."""
    return [override(f"model.{key}", getattr(model, key)) for key in expected if getattr(model, key) != expected[key]]
