"""What a comparison makes of runs: settings and factors, ranks, filters, references, and the state of runs."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from comparison import options
from comparison.findings import caveats
from comparison.notes import notes
from comparison.results import Comparison, read
from comparison.settings import Setting
from config.errors import ConfigError
from run_folders import DEPTH, KERNEL, REFERENCE, as_yaml, compared, write_run, write_sweep
from tracking import run_lock


def names(found: Comparison) -> set[str]:
    return {run.folder.name for run in found.runs}


# Settings and factors.


def by_folder(found: Comparison) -> list[set[str]]:
    return [{run.folder.name for run in setting.runs} for setting in found.settings]


def test_images_are_told_by_their_content_not_by_their_path(tmp_path: Path) -> None:
    for name, root, fingerprint in (
        ("a", "imgs", "1f"), ("b", f"{tmp_path}/imgs", "1f"), ("changed", "imgs", "2e"), ("other", "photos", "3d"),
    ):  # fmt: skip
        write_run(tmp_path / "s" / name, "data.name=image_folder", f"data.root={root}", data_fingerprint=fingerprint)
    found = read([tmp_path / "s"])
    assert sorted(map(sorted, by_folder(found))) == [["a", "b"], ["changed"], ["other"]]
    assert found.levels("data.root") == ["imgs (1f)", "imgs (2e)", "photos"]


def test_runs_without_a_fingerprint_are_told_by_their_path(tmp_path: Path) -> None:
    """Of older versions, or ended before it was known."""
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
                name=f"dropout={option} rate={rate}", best__val__accuracy=0.9 + rate / 10 + len(option) / 1000,
                **figures,
            )  # fmt: skip
    return folder


def test_a_split_that_follows_the_seed_is_part_of_it(tmp_path: Path) -> None:
    """As of data.split_seed=${seed}: runs of one setting stay one row; beside a sweep with one split they do not."""
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


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize(
    ("options", "rates"), [(("blocks", "head", "all"), (0.05, 0.15, 0.3)), (("blocks", "head"), (0.1, 0.2))]
)
def test_the_place_and_the_rate_of_dropout_are_factors(
    tmp_path: Path, options: tuple[str, ...], rates: tuple[float, ...], is_told: bool
) -> None:
    """As summary.json has it, and as older runs tell it by their names."""
    folder = write_dropout(tmp_path / "s", options, rates)
    if is_told:
        for path in folder.glob("*/summary.json"):
            option, _, rate = path.parent.name.partition("-")
            told = {
                "overrides": {"dropout": option, "dropout.rate": float(rate)},
                "varied": ["dropout", "dropout.rate"],
            }
            path.write_text(json.dumps(json.loads(path.read_text()) | told))
    found = read([folder])
    assert found.factors == ["dropout", "dropout.rate"]
    pairs = {(effect.factor, effect.level): len(effect.pairs) for effect in found.effects}
    assert pairs == {
        **{("dropout", option): len(rates) for option in sorted(options)[1:]},
        **{("dropout.rate", rate): len(options) for rate in rates[1:]},
    }


def test_no_dropout_is_the_rate_of_0_at_every_place(tmp_path: Path) -> None:
    """As in a sweep of places and rates that starts from 0: these runs are one, which has the first one's name."""
    write_dropout(tmp_path / "s", ("blocks", "head"), (0.1, 0.2))
    write_run(tmp_path / "s" / "none", name="dropout=blocks rate=0.0", best__val__accuracy=0.9)
    found = read([tmp_path / "s"])
    assert found.factors == ["dropout", "dropout.rate"]
    (effect,) = (effect for effect in found.effects if effect.level == 0.1)
    assert (effect.factor, effect.baseline, len(effect.pairs)) == ("dropout.rate", 0.0, 2)


