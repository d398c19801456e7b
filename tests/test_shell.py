"""Tests of the shells, terminals and clusters that start commands."""

import errno
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from config.errors import ConfigError, check_arguments, explain
from conftest import TINY, checked, command, start, summaries, wait_for
from processes import REPOSITORY, environment_of
from runtime.distributed import World
from sweeps.launch import locked_folder
from tracking import run_lock
from tracking.run_folder import RunFolder

SWEEP = ("-m", "model.kernel_size=3,5", *TINY, "trainer.epochs=1", "sweep=s")


@pytest.mark.slow
@pytest.mark.parametrize("terminal", ["ascii", "gone", "closed"])
def test_printing_decides_nothing_about_a_sweep(terminal: str, tmp_path: Path) -> None:
    environment = environment_of(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    arguments = [sys.executable, str(REPOSITORY / "src" / "train.py"), *SWEEP]
    if terminal == "closed":
        arguments = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *arguments]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    first = process.stdout.readline()
    if terminal == "gone":
        process.stdout.close()
    output = "" if process.stdout.closed else process.stdout.read()
    assert process.wait(250) == 0, first + output
    assert [summary["status"] for summary in summaries(tmp_path / "outputs" / "s")] == ["completed"] * 2
    assert (tmp_path / "outputs" / "s" / "comparison.md").exists()
    assert output.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_hangup_is_like_sigterm_unless_ignored(handler: signal.Handlers, tmp_path: Path) -> None:
    epochs = 10000 if handler == signal.SIG_DFL else 40
    process = start(*TINY, f"trainer.epochs={epochs}", "sweep=s", cwd=tmp_path, HANGUP=handler.name)
    sweep = tmp_path / "outputs" / "s"
    wait_for(lambda: any(path.read_text().count("\n") > 2 for path in sweep.glob("*/metrics.csv")), process)
    process.send_signal(signal.SIGHUP)
    output = process.communicate(timeout=200)[0]
    expected = (128 + signal.SIGHUP, "interrupted") if handler == signal.SIG_DFL else (0, "completed")
    assert (process.returncode, summaries(sweep)[0]["status"]) == expected, output


@pytest.mark.slow
def test_side_by_side_needs_no_short_tmpdir(tmp_path: Path) -> None:
    (long := tmp_path / ("x" * 100)).mkdir()
    arguments = (*SWEEP, "hydra/launcher=side_by_side", "hydra.launcher.n_jobs=2")
    done = command(*arguments, cwd=tmp_path, TMPDIR=str(long))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [summary["status"] for summary in summaries(tmp_path / "outputs" / "s")] == ["completed"] * 2


def test_a_run_in_an_allocation_of_several_tasks_is_alone(tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NNODES": "1"}
    done = command(*TINY, "trainer.epochs=1", "sweep=s", cwd=tmp_path, **slurm)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_that_is_locked_names_lock_and_host(tmp_path: Path) -> None:
    config = checked(*TINY, f"output_dir={tmp_path / 'outputs'}", "sweep=s")
    folder = RunFolder(config, [], World())
    try:
        done = command(*TINY, "sweep=s", cwd=tmp_path)
    finally:
        folder.release()
    assert done.returncode == 1
    text = done.stdout + done.stderr
    assert f"{folder.run_id}.lock" in text and os.uname().nodename in text and str(os.getpid()) in text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])  # of NFS without its lock service; of Lustre
def test_a_file_system_without_locks_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(ConfigError, match=rf"output_dir: .*\.lock.*{os.strerror(number)}"):
        run_lock.acquire_lock(tmp_path / "x.lock")
    with (
        pytest.raises(ConfigError, match=rf"output_dir: .*sweep\.lock.*{os.strerror(number)}"),
        locked_folder(OmegaConf.create({"output_dir": str(tmp_path), "sweep": "s"})),
    ):
        pass


@pytest.mark.parametrize(
    "key", ["hydra.job.chdir=true", "hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.sweep.subdir=x"]
)
@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_hydras_own_folders_are_refused(script: str, key: str, tmp_path: Path) -> None:
    done = command(key, cwd=tmp_path, script=script)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert key in line and "output_dir=" in line and "output=" in line
    assert not list(tmp_path.iterdir())


VALUES = ("/home/josé/bilder", "/data/[v2] x", "/data/(1)", "/data/a=b", "/data/{a}", "a&b", "~/x", "a'b", 'a"b', "a#b")


@pytest.mark.slow
def test_a_value_that_must_be_quoted_is_shown_quoted(tmp_path: Path) -> None:
    for value in VALUES:
        with pytest.raises(HydraException) as caught:
            check_arguments([f"data.root={value}"])
        message = explain(caught.value)
        assert message.startswith(f"data.root={value}: ")
        (word,) = shlex.split(message.partition("Fix: ")[2])
        assert checked("data=image_folder", word).data.root == value
    done = command("checkpoint=x", f"data.root={VALUES[0]}", cwd=tmp_path, script="evaluate")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"data.root={VALUES[0]}: " in line and "Fix: " in line
