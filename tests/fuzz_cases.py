"""The cases of the fuzzer: commands with hostile overrides, run folders, checkpoints and images."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from config.schema import GROUPS, Config, keys_of
from conftest import TINY, checked
from hostile import VALUES, change_bytes, change_file, change_tree
from training import run
from weights.files import METADATA
from weights.layouts import to_layout

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
