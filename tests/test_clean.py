"""Tests of clean.py: it lists, asks, and removes no result."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import training.run
from comparison.disk import bytes_of
from conftest import TINY, Finished, Train, checked
from tracking.run_lock import acquire_lock, lock_of

Clean = Callable[..., str]
OVERRIDES = ["trainer.epochs=1"]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clean:
    """Run `python src/clean.py ARGUMENTS` within this process, on a terminal where `answer` is typed."""
    import clean as script

    def start(*arguments: str, answer: str | None = None) -> str:
        typed = io.StringIO(f"{answer}\n")
        typed.isatty = lambda: answer is not None  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", typed)
        monkeypatch.setattr(sys, "argv", ["clean.py", *arguments])
        script.main()
        return capsys.readouterr().out

    return start


def files(folder: Path) -> set[Path]:
    return {
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.suffix != ".holder"
    }


def interrupted_before(run: Finished) -> Path:
    """Write the folder of an unfinished run with equal overrides, made when the config had another default."""
    config = checked(*TINY, *OVERRIDES, "trainer.label_smoothing=0.1")
    config.output_dir, config.sweep = str(run.folder.parents[1]), run.folder.parent.name
    training.run.run(config, OVERRIDES)
    (summary,) = {*run.folder.parent.glob("*/summary.json")} - {run.folder / "summary.json"}
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": "interrupted"}))
    return summary.parent


@pytest.mark.slow
def test_clean_removes_what_is_no_result_after_asking(train: Train, clean: Clean, tmp_path: Path) -> None:
    done, kept = train(*OVERRIDES), train("trainer.epochs=1", "seed=1", "checkpoint.keep=all")
    failed = train("trainer.epochs=1", "optimizer.lr=1e30")
    assert failed.summary["status"] == "failed"
    last = done.folder / "checkpoints" / "last.pt"
    shutil.copy(kept.folder / "checkpoints" / "last.pt", last)  # as a version without checkpoint.keep left it
    superseded = interrupted_before(done)
    before = files(tmp_path)

    for answer in (None, "n", ""):
        listed = clean(str(tmp_path), answer=answer)
        assert all(path.name in listed for path in (done.folder, failed.folder, superseded))
        assert kept.folder.name not in listed
        assert files(tmp_path) == before

    lock = acquire_lock(lock_of(failed.folder.parent, failed.summary["run_id"]))
    assert lock
    clean(str(tmp_path), answer="y")
    assert failed.folder.exists() and not superseded.exists() and not last.exists()
    lock.release()
    clean(str(tmp_path), "--yes")
    assert not failed.folder.exists()
    assert files(tmp_path) == {
        path for path in before if path != last and not {failed.folder, superseded} & set(path.parents)
    }
    assert "nothing" in clean(str(tmp_path), answer="y")


def test_clean_keeps_unfinished_and_foreign_folders(train: Train, clean: Clean, tmp_path: Path) -> None:
    done = train(*OVERRIDES)
    summary = done.folder / "summary.json"
    summary.write_text(json.dumps({**done.summary, "status": "interrupted"}))
    renamed = shutil.copytree(done.folder, done.folder.parent / "mine")
    (renamed / "summary.json").write_text(json.dumps({**done.summary, "status": "failed"}))
    (done.folder / "link").symlink_to(tmp_path)
    assert bytes_of(done.folder) < 10 * sum(path.stat().st_size for path in done.folder.rglob("*.*"))
    clean(str(tmp_path), "--yes")
    assert summary.exists() and (renamed / "summary.json").exists()
