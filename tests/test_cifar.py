"""Tests of CIFAR as torchvision downloads it, from a server in this process."""

import hashlib
import http.server
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision

from conftest import checked
from data import datasets


@pytest.fixture
def cifar_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a small CIFAR-10 archive on this machine, and point torchvision to it."""
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
    with pytest.raises(datasets.DataError, match=r"data.root=.*cifar10 is missing or damaged and cannot be downloaded"):
        load_cifar(root)
