"""A model card for the Hugging Face hub: the model, its data, its results, and how to use it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from config.command_line import command_line, override
from config.schema import GROUPS, NOT_IDENTITY, is_below
from config.text import code, code_block, markdown
from inference.checkpoint import LoadedCheckpoint
from runtime.files import read_json
from tracking.identity import repeatable
from tracking.records import Summary
from training.summary import as_lines, summarize
from weights.description import described
from weights.files import Weights

CARD = "Written by export.py."  # files without this comment are never replaced
RESULTS = {  # by their names in text
    "val/accuracy": "validation accuracy", "test/accuracy": "test accuracy",
    "val/loss": "validation loss", "test/loss": "test loss",
}  # fmt: skip


def model_card(checkpoint: LoadedCheckpoint, path: Path) -> str:
    """Write the card as Markdown with the hub's metadata on top; `path` is that of the exported weights."""
    weights, config = checkpoint.weights, checkpoint.config
    saved = export_description(checkpoint)["config"]
    summary = read_json(weights.run / "summary.json", Summary) if weights.run else {}
    data_name = saved["data"].get("name") or ("ImageNet-1k" if weights.published else "unknown")
    results = results_of(weights, summary)
    header = ModelCardData(
        model_name=f"ConvMixer-{config.model.d_model}/{config.model.depth}",
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["convmixer", "image-classification"],
        eval_results=[
            EvalResult("image-classification", data_name, data_name, "accuracy", results[key], metric_name=RESULTS[key])
            for key in results if key.endswith("accuracy")
        ],
    )  # fmt: skip
    size = checkpoint.image_size or (224, 224)
    architecture = weights.architecture
    parts = summarize(config, architecture.channels, architecture.n_classes, size)
    classes = markdown(", ".join(checkpoint.labels[:20])) + (", …" if len(checkpoint.labels) > 20 else "")
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"<!-- {CARD} -->",
        f"# {architecture}",
        f'ConvMixer ("Patches Are All You Need?", arXiv 2201.09792) with {config.model.activation}, from '
        f"{code(weights.path.name)}. Images of {size[0]}×{size[1]}, {architecture.channels} channels.",
        code_block("text", "\n".join(as_lines(parts))),
        "## Results",
        "\n".join(f"- {RESULTS[key]}: {result_text(key, value)}" for key, value in results.items())
        or "Not known from the checkpoint alone.",
        "## Data",
        f"{data_name}, {len(checkpoint.labels):,} classes: {classes}. Pixels are scaled to 0 … 1 and normalized with "
        f"mean {config.data.mean} and deviation {config.data.std}.",
        "## Use",
        code_block("bash", "\n".join(usage_commands(summary, path))),
        "## Model and images",
        code_block("yaml", yaml.safe_dump(saved, sort_keys=False, allow_unicode=True)),
    ]
    return "\n\n".join(sections) + "\n"


def export_description(checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    """Make the description that weights/description.py reads, without paths and training keys."""
    description, data = checkpoint.weights.description, asdict(checkpoint.config.data)
    for key in ("num_workers", "pipeline", "root"):
        del data[key]
    if data["name"] != "image_folder":
        data["root"] = "data"  # the folder of downloads
    trainer = asdict(checkpoint.config.trainer)
    config = {
        "model": described(checkpoint.config.model),
        "data": data,
        "trainer": {key: trainer[key] for key in ("precision", "channels_last")},
    }
    return {
        "config": config, "classes": checkpoint.classes, "labels": checkpoint.labels if checkpoint.classes else None,
        "image_size": checkpoint.image_size, "mean": data["mean"], "std": data["std"],
        "metrics": description.epoch if description else {},
    }  # fmt: skip


def results_of(weights: Weights, summary: dict[str, Any]) -> dict[str, float]:
    """Collect the validation results of the weights' epoch, and the test results if that epoch was tested."""
    epoch = weights.description.epoch if weights.description else {}
    figures = {key: epoch.get(key) for key in ("val/accuracy", "val/loss")}
    if epoch and summary.get("status") == "completed" and summary.get("best/epoch") == epoch.get("epoch"):
        figures |= {key: summary.get(key) for key in ("test/accuracy", "test/loss")}
    return {key: value for key in RESULTS if isinstance(value := figures.get(key), float)}


def result_text(key: str, value: float) -> str:
    return f"{value:.2%}" if key.endswith("accuracy") else f"{value:.4f}"


def usage_commands(summary: dict[str, Any], path: Path) -> list[str]:
    checkpoint, overrides = override("checkpoint", path.name), repeatable(summary.get("overrides"))
    shared = {key: value for key, value in (overrides or {}).items() if not is_below(key, NOT_IDENTITY)}
    trained = [command_line("train", *map(override_text, shared.items())) + "   # trained it"] if overrides else []
    return [
        *trained,
        command_line("evaluate", checkpoint),
        command_line("predict", checkpoint, "images=FOLDER"),
        command_line("export", checkpoint, "format=onnx"),
    ]


def override_text(item: tuple[str, Any]) -> str:
    """Format a recorded override: ~GROUP for no option, and only the last part of a path."""
    key, value = item
    if key == "model.pretrained":
        value = Path(value).name
    return f"~{key}" if key in GROUPS and value is None else override(key, value)
