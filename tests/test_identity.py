"""Which runs are one: a run's ID follows what affects its result, in whatever words it was written."""

import pytest

from conftest import checked
from tracking.identity import display_name, run_id


def test_the_ids_of_ordinary_runs_stay_what_they_were() -> None:
    """As computed before any of the rules; a changed one would train finished sweeps again."""
    known = {
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
    assert {overrides: run_id(checked(*overrides)) for overrides in known} == known


@pytest.mark.parametrize(
    ("one", "other"),
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
    ],
)  # fmt: skip
def test_two_ways_to_write_one_training_are_one_run(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert run_id(checked(*one)) == run_id(checked(*other))


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


def test_a_run_is_named_by_what_varies_in_its_sweep_and_alone_by_its_overrides() -> None:
    overrides = ["data=digits", "model.kernel_size=5", "optimizer.lr=0.1", "seed=1", "sweep=s"]
    assert display_name(overrides) == "data=digits kernel_size=5 lr=0.1 seed=1"
    assert display_name(overrides, ["model.kernel_size", "seed"]) == "kernel_size=5 seed=1"
    assert display_name(["sweep=s"]) == "baseline"
