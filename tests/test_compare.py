"""Comparisons: the statistics against SciPy and statsmodels, and what a person reads of a sweep."""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import yaml
from scipy import stats
from statsmodels.stats.multitest import multipletests

from compare import compare
from comparison.effects import Cell, Effect, against_best, effects, factors, mean
from comparison.results import read
from config.errors import ConfigError
from conftest import checked, command
from processes import REPOSITORY

KERNEL, DEPTH = "model.kernel_size", "model.depth"


# The statistics, where the answer is known.


def draw(n: int, seed: int = 0, around: float = 0.9) -> list[float]:
    return list(np.random.default_rng(seed).normal(around, 0.01, n))


def cell(values: Sequence[float], first_seed: int = 0, **levels: Any) -> Cell:
    return Cell(levels, dict(enumerate(values, start=first_seed)))


def only(found: Sequence[Effect]) -> Effect:
    (effect,) = found
    return effect


def test_a_mean_has_students_interval() -> None:
    values = draw(5)
    estimate = mean(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert estimate.std == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    estimate = mean([0.5])
    assert estimate is not None and (estimate.value, estimate.low, estimate.contains(0.5)) == (0.5, None, None)
    assert mean([]) is None


def test_two_settings_with_the_same_seeds_are_compared_by_the_paired_t_test() -> None:
    a, b = draw(5, 1), draw(5, 2, 0.92)
    effect = only(effects([cell(a, kernel=3), cell(b, kernel=5)]))
    expected = stats.ttest_rel(b, a)
    assert effect.by_seed and effect.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (effect.change.low, effect.change.high) == pytest.approx((interval.low, interval.high))


def test_a_missing_seed_leaves_the_pairs_that_are_whole() -> None:
    a, b = draw(5, 1), draw(4, 2)
    effect = only(effects([cell(a, kernel=3), cell(b, kernel=5)]))
    assert effect.by_seed and effect.p == pytest.approx(stats.ttest_rel(b, a[:4]).pvalue)


def test_settings_with_different_seeds_are_independent_samples() -> None:
    a, b = draw(5, 1), draw(3, 2, 0.93)
    effect = only(effects([cell(a, kernel=3), cell(b, first_seed=10, kernel=5)]))
    assert not effect.by_seed and effect.p == pytest.approx(stats.ttest_ind(b, a).pvalue)


def test_a_grid_with_holes_agrees_with_statsmodels() -> None:
    """Two factors, seeds missing here and there, one cell missing altogether."""
    generator = np.random.default_rng(3)
    cells, lines = [], []
    for kernel in (3, 5, 9):
        for depth in (8, 16):
            seeds = [seed for seed in range(5) if (kernel * depth + seed) % 4]
            if (kernel, depth) == (9, 16):
                seeds = []
            values = {seed: 0.9 + 0.003 * kernel + 0.002 * seed + generator.normal(0, 0.01) for seed in seeds}
            cells.append(Cell({"kernel": kernel, "depth": depth}, values))
            lines += [(f"k{kernel}d{depth}", seed, value) for seed, value in values.items()]
    runs = pd.DataFrame(lines, columns=["cell", "seed", "value"])

    by_levels = {(effect.factor, effect.level): effect for effect in effects(cells)}
    pairs = {
        ("kernel", 5): [("k5d8", "k3d8"), ("k5d16", "k3d16")],
        ("kernel", 9): [("k9d8", "k3d8")],
        ("depth", 16): [("k3d16", "k3d8"), ("k5d16", "k5d8")],
    }
    assert set(by_levels) == set(pairs)
    for levels, matched in pairs.items():
        involved = [name for pair in matched for name in pair]
        fitted = smf.ols("value ~ 0 + C(cell) + C(seed)", runs[runs.cell.isin(involved)]).fit()
        terms = [
            f"{sign} C(cell)[{name}] / {len(matched)}"
            for pair in matched
            for sign, name in zip("+-", pair, strict=True)
        ]
        expected = fitted.t_test(" ".join(terms))
        effect = by_levels[levels]
        assert effect.pairs == len(matched)
        assert effect.change.value == pytest.approx(expected.effect.item())
        assert effect.p == pytest.approx(expected.pvalue.item())
        assert (effect.change.low, effect.change.high) == pytest.approx(tuple(expected.conf_int()[0]))


def test_p_values_are_corrected_by_holms_method() -> None:
    best, others = cell(draw(5, 0, 0.95)), [cell(draw(5, i, 0.95 - 0.012 * i)) for i in range(1, 6)]
    found = against_best(best, others)
    unshown = [1.0] * (15 - len(found))  # pairs of six settings: the best is picked from them
    is_clear, p = (array[: len(found)] for array in multipletests([e.p for e in found] + unshown, method="holm")[:2])
    assert [effect.p_holm for effect in found] == pytest.approx(list(p))
    assert [effect.is_clear for effect in found] == list(is_clear)
    assert len(set(is_clear)) == 2, "the case should hold both"


def test_where_nothing_differs_the_best_is_seldom_called_clear() -> None:
    """The best of ten equals, picked from the data, is clear of some other in at most 5 % of 400 draws."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        best, *others = sorted(generator.normal(0.9, 0.01, (10, 5)), key=np.mean, reverse=True)
        wrong += any(effect.is_clear for effect in against_best(cell(best), [cell(other) for other in others]))
    assert wrong <= 20


def test_settings_of_one_seed_do_not_count_as_compared_with_each_other() -> None:
    best, second, third = cell(draw(5, 0, 0.95)), cell(draw(5, 1, 0.94)), cell(draw(1, 2))
    found = against_best(best, [second, third, third])
    assert [effect.p for effect in found if effect.p is None] == []
    smallest = min(found, key=lambda effect: effect.p or 0.0)
    assert smallest.p is not None and smallest.p_holm == pytest.approx(5 * smallest.p), "of six pairs, one has no test"


def test_one_seed_has_an_effect_but_no_interval() -> None:
    effect = only(effects([cell([0.9], kernel=3), cell([0.95], kernel=5)]))
    assert effect.change.value == pytest.approx(0.05)
    assert (effect.change.low, effect.p, effect.is_clear) == (None, None, False)


def test_seeds_that_agree_exactly_claim_nothing() -> None:
    effect = only(effects([cell([0.9, 0.91], kernel=3), cell([0.95, 0.96], kernel=5)]))
    assert (effect.change.low, effect.p, effect.is_clear) == (None, None, False)


def test_the_baseline_is_what_most_settings_share_else_the_lowest() -> None:
    star = [cell([0.9], k=5, d=8), cell([0.9], k=5, d=16), cell([0.9], k=3, d=8), cell([0.9], k=5, d=4)]
    assert {(effect.factor, effect.level, effect.baseline) for effect in effects(star)} == {
        ("k", 3, 5), ("d", 16, 8), ("d", 4, 8),
    }  # fmt: skip
    assert only(effects([cell([0.9], k=9), cell([0.9], k=5)])).baseline == 5


def test_what_follows_from_other_keys_is_no_factor_but_is_named() -> None:
    cells = [
        Cell({"o.momentum": momentum, "o.name": name, "o.lr": lr}, {0: accuracy})
        for name, momentum, lr, accuracy in (
            ("adamw", None, 0.1, 0.90), ("adamw", None, 0.2, 0.91), ("sgd", 0.9, 0.1, 0.92), ("sgd", 0.9, 0.2, 0.93),
        )
    ]  # fmt: skip
    assert factors(cells) == ["o.name", "o.lr"]
    by_factor = {effect.factor: effect for effect in effects(cells)}
    assert by_factor["o.name"].changes_with == ("o.momentum",)
    assert by_factor["o.lr"].changes_with == ()
    assert by_factor["o.name"].pairs == 2 and by_factor["o.name"].change.value == pytest.approx(0.02)


def test_factors_that_never_change_alone_have_no_effect() -> None:
    """Half a fraction of 2 × 2 × 2: each pair of settings differs in two factors at least."""
    cells = [cell([0.9], a=a, b=b, c=(a + b) % 2) for a in (0, 1) for b in (0, 1)]
    assert all(effect.changes_with for effect in effects(cells))


def test_nothing_follows_from_a_value_that_each_setting_has_for_itself() -> None:
    """A search: with a learning rate of its own for every trial, all the rest is a function of it."""
    trials = [(0.001 * 1.3**i, (3, 5, 7)[i % 3], (4, 8)[i % 2]) for i in range(12)]
    cells = [cell([0.9 + i / 100], **{"o.lr": lr, KERNEL: k, DEPTH: d}) for i, (lr, k, d) in enumerate(trials)]
    assert factors(cells) == ["o.lr", KERNEL, DEPTH]
    effect = only(effects(cells))  # kernels and depths come again after six trials
    assert (effect.factor, effect.level, effect.baseline) == ("o.lr", trials[6][0], trials[0][0])
    assert effect.change.value == pytest.approx(0.06) and effect.changes_with == ()
    assert effects(cells[:6]) == []


def test_what_was_set_by_name_is_a_factor_where_an_options_key_is_none() -> None:
    cells = [cell([0.9], **{"o.name": n, "o.momentum": m, "o.lr": lr}) for n, m, lr in
             (("adamw", None, 0.1), ("sgd", 0.9, 0.2), ("adam", None, 0.3))]  # fmt: skip
    assert factors(cells) == ["o.name"]
    assert factors(cells, given={"o.lr"}) == ["o.name", "o.lr"]


def test_the_rate_follows_from_the_places_that_it_is_set_at() -> None:
    places = {"blocks": (1, 0), "head": (0, 1), "all": (1, 1)}
    cells = [cell([0.9], **{"dropout.rate": rate, "dropout.blocks": rate * b, "dropout.head": rate * h})
             for rate in (0.1, 0.2, 0.3) for b, h in places.values()]  # fmt: skip
    cells.append(cell([0.9], **{"dropout.rate": 0.0, "dropout.blocks": 0.0, "dropout.head": 0.0}))
    assert factors(cells, given={"dropout.rate"}) == ["dropout.blocks", "dropout.head"]
    one_place = [cells[i] for i in (2, 5, 8)]
    assert factors(one_place, given={"dropout.rate"}) == ["dropout.head"]


# Sweeps on disk.


def write_run(folder: Path, *overrides: str, status: str = "completed", config: Any = None, **figures: Any) -> Path:
    """A run's folder as train.py leaves it; `figures` go to its summary, "__" for "/"."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or as_tree(*overrides), sort_keys=False))
    summary: dict[str, Any] = {
        "status": status,
        "name": " ".join(overrides),
        "images": {"train": 1293, "val": 144, "test": 360},
    }
    summary |= {"parameters": 1000, "macs": 50_000, "seconds": 12.5, "images_per_second": 800.0, "peak_memory": None}
    summary |= {name.replace("__", "/"): value for name, value in figures.items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(
        "epoch,train/loss,train/accuracy,val/loss,val/accuracy,lr,images_per_second,seconds\n"
        "1,2.0,0.3,1.9,0.4,0.01,800,1\n2,0.5,0.8,0.6,0.85,0.01,800,1\n"
    )
    return folder


TREES: dict[tuple[str, ...], Any] = {}


def as_tree(*overrides: str) -> Any:
    """The resolved config, as a dictionary; composed once for all tests."""
    if () not in TREES:
        TREES[()] = asdict(checked("study.reference=[]"))
    tree = yaml.safe_load(yaml.safe_dump(TREES[()]))
    for override in overrides:
        path, _, value = override.partition("=")
        *sections, key = path.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[key] = yaml.safe_load(value)
    return tree


def write_sweep(folder: Path, values: Mapping[tuple[int, int], Sequence[float]], *overrides: str) -> Path:
    """Runs of (kernel_size, depth), a seed for each value: of val/accuracy, and half a point less of test/accuracy."""
    for (kernel, depth), accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(
                folder / f"kernel_size_{kernel}-depth_{depth}-seed_{seed}",
                f"{KERNEL}={kernel}", f"{DEPTH}={depth}", f"seed={seed}", *overrides,
                best__val__accuracy=accuracy, test__accuracy=accuracy - 0.005, parameters=kernel * depth,
            )  # fmt: skip
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path) -> str:
    return (folder / "comparison.md").read_text()


def test_seeds_share_a_row_and_only_keys_that_differ_have_a_column(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92, 0.94], (9, 8): [0.95, 0.96, 0.97]})
    compare([folder])
    first, second = rows(folder)
    assert (first[KERNEL], first["n"], first["seeds"]) == ("9", "3", "0 1 2")
    assert DEPTH not in first and "seed" not in first and "output_dir" not in first
    assert float(second["val/accuracy"]) == pytest.approx(0.92)
    low, high = stats.t.interval(0.95, 2, 0.92, 0.02 / math.sqrt(3))
    assert (float(second["val/accuracy/low"]), float(second["val/accuracy/high"])) == pytest.approx((low, high))
    assert float(second["test/accuracy"]) == pytest.approx(0.915)
    assert {path.name for path in folder.glob("comparison.*")} == {
        "comparison.csv", "comparison.md", "comparison.png", "comparison.svg",
    }  # fmt: skip


