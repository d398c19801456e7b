"""Tests of studies: every experiment runs, and has a published value only for the source's recipe."""

import itertools
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import statsmodels.formula.api as smf
import yaml

from comparison.runs import Run, flat
from comparison.settings import Setting, decides
from config.schema import GROUPS, flatten, keys_of
from conftest import checked, command
from processes import REPOSITORY, shipped
from training import run as one_run

EXPERIMENTS = sorted(path.stem for path in shipped("experiment/*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_record(name: str) -> None:
    text = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text()
    config = checked(f"experiment={name}", *(["data.root=DIR"] if "imagenet" in name else []))
    assert re.search(rf"# +python src/train\.py (-m )?experiment={name}", text)
    assert "million images" in text  # what it costs
    assert config.study.name == name  # by which its recipe is found
    assert bool(config.study.source) == bool(config.study.reference)
    keys = {path for path, *_ in keys_of(config)}
    assert {path for path, _ in flatten(config.study.where)} <= keys
    for row in config.study.reference:
        assert set(row) == {"where", "value"}
        assert set(row["where"]) <= keys
        assert 0 < row["value"] < 1


def reference(run: dict[str, Any]) -> float | None:
    """Return the published value that a completed run of this flat config is compared with."""
    value = Setting({}, [Run(Path(), run, {"status": "completed", "test/accuracy": 0.5})]).reference
    return value.value if value else None


def composed(experiment: str, *overrides: str) -> dict[str, Any]:
    root = ["data.root=DIR"] if "imagenet" in experiment else []
    return flat(asdict(checked(f"experiment={experiment}", *root, *overrides)))


PUBLISHED = {  # experiment: what each of its overrides reached; 95.88 is the baseline of the paper's tables
    "paper_cifar10": {"": 0.9589},
    "paper_kernel_sweep": {"kernel=k3": 0.9361, "kernel=k5": 0.9511, "kernel=k7": 0.9572, "kernel=k9": 0.9588},
    "paper_patch_sweep": {"patch=p1": 0.9588, "patch=p2": 0.9588 - 0.0080, "patch=p4": 0.9588 - 0.0327},
    "paper_ablation": {
        "variant=baseline": 0.9588,
        "variant=residual_pointwise": 0.9588 - 0.0110,
        "variant=layer_norm": 0.9588 - 0.0144,
        "variant=no_randaugment": 0.9588 - 0.0296,
        "variant=no_random_scaling": 0.9588 - 0.0964,
    },
    "short_cifar10": {"": 0.9260},
    "convmixerlib": {"": 0.8320},
    "imagenet_1536_20": {"": 0.8137},
    "imagenet_768_32": {"": 0.8016},
    "imagenet_1024_20": {"": 0.7694},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_published_setting_stands_beside_its_figure(name: str) -> None:
    for override, value in PUBLISHED.get(name, {"": None}).items():
        assert reference(composed(name, *override.split())) == (value and pytest.approx(value)), override


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("paper_kernel_sweep", "patch=p2 kernel=k9"),
        ("paper_kernel_sweep", "kernel=k15"),
        ("paper_kernel_sweep", "variant=layer_norm"),
        ("paper_kernel_sweep", "data.train_fraction=0.1"),
        ("paper_patch_sweep", "kernel=k3"),
        ("paper_ablation", "kernel=k5 patch=p2"),
        ("paper_ablation", "variant=layer_norm kernel=k5"),
        ("paper_ablation", "variant=no_flip"),
        ("paper_ablation", "variant=no_mixing model.norm=layer"),
        ("paper_cifar10", "optimizer=adam"),
        ("short_cifar10", "augmentation=none"),
        ("short_cifar10", "scheduler=cosine"),
        ("convmixerlib", "dropout=none"),
        ("imagenet_1536_20", "model=convmixer_768_32"),
        ("imagenet_1536_20", "model=convmixer_1024_20"),
        ("imagenet_768_32", "trainer.epochs=150"),
    ],
)
def test_another_setting_stands_beside_nothing(name: str, overrides: str) -> None:
    assert reference(composed(name, *overrides.split())) is None


# What a published figure is held to mean the same under: numerics, hardware, and what other keys decide.
FREE = {
    "data.split_seed", "data.pipeline", "data.hflip", "dropout.rate", "trainer.precision", "trainer.compile",
    "trainer.compile_mode", "trainer.sync_batch_norm", "trainer.accumulation_steps",
}  # fmt: skip
VALIDATED = {"trainer.monitor", "trainer.early_stopping.min_delta", "trainer.early_stopping.start_epoch"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reference_applies_only_if_every_recipe_key_agrees(name: str) -> None:
    run = composed(name, *next(iter(PUBLISHED[name])).split())
    free = FREE if name == "convmixerlib" else FREE | VALIDATED  # the one that stops early
    keys = [key for key in run if decides(key)]
    assert {key for key in keys if reference(run | {key: "another"}) is not None} == free


REDUCED = (
    "data=digits", "model=convmixer_64_8", "model.d_model=4", "model.depth=1", "trainer.epochs=1", "data.batch_size=32",
    "data.train_fraction=0.1", "hardware=any", "wandb.mode=disabled", "trainer.figures=false",
)  # fmt: skip


def reduced(name: str) -> tuple[list[str], list[list[str]]]:
    """Reduce an experiment to a second on the digits; return its overrides, and those of each declared run."""
    record = yaml.safe_load((REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text())
    params = record.get("hydra", {}).get("sweeper", {}).get("params", {})
    patch = [] if "model.patch_size" in params else ["patch=p1"]
    kernel = [] if "model.kernel_size" in params else ["model.kernel_size=3"]
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    runs = [list(run) for run in itertools.product(*choices)]
    return [f"experiment={name}", *REDUCED, *patch, *kernel], runs


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_all_runs_and_trains_first_and_last(name: str, tmp_path: Path) -> None:
    overrides, runs = reduced(name)
    configs = [checked(*overrides, *run, f"output_dir={tmp_path}", "sweep=s") for run in runs]
    for config in (configs[0], configs[-1]):
        status, objective = one_run.run(config, [])
        assert status == "completed" and (objective is None) == (config.data.val_fraction == 0)
        assert objective is None or math.isfinite(objective)


@pytest.mark.slow
def test_a_study_is_one_command(tmp_path: Path) -> None:
    overrides, runs = reduced("paper_patch_sweep")
    done = command("-m", *overrides, "sweep=s", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(runs)} runs of" in done.stdout


@pytest.mark.parametrize("runs", sorted((REPOSITORY / "experiments").glob("*/comparison-runs.csv")), ids=str)
def test_effects_in_a_report_are_those_of_least_squares(runs: Path) -> None:
    table = pd.read_csv(runs).query("status == 'completed'")
    report = (runs.parent / "README.md").read_text()
    effects = re.findall(r"^- (\w+) (\S+) instead of (\S+): ([+-][\d.]+) points \[", report, re.MULTILINE)
    sections = "model.", "trainer."
    factors = [key for key in table if key in GROUPS or (key.startswith(sections) and table[key].nunique() > 1)]
    assert factors
    assert len(effects) == sum(table[key].nunique() - 1 for key in factors)
    terms = [f"C(Q('{key}'))" for key in (*factors, "seed")]
    fit = smf.ols(f"Q('val/accuracy') ~ {' + '.join(terms)}", table).fit()
    for name, level, baseline, points in effects:
        (key,) = (key for key in factors if key.rpartition(".")[2] == name)
        coefficient = {value: fit.params.get(f"C(Q('{key}'))[T.{value}]", 0.0) for value in (level, baseline)}
        assert 100 * (coefficient[level] - coefficient[baseline]) == pytest.approx(float(points), abs=0.006)

    # An interaction names an effect at two levels of another factor.
    pattern = r"^- (\w+) (\S+) instead of (\S+): (\S+) points with (\w+)=(\S+), (\S+) points with \w+=([^\s;]+)"
    for name, level, baseline, *at in re.findall(pattern, report.replace("\n  ", " "), re.MULTILINE):
        key, other = (next(k for k in factors if k.rpartition(".")[2] == n) for n in (name, at[1]))
        means = table.astype({key: str, other: str}).groupby([key, other])["val/accuracy"].mean()
        for points, other_level in ((at[0], at[2]), (at[3], at[4])):
            effect = means[level, other_level] - means[baseline, other_level]
            assert 100 * effect == pytest.approx(float(points), abs=0.006)
