"""The configured ConvMixer, and its wrappers: distributed, compiled, averaged."""

import copy
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config.schema import Config
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from runtime.distributed import World


def make_model(config: Config, channels: int, n_classes: int) -> ConvMixer:
    """Build the configured ConvMixer from a layer, an embedding and a head."""
    model, dropout = config.model, config.dropout
    layer = ConvMixerLayer(
        model.d_model,
        model.kernel_size,
        activation=model.activation,
        norm=model.norm,
        residual_depthwise=model.residual_depthwise,
        residual_pointwise=model.residual_pointwise,
        dropout=dropout.blocks,
        stochastic_depth=dropout.stochastic_depth,
        backend=model.backend,
    )
    patch_emb = ConvPatchEmbeddings(
        model.d_model, model.patch_size, channels, activation=model.activation, norm=model.norm
    )
    classification = ConvClassificationHead(model.d_model, n_classes, dropout=dropout.head)
    recompute = config.trainer.checkpoint_activations
    return ConvMixer(layer, model.depth, patch_emb, classification, checkpoint_activations=recompute)


def wrap(model: nn.Module, config: Config, world: World) -> nn.Module:
    """Wrap the model for training: synchronized BatchNorm, torch.compile, DistributedDataParallel, as configured."""
    wrapped = model
    if world.size > 1 and config.trainer.sync_batch_norm:
        wrapped = nn.SyncBatchNorm.convert_sync_batchnorm(wrapped)
    if config.trainer.compile:
        wrapped = cast(nn.Module, torch.compile(wrapped, dynamic=False, options=compile_options(config)))
    if world.size > 1:  # buffers are broadcast once an epoch (training/loop.py), not in every forward pass
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # another name from PyTorch 2.14 on
            wrapped = DistributedDataParallel(wrapped, broadcast_buffers=False)
    return wrapped


def compile_options(config: Config) -> dict[str, Any]:
    """Make torch.compile's options from trainer.compile_mode and trainer.channels_last.

    By itself Inductor makes depthwise convolutions channels last, where large kernels are slower on some GPUs.
    """
    from torch._inductor import list_mode_options  # as its documentation imports it; takes seconds

    keep_format = {"layout_optimization": memory_format(config) == torch.channels_last}
    return {**list_mode_options(config.trainer.compile_mode), **keep_format}


def memory_format(config: Config) -> torch.memory_format:
    """Look up the memory format of weights and inputs in a config whose backend is selected, i.e. without `auto`."""
    assert config.trainer.channels_last != "auto"
    return torch.channels_last if config.trainer.channels_last else torch.contiguous_format


class EMA:
    """The exponential moving average of a model's weights and of BatchNorm's statistics.

    Attributes:
        module: A copy of the model that holds the averages.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay = copy.deepcopy(model), decay
        self.averages, self.values = floats(self.module), floats(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step of the run to the averages; after step 1, copy them.

        This is one operation without synchronization. torch's AveragedModel waits for the device.
        """
        torch._foreach_lerp_(self.averages, self.values, 1.0 if step == 1 else 1 - self.decay)


def floats(model: nn.Module) -> list[Tensor]:
    """List all parameters and buffers except BatchNorm's count of batches, which has no effect."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
