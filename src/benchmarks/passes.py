"""How often a layer reads or writes an activation in training: plain, compiled and fused. No GPU is needed.

A pass is one activation, [batch, channels, height, width], read or written once. It is counted for each operation or
kernel from its operands, as if no cache held anything from one to the next. The memory format is one throughout.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_module, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from benchmarks.fake_gpu import Counter, fake_cuda
from benchmarks.kernels import layer_kernels, passes
from LLMConvMixer import ConvMixerLayer

BATCH, CHANNELS, SIDE, KERNEL, DTYPE = 512, 256, 32, 9, torch.bfloat16
VALUES = BATCH * CHANNELS * SIDE**2


def passes_of_a_layer() -> dict[str, list[float]]:
    """Forward and backward, of layers in the middle of a model: what two take more than one."""
    found: dict[str, list[float]] = {}
    for name, bytes_moved in (("plain", plain), ("plain, compiled", compiled)):
        one, two = (bytes_moved(model_of(depth)) for depth in (1, 2))
        found[name] = [(more - fewer) / (VALUES * DTYPE.itemsize) for more, fewer in zip(two, one, strict=True)]
    kernels = layer_kernels(BATCH, CHANNELS, SIDE, KERNEL, DTYPE, "relu").items()
    found["fused"] = [
        sum(passes(launch, VALUES) for name, launch in kernels if way in name) for way in ("forward", "backward")
    ]
    return found


def model_of(depth: int) -> nn.Module:
    return nn.Sequential(*(ConvMixerLayer(CHANNELS, KERNEL, backend="reference") for _ in range(depth))).to(DTYPE)


def grid_on(device: str) -> Tensor:
    return torch.empty(BATCH, CHANNELS, SIDE, SIDE, dtype=DTYPE, device=device, requires_grad=True)


# Bytes that a model moves forward and backward.


def plain(model: nn.Module) -> list[int]:
    """Operation by operation."""
    with fake_cuda():
        model.to("cuda")
        x = grid_on("cuda")
        with Counter() as forward:
            y = model(x)
        dy = torch.empty_like(y)
        with Counter() as backward:
            torch.autograd.grad(y, [x, *model.parameters()], dy)
    return [forward.bytes_moved, backward.bytes_moved]


def compiled(model: nn.Module) -> list[int]:
    """As Inductor fuses it for an H100: it decides on fake tensors, and nothing is compiled to the end."""
    from torch._inductor.decomposition import select_decomp_table

    graphs = []

    def keep(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append((gm, example_inputs))
        return make_boxed_func(gm.forward)

    partition, operations = min_cut_rematerialization_partition, select_decomp_table()
    with FakeTensorMode(allow_non_fake_inputs=True):  # on the CPU: without a GPU autograd has no stream for it
        y = aot_module(model, fw_compiler=keep, partition_fn=partition, decompositions=operations)(grid_on("cpu"))
        y.backward(torch.empty_like(y))
    return [bytes_moved_by_inductor(*graph) for graph in graphs]


def bytes_moved_by_inductor(graph: GraphModule, inputs: Sequence[Any]) -> int:
    """What the kernels read and write that a graph of operations becomes on a GPU."""
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.virtualized import V

    h100 = DeviceProperties("cuda", 0, 132, 90, 9, 65_536, 2048, 1024, 32)
    graph, fake = deepcopy(graph), FakeTensorMode()
    with fake, torch.no_grad():
        inputs = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in inputs]
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        FakeTensorProp(graph, fake).propagate(*inputs)
    with (
        V.set_fake_mode(fake),
        config.patch(layout_optimization=False),
        mock.patch.object(DeviceProperties, "create", lambda _: h100),
        mock.patch("torch.cuda.get_device_properties", lambda _: h100),
        mock.patch("torch._inductor.scheduler.has_triton", lambda: True),
        torch.no_grad(),
    ):
        post_grad_passes(graph, is_inference=False)
        lowering = GraphLowering(graph, example_inputs=inputs)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            return sum(node.get_read_write_buffers_sizes() for node in lowering.scheduler.nodes)
