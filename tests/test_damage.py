"""Tests of damaged files of runs: one line names each, and the other runs continue."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import create_trial

from comparison.image_differences import read_records
from comparison.progress import progress
from comparison.results import read
from comparison.runs import read_run
from config.errors import ConfigError
from config.schema import Config
from conftest import TIMES, TINY, checked
from publishing.page import curves
from run_folders import DEPTH, KERNEL, as_yaml, write_run, write_sweep
from sweeps.preview import completed_runs
from sweeps.search import open_study
from sweeps.trials import SEEDS
from training import run
from weights.files import read_weights


def rewrite(name: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def replace_by_pipe(run: Path) -> None:
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")


def replace_by_endless_device(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "summary.json").symlink_to("/dev/zero")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
DAMAGES = {
    "alias bomb": rewrite("config.yaml", BOMB), "depth": rewrite("config.yaml", "a: " + "[" * 200_000),
    "binary": rewrite("config.yaml", b"\xff\xfe\x00"), "text": rewrite("config.yaml", "no config"),
    "nan": rewrite("config.yaml", as_yaml() + "optimizer:\n  lr: .nan\n"),
    "json depth": rewrite("summary.json", "[" * 100_000), "json list": rewrite("summary.json", "[]"),
    "digits": rewrite("summary.json", '{"status": "completed", "epochs": ' + "9" * 400 + "}"),
    "many digits": rewrite("summary.json", '{"status": "completed", "x": ' + "9" * 5000 + "}"),
    "no status": rewrite("summary.json", "{}"), "pipe": replace_by_pipe, "device": replace_by_endless_device,
    "folder": lambda run: [(run / "summary.json").unlink(), (run / "summary.json").mkdir()],
}  # fmt: skip


def test_damaged_runs_are_a_line_each_and_leave_the_comparison(tmp_path: Path) -> None:
    accuracies = {(5, 8): [0.9, 0.92], (9, 8): [0.94, 0.96]}
    expected = read([write_sweep(tmp_path / "s", accuracies)])
    for number, (name, damage) in enumerate(DAMAGES.items()):
        run = write_run(tmp_path / "s" / name, f"{KERNEL}=5", f"{DEPTH}=8", f"seed={number + 10}")
        damage(run)
    comparison = read([tmp_path / "s"])
    damaged = {run.folder.name: run for run in comparison.not_completed}
    assert damaged.keys() == DAMAGES.keys()
    assert all(run.status == "unreadable" and run.reason and "\n" not in run.reason for run in damaged.values())
    assert max(len(run.reason) for run in damaged.values()) < 300
    assert [setting.by_seed("val/accuracy") for setting in comparison.valued] == [
        setting.by_seed("val/accuracy") for setting in expected.valued
    ]


@pytest.mark.parametrize("cut", ["1,2.0,0.3,1.9,0.4,0.01,800,1\n2,0.5,0.8,0.6,0.8", "1,two,3\n"])
def test_a_curve_that_is_cut_off_is_left_out_and_named(
    cut: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.94]})
    file = folder / "kernel_size_5-depth_8-seed_0" / "metrics.csv"
    file.write_text(file.read_text().splitlines()[0] + "\n" + cut)
    drawn = curves(read([folder]))
    assert [run.config[KERNEL] for run in drawn] == [9] and str(file) in caplog.text


@pytest.mark.parametrize("content", ['{"1": 5}', '{"1": {"data": 3, "epochs": "x", "epoch_size": []}}', "[]", "{}"])
def test_a_damaged_record_of_a_grid_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "s" / "run-1").mkdir(parents=True)
    (tmp_path / "s" / "sweep.json").write_text(content)
    assert progress(tmp_path / "s") is None and completed_runs(tmp_path) == {}


@pytest.mark.parametrize("summary", [{}, {"epochs": 0}, {"epochs": 1, "macs": 3, "seconds": 2.0, "images": {}}])
def test_a_completed_run_without_figures_gives_no_estimate(summary: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "s" / "run-1").mkdir(parents=True)
    (tmp_path / "s" / "sweep.json").write_text('{"1": {"data": "digits", "epochs": 1, "epoch_size": 2.0}}')
    (tmp_path / "s" / "run-1" / "summary.json").write_text(json.dumps({"status": "completed", **summary}))
    assert completed_runs(tmp_path) == {} and progress(tmp_path / "s") is None


def test_a_damaged_database_of_a_search_is_named_and_left(tmp_path: Path) -> None:
    """A database that was cut off is named, or has all of its trials."""
    path = tmp_path / "search.db"
    study = open_study(path, "s", StudyDirection.MAXIMIZE)
    for value in range(20):
        study.add_trial(create_trial(value=value, user_attrs={"note": "x" * 500}))
        complete_values = {**study.user_attrs.get(SEEDS, {}), str(value): [float(value)]}
        study.set_user_attr(SEEDS, complete_values)
    whole, expected, named = path.read_bytes(), study.trials, 0
    for left in [*range(1, len(whole), len(whole) // 15), len(whole) - 1]:
        path.write_bytes(whole[:left])
        try:
            assert open_study(path, "s", StudyDirection.MAXIMIZE).trials == expected
        except ConfigError as error:
            named += 1
            assert str(path) in str(error) and "Fix:" in str(error) and "\n" not in str(error)
            assert path.read_bytes() == whole[:left]
    assert named > 10
    study.set_user_attr(SEEDS, {"a": ["b"]})
    for content in (path.read_bytes(), b"no database", whole.replace(b"CREATE", b"CRAETE")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"search\.db"):
            open_study(path, "s", StudyDirection.MAXIMIZE)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is no file"):
        open_study(path, "s", StudyDirection.MAXIMIZE)


def test_answers_of_wandb_in_other_forms_are_unreadable_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is a stand-in, as the real one does not give such answers."""
    config = {"model": {"kernel_size": 5, "depth": 8}, "seed": 0}
    answers: list[tuple[Any, Any, Any]] = [
        (config, {"status": "completed", "best/val/accuracy": 0.9}, [{"epoch": 1, "val/accuracy": 0.9}]),
        ({**config, "seed": 1}, {"status": "completed", "best/val/accuracy": "NaN"}, [5, {"epoch": "x"}, {}]),
        ({**config, "seed": 2}, {"images": 7}, []),
        ({**config, "seed": "3"}, {}, []),
        ({**config, "seed": {"a": 1}}, {}, []),
        ([], {}, []),
        (config, {"status": 5}, []),
    ]

    def runs(*_: Any, **__: Any) -> Any:
        return [
            SimpleNamespace(
                path=["team", "project", str(i)], url=f"https://{i}", state="finished", config=config,
                summary_metrics=summary, history=lambda rows=rows, **_: rows,
            )
            for i, (config, summary, rows) in enumerate(answers)
        ]  # fmt: skip

    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(runs=runs))
    comparison = read([], wandb_paths=["team/project"])
    assert [run.status for run in comparison.runs] == ["completed"] * 2 + ["interrupted"] + ["unreadable"] * 4
    assert [list(values) for values in curves(comparison).values()] == [[0.9]]
    assert comparison.valued[0].by_seed("val/accuracy") == {0: 0.9}