def test_a_seed_run_twice_is_no_second_sample(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", {(5, 8): [0.9]})
    write_sweep(tmp_path / "b", {(5, 8): [0.92]})
    compare([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    (row,) = rows(tmp_path / "a")
    assert (row["n"], row["val/accuracy/low"]) == ("1", "")
    assert float(row["val/accuracy"]) == pytest.approx(0.91)


def test_a_newcomer_reads_what_won_that_one_seed_is_no_proof_and_where_the_picture_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.95], (5, 16): [0.91], (9, 16): [0.94]})
    compare([folder])
    out = capsys.readouterr().out
    assert "Best: depth=8 kernel_size=9 with 95.00 % val/accuracy" in out
    assert "kernel_size 9 instead of 5: +4.00 points, higher in 2 of 2 pairs" in out
    assert "How sure is this? Not at all" in out and "seed=0,1,2,3,4" in out
    assert f"{folder}/comparison.png" in out
    assert "±" not in out and "clear of noise" not in out


def test_effects_are_told_from_noise_or_not_in_words(tmp_path: Path) -> None:
    wide, narrow = [0.9, 0.93, 0.88, 0.91, 0.92], [0.95, 0.97, 0.94, 0.95, 0.97]
    folder = write_sweep(tmp_path / "s", {(5, 8): wide, (9, 8): narrow, (7, 8): [0.91, 0.92, 0.89, 0.9, 0.92]})
    compare([folder])
    text = report(folder)
    assert re.search(r"kernel_size 9 instead of 5: \+4\.80 points \[\+\S+, \+\S+\]; clear of noise \(p", text)
    assert re.search(r"kernel_size 7 instead of 5: \+0\.00 points \[-\S+, \+\S+\]; cannot be told from noise", text)
    assert "Holm" in text and "2 comparisons considered" in text