def test_dropout_by_its_places_is_the_same_setting_as_by_its_option(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", "dropout.blocks=0.1", name="blocks=0.1")
    write_run(tmp_path / "s" / "b", "dropout.blocks=0.1", "dropout.rate=0.1", name="dropout=blocks rate=0.1")
    assert len(read([tmp_path / "s"]).settings) == 1


def test_what_was_not_varied_but_differs_between_sweeps_is_a_factor_where_it_is_needed() -> None:
    first = [({KERNEL: k, DEPTH: 8, "optimizer.lr": 0.01}, [0.9]) for k in (5, 9)]
    second = [({KERNEL: 5, DEPTH: d, "optimizer.lr": 0.02}, [0.9]) for d in (16, 32)]
    assert set(compared([*first, *second], KERNEL, DEPTH).factors) == {KERNEL, DEPTH}
    same = [({KERNEL: 5, DEPTH: 8, "optimizer.lr": 0.02}, [0.9])]
    assert set(compared([*first, *second, *same], KERNEL, DEPTH).factors) == {KERNEL, DEPTH, "optimizer.lr"}


# Order.


def test_settings_are_sorted_by_a_figure_also_where_a_run_failed(tmp_path: Path) -> None:
    none = {"seconds": None, "parameters": None}
    write_run(tmp_path / "s" / "a", f"{KERNEL}=5", "seed=0", status="failed", **none)
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
    found = read([write_sweep(tmp_path / "s", {(9, 8): [0.9], (5, 8): [0.9]})])
    assert [setting.levels[KERNEL] for setting in found.settings] == [5, 9]


# Filters.


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("dropout=none", {"default", "typed", "rate_0"}),
        ("dropout!=none", {"blocks", "by_place", "head"}),
        ("dropout=blocks", {"blocks", "by_place"}),
        ("kernel=k5", {"default", "typed", "rate_0", "blocks", "by_place"}),
        ("augmentation=light", {"default", "typed", "rate_0", "blocks", "by_place"}),
        ("augmentation=paper", {"head"}),
        ("model=convmixer_256_8", {"head"}),
        ("experiment=paper_cifar10", {"head"}),
        ("hardware=gpu", {"head"}),
        ("optimizer=adamw", {"default", "typed", "rate_0", "blocks", "by_place", "head"}),
    ],
)
def test_options_are_seen_also_where_they_were_not_typed(tmp_path: Path, condition: str, kept: set[str]) -> None:
    folder = tmp_path / "s"
    write_run(folder / "default", name="baseline")
    write_run(folder / "typed", name="dropout=none")
    write_run(folder / "rate_0", name="dropout=blocks rate=0.0")
    write_run(folder / "blocks", "dropout.blocks=0.1", "dropout.rate=0.1", name="dropout=blocks rate=0.1")
    write_run(folder / "by_place", "dropout.blocks=0.2", name="blocks=0.2")
    typed = {"experiment": "paper_cifar10", "dropout": "head"}
    chosen = {"model": "convmixer_256_8", "augmentation": "paper", "hardware": "gpu", "optimizer": "paper", **typed}
    told = {"overrides": typed, "choices": chosen}
    write_run(folder / "head", f"{KERNEL}=9", "dropout.head=0.1", "augmentation.auto_augment=rand-m9", **told)
    assert names(read([folder], filters=[condition])) == kept


def test_an_option_is_what_was_chosen_whatever_the_default_is_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = shutil.copytree(options.CONF, tmp_path / "conf")
    train = (conf / "train.yaml").read_text()
    assert "optimizer: adamw" in train
    (conf / "train.yaml").write_text(train.replace("optimizer: adamw", "optimizer: sgd"))
    monkeypatch.setattr(options, "CONF", conf)
    write_run(tmp_path / "s" / "new", overrides={}, choices={"optimizer": "adamw"})
    write_run(tmp_path / "s" / "old", name="baseline")
    assert names(read([tmp_path / "s"], filters=["optimizer=adamw"])) == {"new", "old"}
    assert not names(read([tmp_path / "s"], filters=["optimizer=sgd"]))


