"""Models leave: folded, as ONNX, torch.export, safetensors and the published layouts."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import export as export_command
import inference.export
from config.commands import register_commands
from config.errors import ConfigError
from conftest import TINY, Finished, checked
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from processes import REPOSITORY
from test_evaluate import evaluate
from test_weights import CIFAR, PUBLISHED, by_the_authors, by_timm, randomized
from training.model import make_model
from weights.files import read_weights
from weights.folding import fold_batch_norm


def trained_looking(d: int = 12, depth: int = 3, k: int = 5, **options: object) -> ConvMixer:
    torch.manual_seed(0)
    shared = {key: value for key, value in options.items() if key in ("activation", "norm")}
    model = ConvMixer(
        ConvMixerLayer(d, k, **options), depth, ConvPatchEmbeddings(d, 2, 3, **shared), ConvClassificationHead(d, 7)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
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
    """`python src/export.py OVERRIDES` in a folder."""
    register_commands()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("export", list(overrides))
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        export_command.run(composed, overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "batch"),
    [(CIFAR, 5), *(((width, 2, *others), 2) for width, _, *others in PUBLISHED.values())],  # two of their layers
)
@torch.no_grad()
def test_onnx_gives_the_logits_of_timm_s_model_for_any_batch(shape: tuple, batch: int, tmp_path: Path) -> None:
    peer = randomized(by_timm(*shape))
    torch.save(peer.state_dict(), tmp_path / f"weights_{shape[-1]}.pt")
    export(tmp_path, f"checkpoint=weights_{shape[-1]}.pt", "format=onnx", "output=model.onnx", "data.image_size=56")
    assert {path.name for path in tmp_path.iterdir()} == {f"weights_{shape[-1]}.pt", "model.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    china = Image.fromarray(load_sample_images().images[0])
    crops = [china.crop((50 * i, 50 * i, 50 * i + 56, 50 * i + 56)) for i in range(batch)]
    images = torch.stack([pil_to_tensor(crop) for crop in crops]) / 255
    for part in (images, images[:1]):
        (logits,) = session.run(["logits"], {"images": part.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), peer(part), atol=1e-4, rtol=1e-4)


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
    found = evaluate(tmp_path / "e", f"checkpoint={tmp_path}/card/model.safetensors")
    assert found["test/accuracy"] == summary["test/accuracy"]
    card = ModelCard.load(tmp_path / "card" / "README.md")
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["test accuracy"] == summary["test/accuracy"]
    (config,) = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert yaml.safe_load(config) == yaml.safe_load((digits_run / "config.yaml").read_text())


@torch.no_grad()
def test_a_program_of_torch_export(digits_run: Path, tmp_path: Path) -> None:
    export(tmp_path, f"checkpoint={digits_run}", "format=torch_export", "output=model.pt2", "fold=false")
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(program(images), trained_model(digits_run)(images), atol=1e-5, rtol=0)


def test_a_file_appears_whole_or_not_at_all(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (f"checkpoint={digits_run}", "format=torch_export", "output=new/model.pt2")
    monkeypatch.setattr(inference.export, "TOLERANCE", -1.0)  # as if the program computed something else
    with pytest.raises(inference.export.ExportError):
        export(tmp_path, *given)
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "new" / "model.pt2").write_text("mine")
    with pytest.raises(ConfigError, match="output=new"):
        export(tmp_path, *given)
    assert (tmp_path / "new" / "model.pt2").read_text() == "mine"


def test_what_a_format_cannot_hold_is_named(train: Callable[..., Finished], tmp_path: Path) -> None:
    done = train("model.norm=layer", "trainer.epochs=1")
    for overrides, names in (
        (["format=timm"], "model.norm=layer"),
        (["format=tensorrt"], "format=tensorrt"),
        (["format=onnx", "output=model.pt"], "output=model.pt"),
    ):
        with pytest.raises(ConfigError, match=names):
            export(tmp_path, f"checkpoint={done.folder}", *overrides)
