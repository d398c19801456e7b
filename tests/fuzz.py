"""A fuzzer of commands: hostile overrides, run folders, checkpoints and images. A case depends only on its number.

python tests/fuzz.py --seed 0                      300 overrides, 500 of each other kind
python tests/fuzz.py --seed 0 --share 0.1          a tenth of them
python tests/fuzz.py --seed 0 --kind runs --first 17 --share 0.002     the 17th alone

A case fails where a command prints a traceback, is killed, computes or waits for over 20 s, allocates over 2 GB, starts
a program, connects to a server, or writes outside its output folder. Commands run in forks of this process.
"""

import argparse
import gc
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

import torch  # noqa: E402

import inference.export  # noqa: E402
import inference.prediction  # noqa: E402
import inference.report  # noqa: E402, F401
import publishing.page  # noqa: E402
import publishing.publish  # noqa: E402, F401
import sweeps.grid  # noqa: E402
import sweeps.search  # noqa: E402, F401
from fuzz_cases import KINDS, Base, Case, make_base  # noqa: E402

SECONDS, BYTES = 20, 2 << 30  # that a command may take, and allocate
COUNTS = {"overrides": 300, "runs": 500, "checkpoints": 500, "images": 500}
CHANGES = {  # Python's audit events, and which of their arguments are paths that change
    **dict.fromkeys(("open", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"), slice(1)),
    "os.rename": slice(2), "os.link": slice(1, 2), "os.symlink": slice(1, 2),
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run_case(kind: str, seed: int, number: int, base: Base, scratch: Path) -> list[str]:
    """Run a case; return its faults, none if every command behaves as specified."""
    folder = scratch / f"{kind}-{number}"
    folder.mkdir()
    (folder / "outputs").mkdir()
    try:
        cases = KINDS[kind](Random(f"{seed} {kind} {number}"), folder, base)
        ends = [(case, execute(case, folder, base)) for case in cases]
        return [f"{kind} {number}: {' '.join(case.words)[:600]}\n{fault}" for case, fault in ends if fault]
    finally:
        shutil.rmtree(folder)


def execute(case: Case, folder: Path, base: Base) -> str | None:
    """Run a command in a fork; return its fault, None if there is none."""
    output, touched = folder / "output.txt", folder / "touched.txt"
    idle_since, spent = time.monotonic(), 0.0
    child = os.fork()
    if not child:
        code = 70
        try:
            code = become(case, folder, output, touched, [*case.output, base.folder / "cache", base.folder / "mpl"])
        finally:
            os._exit(code)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        is_runnable, seconds = usage(child)
        if is_runnable or seconds > spent:  # a busy machine lets it wait
            idle_since, spent = time.monotonic(), seconds
        if spent > SECONDS or time.monotonic() - idle_since > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"took over {SECONDS} s: {output.read_text(errors='replace')[-300:]}"
        time.sleep(0.01)
    text = output.read_text(errors="replace")
    if os.WIFSIGNALED(ended[1]):
        return f"was killed by signal {os.WTERMSIG(ended[1])}: {text[-300:]}"
    if "Traceback (most recent call last)" in text or os.WEXITSTATUS(ended[1]) == 70:
        return text[-1800:]
    if "\x1b" in text:
        return f"escape sequences: {text[-300:]!r}"
    outside = sorted(set(touched.read_text(errors="replace").splitlines()))
    return f"reached out: {outside[:5]}" if outside else None


def usage(process: int) -> tuple[bool, float]:
    """Return whether a process could continue if it got a core, and its processor time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return fields[0] in "RD", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def become(case: Case, folder: Path, output: Path, touched: Path, allowed: Sequence[Path]) -> int:
    """Turn this fork into the command; return its exit code."""
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, null), (1, descriptor), (2, descriptor)):
        os.dup2(source, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    watch(
        os.open(touched, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), [*map(str, allowed), str(temporary), "/dev/", "/proc/"]
    )
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    script, *words = case.words
    sys.argv = [str(REPOSITORY / "src" / f"{script}.py"), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def watch(log: int, allowed: Sequence[str]) -> None:
    """Record each write outside the allowed folders, each started program and each connection."""

    def note(text: str) -> None:
        os.write(log, (text.encode(errors="replace")[:300] + b"\n"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
            note(f"{event} {arguments[:2]}")
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & WRITES)
        for path in arguments[CHANGES.get(event, slice(0))] if writes else ():
            if isinstance(path, (str, bytes, os.PathLike)):
                place = Path(os.fsdecode(path))
                real = place.parent.resolve() / place.name
                exists = event == "os.mkdir" and real.is_dir()
                if not exists and not any(real.is_relative_to(root) for root in allowed):
                    note(f"{event} {real}")

    sys.addaudithook(hook)


def fuzz(seed: int, counts: dict[str, range], report: Callable[[str], Any] = print) -> list[str]:
    """Run the cases of these numbers; return their faults."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # so that no command starts workers
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        (scratch := Path(folder).resolve() / "cases").mkdir()
        (base_folder := Path(folder).resolve() / "base").mkdir()
        base = make_base(base_folder)
        gc.freeze()
        for kind, numbers in counts.items():
            started = time.monotonic()
            for number in numbers:
                for fault in run_case(kind, seed, number, base, scratch):
                    faults.append(fault)
                    report(f"\n{fault}")
            report(f"{kind}: {len(numbers)} cases in {time.monotonic() - started:.0f} s")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of each kind")
    parser.add_argument("--kind", choices=COUNTS, action="append")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    counts = {
        kind: range(options.first, options.first + max(1, round(options.share * count)))
        for kind, count in COUNTS.items()
        if kind in (options.kind or COUNTS)
    }
    if faults := fuzz(options.seed, counts):
        kinds = {re.sub(r"\d+", "", fault.splitlines()[-1]) for fault in faults}
        sys.exit(f"{len(faults)} faults, {len(kinds)} different ends")


if __name__ == "__main__":
    main()
