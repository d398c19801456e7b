"""Tests of Triton's kernels compared with float64: on a GPU, or slowly in Triton's interpreter."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from config.errors import ConfigError
from ops.depthwise import IMPLEMENTATION, TRITON, depthwise, unsupported_reason
from ops.pointwise import PointwiseConv2d
from processes import REPOSITORY

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []  # there compiled, and among what -m gpu selects
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest value

SHAPES = [  # batch, channels, height, width, kernel
    (1, 2, 1, 1, 3),  # one image, one position
    (3, 2, 5, 3, 2),
    (2, 3, 8, 8, 5),
    (5, 1, 17, 12, 9),  # rows that do not fill the last strip, columns that do not fill a power of two
    (2, 1, 1, 7, 31),
    (1, 1, 32, 32, 9),
    (1, 1, 64, 33, 4),
    (33, 1, 16, 16, 1),  # more images than one program takes
    (14, 2, 20, 32, 6),  # strips of an image that do not fill a program's
    *((2, 1, side, side, k) for side, k in ((8, 15), (16, 3), (16, 7), (14, 8), (7, 3))),
]


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def tensors(shape: tuple[int, ...], dtype: torch.dtype, device: str = DEVICE) -> list[Tensor]:
    """Draw x, weight, bias and the gradient of the result."""
    torch.manual_seed(0)
    batch, channels, height, width, k = shape
    x = (batch, channels, height, width)
    return [
        torch.randn(size, dtype=torch.float64).to(device, dtype).requires_grad_()
        for size in (x, (channels, 1, k, k), (channels,), x)
    ]


def with_gradients(backend: str, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    y = depthwise(x, weight, bias, backend)
    return y, *torch.autograd.grad(y, (x, weight, bias), dy)


def in_float64(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return with_gradients("reference", *(tensor.detach().double().requires_grad_() for tensor in (x, *rest)))


def check(computed: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for ours, true in zip(computed, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), true, atol=TOLERANCE[dtype] * float(true.detach().abs().max()), rtol=0
        )


@pytest.mark.parametrize("backend", [backend for backend in TRITON if backend in IMPLEMENTATION])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_depthwise_equals_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    low = tensors(shape, dtype)
    computed = with_gradients(backend, *low)
    assert {tensor.dtype for tensor in computed} == {dtype}
    check(computed, in_float64(*low), dtype)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_start_on_the_device_of_their_tensors() -> None:
    low = tensors((2, 3, 8, 8, 5), torch.float32, "cuda:1")
    assert torch.cuda.current_device() == 0
    check(with_gradients("banded", *low), in_float64(*low), torch.float32)


def test_float64_is_none_of_its_types() -> None:
    x, weight, *_ = tensors((1, 2, 3, 3, 3), torch.float64)
    assert "64" in str(unsupported_reason("banded", x, weight))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the order of a sum is the GPU's")
def test_gradients_are_the_same_bits_each_time() -> None:
    low = tensors((64, 8, 32, 32, 9), torch.bfloat16)
    once, again = with_gradients("banded", *low), with_gradients("banded", *low)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("allowed", [True, False])
def test_float32_is_tf32_where_cudnn_may_use_it(allowed: bool) -> None:
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        launches = kernels.layer_kernels(2, 2, 8, 3, torch.float32)
    assert {launch.arguments["PRECISION"] for launch in launches.values()} == {"tf32" if allowed else "tf32x3"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pointwise_as_a_product_equals_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    product, x = PointwiseConv2d(6, backend="banded").to(dtype), torch.randn(3, 6, 4, 5).to(dtype).requires_grad_()
    exact, true_x = PointwiseConv2d(6).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(product.state_dict())
    dy = torch.randn(3, 6, 4, 5).to(dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y, true = product(x.contiguous(memory_format=memory_format)), exact(true_x)
        computed = y, *torch.autograd.grad(y, (x, *product.parameters()), dy)
        check(computed, (true, *torch.autograd.grad(true, (true_x, *exact.parameters()), dy.double())), dtype)
    with torch.autocast("cpu", dtype=dtype):
        assert PointwiseConv2d(6, backend="banded")(x.float()).dtype == dtype


# Without a GPU, in one process of their own, where kernels are not interpreted.

COMPILED = ("target=sm_80,sm_86,sm_89,sm_90", "model.kernel_size=9", "model.patch_size=1")
END = "end of the table"
ON_A_FAKE_GPU = """
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from benchmarks.kernels import compile_ahead, layer_kernels
from benchmarks.setting import make_config
from fake_gpu import count_steps
from LLMConvMixer import ConvMixerLayer
from ops import launch

