"""Folders of images: their classes, sizes and modes, and what is wrong with them."""

import json
import os
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import EpsImagePlugin, Image

from comparison.images import compare_images
from comparison.results import read
from config.errors import first_line
from conftest import LETTERS, Train, checked
from data import datasets, image_folder
from data.batches import make_eval_loader, make_train_loader
from data.fingerprint import hash_images
from data.image_files import DataError, open_image
from test_evaluate import evaluate
from tracking.identity import run_id


def load_folder(root: Path, *overrides: str, patch_size: int = 2) -> datasets.DataSplits:
    return datasets.load(checked("data=image_folder", f"data.root={root}", *overrides).data, patch_size)


def test_image_folder(folder: Path) -> None:
    loaded = load_folder(folder, "data.val_fraction=0.25")
    assert loaded.val is not None
    assert (loaded.classes, loaded.channels, loaded.image_size) == (list(LETTERS), 3, (12, 12))
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [27, 9, 12]
    assert loaded.train.decoded
    pixels = np.asarray(Image.open(folder / "train" / "cat" / "0.png"))
    assert any(np.array_equal(pixels, image) for image in np.concatenate([loaded.train.images, loaded.val.images]))
    sample = np.concatenate([loaded.train.images]) / 255
    np.testing.assert_allclose(loaded.mean, sample.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(loaded.std, sample.std((0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("train", "valid", "test"), ("Training", "VALIDATION", "Testing")]
)
def test_a_validation_folder_beside_test_is_used(folder: Path, names: tuple[str, str, str]) -> None:
    train, val, test = names
    (folder / "val").rename(folder / test)
    (folder / "train").rename(folder / train)
    before = hash_images.__wrapped__(folder)
    for name in LETTERS:
        (folder / val / name).mkdir(parents=True)
        Image.new("RGB", (12, 12), (1, 2, 3)).save(folder / val / name / "only.png")
    loaded = load_folder(folder)
    assert loaded.val is not None
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [36, 3, 12]
    assert (loaded.val.images == np.array([1, 2, 3])).all()
    assert hash_images.__wrapped__(folder) != before


@pytest.mark.parametrize("kind", ["classes alone", "train alone"])
def test_a_folder_without_a_test_set_is_divided(folder: Path, kind: str, train: Train) -> None:
    shutil.rmtree(folder / "val")
    root = folder if kind == "train alone" else folder / "train"

    def test_files(*overrides: str) -> set[str]:
        datasets.read.cache_clear()
        loaded = load_folder(root, *overrides)
        assert loaded.val is not None and loaded.train.files is not None and loaded.test.files is not None
        parts = [part.files.tolist() for part in (loaded.train, loaded.val, loaded.test) if part.files is not None]
        assert len({*chain(*parts)}) == sum(map(len, parts)) == 36
        assert len(set(np.bincount(loaded.test.labels))) == 1
        return set(loaded.test.files)

    options = ("data.test_fraction=0.25", "data.val_fraction=0.2")
    assert len(test_files(*options)) == 9
    assert test_files(*options) == test_files(*options, "seed=5") != test_files(*options, "data.split_seed=1")

    def identity(*overrides: str) -> str:
        return run_id(checked("data=image_folder", f"data.root={root}", "data.val_fraction=0", *overrides))

    assert len({identity(), identity("data.split_seed=1"), identity("data.test_fraction=0.3")}) == 3
    datasets.read.cache_clear()
    done = train("data=image_folder", f"data.root={root}", "data.train_fraction=1", "data.test_fraction=0.25")
    assert done.summary["images"]["test"] == 9
    assert "data.test_fraction=0.25" in done.summary["remarks"][0]


def test_a_test_fraction_counts_only_where_it_is_used(folder: Path) -> None:
    config = ("data=image_folder", f"data.root={folder}")
    assert run_id(checked(*config, "data.test_fraction=0.5")) == run_id(checked(*config))
    assert run_id(checked("data.test_fraction=0.5")) == run_id(checked())


def test_folders_that_are_not_used_are_named(folder: Path) -> None:
    (folder / "unsorted").mkdir()
    (folder / "@eaDir").mkdir()
    (remark,) = [remark for remark in load_folder(folder).remarks if "not used" in remark]
    assert "unsorted" in remark
    assert "@eaDir" not in remark
    shutil.copytree(folder / "val", folder / "test")
    datasets.read.cache_clear()
    assert any("data.val_fraction=0" in remark for remark in load_folder(folder, "data.val_fraction=0").remarks)


# Whatever the images' sizes and modes.


def first_batch(root: Path, *overrides: str, patch_size: int = 1) -> tuple[datasets.DataSplits, torch.Tensor]:
    """The images as evaluation sees them, in the order of their files."""
    datasets.read.cache_clear()
    config = checked("data=image_folder", f"data.root={root}", "data.num_workers=0", "augmentation=none", *overrides)
    loaded = datasets.load(config.data, patch_size)
    return loaded, next(iter(make_eval_loader(loaded.test, loaded, config)))[0]


@pytest.mark.parametrize("sizes", ["same", "rare", "differing"])
@pytest.mark.parametrize("overrides", [[], ["data.image_size=20"], ["augmentation=paper", "data.crop_fraction=0.8"]])
def test_images_are_prepared_alike_whatever_their_total_size(
    folder: Path, sizes: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept in memory or not: one rule for the size, for training and evaluation."""
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
    own = (224, 224) if sizes == "differing" else (12, 12)
    assert small.image_size == large.image_size == ((20, 20) if "data.image_size=20" in overrides else own)
    assert (small.mean, small.std) == (large.mean, large.std)
    for one, other in zip(expected, batches, strict=True):
        assert torch.equal(one, other)


def test_an_image_of_another_size_loses_its_borders_but_not_its_shape(tmp_path: Path) -> None:
    """Not squashed: the middle, in training as in evaluation."""
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
        ((pixels, _),) = loader
        assert (pixels > 200).all()  # but for what a filter takes from beyond the crop


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
    ((pixels, _),) = make_train_loader(loaded, config)
    files = {np.asarray(Image.open(path)).tobytes() for path in tmp_path.glob("train/*/*.png")}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in pixels} == files


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


def spoil(folder: Path, what: str) -> list[str]:
    """Break an image folder; returns what the error must name."""
    if what == "empty class":
        for path in (folder / "train" / "dog").iterdir():
            path.unlink()
        return ["train/dog", "no images"]
    if what == "missing class":
        for path in (folder / "val" / "owl").iterdir():
            path.unlink()
        (folder / "val" / "owl").rmdir()
        return ["only train has owl"]
    if what == "one class":
        for path in [*(folder / "train").iterdir()][1:]:
            path.rename(folder / path.name)
        return ["data.root=", "two or more classes"]
    if what == "corrupt image":
        path = folder / "train" / "cat" / "3.png"
        path.write_bytes(path.read_bytes()[:60])
        return [str(path), "cannot be read as an image"]
    if what == "dangling link":
        (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
        return [str(folder / "train" / "cat" / "gone.png")]
    if what == "bomb":
        return [str(folder / "train" / "cat" / "0.png"), "decompression bomb"]
    if what == "two validation sets":
        shutil.copytree(folder / "val", folder / "Valid")
        return ["both Valid and val", "data.root="]
    (folder / "train").rename(folder / "photos")
    return ["data.root=", "train/CLASS", "photos"]


@pytest.mark.parametrize(
    "what",
    [
        "empty class",
        "missing class",
        "one class",
        "corrupt image",
        "dangling link",
        "bomb",
        "no train set",
        "two validation sets",
    ],
)
def test_a_broken_folder_is_a_clear_error(folder: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = spoil(folder, what)
    if what == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(datasets.DataError) as caught:
        load_folder(folder)
    for name in names:
        assert name in str(caught.value)
    assert "np.str_" not in str(caught.value)


def test_images_in_subfolders_of_a_class_are_its_images(folder: Path) -> None:
    expected = load_folder(folder)
    below = folder / "train" / "cat" / "from the garden"
    (folder / "train" / "cat").rename(folder / "cat")
    below.parent.mkdir()
    (folder / "cat").rename(below)
    datasets.read.cache_clear()
    assert np.array_equal(load_folder(folder).train.images, expected.train.images)


@pytest.mark.parametrize("vendor", ["@eaDir", "__MACOSX", "#recycle", "System Volume Information"])
def test_what_vendors_write_beside_images_is_skipped(folder: Path, vendor: str) -> None:
    expected, before = load_folder(folder), hash_images.__wrapped__(folder)
    for place in (folder, folder / "train", folder / "train" / "cat", folder / "val" / "dog"):
        (place / vendor / "0.png").mkdir(parents=True)
        Image.new("RGB", (12, 12)).save(place / vendor / "0.png" / "SYNOPHOTO_THUMB_M.jpg")
    datasets.read.cache_clear()
    loaded = load_folder(folder)
    assert loaded.classes == expected.classes
    assert len(loaded.train) == len(expected.train)
    assert hash_images.__wrapped__(folder) == before


@pytest.mark.parametrize("name", [r"cash $\\frac", r"$\$", "caf\udce9", "a\nb"])
def test_a_class_may_have_any_name(folder: Path, name: str, train: Train, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "cat").rename(folder / part / name)
    done = train("data=image_folder", f"data.root={folder}", "data.train_fraction=1", "trainer.figures=true")
    assert done.summary["status"] == "completed"
    assert (done.folder / "figures" / "confusion_matrix.png").exists()


def test_a_link_to_a_folder_above_is_not_followed(folder: Path) -> None:
    (folder / "train" / "cat" / "loop").symlink_to(folder)
    assert len(load_folder(folder).train) + len(load_folder(folder).val or ()) == 36


def test_skipped_pipes_devices_and_cycles_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cat = folder / "train" / "cat"
    os.mkfifo(cat / "pipe.png")
    (cat / "zero.png").symlink_to("/dev/zero")
    (cat / "loop").symlink_to(folder)
    load_folder(folder)
    for name in ("pipe.png (a pipe or device)", "zero.png (a pipe or device)", "loop (a link to a folder above it)"):
        assert [record.getMessage() for record in caplog.records].count(f"  skipped: {cat / name}") == 1


def test_hidden_folders_and_other_files_are_no_images(folder: Path) -> None:
    expected = load_folder(folder)
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "notes.txt", "._0.png"):
        (folder / "train" / "cat" / name).write_text("no image")
    (folder / "train" / "README.md").write_text("no class")
    datasets.read.cache_clear()
    loaded = load_folder(folder)
    assert loaded.classes == expected.classes
    assert np.array_equal(loaded.train.images, expected.train.images)


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


def test_a_patch_size_must_divide_the_image(folder: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"model.patch_size=5: does not divide the 12x12 .* 1, 2, 3, 4, 6, 12"):
        load_folder(folder, patch_size=5)


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["data.val_fraction=0.01"], "data.val_fraction=0.01", "0.0834 to 0.9166"),  # 3 to 33 of 36 images
        (["data.val_fraction=0.95"], "data.val_fraction=0.95", "0.0834 to 0.9166"),
        (["data.train_fraction=0.01"], "data.train_fraction=0.01", "0.0938 to 0.9062"),  # of 32
        (["data.train_fraction=0.99"], "data.train_fraction=0.99", "0.0938 to 0.9062"),
    ],
)
def test_a_fraction_that_leaves_a_class_without_images_is_a_clear_error(
    folder: Path, overrides: list[str], key: str, expected: str
) -> None:
    with pytest.raises(datasets.DataError) as caught:
        load_folder(folder, *overrides)
    assert key in str(caught.value)
    assert expected in str(caught.value)


def test_a_class_of_one_image_cannot_be_split(folder: Path) -> None:
    for path in list((folder / "train" / "dog").iterdir())[1:]:
        path.unlink()
    with pytest.raises(datasets.DataError, match=r"data.val_fraction=0.1: .*dog"):
        load_folder(folder)
    assert load_folder(folder, "data.val_fraction=0").val is None


def test_test_images_are_traced_by_path_and_class(folder: Path, tmp_path: Path, train: Train) -> None:
    options = ("data=image_folder", f"data.root={folder}", "data.train_fraction=1")
    runs = [train(*options, f"model.kernel_size={kernel}", "model.d_model=2").folder for kernel in (3, 5)]
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert summary["classes"] == list(LETTERS)
    records = np.load(runs[0] / "predictions.npy")
    table = pd.read_csv(runs[0] / "predictions.csv")
    assert list(table["image"]) == [f"val/{name}/{i}.png" for name in LETTERS for i in range(4)]
    assert [LETTERS[i] for i in records["prediction"]] == list(table["prediction"])
    wrong = pd.read_csv(runs[0] / "wrong_images.csv")
    assert set(wrong["image"]) == set(table["image"][table["label"] != table["prediction"]])
    assert wrong["probability"].is_monotonic_increasing
    evaluate(tmp_path / "e", f"checkpoint={runs[0]}")
    evaluated = pd.read_csv(tmp_path / "e" / "predictions.csv")
    assert evaluated["image"].equals(table["image"]) and evaluated["prediction"].equals(table["prediction"])
    for kernel, run in zip((3, 5), runs, strict=True):  # so that there is an image to win
        records["prediction"] = records["label"] if kernel == 3 else 0
        np.save(run / "predictions.npy", records)
    compare_images(read(runs), tmp_path)
    images = pd.read_csv(tmp_path / "images.csv")
    assert set(images["path"]) == {f"val/{name}/{i}.png" for name in LETTERS[1:] for i in range(4)}
    assert (images["class"] == images["path"].str.split("/").str[1]).all()


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
