"""Tests of the model's contract: shapes, names, numbers, and PyTorch's operations on modules."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import timm.models.convmixer
import torch
from torch import nn

import LLMConvMixer
from conftest import checked
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from training.model import make_model


def build(
    d_model: int = 16, depth: int = 3, kernel_size: int = 5, patch_size: int = 2, channels: int = 3, classes: int = 10,
    dropout: float = 0.0, **options: Any,
) -> ConvMixer:  # fmt: skip
    shared = {key: value for key, value in options.items() if key in ("activation", "norm")}
    return ConvMixer(
        ConvMixerLayer(d_model, kernel_size, dropout=dropout, **options),
        depth,
        ConvPatchEmbeddings(d_model, patch_size, channels, **shared),
        ConvClassificationHead(d_model, classes, dropout=dropout),
    )


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 8, 9, 15])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (16, 16)])
def test_a_layer_keeps_the_shape_for_odd_and_even_kernels(kernel_size: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size)
    assert ConvMixerLayer(4, kernel_size)(x).shape == x.shape


def test_a_layer_is_what_the_paper_says() -> None:
    layer = ConvMixerLayer(6, 3).eval()
    x = torch.randn(2, 6, 7, 7)
    mixed = layer.norm1(torch.relu(layer.depth_wise_conv(x))) + x
    torch.testing.assert_close(layer(x), layer.norm2(torch.relu(layer.point_wise_conv(mixed))))


def test_embedding_and_head_shapes() -> None:
    assert ConvPatchEmbeddings(8, 4, 1)(torch.randn(2, 1, 28, 12)).shape == (2, 8, 7, 3)
    x = torch.randn(2, 8, 7, 3)
    head = ConvClassificationHead(8, 5)
    torch.testing.assert_close(head(x), head.linear(x.mean((2, 3))))


def test_names_and_aliases() -> None:
    assert LLMConvMixer.PatchEmbeddings is ConvPatchEmbeddings
    assert LLMConvMixer.ClassificationHead is ConvClassificationHead
    names = {name.rpartition(".")[0] for name in build(depth=1).state_dict()}
    assert names == {
        "patch_emb.conv", "patch_emb.norm", "conv_mixer_layers.0.depth_wise_conv", "conv_mixer_layers.0.norm1",
        "conv_mixer_layers.0.point_wise_conv", "conv_mixer_layers.0.norm2", "classification.linear",
    }  # fmt: skip


def test_layers_start_apart_and_leave_the_pattern_alone() -> None:
    pattern = ConvMixerLayer(4, 3)
    before = copy.deepcopy(pattern.state_dict())
    model = ConvMixer(pattern, 3, ConvPatchEmbeddings(4, 1, 1), ConvClassificationHead(4, 2))
    model(torch.randn(2, 1, 4, 4)).sum().backward()
    weights = [layer.depth_wise_conv.weight for layer in (*model.conv_mixer_layers, pattern)]
    for i, weight in enumerate(weights):
        assert all(not torch.equal(weight, other) for other in weights[i + 1 :])
        assert all(weight.data_ptr() != other.data_ptr() for other in weights[i + 1 :])
    for name, value in pattern.state_dict().items():
        assert torch.equal(value, before[name])
    assert pattern.point_wise_conv.weight.grad is None


@pytest.mark.parametrize(
    ("model", "classes", "parameters"),
    [
        ("convmixer_256_8", 10, 594_186),
        ("convmixer_768_32", 1000, 21.1e6),
        ("convmixer_1024_20", 1000, 24.4e6),
        ("convmixer_1536_20", 1000, 51.6e6),
    ],
)
def test_parameter_counts(model: str, classes: int, parameters: float) -> None:
    with torch.device("meta"):
        built = make_model(checked(f"model={model}"), 3, classes)
    count = sum(p.numel() for p in built.parameters())
    assert count == parameters if parameters < 1e6 else round(count / 1e6, 1) == parameters / 1e6


def copy_to_timm(ours: ConvMixer, theirs: nn.Module) -> None:
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))


@pytest.mark.parametrize("training", [True, False])
def test_equals_timm(training: bool) -> None:
    ours = build(32, 4, 9, 2, activation="gelu").train(training)
    theirs = timm.models.convmixer.ConvMixer(32, 4, kernel_size=9, patch_size=2, num_classes=10, act_layer=nn.GELU)
    for buffer in ours.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    copy_to_timm(ours, theirs.train(training))
    x = torch.randn(4, 3, 32, 32)
    logits, expected = ours(x), theirs(x)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        scale = float(q.grad.abs().max())
        assert (p.grad - q.grad).abs().max() <= 1e-5 * max(1.0, scale), name


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("residuals", [(True, False), (True, True), (False, False), (False, True)])
def test_switches(norm: str, activation: str, residuals: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    layer = ConvMixerLayer(
        4, 3, norm=norm, activation=activation, residual_depthwise=residuals[0], residual_pointwise=residuals[1]
    )
    act: Callable[..., torch.Tensor] = {"relu": torch.relu, "gelu": nn.functional.gelu}[activation]
    x = torch.randn(3, 4, 6, 6)
    layer.eval()
    y = layer.norm1(act(layer.depth_wise_conv(x))) + (x if residuals[0] else 0)
    y = layer.norm2(act(layer.point_wise_conv(y))) + (y if residuals[1] else 0)
    # Over four channels LayerNorm divides by what may be almost nothing, which enlarges rounding.
    torch.testing.assert_close(layer(x), y, atol=1e-4 if norm == "layer" else 1e-5, rtol=1e-5)
    if norm == "layer":
        torch.testing.assert_close(layer.norm1(x).mean(1), torch.zeros(3, 6, 6), atol=1e-5, rtol=0)


def test_dropout_drops_in_training_only() -> None:
    x = torch.ones(64, 8, 4, 4)
    layer = ConvMixerLayer(8, 3, dropout=0.5)
    seen: list[torch.Tensor] = []
    layer.depth_wise_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.train()(x)
    layer.eval()(x)
    assert 0.4 < (seen[0] == 0).float().mean() < 0.6
    assert torch.equal(seen[1], x)
    head = ConvClassificationHead(8, 2, dropout=0.5)
    assert not torch.equal(head.train()(x), head.train()(x))
    assert torch.equal(head.eval()(x), head.eval()(x))


def test_stochastic_depth_drops_images_more_often_with_depth() -> None:
    pattern = ConvMixerLayer(4, 3, norm="none", stochastic_depth=0.5)
    model = ConvMixer(pattern, 4, ConvPatchEmbeddings(4, 1, 3), ConvClassificationHead(4, 2)).train()
    layers: Any = model.conv_mixer_layers
    assert [layer.stochastic_depth.p for layer in layers] == [0.125, 0.25, 0.375, 0.5]
    layer = layers[-1]
    seen: list[torch.Tensor] = []
    layer.point_wise_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(400, 4, 5, 5)
    layer(x)
    branch = torch.relu(layer.depth_wise_conv(x))
    dropped = (seen[0] == x).flatten(1).all(1)
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(seen[0][~dropped], (x + branch / 0.5)[~dropped])


def test_parts_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="d_model"):
        ConvMixer(ConvMixerLayer(8, 3), 2, ConvPatchEmbeddings(4, 1, 3), ConvClassificationHead(8, 2))


@pytest.mark.parametrize("n_layers", [0, -1])
def test_a_model_without_layers_is_refused(n_layers: int) -> None:
    with pytest.raises(ValueError, match=f"n_layers={n_layers}"):
        ConvMixer(ConvMixerLayer(8, 3), n_layers, ConvPatchEmbeddings(8, 2, 3), ConvClassificationHead(8, 2))


def test_a_replaced_depthwise_convolution_works() -> None:
    """It is replaced in a model and in the template of its layers, by one of PyTorch's layers and by two."""
    model, x = build().eval(), torch.randn(2, 3, 16, 16)
    expected = model(x)
    for layer in model.conv_mixer_layers:
        plain = nn.Conv2d(16, 16, 5, groups=16, padding="same")
        plain.load_state_dict(layer.get_submodule("depth_wise_conv").state_dict())
        layer.depth_wise_conv = plain
    torch.testing.assert_close(model(x), expected)
    pattern = ConvMixerLayer(16, 5)
    wide, tall = (nn.Conv2d(16, 16, size, groups=16, padding="same") for size in ((1, 5), (5, 1)))
    pattern.add_module("depth_wise_conv", nn.Sequential(wide, tall))
    separable = ConvMixer(pattern, 2, ConvPatchEmbeddings(16, 2, 3), ConvClassificationHead(16, 10))
    separable(x).sum().backward()
    assert all(parameter.grad is not None for parameter in separable.parameters())


