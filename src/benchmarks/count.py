"""What a training step, and a layer in it, asks of a GPU: counted on fake tensors, so that none is needed."""

import statistics
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.fake_gpu import Counter, fake_cuda
from benchmarks.setting import make_config, shape_of
from config.errors import ConfigError
from config.schema import Config
from data.datasets import DataSplits, Split
from ops.depthwise import TRITON
from runtime.console import print_table, si
from runtime.distributed import World
from training.model import make_model, memory_format
from training.state import TrainingState
from training.step import TrainStep

RECIPE = ["experiment=paper_cifar10", "data.batch_size=512", "hardware=any"]
WAYS = {
    "fp32": ["trainer.precision=fp32"],
    "bf16": ["trainer.precision=bf16"],
    "fp16": ["trainer.precision=fp16"],
    "bf16, averaged weights": ["trainer.precision=bf16", "trainer.ema_decay=0.999"],
}
STEPS = 10


def run(overrides: list[str]) -> None:
    """The paper's CIFAR-10 recipe in batches of 512, not compiled, from a batch on the GPU to averaged weights."""
    rows = []
    for name, way in WAYS.items():
        config = make_config([*RECIPE, *way, *overrides])
        if config.model.backend in TRITON:
            raise ConfigError(
                f"model.backend={config.model.backend}: count sees PyTorch's operations alone; take kernels"
            )
        counters = count(config)
        rows.append(
            (
                name,
                f"{statistics.median(counter.operations for counter in counters):.0f}",
                f"{si(statistics.median(counter.bytes_moved for counter in counters))}B",
                str(max(len(counter.synchronizations) for counter in counters)),
            )
        )
        places = {place for counter in counters for place in counter.synchronizations}
        rows += [(f"  waits at {place}", "", "", "") for place in sorted(places)]
    print_table("one training step", ("", "operations", "bytes moved", "host waits"), rows)
    if not find_spec("triton"):
        return
    from benchmarks.passes import passes_of_a_layer

    rows = [
        (name, f"{forward:.0f}", f"{backward:.0f}", f"{forward + backward:.0f}")
        for name, (forward, backward) in passes_of_a_layer().items()
    ]
    print_table("passes over an activation in a layer", ("", "forward", "backward", "together"), rows)


def count(config: Config, steps: int = STEPS) -> list[Counter]:
    """Of every step after the first one, which makes what the optimizer keeps."""
    *_, side = shape_of(config)
    split = Split(np.zeros((1, side, side, 3), np.uint8), np.zeros(1, np.int64))
    mean = (0.5, 0.5, 0.5)
    data = DataSplits(split, None, split, [str(label) for label in range(10)], 3, (side, side), mean, mean)
    device, size = torch.device("cuda"), config.data.batch_size
    model = make_model(config, data.channels, len(data.classes)).to(memory_format=memory_format(config))
    with fake_cuda():
        model.to(device)
        train_step = TrainStep(TrainingState(model, config, World(), device), data, whole_batch=size)
        train_step.network.train()
        pixels = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # as loaders make them
        labels = torch.zeros(size, dtype=torch.int64, device=device)
        counters = []
        for step in range(1, steps + 2):
            with Counter() as counter:
                train_step(pixels, labels, step, config.optimizer.lr, size, config.trainer.accumulation_steps)
            counters.append(counter)
    return counters[1:]
