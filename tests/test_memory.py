"""Tests of memory: sizes in files and keys are checked before memory is allocated."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from config.errors import ConfigError
from conftest import Train
from data import datasets, image_folder
from data.image_files import DataError, open_image
from inference import prediction
from test_evaluate import evaluate
from test_predict import predict
from weights import archive


@pytest.mark.parametrize("key", ["data.image_size=100000", "data.image_size=1000000000"])
def test_a_batch_larger_than_the_memory_is_an_error(
    key: str, digits_run: Path, train: Train, folder: Path, tmp_path: Path
) -> None:
    error = train("data=image_folder", f"data.root={folder}", "data.train_fraction=1", key).summary["error"]
    assert key in error and "Fix: " in error and len(error.splitlines()) == 1
    with pytest.raises(ConfigError, match=key):
        predict(f"checkpoint={digits_run}", f"images={folder}", key, f"output={tmp_path}/p.csv")
    with pytest.raises(ConfigError, match=key):
        evaluate(tmp_path / "e", f"checkpoint={digits_run}", key)


def test_images_are_shrunk_before_they_are_kept(
    digits_run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        Image.new("L", (3000, 1500)).save(folder / "train" / "cat" / f"{i}.png")
    draw, drawn = prediction.contact_sheet, list[tuple[int, int]]()

    def contact_sheet(images: list[Image.Image], captions: list[str]) -> Any:
        drawn.extend(image.size for image in images)
        return draw(images, captions)

    monkeypatch.setattr(prediction, "contact_sheet", contact_sheet)
    predict(f"checkpoint={digits_run}", f"images={folder / 'train' / 'cat'}", f"output={tmp_path}/p.csv", "sheet=6")
    assert len(drawn) == 6 and max(max(size) for size in drawn) <= 400
    opened, most = list[weakref.ref[Image.Image]](), 0

    def open_counted(path: str, mode: str | None = None) -> Image.Image:
        nonlocal most
        image = open_image(path, mode)
        opened.append(weakref.ref(image))
        most = max(most, sum(reference() is not None for reference in opened))
        return image

    monkeypatch.setattr(image_folder, "open_image", open_counted)
    datasets.read.cache_clear()
    datasets.read("image_folder", str(folder))
    assert len(opened) == 36 and most <= 2


def test_tensors_that_claim_more_than_their_file_are_refused(tmp_path: Path) -> None:
    content = {"rows": [1, {"deep": [torch.zeros(1).expand(1 << 37)]}], "model": {"weight": torch.ones(3)}}
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(archive.Damaged, match="far larger"):
        archive.load_archive(tmp_path / "last.pt")
    torch.save({"model": {"weight": torch.ones(3).expand(5, 3)}}, tmp_path / "best.pt")
    assert archive.load_archive(tmp_path / "best.pt")["model"]["weight"].shape == (5, 3)


def test_16_bits_are_rounded_as_exact_arithmetic_does(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "levels.png")
    expected = np.round(levels.astype(float) / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(str(tmp_path / "levels.png"))), expected)


def test_an_image_that_claims_too_many_pixels_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bomb.pgm").write_bytes(b"P5 200000 200000 255\n")
    with pytest.raises(DataError, match="bomb"):
        open_image(str(tmp_path / "bomb.pgm"))