def test_an_empty_batch_has_no_gradient() -> None:
    model = build(256, 1, 9, 4).train()
    model(torch.empty(0, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_forward_mode_derivatives_equal_backward_mode() -> None:
    """The kernels are one with the CPU's own gradients, and one with PyTorch's."""
    model, x = build(256, 1, 9, 4).eval(), torch.randn(2, 3, 16, 16)
    values: dict[str, torch.Tensor] = dict(model.named_parameters())
    direction = {name: torch.randn_like(value) for name, value in values.items()}
    bias = "conv_mixer_layers.0.depth_wise_conv.bias"

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, values, (x,)).square().sum()

    gradient = torch.func.grad(loss)
    derivative = torch.func.jvp(loss, (values,), (direction,))[1]
    expected = sum((slope * direction[name]).sum() for name, slope in gradient(values).items())
    torch.testing.assert_close(derivative, expected, rtol=1e-4, atol=1e-5)
    curvature = torch.func.jvp(gradient, (values,), (direction,))[1]
    expected = torch.func.vjp(gradient, values)[1](direction)[0]  # a Hessian is symmetric
    torch.testing.assert_close(curvature, expected, rtol=1e-3, atol=1e-4)
    hessian = torch.func.hessian(lambda head: loss({**values, bias: torch.cat([head, values[bias][2:]])}))
    assert hessian(values[bias][:2].detach()).shape == (2, 2)


def test_torch_fx_traces_the_model() -> None:
    model, x = build().eval(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_state_dict_round_trip_and_deepcopy() -> None:
    model, other = build().eval(), build().eval()
    x = torch.randn(2, 3, 16, 16)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    assert torch.equal(model(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: ConvMixerLayer(8, 0), "kernel_size=0"),
        (lambda: ConvMixerLayer(0, 3), "d_model=0"),
        (lambda: ConvPatchEmbeddings(8, 0, 3), "patch_size=0"),
        (lambda: ConvPatchEmbeddings(8, 2, 0), "in_channels=0"),
        (lambda: ConvClassificationHead(8, 0), "n_classes=0"),
        (lambda: ConvMixerLayer(8, 3, activation="tanh"), "activation='tanh': .*relu"),
        (lambda: ConvPatchEmbeddings(8, 2, 3, norm="group"), "norm='group': .*batch"),
        (lambda: ConvMixerLayer(8, 3, stochastic_depth=1.5), "stochastic_depth=1.5"),
    ],
)
def test_a_value_that_no_layer_can_have_is_refused(build: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


def test_a_traced_model_can_be_saved() -> None:
    """For a kernel of this size `auto` takes the backend with its own gradients."""
    layer, embedding = ConvMixerLayer(256, 9), ConvPatchEmbeddings(256, 1, 3)
    model = ConvMixer(layer, 1, embedding, ConvClassificationHead(256, 10)).eval()
    file, x = io.BytesIO(), torch.randn(2, 3, 8, 8)
    torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


def test_channels_last_and_autocast() -> None:
    model = build().eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("compiled", "synchronized"), [(False, False), (True, False), (False, True)])
def test_recomputed_layers_give_the_same_and_keep_less(compiled: bool, synchronized: bool) -> None:
    def trained(checkpoint_activations: bool) -> tuple[ConvMixer, int]:
        torch.manual_seed(0)
        model = build(dropout=0.0 if compiled else 0.3).train()  # compiled, dropout draws other numbers
        if synchronized:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.checkpoint_activations = checkpoint_activations
        called = torch.compile(model, backend="aot_eager") if compiled else model
        kept: set[int] = set()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = called(torch.linspace(-1, 1, 4 * 3 * 16 * 16).view(4, 3, 16, 16)).square().sum()
        loss.backward()
        return model, len(kept)

    (plain, all_kept), (recomputed, few_kept) = trained(False), trained(True)
    for p, q in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for b, c in zip(plain.buffers(), recomputed.buffers(), strict=True):
        torch.testing.assert_close(b, c)  # statistics are taken in once
    assert compiled or few_kept < all_kept / 2


def test_layer_norm_stays_in_the_precision_of_autocast() -> None:
    layer = ConvMixerLayer(8, 3, norm="layer")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 8, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.slow
def test_compile_and_export() -> None:
    model = build(depth=2, norm="layer").eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.compile(model)(x), model(x))
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(torch.cat([x, x])), model(torch.cat([x, x])))