one, other = layer_kernels(500, 16, 8, 3, torch.bfloat16), layer_kernels(512, 16, 8, 3, torch.bfloat16)
compiled = compile_ahead(one["weight_gradient"], "sm_90")  # names the GPU to Triton as well
for name in one:
    kernels = [each[name].kernel.warmup(**each[name].arguments, grid=each[name].grid) for each in (one, other)]
    print("a kernel for every batch", kernels[0] is kernels[1])

launch.unavailable = lambda device: None
graphs = []

def keep(graph, inputs):  # it runs on no CPU, so that anything of the same shape is the result
    graphs.append(graph)
    values = [value and value.meta["val"] for value in graph.graph.output_node().args[0]]
    return make_boxed_func(lambda *_: [None if v is None else torch.zeros(v.shape, dtype=v.dtype) for v in values])

x = torch.empty(8, 32, 16, 16, dtype=torch.bfloat16, requires_grad=True)
layer = ConvMixerLayer(32, 9, backend="banded").to(torch.bfloat16)
torch.compile(layer, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(x).sum().backward()
targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
print("kernels in the graph", sum("triton_kernel_wrapper" in target for target in targets))
print("products in the graph", sum("bmm" in target for target in targets))
print("convolutions in the graph", sum("conv" in target or "banded" in target for target in targets))

for precision in ("bf16", "fp16", "fp32"):
    small = ["model.d_model=16", "model.depth=1", "data.batch_size=8", "hardware=any", "model.backend=banded"]
    config = make_config(["experiment=paper_cifar10", *small, f"trainer.precision={precision}"])
    print("waits", *[counter.synchronizations for counter in count_steps(config, steps=2)])
"""


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """Return the benchmark's output for four GPUs' kernels, and the output of ON_A_FAKE_GPU."""
    code = f"import runpy\nrunpy.run_path('src/benchmark.py', run_name='__main__')\nprint({END!r})\n{ON_A_FAKE_GPU}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "kernels", *COMPILED],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": "src:tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{END}\n")


@pytest.mark.xdist_group("compiled")
@pytest.mark.slow
def test_kernels_compile_for_absent_gpus_without_spills(compiled: list[str]) -> None:
    table, _ = compiled
    rows = [line.split() for line in table.splitlines() if re.match(r" (convolution|\w+_gradient) ", line)]
    assert len(rows) == 4 * 3
    for i, (_, _, spilled, _, _, blocks, product, *_, memory, products, instructions) in enumerate(rows):
        assert spilled == "0"
        assert int(blocks) >= 1
        assert product == ("HGMMA" if i >= 9 else "HMMA")
        assert float(instructions) < max(float(memory), float(products))  # they bound no kernel


@pytest.mark.xdist_group("compiled")
@pytest.mark.slow
def test_banded_is_part_of_the_graph_and_waits_for_nothing(compiled: list[str]) -> None:
    lines = compiled[1].splitlines()
    assert lines[:3] == ["a kernel for every batch True"] * 3
    assert lines[3:] == [
        "kernels in the graph 5",  # two of them write bands
        "products in the graph 3",
        "convolutions in the graph 0",
        *["waits [] []"] * 3,
    ]


@pytest.mark.parametrize(
    ("override", "named"),
    [("target=sm_70", "target=sm_70"), ("target=sm_75", "8.0"), ("model.kernel_size=33", "33")],
)
def test_what_cannot_be_compiled_for_is_an_error(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kernels.run([override])
