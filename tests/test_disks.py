"""Tests of full and read-only disks: they are named, if possible before any work."""

import errno
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from config.errors import ConfigError
from conftest import TINY, command
from runtime.files import append, check_new, naming_full_disk, whole, write_text

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount folders of tmp_path; they are unmounted at the end."""
    mounted: list[Path] = []

    def start(name: str, *options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True)
        if done.returncode:
            pytest.skip("needs the right to mount")
        mounted.append(folder)
        return folder

    yield start
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def full(mount: Mount) -> Path:
    return mount("full", "-t", "tmpfs", "-o", "size=4m", "tmpfs")


def fill(folder: Path, free: int) -> None:
    """Fill the disk, except for so many bytes."""
    (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - free))


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    text = done.stdout + done.stderr
    assert "Traceback" not in text and "Logging error" not in text, text
    return text


def write_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE numbers (value BLOB)")
        database.execute("INSERT INTO numbers VALUES (zeroblob(1000000))")


def append_text(path: Path) -> None:
    with append(path) as file:
        file.write("x" * 1_000_000)


WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save({"a": torch.rand(500_000), "b": torch.rand(500_000)}, path),
    "numpy": lambda path: np.save(path.open("wb"), np.zeros(1_000_000)),
    "matplotlib": lambda path: Figure(figsize=(40, 40)).savefig(path, format="raw", dpi=100),
    "text": lambda path: write_text(path, "x" * 1_000_000),
    "append": append_text,
    "sqlite": write_database,
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_is_named_whoever_writes(writer: str, full: Path) -> None:
    fill(full, 100_000)
    with pytest.raises(OSError, match="No space left on device") as caught, whole(full / "file") as temporary:
        WRITERS[writer](temporary)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left on device"), naming_full_disk(full / "file"):
        WRITERS[writer](full / "file")
    with pytest.raises(KeyError), whole(full.parent / "file"):
        raise KeyError("another problem")


@pytest.mark.slow
@pytest.mark.parametrize("free", [4096, 1_100_000])
def test_full_disk_is_named_by_a_run_that_resumes(free: int, full: Path, tmp_path: Path) -> None:
    fill(full, free)
    arguments = (*TINY, "model.d_model=64", "model.depth=8", "output_dir=full", "sweep=s", "wandb.mode=offline")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "No space left on device" in output_of(done)
    (full / "filler").unlink()
    assert output_of(again := command(*arguments, cwd=tmp_path)) and again.returncode == 0


def test_links_in_the_place_of_a_log_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "train.log").symlink_to(tmp_path / "notes")
    with append(tmp_path / "train.log") as file:
        file.write("a line\n")
    with append(tmp_path / "train.log") as file:
        file.write("another\n")
    assert (tmp_path / "notes").read_text() == "mine"
    assert (tmp_path / "train.log").read_text() == "a line\nanother\n"
    assert not (tmp_path / "train.log").is_symlink()


@pytest.fixture
def theirs(mount: Mount, digits_run: Path, tmp_path: Path) -> Path:
    """Mount a colleague's sweep of one run read-only."""
    folder = mount("theirs", "-t", "tmpfs", "tmpfs")
    run = shutil.copytree(digits_run, folder / "sweep" / digits_run.name)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "fix"),
    [
        ("export", "checkpoint={run} format=safetensors", "output=PATH"),
        ("predict", "checkpoint={run} images={run}/history.png output={run}/p.csv", "output=PATH"),
        ("evaluate", "checkpoint={run} output={run}/e", "output=PATH"),
        ("evaluate", "checkpoint={run} output={run} overwrite=true", "output=PATH"),
        ("compare", "{run}", "--output DIR"),
        ("compare", "{run} --images", "--output DIR"),
        ("train", "output_dir={run}", "output_dir=DIR"),
    ],
)
def test_no_permission_is_known_before_the_work(
    script: str, arguments: str, fix: str, theirs: Path, tmp_path: Path
) -> None:
    done = command(*arguments.format(run=theirs).split(), cwd=tmp_path, script=script)
    assert done.returncode == 1
    (line,) = [line for line in output_of(done).splitlines() if not line.startswith(f"{theirs}/checkpoints/best.pt: ")]
    assert line.startswith("error: ") and "Read-only file system" in line and "Fix: " in line and fix in line
    assert not {*tmp_path.iterdir()} - {tmp_path / "theirs"}


def test_a_colleagues_sweep_is_compared_into_another_folder(theirs: Path, tmp_path: Path) -> None:
    done = command(str(theirs.parent), "--output", "mine", cwd=tmp_path, script="compare")
    assert done.returncode == 0, output_of(done)
    assert {"comparison.html", "comparison.csv"} <= {path.name for path in (tmp_path / "mine").iterdir()}


def test_no_space_is_known_before_the_work(full: Path) -> None:
    fill(full, 2_000_000)
    check_new([full / "weights.safetensors"], overwrite=False, size=1_900_000)
    with pytest.raises(ConfigError, match=r"No space left on device for 3,000,000 bytes\. Fix: .*output=PATH"):
        check_new([full / "weights.safetensors"], overwrite=False, size=3_000_000)
    (full / "folder").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_new([full / "folder"], overwrite=True)
