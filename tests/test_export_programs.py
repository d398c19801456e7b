"""Tests of exported programs: ONNX and torch.export, and the snippet that runs them."""

import itertools
import json
import logging
import subprocess
import sys
import timeit
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms.functional import pil_to_tensor

import inference.export
from config.errors import ConfigError
from conftest import TINY, checked
from processes import REPOSITORY
from test_export import export, trained_model
from test_predict import predict
from test_weights import CIFAR, PUBLISHED, by_timm, randomized
from training import run


@pytest.fixture(autouse=True, scope="module")
def brief_timing() -> Iterator[None]:
    """Time a model's speed, which no test here asserts, over one batch instead of a second."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timeit.Timer, "autorange", lambda timer: (1, timer.timeit(1)))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "batch"),
    [(CIFAR, 5), *(((width, 2, *others), 2) for width, _, *others in PUBLISHED.values())],  # two of their layers
)
@torch.no_grad()
def test_onnx_gives_the_logits_of_timm_s_model_for_any_batch(
    shape: tuple[Any, ...], batch: int, tmp_path: Path
) -> None:
    peer = randomized(by_timm(*shape))
    torch.save(peer.state_dict(), tmp_path / f"weights_{shape[-1]}.pt")
    export(
        tmp_path,
        f"checkpoint=weights_{shape[-1]}.pt",
        "format=onnx",
        "normalize=false",
        "output=model.onnx",
        "data.image_size=56",
    )
    assert {path.name for path in tmp_path.iterdir()} == {f"weights_{shape[-1]}.pt", "model.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    china = Image.fromarray(load_sample_images().images[0])
    crops = [china.crop((50 * i, 50 * i, 50 * i + 56, 50 * i + 56)) for i in range(batch)]
    images = torch.stack([pil_to_tensor(crop) for crop in crops]) / 255
    for part in (images, images[:1]):
        (logits,) = session.run(["logits"], {"images": part.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), peer(part), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_program_of_torch_export(digits_run: Path, tmp_path: Path) -> None:
    export(
        tmp_path, f"checkpoint={digits_run}", "format=torch_export", "output=model.pt2", "fold=false", "normalize=false"
    )
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(program(images), trained_model(digits_run)(images), atol=1e-5, rtol=0)


def test_a_file_appears_whole_or_not_at_all(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (f"checkpoint={digits_run}", "format=torch_export", "output=new/model.pt2")
    monkeypatch.setattr(inference.export, "TOLERANCE", -1.0)  # as if the program computed something else
    with pytest.raises(inference.export.ExportError):
        export(tmp_path, *arguments)
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "new" / "model.pt2").write_text("mine")
    with pytest.raises(ConfigError, match="output=new"):
        export(tmp_path, *arguments)
    assert (tmp_path / "new" / "model.pt2").read_text() == "mine"


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run on 16×16 color images with mean and deviation far from 0 and 1; return its folder."""
    root = tmp_path_factory.mktemp("private")
    colors = {"cat": (200, 60, 40), "dog": (40, 180, 60), "owl": (60, 40, 150)}
    for i, (part, (name, color)) in itertools.product(range(16), itertools.product(("train", "test"), colors.items())):
        noise = np.random.default_rng(i).integers(-40, 40, (16, 16, 3))
        path = root / "images" / part / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path)
    overrides = ("data=image_folder", f"data.root={root}/images", "data.batch_size=8", "trainer.epochs=3")
    config = checked(*TINY, *overrides, "data.train_fraction=1", "data.val_fraction=0", f"output_dir={root}/out")
    config.wandb.mode = "disabled"
    run.run(config, list(overrides))
    return next((root / "out" / "test").glob("*/config.yaml")).parent


SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "timm": ".safetensors"}

Exported = Callable[..., tuple[Path, str]]

one_worker = pytest.mark.xdist_group("exported")  # so that each program is exported once


@pytest.fixture(scope="module")
def exported(photo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export the photo run once in each way; return the file and the command's output."""

    @cache
    def once(form: str, *overrides: str) -> tuple[Path, str]:
        folder, log_records = tmp_path_factory.mktemp(form), BufferingHandler(1000)
        logging.getLogger().addHandler(log_records)
        try:
            export(folder, f"checkpoint={photo_run}", f"format={form}", f"output=model{SUFFIX[form]}", *overrides)
        finally:
            logging.getLogger().removeHandler(log_records)
        return folder / f"model{SUFFIX[form]}", "\n".join(record.getMessage() for record in log_records.buffer)

    return once


RUN_EACH = """
import os, sys
for folder, snippet in zip(sys.argv[1::2], sys.argv[2::2]):
    os.chdir(folder)
    exec(snippet, {})
"""


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_printed_snippets_predict_as_predict_does(
    form: str, exported: Exported, photo_run: Path, tmp_path: Path
) -> None:
    image, arguments = photo_run.parents[2] / "images" / "test" / "dog" / "3.png", []
    for overrides in ([], ["normalize=false"]):
        program, output = exported(form, *overrides)
        text, _, snippet = output.rpartition("\n\n")
        assert "16, 16" in text and len(snippet.splitlines()) == 5
        Image.open(image).resize((40, 30)).save(program.parent / "IMAGE.png")  # of another shape
        arguments += [str(program.parent), snippet]
    done = subprocess.run([sys.executable, "-c", RUN_EACH, *arguments], capture_output=True, text=True)
    predict(f"checkpoint={photo_run}", f"images={arguments[0]}/IMAGE.png", f"output={tmp_path}/out.csv", "sheet=0")
    assert done.stdout.splitlines() == [pd.read_csv(tmp_path / "out.csv")["class1"][0]] * 2, done.stderr


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("form", SUFFIX)
def test_exported_file_names_no_path_of_the_machine(form: str, exported: Exported, photo_run: Path) -> None:
    program, _ = exported(form)
    private = [str(photo_run.parents[3]), str(REPOSITORY), str(Path.home())]
    for path in program.parent.glob("model*"):
        files = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
        contents = [files.read(member) for member in files.namelist()] if files else [path.read_bytes()]
        for content in contents:
            assert not [text for text in private if text.encode() in content], path


@one_worker
@pytest.mark.slow
def test_onnx_documents_its_input(exported: Exported) -> None:
    program = onnx.load(exported("onnx")[0])
    (images,) = program.graph.input
    assert images.name == "images" and "[batch, 3, 16, 16]" in images.doc_string and "RGB" in images.doc_string
    assert "IMAGE.png" in program.doc_string
    metadata = {item.key: item.value for item in program.metadata_props}
    assert json.loads(metadata["labels"]) == ["cat", "dog", "owl"]


def test_normalization_unknown_is_an_error(tmp_path: Path) -> None:
    torch.save(randomized(by_timm(*CIFAR)).state_dict(), tmp_path / f"weights_{CIFAR[-1]}.pt")
    with pytest.raises(ConfigError, match="normalize=true"):
        export(tmp_path, f"checkpoint=weights_{CIFAR[-1]}.pt", "format=onnx", "output=model.onnx")
