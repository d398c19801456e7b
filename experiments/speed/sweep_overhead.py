"""Time and memory that a sweep takes beyond training: before its first run, between two, and when all are completed.

python experiments/speed/sweep_overhead.py start 10 100 1000    to the first line, to run 1, and when all are completed
python experiments/speed/sweep_overhead.py between              the parts of a tiny run beyond its training
python experiments/speed/sweep_overhead.py memory 1000          resident memory while so many runs are trained
python experiments/speed/sweep_overhead.py together 1 2 3 5     so many processes on one sweep of 15 runs, in turn
"""

import functools
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[2]
TINY = ("model.d_model=8", "model.depth=1", "trainer.epochs=1", "data.train_fraction=0.1", "trainer.device=cpu")


def sweep(runs: int, folder: Path) -> list[str]:
    axes = (f"seed=range({runs // 5})", "model.kernel_size=1,2,3,4,5")
    return [
        sys.executable, str(REPOSITORY / "src" / "train.py"), "-m", *axes, *TINY, "wandb.mode=disabled", "sweep=s",
        f"output_dir={folder}",
    ]  # fmt: skip


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_start(runs: int, folder: Path) -> dict[str, float]:
    """Start the sweep, and kill it when its first run begins."""
    started = time.perf_counter()
    process = subprocess.Popen(sweep(runs, folder), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    result: dict[str, float] = {}
    for line in process.stdout:
        if line.startswith("sweep s:"):
            result["first line, s"] = processor_seconds(process.pid)
        elif line.startswith("run 1 of"):
            result |= {"run 1, s": processor_seconds(process.pid), "memory, MB": resident_mb(process.pid)}
            result["run 1, s of wall time"] = time.perf_counter() - started
            break
    process.kill()
    process.communicate()
    return result


def complete(folder: Path) -> None:
    """Write the record of a completed run for every planned run."""
    trained = Path(tempfile.mkdtemp())
    subprocess.run(
        [*sweep(10, trained)[:2], *TINY, "wandb.mode=disabled", f"output_dir={trained}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (source,) = (path.parent for path in trained.glob("*/*/summary.json"))
    summary, config = json.loads((source / "summary.json").read_text()), (source / "config.yaml").read_text()
    for number, (run_id, run) in enumerate(json.loads((folder / "s" / "sweep.json").read_text()).items()):
        target = folder / "s" / f"{run['name'].replace(' ', '-').replace('=', '_')}-{run_id}"
        shutil.copytree(
            source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "*.png", "*.npy")
        )
        varied = dict(word.split("=") for word in run["name"].split())
        values = {"seed": int(varied["seed"]), "model.kernel_size": int(varied["kernel_size"])}
        changed = config.replace("\nseed: 0\n", f"\nseed: {varied['seed']}\n")
        changed = changed.replace("kernel_size: 5", f"kernel_size: {varied['kernel_size']}")
        (target / "config.yaml").write_text(changed)
        noise = {"best/val/accuracy": 0.5 + number % 97 / 1000, "test/accuracy": 0.5 + number % 89 / 1000}
        changes = {
            "wandb_id": run_id,
            "run_id": run_id,
            "name": run["name"],
            "overrides": values,
            "varied": list(values),
            **noise,
        }
        (target / "summary.json").write_text(json.dumps(summary | changes))


def measure_completed(runs: int, folder: Path) -> float:
    """Measure the same command on a sweep whose runs are completed."""
    process = subprocess.Popen(sweep(runs, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_utime + usage.ru_stime


def start(sizes: list[int]) -> None:
    rows = []
    for runs in sizes:
        folder = Path(tempfile.mkdtemp())
        row = measure_start(runs, folder)
        complete(folder)
        rows.append({"runs": runs, **row, "completed, s": measure_completed(runs, folder)})
        shutil.rmtree(folder)
        print(" ".join(f"{name} {value:,.1f};" for name, value in rows[-1].items()), flush=True)
    if len(rows) > 1:
        logs = np.log([row["runs"] for row in rows[-2:]])
        for name in ("run 1, s", "completed, s"):
            exponent = np.diff(np.log([row[name] for row in rows[-2:]])) / np.diff(logs)
            print(f"growth exponent of {name.partition(',')[0]}: {exponent[0]:.2f}")


def memory(runs: int) -> None:
    """Print the resident memory of a sweep when its runs 1, 2, 5, 10, 20, 50, … begin."""
    folder = Path(tempfile.mkdtemp())
    process = subprocess.Popen(sweep(runs, folder), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        number = line.split()[1].replace(",", "") if line.startswith("run ") else ""
        if number.isdigit() and (number.strip("0") in ("1", "2", "5") or int(number) == runs):
            print(f"run {int(number):,}: {resident_mb(process.pid):,.0f} MB", flush=True)
    assert process.wait() == 0
    shutil.rmtree(folder)


def together(counts: list[int], runs: int = 15) -> None:
    """Train the same sweep with each number of processes, and check that every run is trained once."""
    for count in counts:
        folder = Path(tempfile.mkdtemp())
        command = [*sweep(runs, folder), "data.train_fraction=1", "trainer.epochs=2", "model.d_model=32"]
        started = time.perf_counter()
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        outputs = [process.communicate()[0] for process in processes]
        seconds = time.perf_counter() - started
        trained = sum(output.count("ConvMixer-32/1") for output in outputs)
        completed = len(list(folder.glob("s/*/summary.json")))
        print(f"{count} processes: {seconds:.0f} s", flush=True)
        assert trained == completed == runs
        shutil.rmtree(folder)


# Between two runs.


def between(runs: int = 6) -> None:
    sys.path.insert(0, str(REPOSITORY / "src"))
    from hydra import initialize_config_dir

    from config.schema import CONF, register
    from sweeps.plan import make_job
    from tracking import checkpoint, plots, run_folder, wandb_logger
    from training import loop
    from training import run as training
    from weights import archive

    register()
    logging.getLogger().setLevel(logging.ERROR)
    spent: dict[str, float] = defaultdict(float)
    running: list[str] = []
    last = time.process_time()

    def count(part: str | None) -> None:
        nonlocal last
        time_now = time.process_time()
        spent[running[-1] if running else "outside"] += time_now - last
        last = time_now
        running.append(part) if part else running.pop()

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        count(part)
        try:
            yield
        finally:
            count(None)

    def wrap(owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with timed(part):
                return function(*arguments, **options)

        setattr(owner, name, wrapper)

    for owner, names, part in (
        (loop.Trainer, ["fit"], "training, validation, test"),
        (run_folder.Checkpoints, ["save", "load_best", "load"], "checkpoints"),
        (archive, ["verify"], "verifying checkpoints"),
        (checkpoint, ["check_type"], "verifying checkpoints"),
        (wandb_logger.WandbLogger, ["start", "log_epoch", "log_figures", "finish"], "W&B"),
        (plots, ["history", "model_figures"], "figures"),
        (run_folder.RunFolder, ["save_figures"], "figures"),
        (training, ["summarize"], "model summary"),
        (training, ["free_memory"], "garbage collection"),
        (training, ["make_loaders", "make_model", "select"], "model and loaders"),
    ):
        for name in names:
            wrap(owner, name, part)
    folder = tempfile.mkdtemp()
    results = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for seed in range(runs):
            spent.clear()
            last = time.process_time()
            with timed("rest"):
                with timed("compose and check"):
                    job = make_job(
                        "train", (*TINY, "wandb.mode=offline", "sweep=s", f"seed={seed}", f"output_dir={folder}")
                    )
                training.run(job.config, job.overrides)
            results.append(dict(spent))
    parts = {part: statistics.median(result.get(part, 0.0) for result in results[1:]) for part in results[-1]}
    parts.pop("outside", None)
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{part:<28}{seconds:7.4f} s")
    beyond = sum(seconds for part, seconds in parts.items() if not part.startswith("training"))
    print(f"{'beyond training':<28}{beyond:6.3f} s (medians of {runs - 1} runs; the first, which imports, left out)")
    shutil.rmtree(folder)


if __name__ == "__main__":
    name, *sizes = sys.argv[1:] or ["start", "10", "100"]
    numbers = [int(text) for text in sizes]
    commands: dict[str, Callable[..., None]] = {
        "start": start, "between": between, "memory": lambda sizes: memory(*sizes), "together": together
    }  # fmt: skip
    commands[name](*([numbers] if numbers else []))
