"""Tests of files of weights that are refused: damaged, foreign, or able to run code."""

import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from config.errors import ConfigError
from test_weights import CIFAR, by_timm, randomized
from weights.files import read_weights
from weights.layouts import LayoutError, from_layout


@pytest.fixture
def peer() -> nn.Module:
    return randomized(by_timm(*CIFAR))


class Malicious:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.touched,))


@pytest.mark.parametrize("damage", ["flipped", "nan", "infinite", "expanded"])
def test_damaged_weights_are_named(damage: str, peer: nn.Module, tmp_path: Path) -> None:
    state, file = peer.state_dict(), tmp_path / "weights.pt"
    weight = state["head.weight"].clone()
    if damage == "expanded":
        weight = torch.zeros(1).expand(2**20, 2**15)
    elif damage != "flipped":
        weight[0, 0] = float(damage[:3])
    torch.save({**state, "head.weight": weight}, file)
    content = file.read_bytes()
    if damage == "flipped":
        place = content.index(weight.numpy().tobytes())
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :])
    named = {"flipped": "checksum", "expanded": "larger than the file"}.get(damage, "head.weight holds NaN or infinite")
    with pytest.raises(ConfigError, match=named):
        read_weights(str(file))


def test_a_stranger_s_file_runs_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": Malicious(tmp_path / "touched")}, tmp_path / "one.pt")
    (tmp_path / "two.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "touched")))
    for name in ("one.pt", "two.pt"):
        with pytest.raises(ConfigError, match=name):
            read_weights(str(tmp_path / name))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("left", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_line(suffix: str, left: float, peer: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    save_file(peer.state_dict(), file) if suffix == ".safetensors" else torch.save(peer.state_dict(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(ConfigError, match=f"checkpoint={file}") as raised:
        read_weights(str(file))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda weights: weights.pop("blocks.1.1.bias"), "blocks.1.1.bias is missing"),
        (lambda weights: weights.pop("head.weight"), "head.weight is missing"),
        (lambda weights: weights.update({"head.scale": torch.ones(1)}), "head.scale is unexpected"),
        (lambda weights: weights.update({"blocks.1.3.bias": torch.ones(5)}), r"blocks.1.3.bias is \[5\] instead of"),
        (lambda weights: weights.update({"stem.0.weight": torch.ones(5)}), r"stem.0.weight is \[5\]"),
    ],
)
def test_mismatching_weights_name_the_differences(change: Callable[..., Any], names: str, peer: nn.Module) -> None:
    weights = dict(peer.state_dict())
    change(weights)
    with pytest.raises(LayoutError, match=names):
        from_layout(weights)


def test_foreign_weights_and_files_that_are_not_there(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict(), tmp_path / "foreign.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    for name, expected in (("foreign.pt", "found 0.weight"), ("tensor.pt", "Tensor"), ("none.pt", "no such file")):
        with pytest.raises(ConfigError, match=expected) as raised:
            read_weights(str(tmp_path / name), key="model.pretrained")
        assert str(raised.value).startswith(f"model.pretrained={tmp_path / name}")
    with pytest.raises(ConfigError, match="no weights"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\n", "Git LFS"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "PNG"), (b"\xff\xd8\xff\xe0" + b"\0" * 50, "JPEG"),
        (b"<!DOCTYPE html><html></html>", "web page"), (b"epoch,loss\n1,2\n" * 9, "text"), (b"e", "text"),
        (b"\x1f\x8b" + b"\0" * 50, "gzip"), (b"\x93NUMPY\x01\0", "NumPy"), (b"\0" * 600, "another format"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_without_weights_is_named_for_what_it_is(content: bytes, kind: str, suffix: str, tmp_path: Path) -> None:
    (file := tmp_path / f"file{suffix}").write_bytes(content)
    with pytest.raises(ConfigError, match=kind) as error:
        read_weights(str(file))
    assert "\n" not in str(error.value)


def test_programs_are_no_weights(peer: nn.Module, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    for name, kind in (("script.pt", "TorchScript"), ("program.pt2", r"torch\.export")):
        with pytest.raises(ConfigError, match=kind):
            read_weights(str(tmp_path / name))


@pytest.mark.slow
@pytest.mark.parametrize("extra", [OmegaConf.create({"a": 1}), np.float64(1.0)])
def test_an_object_that_could_run_code_is_named(extra: object, peer: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": peer.state_dict(), "extra": extra}, tmp_path / "a b.ckpt")
    with pytest.raises(ConfigError, match=r"omegaconf|numpy") as error:
        read_weights(str(tmp_path / "a b.ckpt"))
    assert "\n" not in str(error.value)
    fix = shlex.split(str(error.value).partition("alone: ")[2])
    subprocess.run([sys.executable, *fix[1:]], cwd=tmp_path, check=True)  # what it says to do
    assert read_weights(str(tmp_path / "weights.pt")).layout == "timm"
