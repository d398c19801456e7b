"""Tests of run IDs: they depend on everything that affects the result, and on nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comparison.runs import read_run
from config.schema import LATER_KEYS
from conftest import Finished, checked
from data import datasets
from data.fingerprint import hash_images
from run_folders import as_yaml, write_run
from tracking.identity import display_name, run_id
from tracking.run_index import RunIndex


@pytest.mark.slow
def test_the_ids_of_ordinary_runs_stay_what_they_were() -> None:
    """The IDs are those of the first version. A changed ID would train finished sweeps again."""
    ids = {
        ("model.depth=1", "trainer.epochs=1"): "3b09320a",
        (): "5476ac21",
        ("data=cifar10", "model=convmixer_256_8"): "3c021f65",
        ("dropout=blocks", "dropout.rate=0.05"): "8c48d687",
        ("dropout=all",): "bb1c5a46",
        ("optimizer=sgd", "scheduler=cosine"): "a5612a6a",
        ("experiment=convmixerlib", "hardware=any"): "a5169e65",
        ("experiment=annotated", "augmentation=none", "hardware=any"): "8123e01e",
        ("experiment=paper_ablation", "variant=no_flip", "hardware=any"): "8437b71c",
    }
    assert {overrides: run_id(checked(*overrides)) for overrides in ids} == ids


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("dropout=blocks", "dropout.rate=0.1"), ("dropout.blocks=0.1",)),
        (("dropout=blocks", "dropout.rate=0"), ("dropout=none",)),
        (("optimizer.weight_decay=-0.0",), ("optimizer.weight_decay=0",)),
        (("data.image_size=8",), ()),
        (("data=cifar10", "data.image_size=32"), ("data=cifar10",)),
        (("trainer.early_stopping.min_delta=0.1",), ()),
        (("data=cifar10", "augmentation=none", "data.hflip=0.2"), ("data=cifar10", "augmentation=none")),
        (("augmentation.hflip=0.5",), ("data.hflip=0.5",)),
        (("data.val_fraction=0", "trainer.monitor=val/loss", "data.split_seed=1"), ("data.val_fraction=0",)),
        (("optimizer.weight_decay=0", "optimizer.decay_norm_and_bias=true"), ("optimizer.weight_decay=0",)),
        (("trainer.channels_last=false", "varied=[seed]", "sweep=another"), ()),
        (("notes=a first try", "checkpoint.keep=all"), ()),
    ],
)  # fmt: skip
def test_two_ways_to_write_one_training_are_one_run(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert run_id(checked(*first)) == run_id(checked(*second))


@pytest.mark.parametrize(
    "different",
    [
        ("seed=1",), ("dropout=blocks",), ("dropout=head",), ("data.image_size=16",), ("data.split_seed=1",),
        ("trainer.early_stopping.patience=3",), ("trainer.monitor=val/loss",), ("data.hflip=0.5",),
        ("optimizer.decay_norm_and_bias=true",),
    ],
)  # fmt: skip
def test_what_changes_a_result_changes_the_id(different: tuple[str, ...]) -> None:
    assert run_id(checked(*different)) != run_id(checked())


def test_display_name_shows_varied_keys_or_all_overrides() -> None:
    overrides = ["data=digits", "model.kernel_size=5", "optimizer.lr=0.1", "seed=1", "sweep=s"]
    assert display_name(overrides) == "data=digits kernel_size=5 lr=0.1 seed=1"
    assert display_name(overrides, ["model.kernel_size", "seed"]) == "kernel_size=5 seed=1"
    assert display_name(["sweep=s"]) == "baseline"
    assert display_name(["model.pretrained=/a/outputs/search/kernel_5-0123abcd"]) == "pretrained=kernel_5-0123abcd"
    for key in ("experiment", "data.root"):
        assert display_name([f"{key}=a", "sweep=s"], [key]) == f"{key.rpartition('.')[2]}=a"


def test_of_copies_of_a_folder_the_completed_one_is_the_runs(tmp_path: Path) -> None:
    for name, summary in (("a", '{"status": "interrupted", "epochs": 1}'), ("m", '{"status": "completed"}'), ("z", "")):
        (tmp_path / f"{name}-1f").mkdir()
        (tmp_path / f"{name}-1f" / "summary.json").write_text(summary)
    assert RunIndex(tmp_path).folders == {"1f": tmp_path / "m-1f"}


# Which images a run is of.


def id_of(root: Path | str) -> str:
    hash_images.cache_clear()
    return run_id(checked("data=image_folder", f"data.root={root}"))


def replace_image(folder: Path) -> None:
    """Replace an image by another one of equal size."""
    path = folder / "train" / "dog" / "5.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def rename_image(folder: Path) -> None:
    (folder / "train" / "dog" / "5.png").rename(folder / "train" / "dog" / "five.png")


def grow_image(folder: Path) -> None:
    with (folder / "val" / "owl" / "2.png").open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("limit", [2**30, 1000])
@pytest.mark.parametrize("change", [replace_image, rename_image, grow_image])
def test_another_image_is_another_run(
    folder: Path, change: Callable[[Path], None], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit only names and sizes are compared."""
    monkeypatch.setattr("data.fingerprint.MOST_BYTES", limit)
    before = id_of(folder)
    change(folder)
    assert (id_of(folder) != before) == (limit == 2**30 or change is not replace_image)


