"""Sweeps whose runs are processes of their own: side by side on this machine, and jobs of a real Slurm."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import slurm
from conftest import command, metrics, start, summaries, wait_for
from processes import REPOSITORY, Command

pytestmark = pytest.mark.xdist_group("launchers")  # one after the other: they wait for Slurm, while others compute
SMALL = ("model.d_model=8", "model.depth=1", "data.train_fraction=0.1", "wandb.mode=disabled", "trainer.figures=false")
TWO = ("-m", "model.kernel_size=3,5", *SMALL, "sweep=s")
SIDE_BY_SIDE = ("hydra/launcher=side_by_side", "hydra.launcher.n_jobs=2")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a cluster of the test's own; it starts within a second or two."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.cluster(tmp_path) as environment:
        yield environment


def statuses(sweep: Path) -> list[str]:
    return [summary["status"] for summary in summaries(sweep)]


def rows(sweep: Path) -> list[int]:
    """Epochs done, of every run that has begun."""
    return [path.read_text().count("\n") - 1 for path in sweep.glob("*/metrics.csv")]


def lock_of(run: Path) -> Path:
    return run.parent / ".locks" / f"{run.name.rpartition('-')[2]}.lock"


def is_free(run: Path) -> bool:
    """Whether no process has the run."""
    with FileLock(lock_of(run)).acquire(timeout=10):
        return True


def test_side_by_side(tmp_path: Path) -> None:
    done = command(*TWO, *SIDE_BY_SIDE, "trainer.epochs=1", cwd=tmp_path, FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "s"
    assert statuses(sweep) == ["completed"] * 2
    assert len((sweep / "comparison.csv").read_text().splitlines()) == 3
    before_the_first_ends = done.stdout.partition("% test")[0]
    assert "run 1 of 2" in before_the_first_ends
    assert "run 2 of 2" in before_the_first_ends
    assert "\r" not in done.stdout  # no bar, even on a terminal: two would overwrite each other


LONGER = (*TWO, "trainer.epochs=45", "checkpoint.max_share=1", "data.num_workers=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command(*LONGER, cwd=folder)
    assert done.returncode == 0, done.stderr
    return metrics(folder / "outputs" / "s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_runs_side_by_side_stop_together_and_go_on(
    tmp_path: Path, number: signal.Signals, undisturbed: dict[str, str]
) -> None:
    sweep = tmp_path / "outputs" / "s"
    process = start(*LONGER, *SIDE_BY_SIDE, cwd=tmp_path)
    wait_for(lambda: max(rows(sweep), default=0) >= 2, process)  # and the other not far behind
    process.send_signal(number)  # to the sweep's own process alone
    process.communicate(timeout=100)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert all(is_free(path.parent) for path in sweep.glob("*/metrics.csv"))
    assert set(statuses(sweep)) == {"interrupted"}
    again = command(*LONGER, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumes after" in again.stdout
    assert metrics(sweep) == undisturbed


def test_a_failure_can_stop_the_runs_beside_it(tmp_path: Path) -> None:
    process = start(*LONGER, *SIDE_BY_SIDE, "trainer.epochs=10000", "on_failure=stop", cwd=tmp_path)
    sweep = tmp_path / "outputs" / "s"
    wait_for(lambda: len(rows(sweep)) == 2 and min(rows(sweep)) >= 1, process)
    (failing,), (other,) = sweep.glob("kernel_size_3*"), sweep.glob("kernel_size_5*")
    (failing / "checkpoints").rename(tmp_path / "elsewhere")
    (failing / "checkpoints").write_text("no place for checkpoints")
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1
    assert sorted(statuses(sweep)) == ["failed", "interrupted"]
    assert (other / "checkpoints" / "last.pt").exists()
    assert "Traceback" not in output


def test_a_run_that_is_killed_leaves_those_beside_it_alone(tmp_path: Path) -> None:
    process = start(*LONGER, *SIDE_BY_SIDE, cwd=tmp_path)
    sweep = tmp_path / "outputs" / "s"
    while process.poll() is None:  # as the system does where memory runs out, whenever this one is tried
        for csv in sweep.glob("kernel_size_5*/metrics.csv"):
            for number in processes_of(csv.parent):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.01)
    output = process.communicate()[0]
    assert process.returncode == 1
    assert "Traceback" not in output
    assert re.search("model.kernel_size=5.* killed", output)
    assert sorted(statuses(sweep)) == ["completed", "interrupted"]
    assert "1 of 2 runs did not complete" in output


def claimant(folder: Path) -> subprocess.Popen[str]:
    """A process that claims one of two GPUs and keeps it."""
    claim = (
        "import pathlib; from runtime.gpu_lock import lock_gpu; "
        f"print(lock_gpu(['a', 'b'], pathlib.Path({str(folder)!r})), flush=True)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", f"{claim}; input()"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_spread_evenly_over_gpus(tmp_path: Path) -> None:
    def claimed() -> int:
        process = claimant(tmp_path)
        claimants.append(process)
        assert process.stdout
        return int(process.stdout.readline())

    claimants: list[subprocess.Popen[str]] = []
    try:
        assert [claimed() for _ in range(4)] == [0, 1, 0, 1]
        claimants[1].kill()
        claimants[1].wait()
        assert [claimed() for _ in range(2)] == [1, 0]
    finally:
        for process in claimants:
            process.kill()
            process.communicate()


def test_slurm(tmp_path: Path, cluster: dict[str, str]) -> None:
    done = command(*TWO, *SLURM, "trainer.epochs=1", cwd=tmp_path, **cluster)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "s"
    assert statuses(sweep) == ["completed"] * 2
    assert len((sweep / "comparison.csv").read_text().splitlines()) == 3
    assert len(list(sweep.glob(".submitit/*/*_result.pkl"))) == 2


def test_submit_and_leave(tmp_path: Path, cluster: dict[str, str]) -> None:
    def submit(*options: str) -> list[str]:
        """The jobs that are then in the queue."""
        done = command(*TWO, *SLURM, "trainer.epochs=1", "hydra.launcher.wait=false", *options, cwd=tmp_path, **cluster)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"compare.py {Path('outputs', 's')}" in done.stdout
        return in_queue()

    def in_queue() -> list[str]:
        return sorted(slurm_says("squeue", "--me", "--array", "--noheader", "--format=%i").split())

    def slurm_says(*words: str) -> str:
        return subprocess.check_output(words, env=os.environ | cluster, text=True)

    held = "+hydra.launcher.additional_parameters.hold=true"  # in the queue until it is released
    first = submit(held)
    assert len(first) == 2
    begun = command("outputs/s", script="compare", cwd=tmp_path)
    assert begun.returncode == 0 and "0 of 2" in begun.stdout
    assert submit() == first
    slurm_says("scancel", first[0])
    second = submit(held)
    assert len(second) == 2 and first[1] in second and first[0] not in second
    slurm_says("scontrol", "release", ",".join(second))
    done = command(*TWO, *SLURM, "trainer.epochs=1", cwd=tmp_path, **cluster)  # waits for what is in the queue
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "s"
    assert statuses(sweep) == ["completed"] * 2
    assert len(list(sweep.glob(".submitit/*/*_result.pkl"))) == 2
    submit()
    assert len(list(sweep.glob(".submitit/*/*_submitted.pkl"))) == 3, "nothing more was submitted"


@pytest.mark.parametrize("sweeper", ["optuna", "race"])
def test_what_needs_results_does_not_leave(tmp_path: Path, sweeper: str) -> None:
    wrong = (f"hydra/sweeper={sweeper}", "hydra.launcher.wait=false")
    done = command("-m", "model.kernel_size=3,5", *SMALL, *SLURM, *wrong, "sweep=s", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: hydra.launcher.wait=false") and sweeper in line


# On a cluster a run meets its end at a moment that Slurm chooses, seconds from now: until then it is held, so that
# it has epochs left however fast the machine is.

ONE = ("-m", "model.kernel_size=3", *LONGER[2:], *SLURM)


def test_a_preempted_run_goes_on(tmp_path: Path, cluster: dict[str, str], undisturbed: dict[str, str]) -> None:
    process = start(*ONE, "checkpoint.epochs=1000", cwd=tmp_path, **cluster)  # one when it is told to stop
    run, number = hold_the_run(process, tmp_path)
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--wrap=true"]
    subprocess.run(urgent, env=os.environ | cluster, cwd=tmp_path, check=True)  # Slurm lets go of the run to tell it
    wait_for((run / "checkpoints" / "last.pt").exists, process)
    wait_for(lambda: has_ended(number), process)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert "resumes after" in log_of_jobs(run.parent)  # as often as Slurm puts it back, once on a quiet machine
    assert metrics(run.parent).items() <= undisturbed.items()


def test_a_run_that_its_time_limit_is_too_short_for_goes_on(
    tmp_path: Path, cluster: dict[str, str], undisturbed: dict[str, str]
) -> None:
    process = start(*ONE, "hydra.launcher.timeout_min=1", cwd=tmp_path, **cluster)
    run, _ = hold_the_run(process, tmp_path)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert "SIGUSR2" in log_of_jobs(run.parent)
    assert "resumes after" in log_of_jobs(run.parent)  # as often as Slurm puts it back, once on a quiet machine
    assert metrics(run.parent).items() <= undisturbed.items()


def test_a_run_that_may_not_be_requeued_again_does_not_complete(tmp_path: Path, cluster: dict[str, str]) -> None:
    limits = ("hydra.launcher.timeout_min=1", "hydra.launcher.max_num_timeout=0")
    process = start(*ONE, *limits, cwd=tmp_path, **cluster)
    run, _ = hold_the_run(process, tmp_path)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1
    assert "1 of 1 runs did not complete" in output
    assert "Traceback" not in output
    assert statuses(run.parent) == ["interrupted"]


def test_a_lost_job_leaves_the_others_their_runs(
    tmp_path: Path, cluster: dict[str, str], undisturbed: dict[str, str]
) -> None:
    process = start(*LONGER, *SLURM, cwd=tmp_path, **cluster)
    sweep = tmp_path / "outputs" / "s"
    wait_for(lambda: max(rows(sweep), default=0) >= 2, process)
    lost = max(sweep.glob("*/metrics.csv"), key=lambda path: path.read_text().count("\n")).parent
    (number,) = processes_of(lost)
    os.kill(number, signal.SIGKILL)  # as the system does where memory runs out
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1
    assert "ended without a result; what it said: " in output
    assert "1 of 2 runs did not complete" in output
    assert "Traceback" not in output
    assert {path.parent for path in sweep.glob("*/summary.json") if "interrupted" in path.read_text()} == {lost}
    again = command(*LONGER, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumes after" in again.stdout
    assert metrics(sweep) == undisturbed


def hold_the_run(sweep: Command, cwd: Path) -> tuple[Path, int]:
    """The folder and the process of the sweep's one run, stopped after an epoch or two."""
    wait_for(lambda: max(rows(cwd / "outputs" / "s"), default=0) >= 2, sweep)
    (run,) = [path.parent for path in cwd.glob("outputs/s/*/metrics.csv")]
    (number,) = processes_of(run)
    os.kill(number, signal.SIGSTOP)
    return run, number


def processes_of(run: Path) -> list[int]:
    """Of a run that is going on the one that has it."""
    inode = lock_of(run).stat().st_ino
    return [int(line.split()[4]) for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]


def has_ended(number: int) -> bool:
    """Whether the process is gone; held on, though Slurm lets go of it every time that it tells it something."""
    try:
        os.kill(number, signal.SIGSTOP)
    except ProcessLookupError:
        return True
    return False


def log_of_jobs(sweep: Path) -> str:
    return "".join(path.read_text() for path in sweep.glob(".submitit/*/*.out"))
