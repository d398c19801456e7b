"""The description beside the weights in our files: config, classes, and the images that the model expects."""

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

# Keys of `model` that say how a model is made or computed, not what it is.
NOT_THE_MODEL = ("pretrained", "backend")
SECTIONS = ("model", "data", "trainer")
MODEL_KEYS = {"d_model", "depth", "kernel_size", "patch_size", "activation"}  # in every config of ours


Row = dict[str, float | None]  # of metrics.csv


@strict
class Sections(TypedDict):
    """The sections of a run's config that an exported file keeps."""

    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]


@strict
class Saved(TypedDict, total=False):
    """The content of our files beside the weights."""

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
        config: the run's, with the sections model, data and trainer.
        model: its section of the config.
        classes: their names, as the data set has them; None where they are not known.
        labels: the same for people to read.
        image_size: height and width of the images that the weights were trained on.
        mean, std: of each channel, that the images were normalized with.
        epoch: the row of metrics.csv of the weights' epoch; empty between two epochs.
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
    """Read the description; None for files of others, which may have keys of these names, too.

    Raises:
        LayoutError: the description is damaged, contradicts the weights, or is of a version with another model.
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
    known = {item.name for item in fields(schema.Model)}
    if unknown := [key for key in saved if key not in known]:
        raise LayoutError(f"its model has model.{unknown[0]}, which this version does not know")
    model = schema.Model(**{key: value for key, value in saved.items() if key not in NOT_THE_MODEL})
    if differing := differences(model, architecture.with_norm(model.norm).model_keys):
        raise LayoutError(f"it says {differing[0]} of a {architecture}")
    check_constraints(model, "model.")
    return model


def epoch_of(saved: Saved) -> dict[str, Any]:
    """Find the metrics of the weights' epoch: in best weights their row, in a state after an epoch the last row."""
    if "rows" not in saved:
        return saved.get("metrics") or {}
    return saved["rows"][-1] if saved["rows"] and not saved.get("step") else {}


def described(model: schema.Model) -> dict[str, Any]:
    """Select the keys of `model` that define the architecture."""
    return {key: value for key, value in asdict(model).items() if key not in NOT_THE_MODEL}


def differences(model: schema.Model, expected: Mapping[str, Any]) -> list[str]:
    """List the overrides in which a model differs from the expected keys."""
    return [override(f"model.{key}", getattr(model, key)) for key in expected if getattr(model, key) != expected[key]]
