"""Tests of sweeps whose runs are separate processes: side by side on this machine, and jobs of a real Slurm."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from submitit.core.utils import UncompletedJobError

import slurm
from conftest import command, metrics, start, summaries, wait_for
from hydra_plugins import slurm as launcher
from processes import REPOSITORY, Command

pytestmark = pytest.mark.xdist_group("launchers")  # one after the other: they wait for Slurm, while others compute
SMALL = ("model.d_model=8", "model.depth=1", "data.train_fraction=0.1", "wandb.mode=disabled", "trainer.figures=false")
TWO = ("-m", "model.kernel_size=3,5", *SMALL, "sweep=s")
SIDE_BY_SIDE = ("hydra/launcher=side_by_side", "hydra.launcher.n_jobs=2")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a cluster for the test, within a second or two; yield its environment."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.cluster(tmp_path) as environment:
        yield environment


def statuses(sweep: Path) -> list[str]:
    return [summary["status"] for summary in summaries(sweep)]


def rows(sweep: Path) -> list[int]:
    """List the completed epochs of every run that has started."""
    return [path.read_text().count("\n") - 1 for path in sweep.glob("*/metrics.csv")]


def wait_for_epochs(count: int, sweep: Path, process: Command) -> None:
    """Wait until one of the sweep's runs has completed so many more epochs."""
    before = max(rows(sweep), default=0)
    wait_for(lambda: max(rows(sweep), default=0) >= before + count, process)


def lock_of(run: Path) -> Path:
    return run.parent / ".locks" / f"{run.name.rpartition('-')[2]}.lock"


def is_free(run: Path) -> bool:
    """Return True if no process trains the run."""
    with FileLock(lock_of(run)).acquire(timeout=10):
        return True


