"""A stand-in for a GPU that counts the operations and host synchronizations of a step.

with fake_cuda():                    # tensors with device="cuda" have a shape, and no data
    model.to("cuda")                 # made outside; optimizer and batch are made here
    with Counter() as counter:
        step()
counter.operations, counter.synchronizations
"""

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.setting import shape_of
from config.schema import Config
from data.datasets import DataSplits, Split
from runtime.distributed import World
from training.layer import Backend
from training.model import make_model, memory_format
from training.state import TrainingState
from training.step import TrainStep

aten = torch.ops.aten

# Operations that launch nothing on the device.
FREE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.lift_fresh.default,
}  # fmt: skip
COPIES = {aten._to_copy.default, aten.copy_.default}
SOURCE = Path(__file__).parents[1] / "src"


@dataclass(frozen=True)
class Call:
    """An operation on the device. It keeps no reference to its tensors, which would prolong their life.

    Attributes:
        dtypes: Data types of inputs and outputs.
    """

    name: str
    dtypes: set[torch.dtype]


class Counter(TorchDispatchMode):
    """A context that records the operations on CUDA tensors.

    Attributes:
        calls: The operations in order, without views and allocations, which launch nothing.
        synchronizations: Places where the host waits for the device, as "file:line what".
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.synchronizations: list[str] = []

    @property
    def operations(self) -> int:
        return len(self.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return device_as_autograd_sees_it(args[0])
        inputs = on_cuda((args, kwargs))
        if func is aten._local_scalar_dense.default and inputs:
            self.synchronizations.append(f"{caller()} item()")
            return 1.0 if inputs[0].dtype.is_floating_point else 1  # some value: there is none
        if kwargs.get("device") == torch.device("meta"):  # from a tensor, in a backward pass
            kwargs["device"] = inputs[0].device
        result = func(*args, **kwargs)
        outputs = on_cuda(result)
        if func in COPIES and crosses_over(args, result) and not is_asynchronous(func, args, kwargs):
            self.synchronizations.append(f"{caller()} copy between host and device")
        if (inputs or outputs) and func.namespace == "aten" and not func.is_view and func not in FREE:
            self.calls.append(Call(str(func), {tensor.dtype for tensor in (*inputs, *outputs)}))
        return result


def count_steps(config: Config, steps: int) -> list[Counter]:
    """Count every training step except the first one, which makes the optimizer's state."""
    config = Backend(config.model.backend, config.trainer.channels_last in ("auto", True)).applied_to(config)
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


def crosses_over(args: Any, result: Any) -> bool:
    devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)}
    return devices == {"cpu", "cuda"}


def is_asynchronous(func: Any, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))


def on_cuda(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]


def caller() -> str:
    """Return the line of this repository that is being executed, else the innermost line."""
    stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    ours = [frame for frame in stack if SOURCE in Path(frame.filename).parents]
    frame = (ours or stack)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make all tensors fake, also on CUDA, with or without a GPU; model.to("cuda") makes a real model's tensors fake.

    Without a GPU, this process can have no other accelerator from now on.
    """
    with ExitStack() as stack:
        # Fake tensors are grouped for "foreach" operations as real ones are.
        stack.enter_context(mock.patch.object(_foreach_utils, "_foreach_supported_types", [Tensor, FakeTensor]))
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", copy_of, create=True))
        if not torch.cuda.is_available():
            let_autograd_do_without_a_gpu()
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # with a thread for the GPU
            # Autocast for CUDA asks whether there is a GPU and whether it knows bf16.
            stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
            stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_: True))
            stack.enter_context(mock.patch("torch.cuda.device_of", lambda _: nullcontext()))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def copy_of(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """Copy a fake tensor. PyTorch's own copy would look for its data."""
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


# Where there is no GPU, a backward pass of CUDA tensors fails on asking for the GPU's stream (PyTorch 2.14). It asks
# where the tensors are on the accelerator of this process; so another one is registered, which has nothing, and
# during backward passes tensors say that they are elsewhere.


@cache
def let_autograd_do_without_a_gpu() -> None:
    backend_registration._setup_privateuseone_for_python_backend("nothing", backend_module=Nothing)


class Nothing:
    is_available = staticmethod(lambda: False)
    is_initialized = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    _is_in_bad_fork = staticmethod(lambda: False)


def device_as_autograd_sees_it(tensor: FakeTensor) -> torch.device:
    in_backward = torch._C._current_graph_task_id() != -1
    return torch.device("meta") if in_backward and not torch.cuda.is_available() else tensor.fake_device