def test_a_config_groups_option_stands_for_the_keys_it_sets(tmp_path: Path) -> None:
    light = ("augmentation.hflip=0.5", "augmentation.hue=0.1")
    simple = ("augmentation.hflip=0.5", "augmentation.hue=0.0")
    none = ("augmentation.hflip=0.0", "augmentation.hue=0.0")
    for option, keys, accuracy in (("light", light, 0.93), ("simple", simple, 0.92), ("none", none, 0.9)):
        for kernel in (5, 9):
            write_run(
                tmp_path / "s" / f"{option}{kernel}", f"{KERNEL}={kernel}", *keys,
                name=f"augmentation={option} kernel_size={kernel}", best__val__accuracy=accuracy + kernel / 1000,
            )  # fmt: skip
    compare([tmp_path / "s"])
    text = report(tmp_path / "s")
    assert "Best: augmentation=light kernel_size=9 with" in text
    assert "augmentation simple instead of none: +2.00 points, higher in 2 of 2 pairs" in text
    assert {"augmentation", "augmentation.hflip", "augmentation.hue"} < set(rows(tmp_path / "s")[0])


def test_a_search_shows_all_that_it_searched_and_claims_no_effect_of_one_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a search leaves it: a rate of its own for each trial, one of four kernel sizes, one of two options."""
    none = "augmentation.hflip=0.0 augmentation.hue=0.0"
    options = {"none": none, "light": "augmentation.hflip=0.5 augmentation.hue=0.1"}
    for i in range(8):
        option, kernel, lr = list(options)[i // 4], (3, 5, 7, 9)[i % 4], 0.001 * 1.5**i
        write_run(
            tmp_path / "s" / str(i), f"{KERNEL}={kernel}", f"optimizer.lr={lr}", *options[option].split(),
            name=f"augmentation={option} kernel_size={kernel} lr={lr}", best__val__accuracy=0.9 + i / 1000,
        )  # fmt: skip
    compare([tmp_path / "s"])
    out, text = capsys.readouterr().out, report(tmp_path / "s")
    assert re.search(r"augmentation +kernel_size +lr +val %", out)
    assert "Best: augmentation=light kernel_size=9 lr=0.0170859 with" in out
    assert "instead of" not in text and "No setting differs from a baseline in one factor alone" in text
    follow = [part.partition(":")[0] for part in text.split("; ") if "follows from the others" in part]
    assert follow == ["`augmentation.hflip`", "`augmentation.hue`"]


def test_equals_are_named_and_the_smaller_model_comes_first(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(9, 8): [0.9], (5, 8): [0.9]})
    compare([folder])
    assert [row[KERNEL] for row in rows(folder)] == ["5", "9"]
    assert "Just as good: kernel_size=9." in report(folder)


def test_failed_unfinished_and_broken_runs_are_listed_with_their_reason(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.91]})
    write_run(folder / "f", f"{KERNEL}=5", f"{DEPTH}=8", "seed=2", status="failed", error="NotFinite: NaN\nat step 3")
    write_run(folder / "i", f"{KERNEL}=9", f"{DEPTH}=8", "trainer.epochs=10", status="interrupted", epochs=3)
    write_run(folder / "nan", f"{KERNEL}=15", f"{DEPTH}=8", best__val__accuracy=math.nan)
    for name, file, content in (
        ("no_config", "config.yaml", None), ("no_summary", "summary.json", None), ("cut", "summary.json", '{"sta'),
        ("list", "summary.json", "[]"), ("yaml", "config.yaml", "a: [1"), ("binary", "config.yaml", "\udcff"),
        ("odd", "config.yaml", "model: {kernel_size: [{a: 1}]}\nseed: 0"),
    ):  # fmt: skip
        path = write_run(folder / name, best__val__accuracy=0.8) / file
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode(errors="surrogateescape"))
    found = {run.folder.name: run.status for run in compare([folder])}
    assert [found[name] for name in ("no_config", "no_summary", "cut", "list", "yaml", "binary", "odd")] == [
        *["unreadable"] * 6, "completed",
    ]  # fmt: skip
    text = report(folder)
    assert "failed: f (NotFinite: NaN)" in text and "unfinished: i (after 3 of 10 epochs)" in text
    assert "unreadable: cut (summary.json:" in text and "Completed without val/accuracy: " in text
    assert {"1 failed", "1 unfinished"} <= {row["without_result"] for row in rows(folder)}


def test_nothing_completed_is_said_and_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "s" / "f", status="failed", error="no memory")
    assert [run.status for run in compare([tmp_path / "s"])] == ["failed"]
    assert "No run has completed" in capsys.readouterr().out
    assert not (tmp_path / "s" / "comparison.png").exists()


REFERENCE = (
    "study.reference=[{where: {model.kernel_size: 5}, value: 0.91}, {where: {model.kernel_size: 9}, value: 0.99},"
    " {where: {model.kernel_size: 9, model.patch_size: 77}, value: 0.1}]",
    "study.metric=test/accuracy",
    "study.source=the paper",
)


@pytest.mark.parametrize(("data", "applies"), [("digits", True), ("cifar10", False)])
def test_a_reference_is_for_the_studys_own_settings_alone(tmp_path: Path, data: str, applies: bool) -> None:
    folder = write_sweep(
        tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.95]}, *REFERENCE, f"study.where={{data.name: {data}}}"
    )
    compare([folder])
    assert ("the reference 99.00 %" in report(folder)) is applies


def test_rows_stand_beside_the_studys_reference(tmp_path: Path) -> None:
    values = {(5, 8): [0.9, 0.92, 0.94], (9, 8): [0.95, 0.96, 0.97], (7, 8): [0.9, 0.9, 0.9]}
    folder = write_sweep(tmp_path / "s", values, *REFERENCE)
    compare([folder])
    by_kernel = {row[KERNEL]: row for row in rows(folder)}
    assert float(by_kernel["5"]["difference"]) == pytest.approx(0.915 - 0.91)
    assert [by_kernel[kernel]["reference_in_interval"] for kernel in "579"] == ["True", "", "False"]
    assert "the reference 99.00 %: -3.50 points, outside our interval" in report(folder)
    assert "best test/accuracy first" in report(folder), "the study's metric is the default"
    assert "from the paper" in report(folder)


def test_without_validation_the_test_set_is_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", f"{KERNEL}=5", best__val__accuracy=None, test__accuracy=0.9)
    write_run(tmp_path / "s" / "b", f"{KERNEL}=9", best__val__accuracy=None, test__accuracy=0.8)
    compare([tmp_path / "s"])
    assert "Best: kernel_size=5 with 90.00 % test/accuracy" in report(tmp_path / "s")


def test_sort_metric_and_filter(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(9, 8): [0.95], (5, 8): [0.9], (5, 16): [0.93]})

    def kernels_and_depths(**options: Any) -> list[tuple[int | None, int | None]]:
        return [(row.levels.get(KERNEL), row.levels.get(DEPTH)) for row in read([folder], **options).rows]

    assert kernels_and_depths() == [(9, 8), (5, 16), (5, 8)]
    assert kernels_and_depths(sort="kernel_size") == [(5, 16), (5, 8), (9, 8)]
    assert kernels_and_depths(sort="parameters") == [(5, 8), (9, 8), (5, 16)]
    assert kernels_and_depths(metric="parameters") == [(5, 8), (9, 8), (5, 16)], "less is better"
    assert kernels_and_depths(filters=["kernel_size>5"]) == [(None, None)]
    assert kernels_and_depths(filters=["kernel_size!=9", "val/accuracy>=0.93"]) == [(None, None)]
    assert kernels_and_depths(filters=["kernel_size=9e0"]) == kernels_and_depths(filters=["kernel_size=9"])
    assert kernels_and_depths(filters=["val/accuracy>=9.3e-1"]) == [(9, 8), (5, 16)]
    assert len(read([folder], filters=["lr=1e-2"]).rows) == 3, "YAML takes it for a word"
    assert kernels_and_depths(filters=["status=failed"]) == []
    with pytest.raises(ConfigError, match=r"kernel_sise: no run has such .*; did you mean kernel_size"):
        read([folder], filters=["kernel_sise=3"])
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        read([folder], filters=["kernel_size"])
    with pytest.raises(ConfigError, match="no run has such a figure"):
        read([folder], metric="model.norm")


# The command.


def test_the_table_keeps_to_a_terminal_and_is_whole_in_a_pipe(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92], (9, 16): [0.95, 0.96]})
    piped = command("s", cwd=tmp_path, script="compare", COLUMNS="80")
    assert piped.returncode == 0, piped.stderr
    headings = next(line for line in piped.stdout.splitlines() if "kernel_size" in line and "=" not in line).split("  ")
    shown = [heading.strip() for heading in headings if heading.strip()]
    assert shown == ["depth", "kernel_size", "n", "val %", "test %", "params", "MACs", "s", "img/s"]
    assert "91.00 ± 12.71" in piped.stdout and "…" not in piped.stdout and folder.joinpath("comparison.md").exists()

    terminal = command("s", cwd=tmp_path, script="compare", COLUMNS="60", FORCE_COLOR="1")
    plain = re.sub(r"\x1b\[[\d;]*m", "", terminal.stdout).splitlines()
    table = plain[1 : next(i for i, line in enumerate(plain) if line.startswith("Best"))]
    assert "val %" in "".join(table) and any("no room here for" in line for line in table)
    assert max(map(len, table)) <= 60 and "…" not in "".join(table)


def test_json_is_all_that_is_printed_and_nothing_is_written(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92], (9, 8): [math.nan, 0.96]})
    finished = command("s", "--json", cwd=tmp_path, script="compare")
    tree = json.loads(finished.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [row["n"] for row in tree["rows"]] == [1, 2] and tree["keys"] == [KERNEL]
    assert tree["effects"][0]["factor"] == KERNEL and tree["effects"][0]["is_clear"] is False
    assert not list(folder.glob("comparison.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "error: nowhere: there is no such folder"),
        (("empty",), "error: empty: no runs here"),
        (("s", "--filter", "depth=99"), "error: s: no runs here that fit"),
        (("s", "--metric", "val/acuracy"), "did you mean val/accuracy"),
    ],
)
def test_what_cannot_be_compared_is_report_errors(tmp_path: Path, arguments: tuple[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    write_sweep(tmp_path / "s", {(5, 8): [0.9]})
    finished = command(*arguments, cwd=tmp_path, script="compare")
    assert finished.returncode == 1 and message in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "empty" / "comparison.csv").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.8]})
    (folder / "comparison.csv").mkdir()  # root may write anywhere; but not a file where a folder is
    assert len(compare([folder])) == 2
    out = capsys.readouterr().out
    assert "could not be written" in out and "Best: kernel_size=5" in out


def test_a_comparison_of_some_runs_leaves_that_of_all(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.8], (9, 16): [0.7]})
    compare([folder])
    before = (folder / "comparison.csv").read_bytes()
    for condition in ("depth>8", "depth>=8", "depth<=8", "depth=8", "depth!=8"):
        compare([folder], filters=[condition])
    assert (folder / "comparison.csv").read_bytes() == before
    assert len(list(folder.glob("comparison*.csv"))) == 6
    assert len((folder / "comparison-depth_from_8.csv").read_text().splitlines()) == 4
    assert "](comparison-depth=8.png)" in (folder / "comparison-depth=8.md").read_text()


@pytest.mark.parametrize(("name", "settings"), [("image_folder", 2), ("cifar10", 1)])
def test_two_folders_of_images_are_two_settings(tmp_path: Path, name: str, settings: int) -> None:
    for place in ("here", "there"):
        write_run(tmp_path / "s" / place, f"data.name={name}", f"data.root={place}", best__val__accuracy=0.9)
    compare([tmp_path / "s"])
    assert len(rows(tmp_path / "s")) == settings


def test_a_thousand_runs_take_seconds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(1000):
        kernel, depth, lr, seed = 3 + 2 * (i % 5), 4 * (1 + i // 5 % 5), 0.001 * (1 + i // 25 % 8), i // 200
        tree = as_tree(f"{KERNEL}={kernel}", f"{DEPTH}={depth}", f"optimizer.lr={lr}", f"seed={seed}")
        write_run(tmp_path / "s" / f"{i}", config=tree, best__val__accuracy=generator.normal(0.9, 0.01))
    measure = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r})\n"
        "import time; from pathlib import Path; from comparison.compare import compare\n"
        "assert len(compare([Path('s')])) == 1000\n"
        "print(Path('/proc/self/status').read_text() if Path('/proc').exists() else 'VmHWM: 0 kB')\n"
        "print('seconds:', time.process_time())"
    )
    finished = subprocess.run([sys.executable, "-c", measure], cwd=tmp_path, capture_output=True, text=True, check=True)
    (seconds,) = re.findall(r"seconds: (.*)", finished.stdout)
    assert float(seconds) < 10, "of the processor: other tests run beside this one"
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", finished.stdout)
    assert int(peak) * 1024 < 500e6
    assert len(rows(tmp_path / "s")) == 200 and "180 more settings in comparison.csv" in finished.stdout
