"""Tests of folders of images: their splits and classes, skipped files, errors."""

import json
import os
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from comparison.results import read
from conftest import LETTERS, Train, checked, load_folder
from data import datasets
from data.fingerprint import hash_images
from rendering.images import compare_images
from test_evaluate import evaluate
from tracking.identity import run_id


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


@pytest.mark.slow
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


# Splits.


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["data.val_fraction=0.01"], "data.val_fraction=0.01", "0.0834 to 0.9166"),  # 3 to 33 of 36 images
        (["data.val_fraction=0.95"], "data.val_fraction=0.95", "0.0834 to 0.9166"),
        (["data.train_fraction=0.01"], "data.train_fraction=0.01", "0.0938 to 0.9062"),  # of 32
        (["data.train_fraction=0.99"], "data.train_fraction=0.99", "0.0938 to 0.9062"),
    ],
)
def test_fraction_that_empties_a_class_is_an_error(folder: Path, overrides: list[str], key: str, expected: str) -> None:
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


# What is not used, and what is wrong.


def test_folders_that_are_not_used_are_named(folder: Path) -> None:
    (folder / "unsorted").mkdir()
    (folder / "@eaDir").mkdir()
    (remark,) = [remark for remark in load_folder(folder).remarks if "not used" in remark]
    assert "unsorted" in remark
    assert "@eaDir" not in remark
    shutil.copytree(folder / "val", folder / "test")
    datasets.read.cache_clear()
    assert any("data.val_fraction=0" in remark for remark in load_folder(folder, "data.val_fraction=0").remarks)


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


@pytest.mark.slow
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


def spoil(folder: Path, damage: str) -> list[str]:
    """Damage an image folder; return the words that the error must contain."""
    if damage == "empty class":
        for path in (folder / "train" / "dog").iterdir():
            path.unlink()
        return ["train/dog", "no images"]
    if damage == "missing class":
        for path in (folder / "val" / "owl").iterdir():
            path.unlink()
        (folder / "val" / "owl").rmdir()
        return ["only train has owl"]
    if damage == "one class":
        for path in [*(folder / "train").iterdir()][1:]:
            path.rename(folder / path.name)
        return ["data.root=", "two or more classes"]
    if damage == "corrupt image":
        path = folder / "train" / "cat" / "3.png"
        path.write_bytes(path.read_bytes()[:60])
        return [str(path), "cannot be read as an image"]
    if damage == "dangling link":
        (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
        return [str(folder / "train" / "cat" / "gone.png")]
    if damage == "bomb":
        return [str(folder / "train" / "cat" / "0.png"), "decompression bomb"]
    if damage == "two validation sets":
        shutil.copytree(folder / "val", folder / "Valid")
        return ["both Valid and val", "data.root="]
    (folder / "train").rename(folder / "photos")
    return ["data.root=", "train/CLASS", "photos"]


@pytest.mark.parametrize(
    "damage",
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
def test_a_broken_folder_is_a_clear_error(folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = spoil(folder, damage)
    if damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(datasets.DataError) as caught:
        load_folder(folder)
    for name in names:
        assert name in str(caught.value)
    assert "np.str_" not in str(caught.value)
