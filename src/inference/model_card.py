"""A model card for the Hugging Face hub: what the model is, what it was trained on and reached, how to use it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from inference.checkpoint import Checkpoint
from runtime.files import read_json
from training.summary import as_lines, summarize

RESULTS = {  # of summary.json, and how people read them
    "best/val/accuracy": "validation accuracy",
    "test/accuracy": "test accuracy",
    "best/val/loss": "validation loss",
    "test/loss": "test loss",
}


def model_card(checkpoint: Checkpoint, path: Path) -> str:
    """Markdown with the hub's metadata on top.

    Args:
        path: of the exported weights, for the commands.
    """
    weights, config = checkpoint.weights, checkpoint.config
    saved = weights.about.get("config", asdict(config))
    summary = read_json(weights.run / "summary.json") if weights.run else {}
    data_name = saved["data"]["name"] if weights.about else "ImageNet-1k" if weights.published else "unknown"
    results = {key: summary[key] for key in RESULTS if isinstance(summary.get(key), float)}
    header = ModelCardData(
        model_name=f"ConvMixer-{config.model.d_model}/{config.model.depth}",
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["convmixer", "image-classification"],
        eval_results=[
            EvalResult("image-classification", data_name, data_name, "accuracy", summary[key], metric_name=RESULTS[key])
            for key in results if key.endswith("accuracy")
        ],
    )  # fmt: skip
    size = checkpoint.image_size or (224, 224)
    architecture = weights.architecture
    parts = summarize(config, architecture.channels, architecture.n_classes, size)
    classes = ", ".join(checkpoint.labels[:20]) + (", …" if len(checkpoint.labels) > 20 else "")
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {architecture}",
        f'ConvMixer ("Patches Are All You Need?", arXiv 2201.09792) with {config.model.activation}, from '
        f"`{weights.path.name}`. Images of {size[0]}×{size[1]}, {architecture.channels} channels.",
        "```text\n" + "\n".join(as_lines(parts)) + "\n```",
        "## Results",
        "\n".join(f"- {RESULTS[key]}: {describe(key, value)}" for key, value in results.items())
        or "Not known from the checkpoint alone.",
        "## Data",
        f"{data_name}, {len(checkpoint.labels):,} classes: {classes}. Pixels are scaled to 0 … 1 and normalized with "
        f"mean {config.data.mean} and deviation {config.data.std}.",
        "## Use",
        "```bash\n" + "\n".join(commands(summary, path)) + "\n```",
        "## Config",
        "```yaml\n" + yaml.safe_dump(saved, sort_keys=False, allow_unicode=True) + "```",
    ]
    return "\n\n".join(sections) + "\n"


def describe(key: str, value: float) -> str:
    return f"{value:.2%}" if key.endswith("accuracy") else f"{value:.4f}"


def commands(summary: dict[str, Any], path: Path) -> list[str]:
    overrides = " ".join(f"{key}={value}" for key, value in summary.get("overrides", {}).items())
    return [
        *([f"python src/train.py {overrides}".rstrip() + "   # trained it"] if summary else []),
        f"python src/evaluate.py checkpoint={path.name}",
        f"python src/predict.py checkpoint={path.name} images=FOLDER",
        f"python src/export.py checkpoint={path.name} format=onnx",
    ]