def test_the_same_images_are_the_same_run_wherever_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = id_of(folder)
    copy = folder / "copies" / "here"
    for part in ("train", "val"):
        shutil.copytree(folder / part, copy / part)
    assert id_of(copy) == expected
    monkeypatch.chdir(copy.parent)
    assert id_of("here") == expected
    (copy / "train" / "cat" / ".DS_Store").write_text("no image")
    (copy / "train" / ".ipynb_checkpoints").mkdir()
    assert id_of(copy) == expected
    link = copy / "train" / "cat" / "gone.png"
    link.symlink_to(copy / "nowhere")
    assert id_of(copy) != expected  # and no exception: the run will name it
    assert id_of(folder / "nowhere") != expected


@pytest.mark.slow
def test_a_run_records_its_images_and_reads_them_once(
    folder: Path, train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    def images_of(*overrides: str) -> str:
        done = train(
            "data=image_folder", f"data.root={folder}", "data.train_fraction=1", "data.batch_size=8", *overrides
        )
        return done.summary["data_fingerprint"]

    hash_images.cache_clear()
    first = images_of()
    with monkeypatch.context() as context:
        context.setattr("data.fingerprint.read_content", pytest.fail)
        assert images_of("seed=1") == first
    rename_image(folder)
    hash_images.cache_clear()
    datasets.read.cache_clear()
    assert images_of() != first


def test_a_truncated_or_changed_config_is_reported(digits_run: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_run, folder := tmp_path / digits_run.name, ignore=shutil.ignore_patterns("wandb"))
    file, text = folder / "config.yaml", (digits_run / "config.yaml").read_text()
    whole = read_run(folder)
    assert whole.status == "completed"
    lines = text.splitlines(keepends=True)
    for count in range(len(lines)):
        file.write_text("".join(lines[:count]))
        run = read_run(folder)
        assert run.status == "unreadable" or run.config.items() >= {"seed": whole.config["seed"]}.items()
        assert run.status == "unreadable" or count > len(lines) - 5
    for old, new in (("\nseed: 0", "\nseed: 3"), ("  depth: ", "  depth: 1")):
        assert old in text
        file.write_text(text.replace(old, new))
        assert "config.yaml" in read_run(folder).reason and read_run(folder).status == "unreadable"


def test_configs_that_cannot_give_the_id_are_accepted(digits_run: Path, tmp_path: Path) -> None:
    text = (digits_run / "config.yaml").read_text()
    later = [f"{key.rpartition('.')[2]}:" for key in LATER_KEYS]
    older = "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith(tuple(later)))
    changed = text.replace("\nseed: 0", "\nseed: 3")
    cases = {
        digits_run.name: older,  # by a version without the later keys
        "mine": changed,
        "mine-20260102": changed,
        "other-0123abcd": changed.replace("  activation:", "  nonlinearity:"),  # by a version with other keys
    }
    for name, content in cases.items():
        shutil.copytree(digits_run, tmp_path / name, ignore=shutil.ignore_patterns("wandb"))
        (tmp_path / name / "config.yaml").write_text(content)
        assert read_run(tmp_path / name).status == "completed", name


@pytest.mark.parametrize(
    ("config", "summary"),
    [
        ("deep: " + "[" * 200_000, {}), ("r: &m\n  x: *m", {}), ("x: !!set {1}", {}), ("old: .nan", {}),
        ("seed: '1'", {}),
        ("study:\n  reference: [{where: 5, value: 1}]", {}), ("", {"status": 3}), ("", {"status": None}),
        ("", {"epochs": 10**400}), ("", {"overrides": ["a"]}), ("", {"choices": {"model": [1]}}),
        ("", {"wandb_id": ["a"]}), ("", {"status": ["completed"]}), ("", {"varied": 5}), ("", {"images": 9}),
    ],
)  # fmt: skip
def test_a_run_with_damaged_files_is_unreadable(config: str, summary: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "run", config=as_yaml() + config, **summary)
    assert (run := read_run(tmp_path / "run")).status == "unreadable" and "\n" not in run.reason


def test_a_number_of_400_digits_is_no_figure(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", parameters=10**400, memory=float("nan"), seconds=2.0))
    assert [run.figure(name) for name in ("parameters", "memory", "seconds")] == [None, None, 2.0]
