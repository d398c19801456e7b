"""The fused ConvMixer gives what the plain one gives: on a GPU if there is one, else slowly in Triton's interpreter."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fake_gpu import Counter, fake_cuda
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from ops import fused, launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []  # there compiled, and among what -m gpu selects
CLASSES = 5


def convmixer(
    width: int = 3, kernel: int = 3, patch: int = 2, depth: int = 1, seed: int = 0, **options: Any
) -> ConvMixer:
    """Its norms are not those of a fresh model, which hide mistakes: ones and zeros."""
    torch.manual_seed(seed)
    shared = {name: options[name] for name in ("activation", "norm") if name in options}
    model = ConvMixer(
        ConvMixerLayer(width, kernel, backend="fused", **options),
        depth,
        ConvPatchEmbeddings(width, patch, 3, **shared),
        ConvClassificationHead(width, CLASSES),
    )
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert values is not None
                values.uniform_(0.5, 1.5)
    return model.to(DEVICE)


def everything(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The logits, all gradients, and the running statistics after a step."""
    images = images.detach().requires_grad_(images.requires_grad)
    logits = model(images)
    weights = torch.linspace(-1, 1, logits.numel(), device=DEVICE, dtype=torch.float64).view_as(logits)
    (logits.double() * weights).sum().backward()
    gradients = {f"{name} (gradient)": p.grad for name, p in model.named_parameters() if p.grad is not None}
    if images.grad is not None:
        gradients["images (gradient)"] = images.grad
    return {"logits": logits.detach(), **gradients, **dict(model.named_buffers())}


def plain(model: ConvMixer) -> ConvMixer:
    other = copy.deepcopy(model)
    for layer in other.conv_mixer_layers:
        layer.depth_wise_conv.backend = "reference"
    return other


def check(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 5e-5) -> None:
    assert list(found) == list(expected)
    for name, value in found.items():
        true = expected[name].double()
        allowed = tolerance * float(true.abs().max()) + (5e-6 if tolerance else 0)  # sums that cancel
        torch.testing.assert_close(value.double(), true, rtol=0, atol=allowed, msg=name)


def compare_with_float64(model: ConvMixer, images: Tensor) -> None:
    expected = everything(plain(model).double(), images.double())
    check(everything(model, images), expected)


def images_of(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(DEVICE)


CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {  # model, batch × height × width of its images
    "relu": ({"depth": 2}, (3, 8, 8)),
    "gelu, kernel 4, no residual": ({"activation": "gelu", "kernel": 4, "residual_depthwise": False}, (2, 6, 8)),
    "one position, kernel 5": ({"patch": 4, "kernel": 5}, (4, 4, 4)),
    "one image": ({"patch": 1}, (1, 3, 5)),
    "pixels beyond the last patch": ({"patch": 3}, (2, 4, 8)),
}
LARGER: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "16×16, kernel 5": ({"kernel": 5, "width": 2}, (5, 32, 32)),
    "32×32, kernel 9": ({"kernel": 9, "width": 1, "patch": 1}, (1, 32, 32)),
    "33×17, kernel 31, gelu": ({"kernel": 31, "width": 1, "patch": 1, "activation": "gelu"}, (1, 33, 17)),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_results_gradients_and_running_statistics_equal_float64(case: str) -> None:
    options, size = {**CASES, **LARGER}[case]
    model = convmixer(**options)
    assert fused.is_wanted(model, images_of(*size))
    compare_with_float64(model, images_of(*size))


def test_evaluation_mode_and_its_gradients_equal_float64() -> None:
    compare_with_float64(convmixer().eval(), images_of(2, 6, 6).requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_in_half_precision_it_is_as_close_to_float64_as_pytorch(activation: str, dtype: torch.dtype) -> None:
    ratios = []
    for seed in range(2):
        model = convmixer(width=4, activation=activation, seed=seed)
        exact = everything(plain(model).double(), images_of(3, 8, 8).double())
        with torch.autocast(DEVICE, dtype=dtype):
            others = everything(plain(model), images_of(3, 8, 8))
            ours = everything(model, images_of(3, 8, 8))
        for name, true in exact.items():
            if "gradient" in name or name == "logits":
                error, allowed = ((found[name].double() - true).norm() for found in (ours, others))
                ratios.append(float(error / allowed))
    assert math.prod(ratios) ** (1 / len(ratios)) <= 1.25  # which way ReLU rounds is a matter of chance


def test_two_times_the_same_bits_and_recomputing_changes_none() -> None:
    model = convmixer()
    first = everything(copy.deepcopy(model), images_of(3, 4, 4))
    check(everything(copy.deepcopy(model), images_of(3, 4, 4)), first, tolerance=0)
    model.checkpoint_activations = True
    check(everything(model, images_of(3, 4, 4)), first, tolerance=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("recompute", "stored"), [(False, 2), (True, 1)])
def test_activations_stored_by_a_layer(recompute: bool, stored: int, dtype: torch.dtype) -> None:
    def kept(depth: int) -> int:
        model = convmixer(depth=depth)
        model.checkpoint_activations = recompute
        images, sizes = images_of(2, 8, 8), {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            return tensor

        half = torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32)
        with half, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = model(images)
        activation = 3 * 2 * 4 * 4 * dtype.itemsize
        assert logits.requires_grad
        return sum(size >= activation for size in sizes.values())

    assert kept(2) - kept(1) == stored


def test_compiled_as_a_whole() -> None:
    model = convmixer()
    expected = everything(copy.deepcopy(model), images_of(2, 4, 4))
    model.compile(backend="aot_eager", fullgraph=True)
    check(everything(model, images_of(2, 4, 4)), expected)
    torch.compiler.reset()  # or the next model to be compiled is taken for this one with other shapes


def test_distributed_data_parallel(tmp_path: Path) -> None:
    model = convmixer()
    expected = everything(copy.deepcopy(model), images_of(2, 4, 4))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        everything(DistributedDataParallel(model), images_of(2, 4, 4))
    finally:
        distributed.destroy_process_group()
    found = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[f"{name} (gradient)"])


def test_frozen_parts_get_no_gradients() -> None:
    model = convmixer(depth=2)
    for part in (model.patch_emb, model.conv_mixer_layers[0]):
        part.requires_grad_(False)
    compare_with_float64(model, images_of(2, 4, 4))
    assert model.patch_emb.conv.weight.grad is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"norm": "layer"}, "norms"),
        ({"residual_pointwise": True}, "residual"),
        ({"dropout": 0.5}, "dropout"),
        ({"stochastic_depth": 0.5}, "dropout"),
        ({"kernel": 33}, "kernels"),
    ],
)
def test_what_cannot_be_fused_goes_the_plain_way(options: dict[str, Any], reason: str) -> None:
    model = convmixer(**options)
    assert reason in str(fused.why_not(model, images_of(2, 4, 4)))
    torch.manual_seed(0)
    expected = plain(model)(images_of(2, 4, 4))
    torch.manual_seed(0)
    assert torch.equal(model(images_of(2, 4, 4)), expected)


