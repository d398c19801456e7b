"""Tests of data: the splits, and batches that are equal for any number of workers and ranks."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from config import schema
from config.schema import Config
from conftest import Finished, checked
from data import datasets
from pipeline.batches import make_train_loader
from runtime.distributed import World
from training import run


def test_digits() -> None:
    digits = datasets.load(checked().data, 1)
    assert digits.val is not None
    assert (digits.channels, digits.image_size, len(digits.classes)) == (1, (8, 8), 10)
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert digits.train.images.max() == 255


def test_splits_are_disjoint_stratified_and_repeatable() -> None:
    def parts(**options: Any) -> tuple[datasets.Split, datasets.Split, datasets.Split]:
        loaded = datasets.load(schema.Data(name="digits", root="", **options), 1)
        assert loaded.val is not None
        return loaded.train, loaded.val, loaded.test

    def rows(images: datasets.Split) -> set[bytes]:
        return {pixels.tobytes() for pixels in images.images}

    train, val, test = parts(val_fraction=0.2, split_seed=3)
    assert len(rows(train) | rows(val) | rows(test)) == 1797  # all digits differ
    for part in (train, val, test):
        shares = np.bincount(part.labels) / len(part)
        assert abs(shares - np.bincount(test.labels) / len(test)).max() < 0.01
    again = parts(val_fraction=0.2, split_seed=3)
    other = parts(val_fraction=0.2, split_seed=4)
    assert all(np.array_equal(a.images, b.images) for a, b in zip((train, val, test), again, strict=True))
    assert rows(other[1]) != rows(val)
    assert rows(other[2]) == rows(test)
    fewer, same_val, _ = parts(val_fraction=0.2, split_seed=3, train_fraction=0.5)
    assert rows(fewer) < rows(train)
    assert abs(len(fewer) - len(train) / 2) < 1
    assert rows(same_val) == rows(val)


# Batches.


def epochs_of(config: Config, epochs: int = 2) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    loader = make_train_loader(datasets.load(config.data, 1), config)
    seen = []
    for epoch in range(1, epochs + 1):
        loader.sampler.epoch = epoch
        seen.append(list(loader))
    return seen


def test_batches_are_the_same_for_any_number_of_workers() -> None:
    overrides = ["augmentation=randaugment", "data.train_fraction=0.2"]
    alone, by_workers, other_seed = (
        epochs_of(checked(*overrides, f"data.num_workers={workers}", f"seed={seed}"))
        for workers, seed in ((0, 0), (2, 0), (0, 1))
    )
    for first, second in zip(chain(*alone), chain(*by_workers), strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    assert not torch.equal(alone[0][0][0], alone[1][0][0])
    assert not torch.equal(alone[0][0][0], other_seed[0][0][0])


def test_an_epoch_has_every_image_once_in_random_order() -> None:
    config = checked("augmentation=none")
    images = datasets.load(config.data, 1).train
    (batches,) = epochs_of(config, 1)
    assert [len(labels) for _, labels in batches[:-1]] == [32] * (len(batches) - 1)
    pixels = torch.cat([pixels for pixels, _ in batches])
    assert {row.numpy().tobytes() for row in pixels} == {row.tobytes() for row in images.images}
    assert not np.array_equal(pixels[:, 0].numpy(), images.images[..., 0])


def test_making_batches_leaves_the_generators_alone() -> None:
    config = checked("augmentation=randaugment")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    epochs_of(config, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("environment", "threads", "expected"),
    [
        ({}, 16, 15),
        ({}, 4, 3),  # OMP_NUM_THREADS=4: of a user, of Slurm, or where runs train side by side
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4"}, 1, 3),  # torchrun sets OMP_NUM_THREADS=1
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "16"}, 1, 1),
    ],
)
def test_workers_take_the_cores_that_the_process_may_use(
    environment: dict[str, str], threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = checked("augmentation=randaugment", "data.num_workers=null")
    assert make_train_loader(datasets.load(config.data, 1), config).num_workers == expected


def test_rank_starts_its_workers_with_the_loader() -> None:
    """A process with NCCL must not be forked."""
    config = checked("augmentation=randaugment", "data.train_fraction=0.2", "data.num_workers=1")
    loaded = datasets.load(config.data, 1)
    before = set(multiprocessing.active_children())
    loader = make_train_loader(loaded, config, World(1, 2))
    (worker,) = set(multiprocessing.active_children()) - before
    alone = make_train_loader(loaded, replace(config, data=replace(config.data, num_workers=0)), World(1, 2))
    for epoch in (1, 2):
        for either in (loader, alone):
            either.sampler.epoch = epoch
        for (pixels, labels), (expected, expected_labels) in zip(loader, alone, strict=True):
            assert torch.equal(pixels, expected)
            assert torch.equal(labels, expected_labels)
    assert set(multiprocessing.active_children()) - before == {worker}


def test_run_makes_its_loaders_before_its_training_state(
    train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training state wraps the model in DistributedDataParallel, which starts NCCL."""
    order: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        made = getattr(run, name)

        def make(*arguments: Any) -> Any:
            order.append(name)
            return made(*arguments)

        return make

    for name in ("make_loaders", "TrainingState"):
        monkeypatch.setattr(run, name, noted(name))
    assert train("trainer.epochs=1").summary["status"] == "completed"
    assert order == ["make_loaders", "TrainingState"]