def test_words_of_the_summary_are_filtered_by(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", device="cpu", host="a")
    write_run(tmp_path / "s" / "b", device="NVIDIA H100", host="b")
    assert names(read([tmp_path / "s"], filters=["device=cpu"])) == {"a"}
    assert names(read([tmp_path / "s"], filters=["host!=a"])) == {"b"}


@pytest.mark.parametrize("sweep", ["123", "007", "1e3", "2026-11-30", "true", "null", "[a]"])
def test_words_that_look_like_something_else_are_filtered_by(tmp_path: Path, sweep: str) -> None:
    write_run(tmp_path / "s" / "a", f"sweep='{sweep}'")
    write_run(tmp_path / "s" / "b")
    assert names(read([tmp_path / "s"], filters=[f"sweep={sweep}"])) == {"a"}
    assert names(read([tmp_path / "s"], filters=[f"sweep!={sweep}"])) == {"b"}
    assert names(read([tmp_path / "s"], filters=["experiment=null"])) == {"a", "b"}


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
            **dict.fromkeys(figures, value),
        )  # fmt: skip
    assert read([tmp_path / "s"], metric=metric).valued[0].runs[0].folder.name == best


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        (["kernel_sise=3"], r"kernel_sise: .*did you mean kernel_size"),
        (["kernel_size"], "--filter kernel_size: expected KEY=VALUE"),
        (["name=a: ["], r"--filter name=a: \[: .*YAML"),
        (["name='a"], "--filter name='a: .*YAML"),
    ],
)
def test_what_is_no_filter_is_one_line(tmp_path: Path, filters: list[str], told: str) -> None:
    write_run(tmp_path / "s" / "a")
    with pytest.raises(ConfigError, match=told) as error:
        read([tmp_path / "s"], filters=filters)
    assert "\n" not in str(error.value)


def test_a_metric_that_no_run_has_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a")
    with pytest.raises(ConfigError, match=r"--metric model\.norm"):
        read([tmp_path / "s"], metric="model.norm")


# References.


def of_kernel(found: Comparison, kernel: int) -> Setting:
    (setting,) = (setting for setting in found.settings if setting.levels.get(KERNEL, kernel) == kernel)
    return setting


@pytest.mark.parametrize(("data", "applies"), [("digits", True), ("cifar10", False)])
def test_a_reference_is_for_the_studys_own_settings_alone(tmp_path: Path, data: str, applies: bool) -> None:
    values = {(5, 8): [0.9], (9, 8): [0.95]}
    found = read([write_sweep(tmp_path / "s", values, *REFERENCE, f"study.where={{data.name: {data}}}")])
    reference = of_kernel(found, 9).reference
    assert (reference is not None and reference.value == 0.99) is applies


def test_settings_stand_beside_the_studys_reference(tmp_path: Path) -> None:
    values = {(5, 8): [0.9, 0.92, 0.94], (9, 8): [0.95, 0.96, 0.97], (7, 8): [0.9, 0.9, 0.9]}
    found = read([write_sweep(tmp_path / "s", values, *REFERENCE)])
    assert found.metric == "test/accuracy", "the study's metric is the default"
    of_5, of_9 = of_kernel(found, 5).reference, of_kernel(found, 9).reference
    assert of_5 and of_9 and of_kernel(found, 7).reference is None
    assert of_5.difference == pytest.approx(0.915 - 0.91)
    assert of_5.ours.contains(of_5.value) and not of_9.ours.contains(of_9.value)


