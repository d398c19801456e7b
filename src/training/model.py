"""The configured ConvMixer, and the ways in which it is called: over several devices, compiled, averaged."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from config.errors import ConfigError
from config.schema import Config
from data import datasets
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from runtime.distributed import World


def make_model(config: Config, channels: int, n_classes: int) -> ConvMixer:
    """The configured ConvMixer, from a layer, an embedding and a head."""
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
    return ConvMixer(layer, model.depth, patch_emb, classification)


def count_macs(config: Config, images: datasets.DataSplits) -> int:
    """Multiply-accumulates of one image's forward pass, in convolutions and the classifier.

    Those that the model asks for: a backend may spend more to be faster.
    """
    plain = replace(config, model=replace(config.model, backend="reference"))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = make_model(plain, images.channels, len(images.classes)).eval()
        model(torch.empty(1, images.channels, *images.image_size))
    return counter.get_total_flops() // 2


def spread(model: nn.Module, config: Config, world: World, device: torch.device) -> nn.Module:
    """The model as it is called in training: over all ranks' devices, compiled if asked for.

    Raises:
        ConfigError: synchronized BatchNorm without GPUs.
    """
    network = model
    if world.size > 1:
        if config.trainer.sync_batch_norm:
            if device.type != "cuda":
                raise ConfigError("trainer.sync_batch_norm=true: PyTorch has it for GPUs only")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = DistributedDataParallel(network)
    return cast(nn.Module, torch.compile(network)) if config.trainer.compile else network


def make_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of the weights; BatchNorm's statistics are averaged likewise."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def memory_format(inputs: Tensor, config: Config) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if config.trainer.channels_last else inputs
