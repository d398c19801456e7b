"""Tests of weights of any origin: three layouts, wrapped in many ways, damaged, or not a ConvMixer's."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.models.convmixer
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from config.errors import ConfigError
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from weights.files import read_weights
from weights.layouts import from_layout, to_layout

CIFAR = (32, 2, 5, 2, 10, "relu")  # width, depth, kernel, patch, classes, activation
PUBLISHED = {
    "convmixer_1536_20_ks9_p7": (1536, 20, 9, 7, 1000, "gelu"),
    "convmixer_768_32_ks7_p7_relu": (768, 32, 7, 7, 1000, "relu"),
    "convmixer_1024_20_ks9_p14": (1024, 20, 9, 14, 1000, "gelu"),
}
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def by_the_authors(d: int, depth: int, k: int, p: int, classes: int, activation: str, channels: int = 3) -> nn.Module:
    """Build the model as locuslab/convmixer does, with numbers as names."""
    act = ACTIVATIONS[activation]

    def layer() -> nn.Module:
        mix = nn.Sequential(nn.Conv2d(d, d, k, groups=d, padding="same"), act(), nn.BatchNorm2d(d))
        return nn.Sequential(Residual(mix), nn.Conv2d(d, d, 1), act(), nn.BatchNorm2d(d))

    patch_emb = (nn.Conv2d(channels, d, p, stride=p), act(), nn.BatchNorm2d(d))
    head = (nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(d, classes))
    return nn.Sequential(*patch_emb, *(layer() for _ in range(depth)), *head)


def by_timm(d: int, depth: int, k: int, p: int, classes: int, activation: str, channels: int = 3) -> nn.Module:
    return timm.models.convmixer.ConvMixer(
        d, depth, kernel_size=k, patch_size=p, in_chans=channels, num_classes=classes, act_layer=ACTIVATIONS[activation]
    )


def randomized(model: nn.Module) -> nn.Module:
    """Randomize the running statistics as if the model had been trained, and set evaluation mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.3, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
            module.num_batches_tracked = torch.tensor(7)
    return model.eval()


def ours(d: int, depth: int, k: int, p: int, classes: int, activation: str) -> ConvMixer:
    return ConvMixer(
        ConvMixerLayer(d, k, activation=activation), depth,
        ConvPatchEmbeddings(d, p, 3, activation=activation), ConvClassificationHead(d, classes),
    ).eval()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("build", [by_timm, by_the_authors])
@pytest.mark.parametrize("shape", [CIFAR, *PUBLISHED.values()])
@torch.no_grad()
def test_published_layout_keeps_logits_and_comes_back_bit_equal(
    build: Callable[..., Any], shape: tuple[Any, ...]
) -> None:
    published = randomized(build(*shape))
    layout, architecture, weights = from_layout(published.state_dict())
    d, depth, k, p, classes, _ = shape
    assert layout == ("timm" if build is by_timm else "authors")
    assert (architecture.d_model, architecture.depth, architecture.kernel_size) == (d, depth, k)
    assert (architecture.patch_size, architecture.channels, architecture.n_classes) == (p, 3, classes)
    model = ours(*shape)
    model.load_state_dict(weights)
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(model(images), published(images), atol=1e-5, rtol=0)
    for layout, peer in (("timm", by_timm), ("authors", by_the_authors)):
        exported = to_layout(weights, layout)
        with torch.device("meta"):  # names alone
            assert list(exported) == list(peer(*shape).state_dict())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in from_layout(exported)[2].items())


@pytest.fixture
def peer() -> nn.Module:
    return randomized(by_timm(*CIFAR))


