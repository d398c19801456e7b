"""Data: what is read, how it is split, and that batches are the same whoever makes them."""

import hashlib
import http.server
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from config import schema
from config.errors import first_line
from config.schema import Config
from conftest import Finished, checked
from data import datasets
from data.batches import make_eval_loader, make_train_loader
from data.fingerprint import fingerprint
from runtime.distributed import World
from tracking.identity import run_id
from training import run

LETTERS = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def forget_what_was_read() -> None:
    datasets.read.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image folder, train and val, 12×12, three classes."""
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(LETTERS):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 60, (12, 12, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def load_folder(root: Path, *overrides: str, patch_size: int = 2) -> datasets.DataSplits:
    return datasets.load(checked("data=image_folder", f"data.root={root}", *overrides).data, patch_size)


def test_digits() -> None:
    digits = datasets.load(checked().data, 1)
    assert digits.val is not None
    assert (digits.channels, digits.image_size, len(digits.classes)) == (1, (8, 8), 10)
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert digits.train.images.max() == 255


def test_splits_are_disjoint_stratified_and_repeatable() -> None:
    def parts(**options: float) -> tuple[datasets.Split, datasets.Split, datasets.Split]:
        loaded = datasets.load(schema.Data(name="digits", root="", **options), 1)
        assert loaded.val is not None
        return loaded.train, loaded.val, loaded.test

    def rows(images: datasets.Split) -> set[bytes]:
        return {pixels.tobytes() for pixels in images.images}

    train, val, test = parts(val_fraction=0.2, split_seed=3)
    assert len(rows(train) | rows(val) | rows(test)) == 1797  # all digits differ
    for part in (train, val, test):
        shares = np.bincount(part.labels) / len(part)
        assert abs(shares - np.bincount(test.labels) / len(test)).max() < 0.01
    again = parts(val_fraction=0.2, split_seed=3)
    other = parts(val_fraction=0.2, split_seed=4)
    assert all(np.array_equal(a.images, b.images) for a, b in zip((train, val, test), again, strict=True))
    assert rows(other[1]) != rows(val)
    assert rows(other[2]) == rows(test)
    fewer, same_val, _ = parts(val_fraction=0.2, split_seed=3, train_fraction=0.5)
    assert rows(fewer) < rows(train)
    assert abs(len(fewer) - len(train) / 2) < 1
    assert rows(same_val) == rows(val)


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


def test_a_val_folder_beside_test_is_the_validation_set(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    for name in LETTERS:
        (folder / "val" / name).mkdir(parents=True)
        Image.new("RGB", (12, 12), (1, 2, 3)).save(folder / "val" / name / "only.png")
    loaded = load_folder(folder)
    assert loaded.val is not None
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [36, 3, 12]
    assert (loaded.val.images == np.array([1, 2, 3])).all()


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
        monkeypatch.setattr(datasets, "SAMPLE_SIZE", 3)

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
    monkeypatch.setattr(datasets, "DECODED_LIMIT", 0)
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
    monkeypatch.setattr(datasets, "DECODED_LIMIT", 0)
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


@pytest.mark.parametrize("limit", [datasets.DECODED_LIMIT, 0])
def test_a_rare_color_image_in_a_grey_set_becomes_grey(
    folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in list(folder.glob("*/*/*.png")):
        Image.open(path).convert("L").save(path)
    color = Image.new("RGB", (12, 12), (200, 30, 90))
    color.save(folder / "val" / "cat" / "0.png")
    monkeypatch.setattr(datasets, "DECODED_LIMIT", limit)
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
        return ["differ in their classes", "owl"]
    if what == "corrupt image":
        path = folder / "train" / "cat" / "3.png"
        path.write_bytes(path.read_bytes()[:60])
        return [str(path), "cannot be read as an image"]
    if what == "dangling link":
        (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
        return [str(folder / "train" / "cat" / "gone.png")]
    if what == "bomb":
        return [str(folder / "train" / "cat" / "0.png"), "decompression bomb"]
    if what == "no test set":
        (folder / "val").rename(folder / "validation")
        return ["neither test nor val"]
    (folder / "train").rename(folder / "training")
    return ["data.root=", "train/CLASS"]


@pytest.mark.parametrize(
    "what",
    ["empty class", "missing class", "corrupt image", "dangling link", "bomb", "no test set", "no train set"],
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


def test_an_image_that_a_worker_cannot_read_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "train" / "owl" / "7.png"
    config = checked("data=image_folder", f"data.root={folder}", "data.num_workers=1", "data.image_size=10")
    monkeypatch.setattr(datasets, "DECODED_LIMIT", 0)
    loaded = datasets.load(config.data, 1)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(datasets.DataError) as caught:
        list(make_train_loader(loaded, config))
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


# Which images a run is of.


def id_of(root: Path | str) -> str:
    fingerprint.cache_clear()
    return run_id(checked("data=image_folder", f"data.root={root}"))


def replace_image(folder: Path) -> None:
    """By another one of equal size."""
    path = folder / "train" / "dog" / "5.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def rename_image(folder: Path) -> None:
    (folder / "train" / "dog" / "5.png").rename(folder / "train" / "dog" / "five.png")


def grow_image(folder: Path) -> None:
    with (folder / "val" / "owl" / "2.png").open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("limit", [2**30, 1000])
@pytest.mark.parametrize("change", [replace_image, rename_image, grow_image])
def test_another_image_is_another_run(
    folder: Path, change: Callable[[Path], None], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit names and sizes alone are compared."""
    monkeypatch.setattr("data.fingerprint.MOST_BYTES", limit)
    before = id_of(folder)
    change(folder)
    assert (id_of(folder) != before) == (limit == 2**30 or change is not replace_image)