def test_activations_that_differ_go_the_plain_way() -> None:
    model = convmixer()
    model.patch_emb.act = nn.GELU()
    assert "activations" in str(fused.why_not(model, images_of(2, 4, 4)))
    assert torch.equal(model(images_of(2, 4, 4)), plain(model)(images_of(2, 4, 4)))


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (2, 3, 1, 1), (3, 4, 4)])
def test_images_of_another_shape_are_the_plain_ways_error(shape: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, ValueError), match="input"):
        convmixer()(torch.zeros(shape, device=DEVICE))


def test_no_image_gives_no_logits() -> None:
    assert convmixer().eval()(images_of(0, 4, 4)).shape == (0, CLASSES)


def test_a_value_that_is_not_a_number_shows() -> None:
    model = convmixer()
    model.conv_mixer_layers[0].depth_wise_conv.bias.data[0] = math.nan
    found = everything(model, images_of(2, 4, 4))
    assert found["logits"].isnan().all()
    assert found["patch_emb.conv.weight (gradient)"].isnan().all()


def test_its_operators_are_what_pytorch_expects_of_one() -> None:
    """Schemas, and on tensors without data results of the same shape, which torch.compile and CUDA graphs need."""
    calls: dict[Any, Any] = {}

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "convmixer":
                calls[func] = args
            return func(*args, **(kwargs or {}))

    with Record():
        everything(convmixer(), images_of(2, 4, 4))
    assert len(calls) == 4
    for operator, arguments in calls.items():
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_host_never_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "unavailable", lambda _: None)
    model = convmixer()
    with fake_cuda():
        model.to("cuda")
        images = torch.empty(2, 3, 4, 4, device="cuda")
        assert fused.is_wanted(model, images)
        with Counter() as counter:
            model(images).sum().backward()
    assert counter.operations > 0
    assert counter.synchronizations == []


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    model, images = convmixer(), images_of(2, 4, 4)
    expected = everything(copy.deepcopy(model), images)
    graphed = torch.cuda.make_graphed_callables(model, (images.clone(),))
    found = everything(graphed, images)
    for name, value in found.items():
        if "gradient" in name or name == "logits":  # capturing takes several batches into the running statistics
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("part", ["conv_mixer_layers.0.norm1", "classification"])
def test_hooks_see_what_they_would_see_in_the_plain_way(part: str) -> None:
    model, seen = convmixer().eval(), []
    model.get_submodule(part).register_forward_hook(lambda *arguments: seen.append(arguments))
    model(images_of(2, 4, 4))
    assert seen