WRAPPED: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda weights: weights,
    "state_dict": lambda weights: {"epoch": 3, "arch": "convmixer", "state_dict": weights, "optimizer": {}},
    "module": lambda weights: {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
    "compiled": lambda weights: {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()},
    "lightning": lambda weights: {"state_dict": {f"model.{name}": tensor for name, tensor in weights.items()}},
    "ema": lambda weights: {
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        "state_dict_ema": {f"module.{name}": tensor for name, tensor in weights.items()},
        "args": argparse.Namespace(model="convmixer", lr=0.01),
    },
    "averaged": lambda weights: {
        "n_averaged": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in weights.items()}
    },
    "half": lambda weights: {name: tensor.half() if tensor.ndim else tensor for name, tensor in weights.items()},
    "without counters": lambda weights: {name: tensor for name, tensor in weights.items() if "num_batch" not in name},
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("suffix", [".pt", ".pth.tar"])
def test_wrapped_weights(name: str, suffix: str, peer: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save(WRAPPED[name](dict(peer.state_dict())), file)
    weights = read_weights(str(file))
    assert weights.layout == "timm"
    expected = from_layout(peer.state_dict())[2]
    for key, tensor in weights.tensors.items():
        if name == "without counters" and key.endswith("num_batches_tracked"):
            assert tensor == 0
        else:
            torch.testing.assert_close(tensor, expected[key], atol=1e-3 if name == "half" else 0, rtol=0)


def test_safetensors(peer: nn.Module, tmp_path: Path) -> None:
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    assert read_weights(str(tmp_path / "model.safetensors")).layout == "timm"
    assert read_weights(str(tmp_path)).architecture.d_model == CIFAR[0]


@pytest.mark.parametrize(
    ("file", "activation"),
    [
        ("convmixer_768_32_ks7_p7_relu.pth.tar", "relu"),
        ("convmixer_1536_20_ks9_p7.pth.tar", None),
        ("mine.pt", None),
        ("mine-gelu.pt", "gelu"),
        ("relu-or-gelu.pt", None),
    ],
)
def test_the_activation_is_known_by_the_name(file: str, activation: str | None, tmp_path: Path) -> None:
    torch.save(by_timm(8, 1, 3, 2, 10, "relu").state_dict(), tmp_path / file)
    weights = read_weights(str(tmp_path / file))
    assert weights.activation == activation
    assert weights.published is None and weights.normalization is None


def test_the_same_content_has_one_fingerprint(peer: nn.Module, tmp_path: Path) -> None:
    weights = from_layout(peer.state_dict())[2]
    torch.save({"state_dict": peer.state_dict(), "epoch": 1}, tmp_path / "one.pth.tar")
    save_file(to_layout(weights, "authors"), tmp_path / "two.safetensors")
    first, second = (read_weights(str(tmp_path / name)) for name in ("one.pth.tar", "two.safetensors"))
    assert first.fingerprint() == second.fingerprint()
    weights["classification.linear.bias"][0] += 1e-6
    torch.save(weights, tmp_path / "three.pt")
    assert read_weights(str(tmp_path / "three.pt")).fingerprint() != first.fingerprint()


def test_weights_saved_without_checksums_are_read(peer: nn.Module, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(peer.state_dict(), tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(str(tmp_path / "weights.pt")).layout == "timm"


@pytest.mark.parametrize("config", [{"lr": 0.1}, "mine", {"model": {"activation": "relu"}, "data": {}, "trainer": {}}])
def test_a_strangers_file_may_have_keys_of_our_names(config: object, peer: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": peer.state_dict(), "config": config, "classes": 10, "mean": "m"}, tmp_path / "theirs.pt")
    assert read_weights(str(tmp_path / "theirs.pt")).description is None


def test_the_content_tells_safetensors_from_others(peer: nn.Module, tmp_path: Path) -> None:
    save_file(peer.state_dict(), tmp_path / "weights.pt")
    torch.save(peer.state_dict(), tmp_path / "weights.safetensors")
    assert all(read_weights(str(path)).layout == "timm" for path in list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"classes": ["a"]}, "1 classes"), ({"mean": [0.5, 0.5]}, "2 mean"),
        ({"model.kernel_size": 7}, r"model\.kernel_size=7"), ({"model.gate": True}, r"model\.gate"),
        ({"model.activation": "tanh"}, r"model\.activation=tanh"), ({"classes": list(range(10))}, "classes"),
        ({"classes": "0123456789"}, "classes"), ({"labels": {}}, "labels"), ({"image_size": [8]}, "image_size"),
        ({"image_size": [8, "8"]}, "image_size"), ({"image_size": [10**9, 8]}, "image_size"),
        ({"image_size": torch.ones(2)}, "image_size"), ({"mean": ["a"]}, "mean"), ({"std": [0.0]}, "std"),
        ({"std": [float("nan")]}, "std"), ({"config.data": 3}, r"config"), ({"config.data": None}, r"config\.data"),
        ({"config.trainer": None}, r"config\.trainer"), ({"model.depth": torch.ones(1)}, r"model\.depth"),
        ({"model.depth": "2"}, r"model\.depth"), ({"data.root": torch.ones(1)}, r"data\.root"),
        ({"data.mean": [10**400]}, r"data\.mean"), ({"trainer.precision": 16}, r"trainer\.precision"),
        ({"data.old_key": torch.ones(1)}, r"data\.old_key"), ({"metrics": [1]}, "metrics"),
        ({"metrics": {"epoch": torch.ones(2)}}, "metrics"), ({"rows": [5]}, "rows"), ({"step": "1"}, "step"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_its_weights_is_refused(
    change: dict[str, Any], names: str, digits_run: Path, tmp_path: Path
) -> None:
    content = torch.load(digits_run / "checkpoints" / "best.pt", weights_only=True)
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        place = content if not section else content["config"] if section == "config" else content["config"][section]
        if value is None:
            del place[name]
        else:
            place[name] = value
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(ConfigError, match=names) as error:
        read_weights(str(tmp_path / "best.pt"))
    assert str(error.value).startswith("checkpoint=") and "\n" not in str(error.value)


def test_a_sweep_of_one_run_stands_for_it(peer: nn.Module, tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
    torch.save(peer.state_dict(), tmp_path / "one" / "checkpoints" / "best.pt")
    assert read_weights(str(tmp_path)).path == tmp_path / "one" / "checkpoints" / "best.pt"
    torch.save(peer.state_dict(), tmp_path / "two" / "checkpoints" / "best.pt")
    with pytest.raises(ConfigError, match="2 runs"):
        read_weights(str(tmp_path))
