"""Tests of evaluate.py: runs' checkpoints, published weights compared with timm, wrong input."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import timm.data
import timm.models.convmixer
import torch
from hydra import compose
from PIL import Image
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import nn

import evaluate as evaluate_command
import export as export_command
from config.commands import register_commands
from config.errors import ConfigError
from conftest import Finished, command, initialized
from data import datasets
from inference.report import calibration_error, confidence_bins
from pipeline.batches import DistributedBatchSampler
from runtime.distributed import World
from test_weights import by_the_authors, by_timm, randomized
from training import evaluation
from training.evaluation import Evaluation
from weights.files import PUBLISHED
from weights.layouts import Architecture

Train = Callable[..., Finished]


def evaluate(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run `python src/evaluate.py OVERRIDES output=FOLDER`; return its evaluation.json."""
    register_commands()
    typed = [*overrides, f"output={folder}", "trainer.device=cpu"]
    with initialized():
        composed = compose("evaluate", typed)
    evaluate_command.run(composed, typed)
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.norm=layer", "model.residual_pointwise=true", "model.activation=gelu"),
        ("trainer.ema_decay=0.9", "trainer.precision=bf16", "data.crop_fraction=0.8", "data.image_size=12"),
    ],
)
def test_a_run_evaluates_to_its_accuracies(overrides: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    done = train("data.train_fraction=0.3", "checkpoint.keep=all", *overrides)
    report = evaluate(tmp_path / "test", f"checkpoint={done.folder}")
    for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1"):
        assert report[f"test/{name}"] == done.summary[f"test/{name}"]
    assert (tmp_path / "test" / "predictions.npy").read_bytes() == (done.folder / "predictions.npy").read_bytes()
    last = evaluate(tmp_path / "last", f"checkpoint={done.folder}/checkpoints/last.pt", "split=val")
    assert last["val/accuracy"] == done.summary["last/val/accuracy"]


@pytest.mark.slow
def test_all_figures_agree_with_scikit_learn(train: Train, tmp_path: Path) -> None:
    done = train("data.train_fraction=0.3")
    report = evaluate(tmp_path / "e", f"checkpoint={done.folder}")
    records = np.load(tmp_path / "e" / "predictions.npy")
    counts = confusion_matrix(records["label"], records["prediction"], labels=range(10))
    table = pd.read_csv(tmp_path / "e" / "confusion_matrix.csv", index_col=0)
    np.testing.assert_array_equal(table, counts)
    classes = pd.read_csv(tmp_path / "e" / "classes.csv")
    np.testing.assert_allclose(classes["accuracy"], counts.diagonal() / counts.sum(1))
    assert report["images"] == classes["images"].sum() == len(records) == 360
    assert report["test/loss"] == pytest.approx(-np.log(records["probability"].astype(float)).mean(), rel=1e-5)
    for name in ("confusion_matrix", "reliability"):
        assert (tmp_path / "e" / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_images_of_another_size_are_resized_to_the_models(digits_run: Path, tmp_path: Path) -> None:
    digits = datasets.read("digits", "").test
    for i, part in itertools.product(range(100), ("train", "test")):
        folder = tmp_path / "images" / part / str(digits.labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        digits[i].resize((24, 24), Image.Resampling.NEAREST).save(folder / f"{i:03}.png")
    evaluate(tmp_path / "own", f"checkpoint={digits_run}")
    report = evaluate(tmp_path / "e", f"checkpoint={digits_run}", "data=image_folder", f"data.root={tmp_path}/images")
    expected = np.load(tmp_path / "own" / "predictions.npy")[:100]
    assert report["test/accuracy"] == pytest.approx((expected["label"] == expected["prediction"]).mean(), abs=0.15)


@pytest.mark.slow
def test_the_split_alone_is_enough_to_evaluate(photographs: Path, tmp_path: Path) -> None:
    """ImageNet's validation set, e.g., may be there without training images, and with a single class."""
    model = randomized(by_timm(*TINY_IMAGENET, "relu"))
    torch.save(model.state_dict(), tmp_path / "convmixer_768_32_ks7_p7_relu.pt")
    options = (
        f"checkpoint={tmp_path}/convmixer_768_32_ks7_p7_relu.pt", "data=imagenet", f"data.root={photographs}",
        "data.num_workers=0",
    )  # fmt: skip
    whole = evaluate(tmp_path / "whole", *options)
    train = evaluate(tmp_path / "train", *options, "split=train")
    shutil.move(photographs / "val", tmp_path / "val")
    assert evaluate(tmp_path / "only", *options, "split=train")["train/loss"] == train["train/loss"]
    shutil.rmtree(photographs / "train")
    shutil.move(tmp_path / "val", photographs / "val")
    assert evaluate(tmp_path / "val", *options)["test/loss"] == whole["test/loss"]
    assert evaluate(tmp_path / "same", *options, "split=val")["val/loss"] == whole["test/loss"]
    for name in SYNSETS[:2]:
        shutil.rmtree(photographs / "val" / name)
    assert evaluate(tmp_path / "single", *options)["images"] == 3
    assert set(np.load(tmp_path / "single" / "predictions.npy")["label"]) == {388}
    flat = [option.replace(f"root={photographs}", f"root={photographs}/val") for option in options]
    assert evaluate(tmp_path / "flat", *flat)["images"] == 3
    with pytest.raises(ConfigError, match=r"split=train: .*val"):
        evaluate(tmp_path / "none", *options, "split=train")


@pytest.mark.slow
def test_unreadable_images_can_be_skipped_in_an_evaluation(photographs: Path, tmp_path: Path) -> None:
    torch.save(randomized(by_timm(*TINY_IMAGENET, "relu")).state_dict(), tmp_path / "convmixer_768_32_ks7_p7_relu.pt")
    options = (f"checkpoint={tmp_path}/convmixer_768_32_ks7_p7_relu.pt", "data=imagenet", f"data.root={photographs}")
    broken = [photographs / "val" / name / "1.png" for name in SYNSETS]
    for path in broken:
        path.write_bytes(b"not an image")
    with pytest.raises(ConfigError) as caught:
        evaluate(tmp_path / "e", *options, "data.num_workers=0")
    assert all(str(path) in str(caught.value) for path in broken)
    assert evaluate(tmp_path / "e", *options, "data.num_workers=0", "data.skip_unreadable=true")["images"] == 6


class Batches(list[tuple[torch.Tensor, torch.Tensor]]):
    """Logits and labels in place of images, for a model that returns its input."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__(zip(logits.split(64), labels.split(64), strict=True))
        self.sampler = DistributedBatchSampler(len(labels), 64, seed=None)


def evaluate_logits(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    batches, model = cast(Any, Batches(logits, labels)), cast(Any, nn.Identity())
    return evaluation.evaluate(model, batches, model, "fp32", torch.device("cpu"), World())


def test_top5_and_calibration() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(500, 20), torch.randint(20, (500,))
    evaluation = evaluate_logits(logits, labels)
    assert evaluation.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    confidence, predicted = logits.softmax(1).max(1)
    gaps = []
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            gaps.append(inside.sum() * abs((predicted == labels)[inside].float().mean() - confidence[inside].mean()))
    assert calibration_error(confidence_bins(evaluation)) == pytest.approx(float(sum(gaps)) / 500, abs=1e-5)
    certain = torch.eye(20)[labels] * 100
    assert calibration_error(confidence_bins(evaluate_logits(certain, labels))) == pytest.approx(0, abs=1e-6)


SYNSETS = ("n01440764", "n02123045", "n02510455")  # numbers 0, 281 and 388 of ImageNet's classes
TINY_IMAGENET = (16, 2, 3, 7, 1000)


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write noise images of several sizes in three ImageNet classes, and publish TINY_IMAGENET."""
    monkeypatch.setitem(PUBLISHED, "convmixer_768_32", (Architecture(16, 2, 3, 7, 3, 1000, "batch"), "relu"))
    rng = np.random.default_rng(0)
    for i, name in enumerate(SYNSETS):
        for part in ("train", "val"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for j, size in enumerate([(260, 300), (224, 224), (300, 230)]):
                blocks = rng.integers(0, 256, (size[0] // 20, size[1] // 20, 3), dtype=np.uint8) // (i + 1)
                Image.fromarray(blocks).resize(size[::-1]).save(folder / f"{j}.png")
    return tmp_path / "images"


def as_timm_does(model: nn.Module, photographs: Path) -> torch.Tensor:
    config = timm.data.resolve_data_config(timm.models.convmixer.default_cfgs["convmixer_768_32"].default.to_dict())
    transform = timm.data.create_transform(**config)
    files = sorted((photographs / "val").glob("*/*.png"))
    return torch.stack([model(transform(Image.open(file))[None])[0] for file in files]).softmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("build", [by_timm, by_the_authors])
@torch.no_grad()
def test_published_weights_are_evaluated_as_timm_does(
    build: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    model = randomized(build(*TINY_IMAGENET, "relu"))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth.tar")
    report = evaluate(
        tmp_path / "e", f"checkpoint={tmp_path}/mine.pth.tar", "data=image_folder",
        f"data.root={photographs}", "data.num_workers=0",
    )  # fmt: skip
    expected = as_timm_does(model, photographs)
    records = np.load(tmp_path / "e" / "predictions.npy")
    labels = [0] * 3 + [281] * 3 + [388] * 3
    np.testing.assert_array_equal(records["label"], labels)
    np.testing.assert_allclose(records["probability"], expected[range(9), labels], atol=1e-5)
    np.testing.assert_array_equal(records["prediction"], expected.argmax(1))
    assert report["architecture"]["activation"] == "relu"
    assert "tench, Tinca tinca" in (tmp_path / "e" / "classes.csv").read_text()


@pytest.mark.parametrize("exported", [False, True])
def test_classes_without_names_count_by_position(exported: bool, tmp_path: Path) -> None:
    """Of twelve folders, "10" and "11" come before "2"; the model has the same order and no names."""
    names = sorted(map(str, range(12)))
    for name, part in itertools.product(names, ("train", "test")):
        (tmp_path / "images" / part / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 20 * int(name), np.uint8)).save(tmp_path / "images" / part / name / "0.png")
    file = tmp_path / "relu.pt"
    torch.save(randomized(by_the_authors(8, 1, 3, 4, 12, "relu")).state_dict(), file)
    if exported:
        file = tmp_path / "ours.safetensors"
        overrides = [f"checkpoint={tmp_path}/relu.pt", "format=safetensors", f"output={file}", "data.image_size=8"]
        register_commands()
        with initialized():
            export_command.run(compose("export", overrides), overrides)
    on_folder = (f"checkpoint={file}", f"data.root={tmp_path}/images", "data.num_workers=0")
    evaluate(tmp_path / "e", *on_folder)
    np.testing.assert_array_equal(np.load(tmp_path / "e" / "predictions.npy")["label"], range(12))
    shutil.rmtree(tmp_path / "images" / "train" / "3")
    shutil.rmtree(tmp_path / "images" / "test" / "3")
    datasets.read.cache_clear()
    with pytest.raises(ConfigError, match="11 classes"):
        evaluate(tmp_path / "e2", *on_folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("data=image_folder", "data.root={images}"), "data.name=image_folder"),
        (("data=digits", "split=val", "data.val_fraction=0"), "split=val"),
        (("model.activation=gelu",), "model.activation=gelu"),
        (("split=all",), "split=all"),
        (("data.image_size=9", "data.crop_fraction=2"), "data.crop_fraction=2"),
        (("checkpoint={foreign}", "data=digits"), "model.activation"),
        (("checkpoint={foreign}", "data=digits", "model.activation=relu"), "data.name=digits"),
    ],
)
def test_what_does_not_fit_is_named(
    overrides: tuple[str, ...], names: str, digits_run: Path, photographs: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.pt"
    torch.save(by_timm(8, 1, 3, 2, 10, "relu").state_dict(), foreign)
    words = [override.format(images=photographs, foreign=foreign) for override in overrides]
    if not words[0].startswith("checkpoint"):
        words.insert(0, f"checkpoint={digits_run}")
    with pytest.raises(ConfigError, match=names):
        evaluate(tmp_path / "e", *words)
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_the_command(digits_run: Path, tmp_path: Path) -> None:
    summary = json.loads((digits_run / "summary.json").read_text())
    first = command(f"checkpoint={digits_run}", "output=e", "summary=true", cwd=tmp_path, script="evaluate")
    assert first.returncode == 0, first.stderr
    assert f"{summary['parameters']:,} parameters" in first.stdout
    assert f"{summary['test/accuracy']:.2%}" in first.stdout
    again = command(f"checkpoint={digits_run}", "output=e", cwd=tmp_path, script="evaluate")
    assert again.returncode == 1
    assert again.stderr.startswith("error: output=e")
    assert again.stderr.count("\n") == 1


def test_nothing_is_overwritten_without_being_asked(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "evaluation.json").write_text("mine")
    with pytest.raises(ConfigError, match="output="):
        evaluate(tmp_path / "e", f"checkpoint={digits_run}")
    assert (tmp_path / "e" / "evaluation.json").read_text() == "mine"
    assert evaluate(tmp_path / "e", f"checkpoint={digits_run}", "overwrite=true")["images"] == 360


@pytest.mark.slow
def test_a_checkpoint_reads_no_environment_and_downloads_nothing(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVATE", "hunter2")
    content = torch.load(digits_run / "checkpoints" / "best.pt", weights_only=True)
    for root in ("${oc.env:PRIVATE}", r"\${oc.env:PRIVATE}", "a${oc.env:PRIVATE}"):
        content["config"]["data"]["root"] = root
        torch.save(content, tmp_path / "best.pt")
        report = evaluate(tmp_path / "e", f"checkpoint={tmp_path}/best.pt", "overwrite=true")
        assert report["data"]["root"] == root
        assert all(b"hunter2" not in path.read_bytes() for path in (tmp_path / "e").iterdir())
    content["config"]["data"] |= {"name": "cifar10", "root": str(tmp_path / "new")}
    torch.save(content, tmp_path / "best.pt")
    monkeypatch.setattr(datasets.torchvision.datasets.CIFAR10, "download", lambda _: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match="data=cifar10"):
        evaluate(tmp_path / "f", f"checkpoint={tmp_path}/best.pt")
    assert not (tmp_path / "new").exists()
