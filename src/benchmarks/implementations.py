"""ConvMixer as it is to be had: its authors' plain form, timm's, and ours; in the ways that a user could run each."""

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
MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile; on the CPU all are the same


@dataclass(frozen=True)
class Implementation:
    """A model and how it is run.

    Attributes:
        source: "authors", "timm" or "ours".
        channels_last: memory format of model and images; None: the run's own choice (ours).
        mode: of torch.compile; None: not compiled.
        may_change_layout: whether Inductor may change the memory format within the model.
        tuned: whether cuDNN tries its algorithms (torch.backends.cudnn.benchmark).
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
    """What is worth measuring on a device, in the order of what it takes to compile, the plain form first."""
    stock = [Implementation(source) for source in ("authors", "timm")]
    stock += [replace(each, channels_last=True) for each in stock]
    own = Implementation("ours", channels_last=None)
    if device.type == "cpu":
        return [PLAIN, own, *stock[1:], *(replace(each, mode="default") for each in (own, *stock))]
    # NHWC stays NHWC; to NCHW Inductor does what it likes, unless it is told not to.
    compilable = [own, *stock, *(replace(each, may_change_layout=False) for each in stock if not each.channels_last)]
    return [PLAIN, own, *stock, *(replace(each, mode=mode) for mode in MODES for each in compilable)]


def configured(implementation: Implementation, config: Config, device: torch.device) -> Config:
    """With the implementation's memory format and mode; ours selects its backend as a run does."""
    compiled, mode = implementation.mode is not None, implementation.mode or "default"
    config = replace(config, trainer=replace(config.trainer, compile=compiled, compile_mode=mode))
    if implementation.channels_last is not None:
        return replace(config, trainer=replace(config.trainer, channels_last=implementation.channels_last))
    return select(layer_of(config, device), World()).config


def build(implementation: Implementation, config: Config, device: torch.device) -> nn.Module:
    """The model of a config that is the implementation's, on its device, ready to be called."""
    if implementation.source == "ours":
        if device.type == "cpu":
            keep_freed_memory()
        own = make_model(config, 3, CLASSES).to(device).to(memory_format=memory_format(config))
        return wrap(own, config, World(), device)
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
    """The paper's model as plain layers in sequence (arXiv 2201.09792, figure 3)."""
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

    act_layer = ACTIVATIONS[model.activation]
    return ConvMixer(
        model.d_model, model.depth, model.kernel_size, model.patch_size, num_classes=CLASSES, act_layer=act_layer
    )
