"""The configuration: everything composes, everything wrong is named before anything is written."""

from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from config import schema
from config.errors import ConfigError, explain
from config.schema import GROUPS
from conftest import checked, command, composed
from processes import REPOSITORY

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}" for path in (REPOSITORY / "conf").glob("*/*.yaml") if path.parent.name in GROUPS
)
NEEDS_ROOT = ("data=image_folder", "data=imagenet", *(option for option in OPTIONS if "=imagenet_" in option))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str) -> None:
    assert checked(option, *(["data.root=somewhere"] if option in NEEDS_ROOT else []))


def test_the_promised_options_are_there() -> None:
    promised = {
        "patch": ["p1", "p2", "p4", "p7", "p14"],
        "kernel": ["k3", "k5", "k7", "k9", "k15"],
        "augmentation": ["none", "light", "simple", "randaugment"],
        "dropout": ["none", "blocks", "head", "all", "stochastic_depth"],
        "data": ["digits", "cifar10", "cifar100", "image_folder"],
        "optimizer": ["adamw", "adam", "sgd"],
        "scheduler": ["one_cycle", "cosine", "step", "constant"],
        "model": [f"convmixer_{size}" for size in ("64_8", "256_8", "256_16", "768_32", "1024_20", "1536_20")],
    }
    assert {f"{group}={option}" for group, options in promised.items() for option in options} <= set(OPTIONS)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert lines[0].startswith("# ")
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert "python src/" in comment or path.is_relative_to(REPOSITORY / "conf" / "hydra")


def test_patch_and_kernel_set_the_model_and_leave_it_alone_when_left_out() -> None:
    assert checked("patch=p2", "kernel=k7").model.kernel_size == 7
    assert checked("patch=p2", "kernel=k7").model.patch_size == 2
    own = checked("model=convmixer_1024_20").model
    assert (own.patch_size, own.kernel_size, own.activation) == (14, 9, "gelu")


def test_dropout_rate_reaches_its_places() -> None:
    everywhere = checked("dropout=all", "dropout.rate=0.3").dropout
    assert (everywhere.blocks, everywhere.head, everywhere.stochastic_depth) == (0.3, 0.3, 0.0)
    assert checked("dropout=stochastic_depth").dropout.stochastic_depth == 0.1
    assert checked().dropout == schema.Dropout()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.kernl_size=5"], "model.kernl_size: there is no such key; did you mean model.kernel_size?"),
        (["kernl=k5"], "kernl: there is no such key; did you mean kernel?"),
        (["kernel=k6"], "kernel=k6: there is no such option; expected one of k15, k3, k5, k7, k9"),
        (["trainer.compile=perhaps"], "trainer.compile=perhaps: expected true or false"),
        (["model.depth=8,16"], "model.depth=8,16: several values; add -m to sweep over them"),
        (["optimizer.name=lion"], "optimizer.name=lion: expected adam or adamw; optimizer=OPTION chooses another"),
        (["scheduler.name=one_cylce"], "scheduler.name=one_cylce: expected one_cycle; scheduler=OPTION"),
        (["augmentation.auto_augment=torchvision-n2-m40"], "augmentation.auto_augment=torchvision-n2-m40: expected"),
        (["model.kernel_size=abc"], "model.kernel_size=abc: expected a whole number"),
        (["model.kernel_size=0"], "model.kernel_size=0: expected at least 1"),
        (["model.activation=tanh"], "model.activation=tanh: expected one of relu, gelu"),
        (["model.norm=group"], "model.norm=group: expected one of batch, layer, none"),
        (["dropout=all", "dropout.rate=1.5"], "dropout.rate=1.5: expected at least 0 and below 1"),
        (["dropout.rate=0.3"], "dropout.rate=0.3: there is no place for it"),
        (["dropout=stochastic_depth", "model.residual_depthwise=false"], "needs a residual branch to drop"),
        (["optimizer=sgd", "optimizer.betas=[0.1,0.2]"], "optimizer.betas: there is no such key; optimizer has"),
        (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: expected two numbers"),
        (["optimizer.lr=0"], "optimizer.lr=0.0: expected above 0"),
        (["optimizer=sgd", "optimizer.momentum=0"], "optimizer.nesterov=true: needs optimizer.momentum above 0"),
        (["scheduler=cosine", "scheduler.warmup_epochs=10"], "expected fewer than trainer.epochs=10"),
        (["data=image_folder"], "data.root: has no value yet"),
        (["data.val_fraction=1.0"], "data.val_fraction=1.0: expected at least 0 and below 1"),
        (["data.mean=[0.5]"], "give both, or null for both"),
        (["data.num_workers=-1"], "data.num_workers=-1: expected at least 0"),
        (["trainer.epochs=0"], "trainer.epochs=0: expected at least 1"),
        (["trainer.precision=int8"], "trainer.precision=int8: expected one of fp32, bf16, fp16"),
        (["trainer.accumulation_steps=64"], "expected at most data.batch_size=32"),
        (["trainer.early_stopping.patience=3", "data.val_fraction=0"], "needs a validation set"),
        (["augmentation.scale=[1.0,0.5]"], "augmentation.scale=[1.0, 0.5]: expected [low, high]"),
        (["augmentation.auto_augment=strong"], "timm's RandAugment, e.g."),
        (["wandb.mode=sometimes"], "wandb.mode=sometimes: expected one of offline, online, disabled"),
        (["sweep=a/b"], "sweep=a/b: expected the name of a folder"),
        (["+model.width=3"], "model.width: there is no such key"),
        (["+batch_size=3"], "batch_size: there is no such key; did you mean data.batch_size?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(overrides: list[str], expected: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException, ConfigError)) as caught:
        checked(*overrides)
    assert expected in explain(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.kernl_size=5"],
        ["model.kernel_size=0"],
        ["-m", "model.kernel_size=5,0"],
        ["-m", "kernel=k5,k6"],
        ["-m", "optimizer.lr=0.1,high"],
        ["output_dir=/proc/nowhere"],
        ["-m", "seed=0,1", "output_dir=/proc/nowhere"],
    ],
)
def test_an_error_is_one_message_before_anything_is_written(arguments: list[str], tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_shows_itself(tmp_path: Path) -> None:
    shown = command("--help", cwd=tmp_path).stdout
    for text in ("python src/train.py -m model.kernel_size=5,9", "kernel: k15, k3", "label_smoothing: 0.0"):
        assert text in shown
    shown = command("--cfg", "job", "--resolve", "dropout=all", cwd=tmp_path).stdout
    assert "blocks: 0.15" in shown
    assert list(tmp_path.iterdir()) == []


def test_tab_completion(tmp_path: Path) -> None:
    line = f"python {REPOSITORY}/src/train.py kernel=k"
    done = command(
        "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE="9", COMP_KEY="9"
    )
    assert done.stdout.split() == [f"kernel=k{size}" for size in (15, 3, 5, 7, 9)]


def test_the_environment_sets_wandb_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert composed().wandb.mode == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    assert composed().wandb.mode == "offline"