def test_a_run_reads_only_its_own_options(tmp_path: Path) -> None:
    """An option that is a path, or not a file name at all, matches no file."""
    for option in ("../../../../etc/passwd", "x\0", "y" * 5000):
        run = read_run(write_run(tmp_path / str(len(option)), overrides={"augmentation": option}))
        assert run.status == "completed"
    assert len(read([tmp_path]).settings) == 1


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Train a run of three epochs with its states kept; return it with its config. Tests must not change it."""
    sweep = tmp_path_factory.mktemp("out") / "s"
    overrides = ("trainer.epochs=3", "checkpoint.keep=all", "checkpoint.max_share=1", "wandb.mode=disabled")
    config = checked(*TINY, *overrides, f"output_dir={sweep.parent}", "sweep=s")
    run.run(config, [])
    (file,) = sweep.glob("*/summary.json")
    return config, file.parent


def result_of(folder: Path, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Read a run's files; a file that cannot be read is named instead."""
    contents: dict[str, Any] = {}
    record = read_run(folder)
    assert record.status != "unreadable" or any(name in record.reason for name in ("config.yaml", "summary.json"))
    if record.status == "completed":
        contents["figures"] = [record.figure(name) for name in ("objective", "test/accuracy", "test/loss", "val/loss")]
    if len(record.epochs):
        contents["epochs"] = record.epochs.drop(columns=TIMES).to_csv()
    else:
        assert f"{folder}/metrics.csv" in caplog.text or not (folder / "metrics.csv").exists()
    for name, read_back in (
        ("predictions.npy", lambda: read_records(folder / "predictions.npy").tolist()),
        ("best.pt", lambda: read_weights(str(folder / "checkpoints" / "best.pt")).fingerprint()),
    ):
        try:
            contents[name] = read_back()
        except ConfigError as error:
            assert name in str(error) and "\n" not in str(error)
    return contents


STATE = ("last.pt", "previous.pt", "best.pt", "summary.json")


@pytest.mark.slow
def test_a_run_cut_off_by_power_loss_recovers_or_names_the_file(
    whole_run: tuple[Config, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file in turn loses its last N bytes, in a completed run and in a run before its test."""
    config, intact = whole_run
    expected = result_of(intact, caplog)
    assert expected.keys() == {"figures", "epochs", "predictions.npy", "best.pt"}
    files = [path.relative_to(intact) for path in sorted(intact.rglob("*")) if path.is_file()]
    assert {Path(name).name for name in (*STATE, "config.yaml", "metrics.csv")} <= {file.name for file in files}
    recovered = 0
    for number, file in enumerate(files):
        size = (intact / file).stat().st_size
        for lost in {1, size // 3 + number, size - 1, size}:
            for status in ("completed", "interrupted") if file.name in STATE and lost < size - 1 else ("completed",):
                sweep = tmp_path / f"{number}-{lost}-{status}"
                folder = sweep / "s" / intact.name
                shutil.copytree(intact, folder)
                shutil.copytree(intact.parent / ".locks", sweep / "s" / ".locks")
                summary = (folder / "summary.json").read_text().replace('"completed"', f'"{status}"')
                (folder / "summary.json").write_text(summary)
                os.truncate(folder / file, (folder / file).stat().st_size - min(lost, size))
                caplog.clear()
                before = result_of(folder, caplog)
                assert before.items() <= expected.items(), (file, lost)
                ended = run.run(replace(config, output_dir=str(sweep)), [])
                assert ended.status == "completed", (file, lost, caplog.text)
                after = result_of(folder, caplog)
                assert after.items() <= expected.items(), (file, lost)
                assert after.keys() == expected.keys() or f"{file.name}" in caplog.text or before == after
                recovered += after.keys() == expected.keys() != before.keys()
    assert recovered > 5
