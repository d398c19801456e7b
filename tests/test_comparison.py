"""Tests of comparisons: settings and factors, their order, published values."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from comparison.results import Comparison, read
from comparison.settings import Setting
from config.errors import ConfigError
from conftest import checked
from rendering.findings import caveats
from run_folders import DEPTH, KERNEL, REFERENCE, as_yaml, compared, write_run, write_sweep

# Settings and factors.


def by_folder(comparison: Comparison) -> list[set[str]]:
    return [{run.folder.name for run in setting.runs} for setting in comparison.settings]


def test_images_are_told_by_their_content_not_by_their_path(tmp_path: Path) -> None:
    for name, root, fingerprint in (
        ("a", "imgs", "1f"), ("b", f"{tmp_path}/imgs", "1f"), ("changed", "imgs", "2e"), ("other", "photos", "3d"),
    ):  # fmt: skip
        write_run(tmp_path / "s" / name, "data.name=image_folder", f"data.root={root}", data_fingerprint=fingerprint)
    comparison = read([tmp_path / "s"])
    assert sorted(map(sorted, by_folder(comparison))) == [["a", "b"], ["changed"], ["other"]]
    assert comparison.levels("data.root") == ["imgs (1f)", "imgs (2e)", "photos"]


def test_runs_without_a_fingerprint_are_told_by_their_path(tmp_path: Path) -> None:
    """Runs of earlier versions have no fingerprint of their images."""
    write_run(tmp_path / "s" / "a", "data.name=image_folder", "data.root=imgs", data_fingerprint="1f")
    write_run(tmp_path / "s" / "b", "data.name=image_folder", "data.root=imgs", status="failed")
    write_run(tmp_path / "s" / "c", "data.name=image_folder", "data.root=photos")
    assert sorted(map(sorted, by_folder(read([tmp_path / "s"])))) == [["a", "b"], ["c"]]
    write_run(tmp_path / "t" / "a", "data.root=here")
    write_run(tmp_path / "t" / "b", "data.root=there")
    assert len(read([tmp_path / "t"]).settings) == 1, "of a data set that is the same everywhere"


def test_a_key_that_is_younger_than_a_run_has_its_default(tmp_path: Path) -> None:
    old, removed = re.subn(r"  label_smoothing: .*\n", "", as_yaml())
    assert removed == 1
    write_run(tmp_path / "s" / "old", config=old)
    write_run(tmp_path / "s" / "new", "trainer.label_smoothing=0.0", "trainer.channels_last=false")
    assert len(read([tmp_path / "s"]).settings) == 1
    write_run(tmp_path / "s" / "other", "trainer.label_smoothing=0.1")
    assert sorted(map(sorted, by_folder(read([tmp_path / "s"])))) == [["new", "old"], ["other"]]


def write_dropout(folder: Path, options: tuple[str, ...], rates: tuple[float, ...], **figures: Any) -> Path:
    for option in options:
        for rate in rates:
            places = {"blocks": option in ("blocks", "all"), "head": option in ("head", "all")}
            write_run(
                folder / f"{option}-{rate}",
                f"dropout.rate={rate}", *(f"dropout.{place}={rate}" for place, is_one in places.items() if is_one),
                overrides={"dropout": option, "dropout.rate": rate},
                best__val__accuracy=0.9 + rate / 10 + len(option) / 1000, **figures,
            )  # fmt: skip
    return folder


def test_a_split_that_follows_the_seed_is_part_of_it(tmp_path: Path) -> None:
    """With data.split_seed=${seed} the runs of a setting are one row; beside a sweep with one split they are two."""
    for kernel in (3, 5):
        for seed in (0, 1):
            overrides = f"{KERNEL}={kernel}", f"seed={seed}", f"data.split_seed={seed}"
            write_run(tmp_path / "s" / f"{kernel}-{seed}", *overrides, best__val__accuracy=0.9 + seed / 100)
    comparison = read([tmp_path / "s"])
    assert len(comparison.settings) == 2 and comparison.keys == [KERNEL]
    write_run(tmp_path / "t" / "3-1", f"{KERNEL}=3", "seed=1", "data.split_seed=0", best__val__accuracy=0.9)
    assert "data.split_seed" in read([tmp_path / "s", tmp_path / "t"]).keys


def test_a_search_is_said_to_have_selected(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92], (9, 8): [0.95, 0.96]})
    assert not any("search" in line for line in caveats(read([folder])))
    (folder / "search.db").touch()
    assert any("search" in line for line in caveats(read([folder])))


@pytest.mark.parametrize(
    ("options", "rates"), [(("blocks", "head", "all"), (0.05, 0.15, 0.3)), (("blocks", "head"), (0.1, 0.2))]
)
def test_the_place_and_the_rate_of_dropout_are_factors(
    tmp_path: Path, options: tuple[str, ...], rates: tuple[float, ...]
) -> None:
    comparison = read([write_dropout(tmp_path / "s", options, rates)])
    assert comparison.factors == ["dropout", "dropout.rate"]
    pairs = {(effect.factor, effect.level): len(effect.pairs) for effect in comparison.effects}
    by_place: dict[Any, int] = {("dropout", option): len(rates) for option in sorted(options)[1:]}
    assert pairs == by_place | {("dropout.rate", rate): len(options) for rate in rates[1:]}


def test_no_dropout_is_the_rate_of_0_at_every_place(tmp_path: Path) -> None:
    """In a sweep of places and rates, the runs with rate 0 are one setting, named after the first one."""
    write_dropout(tmp_path / "s", ("blocks", "head"), (0.1, 0.2))
    write_run(tmp_path / "s" / "none", overrides={"dropout": "blocks", "dropout.rate": 0.0}, best__val__accuracy=0.9)
    comparison = read([tmp_path / "s"])
    assert comparison.factors == ["dropout", "dropout.rate"]
    (effect,) = (effect for effect in comparison.effects if effect.level == 0.1)
    assert (effect.factor, effect.baseline, len(effect.pairs)) == ("dropout.rate", 0.0, 2)


def test_options_of_dropout_at_their_own_rates_have_effects(tmp_path: Path) -> None:
    """With dropout=none,blocks,head the rate is no factor, and no dropout is the baseline."""
    for augmentation in ("light", "paper"):
        for option, loss in (("none", 0.0), ("blocks", 0.03), ("head", 0.01), ("stochastic_depth", 0.02)):
            choices = {"augmentation": augmentation, "dropout": option}
            config = checked(*(f"{group}={name}" for group, name in choices.items()))
            write_run(
                tmp_path / "s" / "-".join(choices.values()), config=yaml.dump(asdict(config)), overrides=choices,
                varied=list(choices), best__val__accuracy=0.9 - loss,
            )  # fmt: skip
    comparison = read([tmp_path / "s"])
    assert comparison.factors == ["augmentation", "dropout"]
    effects = {(effect.level, effect.baseline): len(effect.pairs) for effect in comparison.effects}
    assert effects == {
        ("paper", "light"): 4,
        **{(option, "none"): 2 for option in ("blocks", "head", "stochastic_depth")},
    }


def test_dropout_by_keys_or_by_option_is_the_same_setting(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", "dropout.blocks=0.1", name="blocks=0.1")
    write_run(
        tmp_path / "s" / "b",
        "dropout.blocks=0.1",
        "dropout.rate=0.1",
        overrides={"dropout": "blocks", "dropout.rate": 0.1},
    )
    assert len(read([tmp_path / "s"]).settings) == 1


def test_key_that_differs_between_sweeps_is_a_factor_if_needed() -> None:
    first = [({KERNEL: k, DEPTH: 8, "optimizer.lr": 0.01}, [0.9]) for k in (5, 9)]
    second = [({KERNEL: 5, DEPTH: d, "optimizer.lr": 0.02}, [0.9]) for d in (16, 32)]
    assert set(compared([*first, *second], KERNEL, DEPTH).factors) == {KERNEL, DEPTH}
    same = [({KERNEL: 5, DEPTH: 8, "optimizer.lr": 0.02}, [0.9])]
    assert set(compared([*first, *second, *same], KERNEL, DEPTH).factors) == {KERNEL, DEPTH, "optimizer.lr"}


# Order.


def test_settings_are_sorted_by_a_figure_also_where_a_run_failed(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", f"{KERNEL}=5", "seed=0", status="failed", seconds=None, parameters=None)
    for name, kernel, seed, seconds in (("b", 5, 1, 10), ("c", 7, 0, 20), ("d", 9, 0, 5)):
        write_run(tmp_path / "s" / name, f"{KERNEL}={kernel}", f"seed={seed}", seconds=seconds, best__val__accuracy=0.9)
    assert [setting.levels[KERNEL] for setting in read([tmp_path / "s"], sort="seconds").settings] == [9, 5, 7]


def test_sort_metric_and_filter(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(9, 8): [0.95], (5, 8): [0.9], (5, 16): [0.93]})

    def kernels_and_depths(**options: Any) -> list[tuple[int | None, int | None]]:
        settings = read([folder], **options).settings
        return [(setting.levels.get(KERNEL), setting.levels.get(DEPTH)) for setting in settings]

    assert kernels_and_depths() == [(9, 8), (5, 16), (5, 8)]
    assert kernels_and_depths(sort="kernel_size") == [(5, 16), (5, 8), (9, 8)]
    assert kernels_and_depths(sort="parameters") == [(5, 8), (9, 8), (5, 16)]
    assert kernels_and_depths(metric="parameters") == [(5, 8), (9, 8), (5, 16)], "less is better"
    assert kernels_and_depths(filters=["kernel_size>5"]) == [(None, None)]
    assert kernels_and_depths(filters=["kernel_size!=9", "val/accuracy>=0.93"]) == [(None, None)]
    assert kernels_and_depths(filters=["kernel_size=9e0"]) == kernels_and_depths(filters=["kernel_size=9"])
    assert kernels_and_depths(filters=["val/accuracy>=9.3e-1"]) == [(9, 8), (5, 16)]
    assert len(read([folder], filters=["lr=1e-2"]).settings) == 3, "YAML takes it for a word"
    assert kernels_and_depths(filters=["status=failed"]) == []


def test_equals_are_named_and_the_smaller_model_comes_first(tmp_path: Path) -> None:
    comparison = read([write_sweep(tmp_path / "s", {(9, 8): [0.9], (5, 8): [0.9]})])
    assert [setting.levels[KERNEL] for setting in comparison.settings] == [5, 9]


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("reserved_memory", "low"),
        ("peak_memory", "low"),
        ("val/loss", "low"),
        ("objective", "low"),
        ("test/accuracy", "high"),
    ],
)
def test_what_is_better_follows_from_the_metric(tmp_path: Path, metric: str, best: str) -> None:
    figures = ("reserved_memory", "peak_memory", "best__val__loss", "objective", "test__accuracy")
    for name, value in (("low", 0.1), ("high", 0.9)):
        write_run(
            tmp_path / "s" / name, f"{KERNEL}={3 if name == 'low' else 5}", "trainer.monitor=val/loss",
            **dict[str, Any](dict.fromkeys(figures, value)),
        )  # fmt: skip
    assert read([tmp_path / "s"], metric=metric).valued[0].runs[0].folder.name == best


def test_a_metric_that_no_run_has_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a")
    with pytest.raises(ConfigError, match=r"--metric model\.norm"):
        read([tmp_path / "s"], metric="model.norm")


# References.


def of_kernel(comparison: Comparison, kernel: int) -> Setting:
    (setting,) = (setting for setting in comparison.settings if setting.levels.get(KERNEL, kernel) == kernel)
    return setting


@pytest.mark.parametrize(("data", "applies"), [("digits", True), ("cifar10", False)])
def test_a_reference_is_for_the_studys_own_settings_alone(tmp_path: Path, data: str, applies: bool) -> None:
    values = {(5, 8): [0.9], (9, 8): [0.95]}
    comparison = read([write_sweep(tmp_path / "s", values, *REFERENCE, f"study.where={{data.name: {data}}}")])
    reference = of_kernel(comparison, 9).reference
    assert (reference is not None and reference.value == 0.99) is applies


def test_settings_stand_beside_the_studys_reference(tmp_path: Path) -> None:
    values = {(5, 8): [0.9, 0.92, 0.94], (9, 8): [0.95, 0.96, 0.97], (7, 8): [0.9, 0.9, 0.9]}
    comparison = read([write_sweep(tmp_path / "s", values, *REFERENCE)])
    assert comparison.metric == "test/accuracy", "the study's metric is the default"
    of_5, of_9 = of_kernel(comparison, 5).reference, of_kernel(comparison, 9).reference
    assert of_5 and of_9 and of_kernel(comparison, 7).reference is None
    assert of_5.difference == pytest.approx(0.915 - 0.91)
    assert of_5.ours.low and of_5.ours.high and of_5.ours.low <= of_5.value <= of_5.ours.high
    assert of_9.ours.high and of_9.value > of_9.ours.high


def test_a_reference_stays_where_one_run_was_written_as_keys(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", f"{KERNEL}=5", "seed=0", test__accuracy=0.9)
    write_run(tmp_path / "s" / "b", f"{KERNEL}=5", "seed=1", *REFERENCE, test__accuracy=0.9)
    (setting,) = read([tmp_path / "s"]).settings
    assert setting.reference and setting.reference.value == 0.91
