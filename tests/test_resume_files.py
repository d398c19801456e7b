"""Tests of the files of a run that resumes: damaged, lost, half written, or the user's own."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from conftest import metrics, summaries
from interruption import configured
from runtime.files import PARTIAL, whole
from tracking import plots
from training import loop, run


def flip_a_weight(path: Path) -> None:
    """Change one bit of the first tensor, which PyTorch does not notice."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        content = archive.read(name)
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + 3] ^= 0x40
    path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "foreign", "text", "flipped", "types"])
def test_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tmp_path)
    run.run(config, [])
    expected = metrics(tmp_path / "s")
    (folder,) = (tmp_path / "s").glob("baseline*")
    last = folder / "checkpoints" / "last.pt"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "foreign":
        torch.save({"identity": "another", "model": {}}, last)
    elif damage == "flipped":
        flip_a_weight(last)
    elif damage == "types":
        torch.save({**torch.load(last), "rows": [{"epoch": "1"}]}, last)
    else:
        last.write_text("not a checkpoint")
    (folder / "summary.json").write_text('{"status": "interr')  # as if the machine had gone down
    (last.parent / f"{PARTIAL}1").mkdir()  # as if the process had been killed while it wrote
    run.run(config, [])
    assert not (last.parent / f"{PARTIAL}1").exists()
    assert f"{last} is not used" in caplog.text
    assert "resumes after step 0 of epoch 3" in caplog.text
    assert (last.parent / "last.pt.unusable").exists(), "it has not taken the place of the one before it"
    assert metrics(tmp_path / "s") == expected
    assert summaries(tmp_path / "s")[0]["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_state_that_does_not_fit_is_named_and_then_left_out(tmp_path: Path, name: str) -> None:
    config = configured(tmp_path)
    run.run(config, [])
    expected = metrics(tmp_path / "s")
    (file,) = tmp_path.rglob(name)
    content = torch.load(file)
    torch.save({**content, "model": {**content["model"], "classification.linear.bias": torch.ones(3)}}, file)
    summary = file.parents[1] / "summary.json"
    summary.write_text(summary.read_text().replace('"completed"', '"interrupted"'))
    assert run.run(config, []).status == "failed"
    assert f"{file} does not fit the run" in summaries(tmp_path / "s")[0]["error"]
    assert run.run(config, []).status == "completed"
    assert metrics(tmp_path / "s") == expected


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cannot be read"])
def test_best_weights_lost_before_the_test_are_trained_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run.run(configured(tmp_path), [])
    expected = metrics(tmp_path / "s")
    (best,) = tmp_path.rglob("best.pt")
    best.unlink() if damage == "missing" else flip_a_weight(best)
    summary = best.parents[1] / "summary.json"  # as if it had been interrupted before the test
    summary.write_text(summary.read_text().replace('"completed"', '"interrupted"'))
    run.run(configured(tmp_path), [])
    assert f"{best} {'is missing' if damage == 'missing' else damage}" in caplog.text
    assert metrics(tmp_path / "s") == expected
    assert summaries(tmp_path / "s")[0]["status"] == "completed"


@pytest.mark.slow
def test_best_weights_lost_at_the_test_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = loop.Trainer.save

    def save_and_lose(trainer: loop.Trainer) -> None:
        save(trainer)
        (trainer.folder.path / "checkpoints" / "best.pt").unlink(missing_ok=True)

    with monkeypatch.context() as once:
        once.setattr(loop.Trainer, "save", save_and_lose)
        assert run.run(configured(tmp_path), []).status == "failed"
    assert "best.pt is missing" in summaries(tmp_path / "s")[0]["error"]
    run.run(configured(tmp_path), [])
    assert summaries(tmp_path / "s")[0]["status"] == "completed"


@pytest.mark.slow
def test_a_run_is_completed_when_everything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as once:
        once.setattr(plots, "history", stopped_hard)
        with pytest.raises(SystemExit):
            run.run(configured(tmp_path), [])
    assert summaries(tmp_path / "s")[0]["status"] == "interrupted"
    run.run(configured(tmp_path), [])
    assert summaries(tmp_path / "s")[0]["status"] == "completed"
    assert list((tmp_path / "s").glob("*/history.png"))


def stopped_hard(*_: object) -> None:
    plots.history = lambda *_: Figure()  # what follows is the end of the process
    raise SystemExit(1)


@pytest.mark.slow
def test_hidden_files_of_the_user_stay(tmp_path: Path) -> None:
    run.run(configured(tmp_path, "trainer.epochs=1"), [])
    (summary,) = tmp_path.rglob("summary.json")
    summary.write_text("{}")
    (summary.parent / ".1st-ideas.txt").write_text("mine")
    (summary.parent / ".2024.notes").mkdir()
    run.run(configured(tmp_path, "trainer.epochs=1"), [])
    assert (summary.parent / ".1st-ideas.txt").exists() and (summary.parent / ".2024.notes").exists()
    assert summaries(tmp_path / "s")[0]["status"] == "completed"


def test_temporary_files_collide_with_nothing_and_follow_no_link(tmp_path: Path) -> None:
    (theirs := tmp_path / "theirs.txt").write_text("theirs")
    (tmp_path / f".{os.getpid()}.own.txt").symlink_to(theirs)
    (link := tmp_path / "own.txt").symlink_to(theirs)
    with whole(link) as first, whole(link) as second:  # as processes of two containers with one number
        first.write_text("first")
        second.write_text("second")
    assert not link.is_symlink() and link.read_text() == "first"
    assert link.stat().st_mode & 0o777 == theirs.stat().st_mode & 0o777
    assert theirs.read_text() == "theirs" and not list(tmp_path.glob(f"{PARTIAL}*"))
