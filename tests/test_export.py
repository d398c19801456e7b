"""Tests of exported weights: folded, as safetensors and in the published layouts, with a model card."""

import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hydra import compose
from safetensors.torch import load_file
from torch import nn

import export as export_command
from config.commands import register_commands
from config.errors import ConfigError
from conftest import TINY, Finished, Train, checked, initialized
from inference.checkpoint import open_checkpoint
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from test_evaluate import evaluate
from test_weights import by_the_authors, by_timm
from tracking.identity import override_values, run_id
from training.model import make_model
from weights.files import read_weights
from weights.folding import fold_batch_norm


def trained_looking(d: int = 12, depth: int = 3, k: int = 5, **options: Any) -> ConvMixer:
    torch.manual_seed(0)
    shared = {key: value for key, value in options.items() if key in ("activation", "norm")}
    model = ConvMixer(
        ConvMixerLayer(d, k, **options), depth, ConvPatchEmbeddings(d, 2, 3, **shared), ConvClassificationHead(d, 7)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)  # some of them negative
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("residuals", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@torch.no_grad()
def test_folded_batch_norm_changes_no_logit(residuals: tuple[bool, bool], activation: str) -> None:
    model = trained_looking(
        activation=activation, residual_depthwise=residuals[0], residual_pointwise=residuals[1]
    ).double()
    folded = fold_batch_norm(model)
    images = torch.randn(4, 3, 12, 10, dtype=torch.float64)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-10, atol=1e-10)
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in m.modules()) for m in (model, folded)]
    assert norms == [1 + 2 * 3, 1 + 3 if residuals[1] else 1 + 2]


def test_without_batch_norm_nothing_is_folded() -> None:
    model = trained_looking(norm="layer")
    assert fold_batch_norm(model).state_dict().keys() == model.state_dict().keys()


def export(folder: Path, *overrides: str) -> None:
    """Run `python src/export.py OVERRIDES` in a folder."""
    register_commands()
    with initialized():
        composed = compose("export", list(overrides))
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        export_command.run(composed, overrides)


@torch.no_grad()
def test_published_layouts_load_where_they_come_from(digits_run: Path, tmp_path: Path) -> None:
    export(tmp_path, f"checkpoint={digits_run}", "format=timm")
    export(tmp_path, f"checkpoint={digits_run}", "format=authors")
    folder, original = digits_run / "export", read_weights(str(digits_run))
    exported = {"timm": folder / "timm.safetensors", "authors": folder / "convmixer_16_2_ks4_p1_relu.pt"}
    images = torch.randn(3, 1, 8, 8)
    model = trained_model(digits_run)
    for layout, build in (("timm", by_timm), ("authors", by_the_authors)):
        again = read_weights(str(exported[layout]))
        assert (again.layout, again.activation) == (layout, "relu")
        assert all(torch.equal(tensor, original.tensors[name]) for name, tensor in again.tensors.items())
        peer = build(16, 2, 4, 1, 10, "relu", channels=1).eval()
        load = load_file if layout == "timm" else torch.load
        peer.load_state_dict(load(exported[layout]))
        torch.testing.assert_close(peer(images), model(images), atol=1e-5, rtol=0)


def trained_model(folder: Path) -> ConvMixer:
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    model = make_model(checked(*TINY, "model.kernel_size=4"), 1, 10)
    model.load_state_dict(best["model"])
    return model.eval()


def test_safetensors_evaluate_as_the_run_did_and_have_a_card(digits_run: Path, tmp_path: Path) -> None:
    export(tmp_path, f"checkpoint={digits_run}", "format=safetensors", "output=card/model.safetensors")
    summary = json.loads((digits_run / "summary.json").read_text())
    report = evaluate(tmp_path / "e", f"checkpoint={tmp_path}/card/model.safetensors")
    assert report["test/accuracy"] == summary["test/accuracy"]
    card = ModelCard.load(tmp_path / "card" / "model.md")
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["test accuracy"] == summary["test/accuracy"]
    (config,) = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert yaml.safe_load(config)["model"].items() <= checked_model(digits_run).items()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["weights", "header"])
