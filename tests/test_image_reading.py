"""Tests of reading images of any size and mode, in training and evaluation, and of files that are no images."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from config.errors import first_line
from conftest import LETTERS, Train, checked, load_folder
from data import datasets, image_folder
from data.image_files import DataError, open_image
from pipeline.batches import make_eval_loader, make_train_loader


def first_batch(root: Path, *overrides: str, patch_size: int = 1) -> tuple[datasets.DataSplits, torch.Tensor]:
    """Return the data and the first evaluation batch, in the order of the files."""
    datasets.read.cache_clear()
    config = checked("data=image_folder", f"data.root={root}", "data.num_workers=0", "augmentation=none", *overrides)
    loaded = datasets.load(config.data, patch_size)
    return loaded, next(iter(make_eval_loader(loaded.test, loaded, config)))[0]


@pytest.mark.parametrize("sizes", ["same", "rare", "differing"])
@pytest.mark.parametrize("overrides", [[], ["data.image_size=20"], ["augmentation=paper", "data.crop_fraction=0.8"]])
def test_images_are_prepared_alike_whatever_their_total_size(
    folder: Path, sizes: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or on disk, one rule sets the size, in training and in evaluation."""
    count = {"same": 0, "rare": 1, "differing": 6}[sizes]
    pixels = np.random.default_rng(0).integers(0, 255, (30, 44, 3)).astype(np.uint8)
    for i in range(count):
        Image.fromarray(pixels).save(folder / "train" / LETTERS[i % 3] / f"big{i}.png")
        Image.fromarray(pixels).save(folder / "val" / LETTERS[i % 3] / f"big{i}.png")
    if sizes == "rare":  # too rare for the sample to find it
        monkeypatch.setattr(image_folder, "SAMPLE_SIZE", 3)

    def everything() -> tuple[datasets.DataSplits, list[torch.Tensor]]:
        datasets.read.cache_clear()
        config = checked("data=image_folder", f"data.root={folder}", "data.num_workers=0", "augmentation=none",
                         "data.batch_size=12", *overrides)  # fmt: skip
        loaded = datasets.load(config.data, 1)
        assert loaded.val is not None
        loaders = (make_train_loader(loaded, config), make_eval_loader(loaded.val, loaded, config),
                   make_eval_loader(loaded.test, loaded, config))  # fmt: skip
        return loaded, [pixels for loader in loaders for pixels, _ in loader]

    small, expected = everything()
    monkeypatch.setattr(image_folder, "DECODED_LIMIT", 0)
    large, batches = everything()
    assert small.train.decoded == (sizes == "same")
    assert not large.train.decoded
    size = (224, 224) if sizes == "differing" else (12, 12)
    assert small.image_size == large.image_size == ((20, 20) if "data.image_size=20" in overrides else size)
    assert (small.mean, small.std) == (large.mean, large.std)
    for image, other in zip(expected, batches, strict=True):
        assert torch.equal(image, other)