def test_the_same_images_are_the_same_run_wherever_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = id_of(folder)
    copy = folder / "copies" / "here"
    for part in ("train", "val"):
        shutil.copytree(folder / part, copy / part)
    assert id_of(copy) == expected
    monkeypatch.chdir(copy.parent)
    assert id_of("here") == expected
    (copy / "train" / "cat" / ".DS_Store").write_text("no image")
    (copy / "train" / ".ipynb_checkpoints").mkdir()
    assert id_of(copy) == expected
    link = copy / "train" / "cat" / "gone.png"
    link.symlink_to(copy / "nowhere")
    assert id_of(copy) != expected  # and no exception: the run will name it
    assert id_of(folder / "nowhere") != expected


def test_a_run_records_its_images_and_reads_them_once(
    folder: Path, train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    def images_of(*overrides: str) -> str:
        done = train(
            "data=image_folder", f"data.root={folder}", "data.train_fraction=1", "data.batch_size=8", *overrides
        )
        return done.summary["data_fingerprint"]

    fingerprint.cache_clear()
    first = images_of()
    with monkeypatch.context() as context:
        context.setattr("data.fingerprint.content_of", pytest.fail)
        assert images_of("seed=1") == first
    rename_image(folder)
    fingerprint.cache_clear()
    datasets.read.cache_clear()
    assert images_of() != first


# CIFAR as torchvision downloads it, from a server of our own.


@pytest.fixture
def cifar_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small CIFAR-10 archive behind a loopback server that torchvision is pointed to."""
    source = tmp_path / "server"
    batches = source / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["data_batch_1", "test_batch"]
    for name in names:
        content = {"data": rng.integers(0, 256, (40, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(40)]}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    archive = source / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, batches.name)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(source), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive))
    monkeypatch.setattr(cifar, "train_list", [[names[0], md5(batches / names[0])]])
    monkeypatch.setattr(cifar, "test_list", [[names[1], md5(batches / names[1])]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(batches / "batches.meta")}
    monkeypatch.setattr(cifar, "meta", meta)
    yield archive
    server.shutdown()


def load_cifar(root: Path) -> datasets.DataSplits:
    datasets.read.cache_clear()
    return datasets.load(checked("data=cifar10", f"data.root={root}", "data.val_fraction=0.25").data, 4)


def test_cifar_is_downloaded_once_verified_and_split(tmp_path: Path, cifar_server: Path) -> None:
    loaded = load_cifar(tmp_path / "data")
    assert loaded.val is not None
    assert (loaded.image_size, loaded.channels, len(loaded.classes)) == ((32, 32), 3, 10)
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [30, 10, 40]
    assert loaded.mean == (0.4914, 0.4822, 0.4465)
    cifar_server.unlink()
    assert len(load_cifar(tmp_path / "data").test) == 40  # from disk


def test_a_corrupt_or_missing_cifar_is_a_clear_error(tmp_path: Path, cifar_server: Path) -> None:
    root = tmp_path / "data"
    load_cifar(root)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"broken")
    assert len(load_cifar(root).test) == 40  # unpacked again from the archive that is still good
    cifar_server.write_bytes(b"broken, too")
    for path in (root / "cifar-10-python.tar.gz", root / "cifar-10-batches-py" / "test_batch"):
        path.write_bytes(b"broken")
    with pytest.raises(
        datasets.DataError, match=r"data.root=.*cifar10 is not there intact and could not be downloaded"
    ):
        load_cifar(root)


# Batches.


def epochs_of(config: Config, epochs: int = 2) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    loader = make_train_loader(datasets.load(config.data, 1), config)
    seen = []
    for epoch in range(1, epochs + 1):
        loader.sampler.epoch = epoch  # type: ignore[attr-defined]
        seen.append(list(loader))
    return seen


def test_batches_are_the_same_for_any_number_of_workers() -> None:
    overrides = ["augmentation=randaugment", "data.train_fraction=0.2"]
    one, two, other = (
        epochs_of(checked(*overrides, f"data.num_workers={workers}", f"seed={seed}"))
        for workers, seed in ((0, 0), (2, 0), (0, 1))
    )
    for first, second in zip(chain(*one), chain(*two), strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    assert not torch.equal(one[0][0][0], one[1][0][0])
    assert not torch.equal(one[0][0][0], other[0][0][0])


def test_an_epoch_has_every_image_once_in_random_order() -> None:
    config = checked("augmentation=none")
    images = datasets.load(config.data, 1).train
    (batches,) = epochs_of(config, 1)
    assert [len(labels) for _, labels in batches[:-1]] == [32] * (len(batches) - 1)
    pixels = torch.cat([pixels for pixels, _ in batches])
    assert {row.numpy().tobytes() for row in pixels} == {row.tobytes() for row in images.images}
    assert not np.array_equal(pixels[:, 0].numpy(), images.images[..., 0])


def test_making_batches_leaves_the_generators_alone() -> None:
    config = checked("augmentation=randaugment")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    epochs_of(config, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("environment", "threads", "expected"),
    [
        ({}, 16, 15),
        ({}, 4, 3),  # OMP_NUM_THREADS=4: of a user, of Slurm, or where runs train side by side
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4"}, 1, 3),  # torchrun sets OMP_NUM_THREADS=1
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "16"}, 1, 1),
    ],
)
def test_workers_take_the_cores_that_the_process_may_use(
    environment: dict[str, str], threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = checked("augmentation=randaugment", "data.num_workers=null")
    assert make_train_loader(datasets.load(config.data, 1), config).num_workers == expected


def test_ranks_start_their_workers_before_they_exchange_gradients() -> None:
    """A process that NCCL runs in must not be forked."""
    config = checked("augmentation=randaugment", "data.train_fraction=0.2", "data.num_workers=1")
    loaded = datasets.load(config.data, 1)
    before = set(multiprocessing.active_children())
    loader = make_train_loader(loaded, config, World(1, 2))
    (worker,) = set(multiprocessing.active_children()) - before
    alone = make_train_loader(loaded, replace(config, data=replace(config.data, num_workers=0)), World(1, 2))
    for epoch in (1, 2):
        for either in (loader, alone):
            either.sampler.epoch = epoch  # type: ignore[attr-defined]
        for (pixels, labels), (expected, expected_labels) in zip(loader, alone, strict=True):
            assert torch.equal(pixels, expected)
            assert torch.equal(labels, expected_labels)
    assert set(multiprocessing.active_children()) - before == {worker}


def test_a_run_makes_its_batches_before_its_ranks_meet_on_the_gpu(
    train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL starts with DistributedDataParallel, which the training state holds."""
    order: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        made = getattr(run, name)

        def make(*arguments: Any) -> Any:
            order.append(name)
            return made(*arguments)

        return make

    for name in ("make_loaders", "TrainingState"):
        monkeypatch.setattr(run, name, noted(name))
    assert train("trainer.epochs=1").summary["status"] == "completed"
    assert order == ["make_loaders", "TrainingState"]