def test_safetensors_of_ours_have_a_checksum(damaged: str, digits_run: Path, tmp_path: Path) -> None:
    for form, name in (("safetensors", "ours.safetensors"), ("timm", "timm.safetensors")):
        export(tmp_path, f"checkpoint={digits_run}", f"format={form}", f"output={name}")
        content = bytearray((tmp_path / name).read_bytes())
        assert read_weights(str(tmp_path / name)).description
        place = len(content) - 100 if damaged == "weights" else content.index(b'"mean') + 15
        assert damaged == "weights" or chr(content[place]).isdigit()
        content[place] ^= 1
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="checksum"):
            read_weights(str(tmp_path / name))


def checked_model(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())["model"]


@pytest.mark.slow
def test_a_card_is_of_the_weights_that_it_is_beside(train: Train, tmp_path: Path) -> None:
    done = train(
        "data.train_fraction=0.3", "trainer.epochs=3", "trainer.monitor=val/loss", "augmentation.scale=[0.5,1]",
        "checkpoint.keep=all",
    )  # fmt: skip
    summary = done.summary
    last, best = done.folder / "checkpoints" / "last.pt", done.folder / "checkpoints" / "best.pt"
    content = torch.load(best, weights_only=True)
    torch.save({**content, "metrics": {**content["metrics"], "epoch": 9, "val/accuracy": 0.125}}, best)
    export(tmp_path, f"checkpoint={best}", "format=safetensors", "output=other/model.safetensors")
    export(tmp_path, f"checkpoint={last}", "format=safetensors", "output=a b/last.safetensors", "data.image_size=12")
    card = (tmp_path / "a b" / "last.md").read_text()
    assert f"validation accuracy: {summary['last/val/accuracy']:.2%}" in card and "12×12" in card
    assert ("test accuracy" in card) == (summary["best/epoch"] == 3)
    other = (tmp_path / "other" / "model.md").read_text()
    assert "12.50%" in other and "test accuracy" not in other

    commands = [line.partition("  #")[0] for line in card.splitlines() if line.startswith("python ")]
    train_command, evaluate_command, *_ = map(shlex.split, commands)
    assert run_id(checked(*TINY, *train_command[2:])) == run_id(checked(*TINY, *parse_back(summary)))
    (checkpoint,) = override_values(evaluate_command[2:]).values()
    assert (tmp_path / "a b" / checkpoint).exists()
    register_commands()
    with initialized():
        overrides = [f"checkpoint='{tmp_path}/a b/last.safetensors'"]
        opened = open_checkpoint(compose("evaluate", overrides), overrides)
    assert opened.settings.data.image_size == 12


def parse_back(summary: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in summary["overrides"].items()]


def test_files_of_others_are_never_replaced(digits_run: Path, tmp_path: Path) -> None:
    arguments = (f"checkpoint={digits_run}", "format=safetensors", "output=model.safetensors")
    (tmp_path / "README.md").write_text("mine")
    export(tmp_path, *arguments)
    export(tmp_path, *arguments, "overwrite=true")
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "model.md").write_text("mine")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"model\.md"):
        export(tmp_path, *arguments, "data.image_size=16", "overwrite=true")
    assert (tmp_path / "model.md").read_text() == "mine"
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("data.mean=[0.5,0.5]", "data.std=[0.2,0.2]"), r"data\.mean=\[0\.5, 0\.5\]: expected 1"),
        (("data.mean=null",), r"data\.mean=null"), (("data.std=[0.1,0.1]",), r"data\.std=\[0\.1, 0\.1\]"),
        (("output=file/model.safetensors",), "output=file/model.safetensors"),
    ],
)  # fmt: skip
def test_what_predict_would_refuse_is_not_written(
    overrides: tuple[str, ...], names: str, digits_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=names):
        export(tmp_path, f"checkpoint={digits_run}", "format=safetensors", "output=new/model.safetensors", *overrides)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_a_format_cannot_hold_is_named(train: Callable[..., Finished], tmp_path: Path) -> None:
    done = train("model.norm=layer", "trainer.epochs=1")
    for overrides, names in (
        (["format=timm"], "model.norm=layer"),
        (["format=tensorrt"], "format=tensorrt"),
        (["format=onnx", "output=model.pt"], "output=model.pt"),
    ):
        with pytest.raises(ConfigError, match=names):
            export(tmp_path, f"checkpoint={done.folder}", *overrides)