LONGER = (*TWO, "trainer.epochs=45", "checkpoint.max_share=1", "data.num_workers=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command(*LONGER, cwd=folder)
    assert done.returncode == 0, done.stderr
    return metrics(folder / "outputs" / "s")


def test_runs_side_by_side_stop_together_and_go_on(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    sweep = tmp_path / "outputs" / "s"
    for number in (signal.SIGINT, signal.SIGKILL):
        process = start(*LONGER, *SIDE_BY_SIDE, cwd=tmp_path)
        wait_for_epochs(2, sweep, process)  # and the other not far behind
        process.send_signal(number)  # to the sweep's own process alone
        output = process.communicate(timeout=100)[0]
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
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
    process = start(*LONGER, *SIDE_BY_SIDE, cwd=tmp_path, FORCE_COLOR="1")
    sweep = tmp_path / "outputs" / "s"
    while process.poll() is None:  # as the system does where memory runs out, whenever this one is tried
        for csv in sweep.glob("kernel_size_5*/metrics.csv"):
            for number in processes_of(csv.parent):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)
    output = process.communicate()[0]
    before_the_first_ends = output.partition("% test")[0]
    assert "run 1 of 2" in before_the_first_ends and "run 2 of 2" in before_the_first_ends
    assert "\r" not in output  # no bar, even on a terminal: two would overwrite each other
    assert process.returncode == 1
    assert "Traceback" not in output
    assert re.search("model.kernel_size=5.* killed", output)
    assert sorted(statuses(sweep)) == ["completed", "interrupted"]
    assert "1 of 2 runs did not complete" in output
    assert (sweep / "comparison.csv").exists()


def claimant(folder: Path) -> subprocess.Popen[str]:
    """Start a process that claims one of two GPUs and keeps it."""
    claim = (
        "import pathlib; from runtime.claims import claim; "
        f"print(claim(['a', 'b'], pathlib.Path({str(folder)!r})), flush=True)"
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


def test_submit_and_leave(tmp_path: Path, cluster: dict[str, str]) -> None:
    def submit(*options: str) -> list[str]:
        """Submit the sweep, and return the jobs that are then in the queue."""
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
    slurm_says("scancel", first[0])
    second = submit(held)
    assert len(second) == 2 and first[1] in second and first[0] not in second, "only what is missing is submitted"
    slurm_says("scontrol", "release", ",".join(second))
    done = command(*TWO, *SLURM, "trainer.epochs=1", cwd=tmp_path, **cluster)  # waits for what is in the queue
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "s"
    assert statuses(sweep) == ["completed"] * 2
    assert len((sweep / "comparison.csv").read_text().splitlines()) == 3
    assert len(list(sweep.glob(".submitit/*/*_result.pkl"))) == 2
    submit()
    assert len(list(sweep.glob(".submitit/*/*_submitted.pkl"))) == 3, "nothing more was submitted"


def test_runs_go_into_as_many_arrays_as_the_cluster_needs(tmp_path: Path, cluster: dict[str, str]) -> None:
    held = ("hydra.launcher.wait=false", "+hydra.launcher.additional_parameters.hold=true")
    done = command("-m", "model.kernel_size=3,5,7", *TWO[2:], *SLURM, *held, cwd=tmp_path, **cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    queue = subprocess.check_output(
        ["squeue", "--me", "--array", "--noheader", "--format=%F %i"], env=os.environ | cluster
    )
    arrays = [line.split()[0] for line in queue.decode().splitlines()]
    assert len(arrays) == 3 and len(set(arrays)) == 2, "MaxArraySize of the cluster is 2"


def test_a_time_limit_within_the_warning_before_it_is_refused(tmp_path: Path) -> None:
    done = command(*TWO, *SLURM, "hydra.launcher.timeout_min=3", cwd=tmp_path)
    assert done.returncode == 1 and not list(tmp_path.glob("outputs/*"))
    assert done.stderr.startswith("error: hydra.launcher.timeout_min=3: ") and "at least 4" in done.stderr


@pytest.mark.parametrize("sweeper", ["optuna", "race"])
def test_what_needs_results_does_not_leave(tmp_path: Path, sweeper: str) -> None:
    wrong = (f"hydra/sweeper={sweeper}", "hydra.launcher.wait=false")
    done = command("-m", "model.kernel_size=3,5", *SMALL, *SLURM, *wrong, "sweep=s", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: hydra.launcher.wait=false") and sweeper in line


# Runs that Slurm stops are held until then, so that they have epochs left however slow Slurm is, or this test.

ONE = ("-m", "model.kernel_size=3", *LONGER[2:], *SLURM)
# So short that submitit takes any signal for the time limit's warning, which Slurm itself would send minutes later.
SHORT = ("hydra.launcher.timeout_min=10",)
WARN = ("scancel", "--signal=USR2", "--user=root")


def test_a_job_that_was_put_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job and squeue are stand-ins, as the moment of a real preemption cannot be chosen."""
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(launcher, "QUEUE_CHECK_S", 0.0)
    looks = iter([UncompletedJobError, UncompletedJobError, None, UncompletedJobError])

    def results() -> None:
        if error := next(looks):
            raise error

    launcher.wait_for(SimpleNamespace(job_id="7", results=results))
    lost = SimpleNamespace(job_id="8", results=results, paths=SimpleNamespace(stderr="8.err"))
    launcher.wait_for(lost)
    assert next(looks, "none left") == "none left", "three looks for the first, one for the second"


def test_a_preempted_run_goes_on(tmp_path: Path, cluster: dict[str, str], undisturbed: dict[str, str]) -> None:
    process = start(*ONE, "checkpoint.epochs=1000", cwd=tmp_path, **cluster)  # one when it is told to stop
    sweep = tmp_path / "outputs" / "s"
    wait_for_epochs(2, sweep, process)
    (run,) = sweep.glob("kernel_size_3*")
    number = hold(run)
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--wrap=true"]
    subprocess.run(urgent, env=os.environ | cluster, cwd=tmp_path, check=True)  # Slurm lets go of the run to tell it
    wait_for((run / "checkpoints" / "last.pt").exists, process)
    wait_for(lambda: has_ended(number), process)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert "resumes after" in log_of_jobs(sweep)  # as often as Slurm puts it back, once on a quiet machine
    assert metrics(sweep).items() <= undisturbed.items()


def test_job_goes_on_after_its_time_limit_beside_a_lost_one(
    tmp_path: Path, cluster: dict[str, str], undisturbed: dict[str, str]
) -> None:
    process = start(*LONGER, *SLURM, *SHORT, "wandb.mode=offline", cwd=tmp_path, **cluster)
    sweep = tmp_path / "outputs" / "s"
    held: dict[Path, int] = {}

    def both_are_held() -> bool:
        for path in sweep.glob("*/metrics.csv"):
            if path.parent not in held and path.read_text().count("\n") > 2:  # so that there is a checkpoint
                held[path.parent] = hold(path.parent)
        return len(held) == 2

    wait_for(both_are_held, process)
    lost, warned = held
    os.kill(held[lost], signal.SIGKILL)  # as the system does where memory runs out
    (script,) = sweep.glob(".submitit/*/*_submission.sh")
    assert "#SBATCH --signal=USR2@120" in script.read_text()
    subprocess.run(WARN, env=os.environ | cluster, check=True)
    wait_for(lambda: is_pending(signal.SIGUSR2, held[warned]), process)
    os.kill(held[warned], signal.SIGCONT)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1
    assert "ended without a result; its error log: " in output
    assert "1 of 2 runs did not complete" in output
    assert "Traceback" not in output
    assert {run for run in held if "interrupted" in (run / "summary.json").read_text()} == {lost}
    assert "SIGUSR2" in log_of_jobs(sweep) and "resumes after" in log_of_jobs(sweep)
    assert not any("Traceback" in path.read_text() for path in sweep.glob(".submitit/*/*.err")), "of W&B's client"
    again = command(*LONGER, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumes after" in again.stdout
    assert metrics(sweep) == undisturbed


def test_a_run_that_may_not_be_requeued_again_does_not_complete(tmp_path: Path, cluster: dict[str, str]) -> None:
    endless = ("trainer.epochs=10000", "hydra.launcher.max_num_timeout=0")
    process = start(*ONE, *SHORT, *endless, cwd=tmp_path, **cluster)
    sweep = tmp_path / "outputs" / "s"
    wait_for_epochs(2, sweep, process)
    subprocess.run(WARN, env=os.environ | cluster, check=True)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1
    assert "1 of 1 runs did not complete" in output
    assert "Traceback" not in output
    assert statuses(sweep) == ["interrupted"]


def hold(run: Path) -> int:
    """Stop the run's process, and return its number."""
    (number,) = processes_of(run)
    os.kill(number, signal.SIGSTOP)
    return number


def processes_of(run: Path) -> list[int]:
    """List the processes that train the run; if it continues, there is one."""
    inode = lock_of(run).stat().st_ino
    return [int(line.split()[4]) for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]


def has_ended(number: int) -> bool:
    """Return True if the process has ended. Stop it again, as Slurm continues it before each signal."""
    try:
        os.kill(number, signal.SIGSTOP)
    except ProcessLookupError:
        return True
    return False


def is_pending(signal_number: signal.Signals, number: int) -> bool:
    """Return True if the stopped process has been sent the signal, and has not received it yet."""
    (waiting,) = re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{number}/status").read_text())
    return bool(int(waiting, 16) >> (signal_number - 1) & 1)


def log_of_jobs(sweep: Path) -> str:
    return "".join(path.read_text() for path in sweep.glob(".submitit/*/*.out"))