def test_a_reference_stays_where_one_run_was_written_as_keys(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", f"{KERNEL}=5", "seed=0", test__accuracy=0.9)
    write_run(tmp_path / "s" / "b", f"{KERNEL}=5", "seed=1", *REFERENCE, test__accuracy=0.9)
    (setting,) = read([tmp_path / "s"]).settings
    assert setting.reference and setting.reference.value == 0.91


# The state of runs.


def test_a_seed_run_twice_is_no_second_sample(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", {(5, 8): [0.9]})
    write_sweep(tmp_path / "b", {(5, 8): [0.92]})
    (setting,) = read([tmp_path / "a", tmp_path / "b", tmp_path / "a"]).settings
    estimate = setting.estimate("val/accuracy")
    assert estimate and (estimate.n, estimate.low) == (1, None) and estimate.value == pytest.approx(0.91)


@pytest.mark.parametrize("copy", ["a-copy", "z-copy"])
def test_a_copied_folder_does_not_replace_its_run(tmp_path: Path, copy: str) -> None:
    for name, status, epochs in ((copy, "interrupted", 1), ("m", "completed", 2), (f"{copy} 2", "interrupted", 2)):
        write_run(tmp_path / "s" / name, status=status, epochs=epochs, wandb_id="1f", best__val__accuracy=epochs / 10)
    write_run(tmp_path / "s" / "other", wandb_id="2e", best__val__accuracy=0.5)
    found = read([tmp_path / "s"])
    assert names(found) == {"m", "other"}
    assert [line for line in notes(found) if f"/{copy} is" in line and "/m:" in line]


@pytest.mark.parametrize(
    ("key", "metric", "differs"),
    [
        ("data.name=cifar10", "val/accuracy", True), ("data.split_seed=1", "val/accuracy", True),
        ("data.split_seed=1", "test/accuracy", False), ("optimizer.lr=0.5", "val/accuracy", False),
    ],
)  # fmt: skip
def test_results_on_different_images_are_said_to_be(tmp_path: Path, key: str, metric: str, differs: bool) -> None:
    write_run(tmp_path / "s" / "a", best__val__accuracy=0.9, test__accuracy=0.9)
    write_run(tmp_path / "s" / "b", key, best__val__accuracy=0.8, test__accuracy=0.9)
    found = notes(read([tmp_path / "s"], metric=metric))
    assert bool(found) is differs and all(key.partition("=")[0] in line for line in found)


def test_the_number_of_images_is_that_of_all_runs_or_none(tmp_path: Path) -> None:
    for name, images in (("a", 144), ("b", 24)):
        figures = {"images": {"train": 1, "val": images, "test": 1}}
        write_run(tmp_path / "s" / name, f"{KERNEL}={images}", **figures, best__val__accuracy=0.9)
    found = read([tmp_path / "s"])
    assert not any("rests on" in line for line in caveats(found))
    assert "144 images" in notes(found)[0] and "24 images" in notes(found)[0]


def test_runs_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for name, file, content in (
        ("no_config", "config.yaml", None), ("no_summary", "summary.json", None), ("cut", "summary.json", '{"sta'),
        ("list", "summary.json", "[]"), ("yaml", "config.yaml", "a: [1"), ("binary", "config.yaml", "\udcff"),
        ("words", "config.yaml", "just words"), ("odd", "config.yaml", "model: {kernel_size: [{a: 1}]}\nseed: 0"),
    ):  # fmt: skip
        path = write_run(tmp_path / "s" / name, best__val__accuracy=0.8) / file
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode(errors="surrogateescape"))
    runs = {run.folder.name: run for run in read([tmp_path / "s"]).runs}
    assert {run.status for run in runs.values()} == {"unreadable"} and len(runs) == 8
    assert all("\n" not in run.reason for run in runs.values())
    assert "summary.json" in runs["cut"].reason and "config.yaml" in runs["yaml"].reason
    assert "model.kernel_size" in runs["odd"].reason


HOLD = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s" / "kernel_size_5-01234567", status="interrupted", epochs=1)
    write_run(tmp_path / "s" / "pruned-45670123", status="pruned", epochs=1)
    (tmp_path / "s" / ".locks").mkdir()

    def statuses() -> dict[str, str]:
        return {run.folder.name.rpartition("-")[2]: run.status for run in read([tmp_path / "s"]).runs}

    assert statuses() == {"01234567": "interrupted", "45670123": "pruned"}
    assert not list((tmp_path / "s" / ".locks").iterdir()), "looking makes no lock"
    lock = tmp_path / "s" / ".locks" / "01234567.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"held\n"
        assert statuses() == {"01234567": "running", "45670123": "pruned"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.exists() and statuses() == {"01234567": "interrupted", "45670123": "pruned"}
    assert run.exists()


def test_who_only_looks_does_not_keep_a_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 60)
    path = tmp_path / "0123abcd.lock"
    path.touch()
    with ThreadPoolExecutor() as pool, path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        starting = pool.submit(run_lock.acquire_lock, path)
        assert not starting.done()
        fcntl.flock(file, fcntl.LOCK_UN)
        lock = starting.result()
    assert lock is not None
