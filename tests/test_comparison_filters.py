"""Tests of filters: by keys, by options chosen or not, and by words of the summary."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from comparison import options
from comparison.results import read
from config.errors import ConfigError
from run_folders import KERNEL, names, write_run


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
    write_run(folder / "typed", overrides={"dropout": "none"})
    blocks = {"dropout": "blocks", "dropout.rate": 0.0}
    write_run(folder / "rate_0", overrides=blocks)
    write_run(folder / "blocks", "dropout.blocks=0.1", overrides=blocks | {"dropout.rate": 0.1})
    write_run(folder / "by_place", "dropout.blocks=0.2")
    typed = {"experiment": "paper_cifar10", "dropout": "head"}
    chosen = {"model": "convmixer_256_8", "augmentation": "paper", "hardware": "gpu", "optimizer": "paper", **typed}
    recorded: dict[str, Any] = {"overrides": typed, "choices": chosen}
    write_run(folder / "head", f"{KERNEL}=9", "dropout.head=0.1", "augmentation.auto_augment=rand-m9", **recorded)
    assert names(read([folder], filters=[condition])) == kept


def test_filter_by_option_survives_a_changed_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    ("filters", "message"),
    [
        (["kernel_sise=3"], r"kernel_sise: .*did you mean kernel_size"),
        (["kernel_size"], "--filter kernel_size: expected KEY=VALUE"),
        (["name=a: ["], r"--filter name=a: \[: .*YAML"),
        (["name='a"], "--filter name='a: .*YAML"),
    ],
)
def test_what_is_no_filter_is_one_line(tmp_path: Path, filters: list[str], message: str) -> None:
    write_run(tmp_path / "s" / "a")
    with pytest.raises(ConfigError, match=message) as error:
        read([tmp_path / "s"], filters=filters)
    assert "\n" not in str(error.value)
