"""Data: what is read, how it is split, and that batches are the same whoever makes them."""

import hashlib
import http.server
import pickle
import tarfile
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from config import schema
from config.schema import Config
from conftest import checked
from data import datasets
from data.batches import make_train_loader

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


def test_images_of_different_sizes_stay_files(folder: Path) -> None:
    Image.new("L", (40, 30), 7).save(folder / "train" / "cat" / "big.png")
    loaded = load_folder(folder, patch_size=7)
    assert loaded.image_size == (224, 224)
    config = checked("data=image_folder", f"data.root={folder}", "data.image_size=20", "data.num_workers=0")
    loaded = datasets.load(config.data, 5)
    assert not loaded.train.decoded
    pixels, labels = next(iter(make_train_loader(loaded, config)))
    assert pixels.shape[1:] == (3, 20, 20)
    assert pixels.dtype == torch.uint8
    assert len(labels) == len(pixels)


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
    if what == "no test set":
        (folder / "val").rename(folder / "validation")
        return ["neither test nor val"]
    (folder / "train").rename(folder / "training")
    return ["data.root=", "train/CLASS"]


@pytest.mark.parametrize("what", ["empty class", "missing class", "corrupt image", "no test set", "no train set"])
def test_a_broken_folder_is_a_clear_error(folder: Path, what: str) -> None:
    names = spoil(folder, what)
    with pytest.raises(datasets.DataError) as caught:
        load_folder(folder)
    for name in names:
        assert name in str(caught.value)


def test_a_patch_size_must_divide_the_image(folder: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"model.patch_size=5: does not divide the 12x12 .* 1, 2, 3, 4, 6, 12"):
        load_folder(folder, patch_size=5)


def test_a_split_that_cannot_be_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"data.val_fraction=0.01: cannot split 36 images"):
        load_folder(folder, "data.val_fraction=0.01")


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
