"""Tests of the configuration: everything composes, and every error is named before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from config import schema
from config.commands import register_commands
from config.errors import ConfigError, explain
from config.schema import GROUPS
from conftest import checked, command, composed, initialized
from processes import REPOSITORY, shipped

OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in shipped("*/*.yaml") if path.parent.name in GROUPS)


def test_the_promised_options_are_there() -> None:
    promised = {
        "patch": ["p1", "p2", "p4", "p7", "p14"],
        "kernel": ["k3", "k5", "k7", "k9", "k15"],
        "augmentation": ["none", "light", "simple", "randaugment"],
        "dropout": ["none", "blocks", "head", "all", "stochastic_depth"],
        "data": ["digits", "cifar10", "cifar100", "image_folder"],
        "optimizer": ["adamw", "adam", "sgd"],
        "scheduler": ["one_cycle", "cosine", "step", "constant"],
        "hardware": ["any", "gpu"],
        "model": [f"convmixer_{size}" for size in ("64_8", "256_8", "256_16", "768_32", "1024_20", "1536_20")],
    }
    assert {f"{group}={option}" for group, options in promised.items() for option in options} <= set(OPTIONS)


@pytest.mark.parametrize("path", shipped("**/*.yaml"), ids=lambda path: path.stem)
def test_every_file_says_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert lines[0].startswith("# ")
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert "python src/" in comment or path.is_relative_to(REPOSITORY / "conf" / "hydra")


def test_patch_and_kernel_set_the_model_only_if_chosen() -> None:
    assert checked("patch=p2", "kernel=k7").model.kernel_size == 7
    assert checked("patch=p2", "kernel=k7").model.patch_size == 2
    without_choice = checked("model=convmixer_1024_20").model
    assert (without_choice.patch_size, without_choice.kernel_size, without_choice.activation) == (14, 9, "gelu")


def test_dropout_rate_reaches_its_places() -> None:
    everywhere = checked("dropout=all", "dropout.rate=0.3").dropout
    assert (everywhere.blocks, everywhere.head, everywhere.stochastic_depth) == (0.3, 0.3, 0.0)
    assert checked("dropout=stochastic_depth").dropout.stochastic_depth == 0.1
    assert checked().dropout == schema.Dropout()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.kernl_size=5"], ["model.kernl_size", "model.kernel_size"]),
        (["kernl=k5"], ["kernl", "kernel"]),
        (["kernel=k6"], ["kernel=k6", "k15, k3, k5, k7, k9"]),
        (["trainer.compile=perhaps"], ["trainer.compile=perhaps", "true or false"]),
        (["trainer.epochs=null"], ["trainer.epochs=null", "a whole number"]),
        (["optimizer.betas=high"], ["optimizer.betas=high", "list"]),
        (["data.num_workers=many"], ["data.num_workers=many", "a whole number or null"]),
        (["optimizer.name=lion"], ["optimizer.name=lion", "adam or adamw", "optimizer=OPTION"]),
        (["scheduler.name=one_cylce"], ["scheduler.name=one_cylce", "one_cycle", "scheduler=OPTION"]),
        (["augmentation.auto_augment=torchvision-n2-m40"], ["augmentation.auto_augment=torchvision-n2-m40"]),
        (["model.kernel_size=abc"], ["model.kernel_size=abc", "a whole number"]),
        (["model.kernel_size=0"], ["model.kernel_size=0", "at least 1"]),
        (["model.activation=tanh"], ["model.activation=tanh", "relu, gelu"]),
        (["model.norm=group"], ["model.norm=group", "batch, layer, none"]),
        (["dropout=all", "dropout.rate=1.5"], ["dropout.rate=1.5", "at least 0 and below 1"]),
        (["dropout.rate=0.3"], ["dropout.rate=0.3", "dropout=blocks"]),
        (["dropout=stochastic_depth", "model.residual_depthwise=false"], ["model.residual_depthwise=true"]),
        (["optimizer=sgd", "optimizer.betas=[0.1,0.2]"], ["optimizer.betas", "momentum"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "two numbers"]),
        (["optimizer.lr=0"], ["optimizer.lr=0.0", "above 0"]),
        (["optimizer=sgd", "optimizer.momentum=0"], ["optimizer.nesterov=true", "optimizer.momentum"]),
        (["scheduler=cosine", "scheduler.warmup_epochs=10"], ["scheduler.warmup_epochs=10", "trainer.epochs=10"]),
        (["data=image_folder"], ["data.root"]),
        (["data.val_fraction=1.0"], ["data.val_fraction=1.0", "at least 0 and below 1"]),
        (["data.mean=[0.5]"], ["data.mean=[0.5]", "data.std=null"]),
        (["data.mean=[125,123,114]", "data.std=[63,62,67]"], ["data.mean=[125.0, 123.0, 114.0]", "0 to 1", "255"]),
        (["data.mean=[0.5]", "data.std=[63]"], ["data.std=[63.0]", "0 to 1", "255"]),
        (["data.mean=[nan]", "data.std=[0.5]"], ["data.mean=[nan]"]),
        (["data.num_workers=-1"], ["data.num_workers=-1", "at least 0"]),
        (["trainer.epochs=0"], ["trainer.epochs=0", "at least 1"]),
        (["trainer.precision=int8"], ["trainer.precision=int8", "fp32, bf16, fp16"]),
        (["trainer.accumulation_steps=64"], ["trainer.accumulation_steps=64", "data.batch_size=32"]),
        *(
            (["trainer.compile=true", f"trainer.compile_mode={mode}", "trainer.accumulation_steps=2"],
             [f"trainer.compile_mode={mode}", "trainer.accumulation_steps=2", "trainer.compile_mode=default"])
            for mode in ("reduce-overhead", "max-autotune")
        ),
        (["trainer.early_stopping.patience=3", "data.val_fraction=0"], ["data.val_fraction"]),
        (["augmentation.scale=[1.0,0.5]"], ["augmentation.scale=[1.0, 0.5]", "[low, high]"]),
        (["augmentation.auto_augment=strong"], ["augmentation.auto_augment=strong", "rand-m9-mstd0.5-inc1"]),
        (["wandb.mode=sometimes"], ["wandb.mode=sometimes", "offline, online, disabled"]),
        (["wandb.project=a/b"], ["wandb.project=a/b", "128"]),
        ([f"wandb.tags=[{'x' * 65}]"], ["wandb.tags=", "64"]),
        (["sweep=a/b"], ["sweep=a/b"]),
        (["study.name=mine", "study.reference=[{where: {}, value: 0.9}]"], ["study.name=mine", "study.where"]),
        (["study.name=stem", "study.reference=[{where: {}, value: high}]"], ["study.reference", "value: NUMBER"]),
        (["+model.width=3"], ["model.width"]),
        (["+batch_size=3"], ["batch_size", "data.batch_size"]),
        (["hydra/launcher=side_by_side", "hydra.launcher.wait=false"], ["hydra.launcher.wait", "_target_, n_jobs"]),
        (["hydra/launcher=side_by_side", "hydra.launcher.n_jbs=3"], ["hydra.launcher.n_jobs?"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(overrides: list[str], named: list[str]) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException, ConfigError)) as caught:
        checked(*overrides)
    message = explain(caught.value)
    assert all(words in message for words in named), message
    assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["model.kernl_size=5"],
        ["model.kernel_size=0"],
        ["-m", "model.kernel_size=5,0"],
        ["-m", "kernel=k5,k6"],
        ["-m", "optimizer.lr=0.1,high"],
        ["-m", "optimizer.lr=interval(0.001,0.1)"],
        ["patch=null"],
        ["model=[0,0]"],
        ["model=[a,b]"],
        ["optimizer={a: 1}"],
        ["-m", "~sweep=s"],
        ["-m", "~patch=[1,a]"],
        ["-m", "hydra/sweeper=[basic,race]"],
        ["=3"],
        ["-m", "patch=p7,p1", "on_failure=stop"],
        ["-m", "data=image_folder", "data.root=/nowhere", "seed=0,1"],
        ["-m", "data=image_folder", "data.root=/nowhere", "patch=p1,p2", "hydra/sweeper=race"],
        ["-m", "data=image_folder", "data.root=/nowhere", "model.depth=choice(1,2)", "hydra/sweeper=optuna"],
        [f"data.crop_fraction=1{'0' * 400}"],
        [f"seed=1{'0' * 5000}"],
        [f"seed={2**63}"],
        ["optimizer.lr=inf"],
        ["experiment=paper_cifar10", "variant=null"],
        ["-m", "patch=p1,2"],
        ["model.depth=8,16"],
        [f"sweep={'s' * 300}"],
        ["-m", "seed=0,1", f"sweep={'s' * 300}"],
        ["output_dir=/proc/nowhere"],
        ["-m", "seed=0,1", "output_dir=/proc/nowhere"],
    ],
)
def test_an_error_is_one_message_before_anything_is_written(arguments: list[str], tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert any(argument.partition("=")[0] in done.stderr for argument in arguments if "=" in argument)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["-m", "data=null", "checkpoint=x,y"])
def test_a_mistake_in_evaluate_is_one_message(argument: str, tmp_path: Path) -> None:
    done = command("checkpoint=x", argument, cwd=tmp_path, script="evaluate")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {argument}: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["-m", "seed=0,1"], ["-m", "hydra/sweeper=optuna", "seed=0", "patch=p1,p2"]])
def test_a_sweeps_folder_that_is_a_file_is_left_alone(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "s").write_text("mine")
    done = command(*arguments, "sweep=s", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: sweep=s: ") and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "outputs" / "s").read_text() == "mine"


@pytest.mark.slow
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


@pytest.mark.slow
def test_wandbs_own_switches_set_mode_and_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mode(*overrides: str) -> str | None:
        composed.cache_clear()
        return checked(*overrides).wandb.mode

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert mode() == "disabled"  # WANDB_MODE, of all tests
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert mode() == "offline"
    monkeypatch.delenv("WANDB_MODE")
    assert mode() == "offline"
    (tmp_path / "settings").write_text("[default]\nmode = disabled\n")  # as `wandb disabled` writes it
    assert mode() == "disabled"
    (tmp_path / "settings").unlink()
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert (mode(), mode("wandb.mode=online")) == ("disabled", "online")
    monkeypatch.setenv("WANDB_TAGS", "one, two")
    composed.cache_clear()
    assert (checked().wandb.tags, checked("wandb.tags=[three]").wandb.tags) == (["one", "two"], ["three"])
    monkeypatch.setenv("WANDB_TAGS", "x" * 65)
    composed.cache_clear()
    with pytest.raises(ConfigError, match=r"wandb\.tags="):
        checked()
    composed.cache_clear()


@pytest.mark.slow
def test_every_experiment_goes_with_every_option() -> None:
    """Each experiment composes with every option of these groups, or one line names the reason."""
    groups = ("optimizer", "scheduler", "augmentation", "dropout", "model", "data", "hardware")
    options = {group: [option for option in OPTIONS if option.startswith(f"{group}=")] for group in groups}
    experiments = [option for option in OPTIONS if option.startswith("experiment=")]
    for experiment in experiments:
        for turn in range(max(map(len, options.values()))):
            chosen = [several[turn % len(several)] for several in options.values()]
            assert checked(experiment, *chosen, "data.root=somewhere"), (experiment, chosen)


@pytest.mark.parametrize(
    ("app", "typed", "named"),
    [
        ("evaluate", "output_dir=X", "output?"),
        ("evaluate", "trainer.epochs=3", "device, precision"),
        ("predict", "wandb.mode=offline", "has checkpoint"),
        ("export", "modl.activation=gelu", "model?"),
    ],
)
def test_a_command_suggests_only_keys_of_its_own(app: str, typed: str, named: str) -> None:
    register_commands()
    with initialized(), pytest.raises(HydraException) as caught:
        compose(app, ["checkpoint=x", typed])
    message = explain(caught.value)
    assert named in message
    assert f"mean {typed.partition('=')[0]}?" not in message


PYTHON_3_14 = """
import argparse, runpy, sys
container = argparse._ActionsContainer
if not hasattr(container, "_check_help"):
    add_argument = container.add_argument
    def _check_help(self, action):
        if action.help and "%" in action.help and hasattr(self, "_get_formatter"):
            self._get_formatter()._expand_help(action)
    def checked_argument(self, *names, **options):
        action = add_argument(self, *names, **options)
        self._check_help(action)
        return action
    container._check_help, container.add_argument = _check_help, checked_argument
sys.argv = [sys.argv[1], "--cfg", "job"]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_help_that_is_no_text_passes_the_check_of_python_3_14(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PYTHON_3_14, str(REPOSITORY / "src" / "train.py")],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "kernel_size" in process.stdout
