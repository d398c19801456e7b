"""Export of a checkpoint to the formats of other programs.

    onnx          with normalization and a batch of any size; checked with onnxruntime on photographs
    torch_export  a program that torch.export.load reads, checked in the same way
    safetensors   our weights with their description, and a model card, NAME.md
    timm, authors the two published layouts (weights/layouts.py), for timm and locuslab/convmixer

Files are written atomically, after they have been checked.
"""

import json
import logging
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from config.commands import Export
from config.errors import ConfigError
from inference.checkpoint import LoadedCheckpoint
from inference.model_card import CARD, export_description, model_card
from inference.usage import Usage
from LLMConvMixer import ConvMixer
from runtime.files import check_new, check_ours, whole, write_text
from weights.files import CHECKSUM, METADATA, checksum
from weights.folding import fold_batch_norm
from weights.layouts import to_layout

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit if that is above 1
DYNAMIC_BATCH = {0: torch.export.Dim("batch")}


class ExportError(RuntimeError):
    """An error for an exported model whose logits differ from the checkpoint's."""


def export(checkpoint: LoadedCheckpoint, settings: Export) -> None:
    """Write a checkpoint in the requested format.

    Raises:
        ConfigError: The file exists, or the format cannot store the model.
        ExportError: The exported model computes other logits.
    """
    check_published(checkpoint, settings.format)
    check_normalization(checkpoint, settings)
    path = output_path(checkpoint, settings)
    card = path.with_suffix(".md")
    written = [path, card] if settings.format == "safetensors" else [path]
    size = sum(tensor.nbytes for tensor in checkpoint.weights.tensors.values())
    check_new(written, settings.overwrite, size)
    if card in written:
        check_ours(card, CARD)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        if settings.format in ("onnx", "torch_export"):
            write_program(checkpoint, settings, temporary)
        elif settings.format == "safetensors":
            write_safetensors(checkpoint, checkpoint.weights.tensors, temporary)
            write_text(card, model_card(checkpoint, path))
        elif settings.format == "timm":
            write_safetensors(checkpoint, to_layout(checkpoint.weights.tensors, "timm"), temporary)
        else:
            torch.save(to_layout(checkpoint.weights.tensors, "authors"), temporary)
    log.info(f"  → {' and '.join(map(str, written))}")
    if settings.format in ("onnx", "torch_export"):
        usage = Usage(checkpoint, settings.normalize)
        log.info(f"{usage.input_text}\n\n{usage.snippet(path)}")


def check_published(checkpoint: LoadedCheckpoint, form: str) -> None:
    model = checkpoint.config.model
    plain = model.norm == "batch" and model.residual_depthwise and not model.residual_pointwise
    if form in ("timm", "authors") and not plain:
        raise ConfigError(
            f"format={form}: holds models with BatchNorm and the residual around the depthwise convolution alone; this "
            f"one has model.norm={model.norm}, model.residual_depthwise={str(model.residual_depthwise).lower()}, "
            f"model.residual_pointwise={str(model.residual_pointwise).lower()}"
        )


def check_normalization(checkpoint: LoadedCheckpoint, settings: Export) -> None:
    """Check that mean and deviation are known if the program normalizes images; raise a ConfigError if not."""
    if settings.format in ("onnx", "torch_export") and settings.normalize and checkpoint.config.data.mean is None:
        raise ConfigError(
            "normalize=true: the weights do not say how images were normalized. Fix: data.mean=[…] data.std=[…], or "
            "normalize=false for a program of normalized images"
        )


def output_path(checkpoint: LoadedCheckpoint, settings: Export) -> Path:
    """Choose the path, in the run's folder or in outputs/export; names of authors' files contain the activation."""
    model, weights = checkpoint.config.model, checkpoint.weights
    name = {
        "onnx": "model.onnx",
        "torch_export": "model.pt2",
        "safetensors": "model.safetensors",
        "timm": "timm.safetensors",
        "authors": f"convmixer_{model.d_model}_{model.depth}_ks{model.kernel_size}_p{model.patch_size}"
        f"_{model.activation}.pt",
    }[settings.format]
    if settings.output:
        path, suffix = Path(settings.output), Path(name).suffix
        if path.suffix != suffix:
            raise ConfigError(f"output={path}: expected a name that ends in {suffix} for format={settings.format}")
        return path
    if weights.run:
        return weights.run / "export" / name
    return Path("outputs") / "export" / (weights.published or weights.path.name.partition(".")[0]) / name


def write_safetensors(checkpoint: LoadedCheckpoint, tensors: dict[str, Tensor], path: Path) -> None:
    """Write weights, with the description that evaluate.py and predict.py need and a checksum in the header."""
    description = json.dumps(export_description(checkpoint))
    path.write_bytes(save(tensors, {METADATA: description, CHECKSUM: checksum(tensors, description)}))


