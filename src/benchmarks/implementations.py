"""Implementations of ConvMixer to compare: the authors' plain model, timm's and ours, in each mode a user could run."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.setting import layer_of
from config import schema
from config.schema import Config
from LLMConvMixer import ACTIVATIONS
from runtime.device import keep_freed_memory
from runtime.distributed import World
from training.model import make_model, memory_format, wrap
from training.selection import select

CLASSES = 10
MODES = ("default", "reduce-overhead", "max-autotune")  # torch.compile's modes, which are the same on the CPU


@dataclass(frozen=True)
class Implementation:
    """A model and the mode in which it is run.

    Attributes:
        source: "authors", "timm" or "ours".
        channels_last: Memory format of model and images; None: selected as by a run (ours).
        mode: torch.compile's mode; None: not compiled.
        may_change_layout: True if Inductor may change the memory format within the model.
        tuned: True if cuDNN searches for the fastest algorithm (torch.backends.cudnn.benchmark).
    """

    source: str
    channels_last: bool | None = False
    mode: str | None = None
    may_change_layout: bool = True
    tuned: bool = True

    @property
    def name(self) -> str:
        words = [self.source]
        if self.channels_last is not None:
            words.append("NHWC" if self.channels_last else "NCHW")
        words.append({None: "eager", "default": "compiled"}.get(self.mode, f"compiled {self.mode}"))
        if not self.may_change_layout:
            words.append("fixed layout")
        if not self.tuned:
            words.append("as published")
        return ", ".join(words)


PLAIN = Implementation("authors", tuned=False)


def implementations(device: torch.device) -> list[Implementation]:
    """List the implementations for a device: the plain model first, long compilations last."""
    nchw = [Implementation(source) for source in ("authors", "timm")]
    stock = [*nchw, *(replace(peer, channels_last=True) for peer in nchw)]
    ours = Implementation("ours", channels_last=None)
    if device.type == "cpu":
        return [PLAIN, ours, *stock[1:], *(replace(model, mode="default") for model in (ours, *stock))]
    # Inductor may turn NCHW into NHWC, unless it is forbidden; it keeps NHWC.
    compilable = [ours, *stock, *(replace(peer, may_change_layout=False) for peer in nchw)]
    return [PLAIN, ours, *stock, *(replace(model, mode=mode) for mode in MODES for model in compilable)]


def configured(implementation: Implementation, config: Config, device: torch.device) -> Config:
    """Resolve the config for an implementation: its memory format and mode, or the backend that a run selects."""
    compiled, mode = implementation.mode is not None, implementation.mode or "default"
    config = replace(config, trainer=replace(config.trainer, compile=compiled, compile_mode=mode))
    if implementation.channels_last is not None:
        return replace(config, trainer=replace(config.trainer, channels_last=implementation.channels_last))
    return select(layer_of(config, device), World()).config


def build(implementation: Implementation, config: Config, device: torch.device) -> nn.Module:
    """Build the implementation's model on the device, compiled if its mode says so."""
    if implementation.source == "ours":
        if device.type == "cpu":
            keep_freed_memory()
        ours = make_model(config, 3, CLASSES).to(device).to(memory_format=memory_format(config))
        return wrap(ours, config, World())
    model = {"authors": authors_model, "timm": timms_model}[implementation.source](config.model)
    model = model.to(device).to(memory_format=memory_format(config))
    if implementation.mode:
        torch._inductor.config.layout_optimization = implementation.may_change_layout
        model.compile(mode=implementation.mode, dynamic=False)
    return model


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


def authors_model(model: schema.Model) -> nn.Module:
    """Build the paper's model as plain layers in sequence (arXiv 2201.09792, figure 3)."""
    width, k = model.d_model, model.kernel_size

    def block(convolution: nn.Module) -> list[nn.Module]:
        return [convolution, ACTIVATIONS[model.activation](), nn.BatchNorm2d(width)]

    layers = [
        nn.Sequential(
            Residual(nn.Sequential(*block(nn.Conv2d(width, width, k, groups=width, padding="same")))),
            *block(nn.Conv2d(width, width, 1)),
        )
        for _ in range(model.depth)
    ]
    stem = block(nn.Conv2d(3, width, model.patch_size, model.patch_size))
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def timms_model(model: schema.Model) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    sizes = model.d_model, model.depth, model.kernel_size, model.patch_size
    return ConvMixer(*sizes, num_classes=CLASSES, act_layer=ACTIVATIONS[model.activation])
