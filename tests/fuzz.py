"""A fuzzer of commands: hostile overrides, run folders, checkpoints and images. A case depends only on its number.

python tests/fuzz.py --seed 0                      300 overrides, 500 of each other kind
python tests/fuzz.py --seed 0 --share 0.1          a tenth of them
python tests/fuzz.py --seed 0 --kind runs --first 17 --share 0.002     the 17th alone

A case fails where a command prints a traceback, is killed, computes or waits for over 20 s, allocates over 2 GB, starts
a program, connects to a server, or writes outside its output folder. Commands run in forks of this process.
"""

import argparse
import gc
import json
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
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import inference.export  # noqa: E402
import inference.prediction  # noqa: E402
import inference.report  # noqa: E402, F401
import publishing.page  # noqa: E402
import publishing.publish  # noqa: E402, F401
import sweeps.grid  # noqa: E402
import sweeps.search  # noqa: E402, F401
from config.schema import GROUPS, Config, keys_of  # noqa: E402
from conftest import TINY, checked  # noqa: E402
from hostile import VALUES, change_bytes, change_file, change_tree  # noqa: E402
from training import run  # noqa: E402
from weights.files import METADATA  # noqa: E402
from weights.layouts import to_layout  # noqa: E402

SECONDS, BYTES = 20, 2 << 30  # that a command may take, and allocate
COUNTS = {"overrides": 300, "runs": 500, "checkpoints": 500, "images": 500}
CHANGES = {  # Python's audit events, and which of their arguments are paths that change
    **dict.fromkeys(("open", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"), slice(1)),
    "os.rename": slice(2), "os.link": slice(1, 2), "os.symlink": slice(1, 2),
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SINGLE = ("trainer.device=cpu", "data.num_workers=0")
RUN = (*TINY, *SINGLE, "trainer.epochs=1", "checkpoint.keep=all", "wandb.mode=disabled")


@dataclass(frozen=True)
class Case:
    """A command with the folders in which it may write.

    Attributes:
        words: The script and its arguments.
        output: Folders in which it may write.
    """

    words: Sequence[str]
    output: Sequence[Path]


@dataclass(frozen=True)
class Base:
    """The intact files of all cases: a sweep of four runs, weights in all layouts, an image in all formats."""

    folder: Path

    @property
    def sweep(self) -> Path:
        return self.folder / "outputs" / "s"

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.sweep.glob("*/config.yaml"))


def make_base(folder: Path) -> Base:
    os.environ |= {
        "WANDB_MODE": "disabled",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MPLCONFIGDIR": str(folder / "mpl"),
    }
    base = Base(folder)
    for kernel, seed in ((3, 0), (3, 1), (5, 0), (5, 1)):
        overrides = [f"model.kernel_size={kernel}", f"seed={seed}"]
        varied = "varied=[model.kernel_size,seed]"
        config = checked(*RUN, *overrides, varied, f"output_dir={folder}/outputs", "sweep=s", "wandb.mode=disabled")
        assert run.run(config, [*RUN, *overrides, varied]).status == "completed"
    ids = {path.name.rpartition("-")[2]: {"data": "digits", "epochs": 1, "epoch_size": 2.0} for path in base.runs}
    (base.sweep / "sweep.json").write_text(json.dumps(ids))
    best = torch.load(base.runs[0] / "checkpoints" / "best.pt")
    beside = {key: best[key] for key in ("config", "classes", "image_size", "mean", "std", "metrics")}
    save_file(best["model"], folder / "ours.safetensors", metadata={METADATA: json.dumps(beside)})
    torch.save(best, folder / "best.pt")
    torch.save(to_layout(best["model"], "timm"), folder / "timm_relu.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3)).astype(np.uint8)
    for suffix in ("png", "jpg", "bmp", "webp", "ppm", "tiff", "gif"):
        Image.fromarray(pixels).save(folder / f"image.{suffix}")
    Image.fromarray(pixels.astype(np.uint16)[:, :, 0] * 255).save(folder / "deep.png")
    return base


# Each kind makes its case's files in a folder of its own.


def overrides_case(chance: Random, folder: Path, base: Base) -> list[Case]:
    keys = [key for key, *_ in keys_of(Config())]
    names = [
        *keys,
        *GROUPS,
        "hydra/sweeper",
        "hydra/launcher",
        "hydra.sweeper.params",
        "hydra.sweeper.n_jobs",
        "sweep",
        "x",
    ]
    texts = [str(value)[:3000] for value in VALUES] + [
        "1,2",
        "range(3)",
        "choice(1,2)",
        "interval(0,1)",
        "glob(*)",
        "[1,2]",
        "{a: 1}",
    ]

    def word() -> str:
        sign = chance.choice(("", "", "", "", "+", "++", "~"))
        name = chance.choice(names) if chance.random() < 0.9 else chance.choice(texts)
        return f"{sign}{name}={chance.choice(texts)}" if chance.random() < 0.95 else f"{sign}{name}"

    if chance.random() < 0.25:
        condition = f"{chance.choice(names)}{chance.choice(('=', '!=', '>', '<=', ''))}{chance.choice(texts)}"
        option = chance.choice(("--filter", "--metric", "--sort", "--confirm", "--smallest"))
        return [Case(("compare", str(base.sweep), "--json", f"{option}={condition}"), ())]
    words = [word() for _ in range(chance.choice((1, 1, 2, 3)))]
    words = [
        text.replace("\0", "") for text in words if not text.startswith(("output_dir", "hydra.run", "hydra.sweep.dir"))
    ]
    multirun = ("-m",) if chance.random() < 0.5 else ()
    return [Case(("train", *multirun, *words, "plan=true", f"output_dir={folder / 'outputs'}"), [folder / "outputs"])]


def runs_case(chance: Random, folder: Path, base: Base) -> list[Case]:
    sweep = folder / "outputs" / "s"
    shutil.copytree(base.sweep, sweep)
    for damaged in chance.sample(
        sorted(path for path in sweep.iterdir() if path.is_dir() and path.name[0] != "."), chance.choice((1, 1, 2))
    ):
        name = chance.choice(
            (
                "config.yaml",
                "summary.json",
                "metrics.csv",
                "predictions.npy",
                "predictions.csv",
                "../sweep.json",
                "train.log",
            )
        )
        change_record(chance, damaged / name)
    for path in chance.sample(base.runs, 2):  # without its ID, which tells a damaged config
        if chance.random() < 0.5:
            (sweep / path.name).rename(sweep / path.name.rpartition("-")[0])
    resume = (
        "train",
        *RUN,
        "model.kernel_size=3",
        "seed=0",
        "varied=[model.kernel_size,seed]",
        f"output_dir={folder}/outputs",
        "sweep=s",
    )
    commands = [
        ("compare", str(sweep), "--json"), ("compare", str(sweep)), ("compare", str(sweep), "--images"),
        ("clean", str(sweep)), resume, ("evaluate", f"checkpoint={sweep}", f"output={sweep}/e", *SINGLE),
    ]  # fmt: skip
    return [Case(words, [folder / "outputs"]) for words in chance.choices(commands, (8, 3, 2, 1, 2, 2))]


def change_record(chance: Random, path: Path) -> None:
    if not path.exists():
        return
    kind = chance.random()
    if kind < 0.1:
        change_file(chance, path)
    elif kind < 0.55 and path.suffix == ".json":
        path.write_text(json.dumps(change_tree(chance, json.loads(path.read_text())), default=str))
    elif kind < 0.55 and path.suffix == ".yaml":
        path.write_text(
            yaml.dump(change_tree(chance, yaml.safe_load(path.read_text())), sort_keys=False), errors="replace"
        )
    else:
        path.write_bytes(change_bytes(chance, path.read_bytes()))


def checkpoints_case(chance: Random, folder: Path, base: Base) -> list[Case]:
    source = chance.choice([base.folder / "best.pt", base.folder / "timm_relu.pt", base.folder / "ours.safetensors",
                            base.runs[0] / "checkpoints" / "last.pt"])  # fmt: skip
    file, output = folder / source.name, folder / "outputs"
    shutil.copy(source, file)
    odd = (
        torch.ones(2),
        torch.tensor(float("nan")),
        torch.zeros(1).expand(10**9),
        torch.ones(2, dtype=torch.complex64),
        torch.zeros(0, 3, 1, 1),
    )
    if chance.random() < 0.35:
        file.write_bytes(change_bytes(chance, file.read_bytes()))
    elif file.suffix == ".pt":
        torch.save(change_tree(chance, torch.load(file), (*VALUES, *odd)), file)
    else:
        beside = json.dumps(change_tree(chance, json.loads(metadata_of(file))), default=str)
        save_file(torch.load(base.folder / "best.pt")["model"], file, metadata={METADATA: beside})
    image = str(base.folder / "image.png")
    commands = [
        ("evaluate", f"checkpoint={file}", f"output={output}/e", *SINGLE),
        ("predict", f"checkpoint={file}", f"images={image}", f"output={output}/p.csv", *SINGLE),
        ("export", f"checkpoint={file}", "format=safetensors", f"output={output}/x", *SINGLE),
        ("train", *RUN, "model.kernel_size=3", f"model.pretrained={file}", f"output_dir={output}", "sweep=s"),
    ]
    if source.name == "last.pt" and chance.random() < 0.6:
        path = output / "s" / base.runs[0].name
        shutil.copytree(base.runs[0], path)
        shutil.copy(file, path / "checkpoints" / chance.choice(("last.pt", "best.pt")))
        summary = path / "summary.json"
        summary.write_text(summary.read_text().replace('"completed"', '"interrupted"'))
        commands = [("train", *RUN, "model.kernel_size=3", "seed=0", f"output_dir={output}", "sweep=s")]
    return [Case(chance.choice(commands), [output])]


def metadata_of(path: Path) -> str:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][METADATA]


def images_case(chance: Random, folder: Path, base: Base) -> list[Case]:
    """Make images of two classes, and change one, or give it a strange place or name."""
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (folder / "data" / part).mkdir(parents=True)
        for i in range(3):
            shutil.copy(base.folder / "image.png", folder / "data" / part / f"{i}.png")
    source = chance.choice([*base.folder.glob("image.*"), base.folder / "deep.png"])
    names = (
        f"x{source.suffix}",
        "x.jpg",
        "x.png",
        "=1+1.png",
        "[b]x[_b].png",
        "a\nb.png",
        "\x1b[2J.png",
        "é.png",
        "-m.png",
        "x,y.png",
    )
    file = folder / "data" / chance.choice(("train/a", "test/b")) / chance.choice(names)
    shutil.copy(source, file)
    if chance.random() < 0.15:
        change_file(chance, file)
    else:
        file.write_bytes(change_bytes(chance, file.read_bytes()))
    output = folder / "outputs"
    images = f"images={folder / 'data'}"
    of_folder = ("data=image_folder", f"data.root={folder / 'data'}", "data.image_size=8", "data.val_fraction=0.2")
    skip = f"data.skip_unreadable={chance.choice(('true', 'false'))}"
    training = ("train", *RUN, *of_folder, skip, "data.train_fraction=1", f"output_dir={output}", "sweep=s")
    commands = [
        ("predict", f"checkpoint={base.runs[0]}", images, f"output={output}/p.csv", *SINGLE),
        ("evaluate", f"checkpoint={base.runs[0]}", *of_folder[:2], skip, f"output={output}/e", *SINGLE),
        training, (*training, "plan=true"),
    ]  # fmt: skip
    return [Case(chance.choices(commands, (4, 1, 2, 1))[0], [output])]


KINDS: dict[str, Callable[[Random, Path, Base], list[Case]]] = {
    "overrides": overrides_case, "runs": runs_case, "checkpoints": checkpoints_case, "images": images_case,
}  # fmt: skip


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