# Programs.


class NormalizedModel(nn.Module):
    """A model that normalizes its input, pixels from 0 to 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [batch, classes] of pixels [batch, channels, height, width]."""
        return self.model((images - self.mean) / self.std)


def inference_model(model: ConvMixer, images: Tensor) -> nn.Module:
    """Fold BatchNorm, and log the speed of both models."""
    folded = fold_batch_norm(model)
    check_logits(folded(images), model(images), "folded BatchNorm")
    plain_rate, folded_rate = images_per_second([model, folded], images)
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in m.modules()) for m in (model, folded)]
    log.info(
        f"  {norms[0] - norms[1]} of {norms[0]} BatchNorms folded: {folded_rate:,.1f} images/s instead of "
        f"{plain_rate:,.1f} ({folded_rate / plain_rate:.2f} times as fast; CPU, {torch.get_num_threads()} threads, "
        f"batches of {len(images)})"
    )
    return folded


def images_per_second(models: list[nn.Module], images: Tensor) -> list[float]:
    """Measure the median rate of each model, in turns, so that other load on the machine affects all models equally."""
    timers = [timeit.Timer("model(images)", globals={"model": model, "images": images}) for model in models]
    seconds = [[duration / number for number, duration in (timer.autorange() for timer in timers)] for _ in range(3)]
    return (len(images) / np.median(seconds, axis=0)).tolist()


def write_program(checkpoint: LoadedCheckpoint, settings: Export, path: Path) -> None:
    """Write a program, and compare its logits with the checkpoint's."""
    model, data = checkpoint.model.cpu(), checkpoint.config.data
    pixels = photographs(checkpoint, 8)
    mean, std = torch.tensor(data.mean or [0.5]), torch.tensor(data.std or [0.25])
    images = (pixels - mean[:, None, None]) / std[:, None, None]
    program: nn.Module = inference_model(model, images) if settings.fold else model
    program, inputs = (NormalizedModel(program, mean, std), pixels) if settings.normalize else (program, images)
    write, load = (write_onnx, load_onnx) if settings.format == "onnx" else (write_torch_export, load_torch_export)
    write(program.eval(), inputs[:2], Usage(checkpoint, settings.normalize), path)
    loaded = load(path)
    for n in (len(images), 1):
        check_logits(loaded(inputs[:n]), model(images[:n]), settings.format)


def write_onnx(model: nn.Module, images: Tensor, usage: Usage, path: Path) -> None:
    import onnx

    torch.onnx.export(
        model, (images,), path, input_names=["images"], output_names=["logits"], dynamic_shapes=(DYNAMIC_BATCH,),
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    program = onnx.load(path)
    del program.metadata_props[:], program.graph.metadata_props[:]
    for part in (*program.graph.node, *program.graph.value_info, *program.graph.initializer):
        del part.metadata_props[:]  # stack traces, which contain this machine's paths
        part.doc_string = ""
    program.doc_string = program.graph.doc_string = usage.text(Path("model.onnx"))
    program.graph.input[0].doc_string, program.graph.output[0].doc_string = usage.input_text, usage.output_text
    onnx.helper.set_model_props(program, usage.metadata)
    onnx.save(program, path)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def write_torch_export(model: nn.Module, images: Tensor, usage: Usage, path: Path) -> None:
    program = torch.export.export(model, (images,), dynamic_shapes=(DYNAMIC_BATCH,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains this machine's paths
    documentation = {"documentation": usage.text(Path("model.pt2"))}
    torch.export.save(program, path, extra_files={**usage.metadata, **documentation})


def load_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def check_logits(logits: Tensor, expected: Tensor, program: str) -> None:
    """Check that an exported program gives the logits of the checkpoint.

    Raises:
        ExportError: They differ by more than rounding errors.
    """
    difference = float((logits - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExportError(f"{program} gives logits that differ by {difference:.2g}; nothing was written")
    log.info(f"  {program}: logits of a batch of {len(logits)} differ by at most {difference:.1e}")


def photographs(checkpoint: LoadedCheckpoint, n: int) -> Tensor:
    """Crop scikit-learn's two photographs to the model's size: [n, channels, height, width], 0 to 1."""
    channels = checkpoint.weights.architecture.channels
    photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2) / 255
    crops = torch.stack([photos[i % 2, :, 30 * i : 30 * i + 200, 50 * i : 50 * i + 200] for i in range(n)])
    images = F.interpolate(crops, checkpoint.image_size or (224, 224), mode="bilinear", antialias=True)
    return images[:, torch.arange(channels) % 3]