def test_image_of_another_size_is_cropped_not_squashed(tmp_path: Path) -> None:
    """The middle of the image is kept, in training and in evaluation."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255
    for part in ("train", "test"):
        for name, size in (("cat", (20, 40)), ("dog", (20, 20)), ("dog", (10, 10))):
            (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels) if name == "cat" else Image.new("RGB", size, (255,) * 3)
            for i in range(4):
                image.save(tmp_path / part / name / f"{size[0]}-{i}.png")
    config = checked("data=image_folder", f"data.root={tmp_path}", "data.image_size=8", "augmentation=none",
                     "data.num_workers=0", "data.val_fraction=0")  # fmt: skip
    loaded = datasets.load(config.data, 1)
    for loader in (make_train_loader(loaded, config), make_eval_loader(loaded.test, loaded, config)):
        ((batch, _),) = loader
        assert (batch > 200).all()  # but for what a filter takes from beyond the crop


def test_rows_and_columns_that_differ_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        for name in LETTERS:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.random.default_rng(i).integers(0, 255, (8, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    monkeypatch.setattr(image_folder, "DECODED_LIMIT", 0)
    config = checked("data=image_folder", f"data.root={tmp_path}", "augmentation=none", "data.num_workers=0",
                     "data.val_fraction=0")  # fmt: skip
    loaded = datasets.load(config.data, 1)
    ((batch, _),) = make_train_loader(loaded, config)
    files = {np.asarray(Image.open(path)).tobytes() for path in tmp_path.glob("train/*/*.png")}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in batch} == files


def test_a_patch_size_must_divide_the_image(folder: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"model.patch_size=5: does not divide the 12x12 .* 1, 2, 3, 4, 6, 12"):
        load_folder(folder, patch_size=5)


# Modes.


GREY_16 = np.linspace(0, 65535, 144).reshape(12, 12).astype(np.uint16)


def save_grey_16(path: Path) -> None:
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 12 12 65535\n" + GREY_16.astype(">u2").tobytes())
    else:
        Image.fromarray(GREY_16).save(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_are_scaled_to_8(folder: Path, suffix: str) -> None:
    for path in list(folder.glob("*/*/*.png")):
        path.unlink()
        save_grey_16(path.with_suffix(suffix))
    loaded, pixels = first_batch(folder)
    assert loaded.channels == 1
    np.testing.assert_allclose(pixels[0, 0], GREY_16 / 257, atol=0.5)


def test_a_rare_16_bit_image_among_others_is_scaled_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_grey_16(folder / "val" / "cat" / "0.png")
    _, pixels = first_batch(folder)
    np.testing.assert_allclose(pixels[0], np.broadcast_to(GREY_16 / 257, (3, 12, 12)), atol=0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_levels_of_unknown_range_are_an_error(folder: Path, dtype: type) -> None:
    path = folder / "train" / "cat" / "deep.tif"
    Image.fromarray(np.linspace(0, 1e5, 144).reshape(12, 12).astype(dtype)).save(path)
    with pytest.raises(datasets.DataError) as caught:
        load_folder(folder)
    assert str(path) in str(caught.value)
    assert f"mode {'F' if dtype == np.float32 else 'I'}" in str(caught.value)


@pytest.mark.parametrize("limit", [image_folder.DECODED_LIMIT, 0])
def test_a_rare_color_image_in_a_grey_set_becomes_grey(
    folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in list(folder.glob("*/*/*.png")):
        Image.open(path).convert("L").save(path)
    color = Image.new("RGB", (12, 12), (200, 30, 90))
    color.save(folder / "val" / "cat" / "0.png")
    monkeypatch.setattr(image_folder, "DECODED_LIMIT", limit)
    loaded, pixels = first_batch(folder)
    assert loaded.channels == 1
    np.testing.assert_array_equal(pixels[0, 0], np.asarray(color.convert("L")))


# Files that cannot be read.


@pytest.mark.parametrize("limit", [image_folder.DECODED_LIMIT, 0])
def test_all_unreadable_images_are_named_and_can_be_skipped(
    folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "DECODED_LIMIT", limit)
    monkeypatch.setattr(image_folder, "SAMPLE_SIZE", 1)
    broken = [folder / "train" / "cat" / f"{i}.png" for i in range(1, 11)] + [folder / "val" / "owl" / "3.png"]
    for path in broken:
        path.write_bytes(b"not an image")
    with pytest.raises(datasets.DataError) as caught:
        loaded = load_folder(folder)
        config = checked("data=image_folder", f"data.root={folder}", "data.num_workers=0")
        list(make_train_loader(loaded, config))
    message = first_line(caught.value)
    assert "data.skip_unreadable=true" in message
    assert sum(str(path) in message for path in broken) == (10 if limit else 9)  # of the split that a worker reads
    datasets.read.cache_clear()
    loaded = load_folder(folder, "data.skip_unreadable=true", "data.val_fraction=0")
    assert [len(part) for part in (loaded.train, loaded.test)] == [26, 11]
    assert len(loaded.skipped) == 11
    assert np.bincount(loaded.train.labels).tolist() == [2, 12, 12]
    for path in (folder / "train" / "cat").iterdir():
        path.write_bytes(b"not an image")
    datasets.read.cache_clear()
    with pytest.raises(datasets.DataError, match="train/cat has no images"):
        load_folder(folder, "data.skip_unreadable=true")


@pytest.mark.slow
def test_skipped_images_are_recorded_in_the_run(folder: Path, train: Train) -> None:
    (folder / "train" / "cat" / "3.png").write_bytes(b"not an image")
    options = ("data=image_folder", f"data.root={folder}", "data.train_fraction=1")
    assert "data.skip_unreadable=true" in train(*options).summary["error"]
    datasets.read.cache_clear()
    summary = train(*options, "data.skip_unreadable=true").summary
    assert summary["status"] == "completed"
    assert "train/cat/3.png" in summary["skipped_images"][0]
    assert any("val for the test" in remark for remark in summary["remarks"])


def test_an_image_that_a_worker_cannot_read_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "train" / "owl" / "7.png"
    config = checked("data=image_folder", f"data.root={folder}", "data.num_workers=1", "data.image_size=10")
    monkeypatch.setattr(image_folder, "DECODED_LIMIT", 0)
    loaded = datasets.load(config.data, 1)
    path.write_bytes(path.read_bytes()[:60])
    loader = make_train_loader(loaded, config)
    with pytest.raises(datasets.DataError) as caught:
        list(loader)
    assert str(path) in first_line(caught.value)


def test_image_files_are_what_they_claim_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: started.append("Ghostscript"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    (tmp_path / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("page.jpg", "pipe.png", "zero.png"):
        with pytest.raises(DataError, match=name):
            open_image(str(tmp_path / name))
    assert not started
    Image.new("L", (3, 3)).save(tmp_path / "moving.gif")
    (tmp_path / "moving.gif").rename(tmp_path / "still.jpg")
    assert open_image(str(tmp_path / "still.jpg")).size == (3, 3)
