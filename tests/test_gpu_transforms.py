"""Tests of augmentation on the device as a whole: without synchronization, compiled, in batches and in runs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch._inductor.codegen.triton import TritonOverrides

from config.errors import ConfigError
from conftest import TINY, Finished, checked
from data import datasets
from photographs import COUNT, CPU, PIXELS, assert_close, draws, photograph_data, to_batch, to_pixels, transform_of
from pipeline.batches import BatchSpec, DeviceBatches, make_train_loader
from pipeline.gpu_transforms.batch import BatchTransform, exact_division
from runtime.distributed import World
from training import run


@pytest.mark.parametrize("name", ["paper", "short", "simple", "light", "randaugment"])
def test_nothing_waits_for_the_device(name: str) -> None:
    """The tensors have no values, so reading one fails."""
    steps, nowhere = transform_of(f"augmentation={name}", "augmentation.vflip=0.5"), torch.device("meta")
    transform = BatchTransform(steps, (3, 32, 32), nowhere)
    images = torch.empty(64, 3, 32, 32, dtype=torch.uint8, device=nowhere)
    made = transform(images, torch.empty(transform.numbers, 64, device=nowhere))
    assert (made.shape, made.dtype) == (images.shape, torch.uint8)


@pytest.mark.slow
def test_it_can_be_compiled_as_one_graph() -> None:
    transform = BatchTransform(transform_of("augmentation=paper"), (3, 32, 32), CPU)
    compiled = torch.compile(transform, fullgraph=True, backend="eager")
    uniforms = draws(COUNT)(transform.numbers)
    assert torch.equal(compiled(to_batch(PIXELS), uniforms), transform(to_batch(PIXELS), uniforms))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "short", "simple", "light"])
def test_compiled_on_a_gpu_it_is_what_it_is_on_the_cpu(name: str) -> None:
    """Compiled, a fused product and sum may differ by one grey level; on the CPU, a few pixels differ."""
    steps, gpu = transform_of(f"augmentation={name}"), torch.device("cuda")
    transform = BatchTransform(steps, (3, 32, 32), gpu)
    uniforms = draws(COUNT)(transform.numbers)
    eager = to_pixels(transform(to_batch(PIXELS, "cuda"), uniforms.cuda()))
    compiled = torch.compile(transform, fullgraph=True, dynamic=False, options=exact_division())
    assert_close(to_pixels(compiled(to_batch(PIXELS, "cuda"), uniforms.cuda())), eager, levels=1, share=1e-4)
    on_the_cpu = to_pixels(BatchTransform(steps, (3, 32, 32), CPU)(to_batch(PIXELS), uniforms))
    assert (eager != on_the_cpu).mean() < 0.005


def test_compiled_it_divides_as_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own division is approximate, and grey levels would differ by one."""
    compiled: list[dict[str, Any]] = []

    def compile_as_asked(transform: Any, **options: Any) -> Any:
        compiled.append(options)
        return transform

    monkeypatch.setattr(torch, "compile", compile_as_asked)
    batches("augmentation=paper", "trainer.compile=true")
    (asked,) = compiled
    with torch._inductor.config.patch(asked["options"]):
        assert "div_rn" in TritonOverrides.truediv(*(FloatVariable(name) for name in "xy"))


class FloatVariable(str):
    """A value by its name in Inductor's generated code."""

    dtype = torch.float32


def batches(*overrides: str, images: datasets.DataSplits | None = None, world: World | None = None) -> Any:
    config = checked("data=cifar10", "data.batch_size=16", "data.pipeline=device", *overrides)
    return make_train_loader(images or photograph_data(), config, world)


@pytest.mark.parametrize("name", ["rand-m9-t3a", "rand-m9-inc1-tweights"])
def test_an_operation_that_is_missing_is_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data.pipeline=device: .*; expected .*data.pipeline=cpu"):
        batches("augmentation=paper", f"augmentation.auto_augment={name}")


def test_images_that_stay_files_are_a_clear_error() -> None:
    files = datasets.Split(np.array(["a.png", "b.png"]), np.arange(2))
    images = datasets.DataSplits(files, None, files, ["a", "b"], 3, (224, 224), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=r"data.pipeline=device: .*Fix: data.pipeline=cpu"):
        batches("augmentation=none", images=images)


# Batches and runs.


def test_switched_off_it_is_the_cpus_batches() -> None:
    for device, cpu in zip(
        batches("augmentation=none"), batches("augmentation=none", "data.pipeline=cpu"), strict=True
    ):
        assert torch.equal(device[0], cpu[0])
        assert torch.equal(device[1], cpu[1])
    randomly_nothing = ("augmentation=paper", "augmentation.scale=[1.0,1.0]", "augmentation.ratio=[1.0,1.0]",
                        "augmentation.hflip=0", "augmentation.auto_augment=rand-m9-p0")  # fmt: skip
    for device, cpu in zip(batches(*randomly_nothing), batches("augmentation=none"), strict=True):
        assert torch.equal(device[0], cpu[0])


@pytest.mark.parametrize("size", [(20, 20), (40, 60)])
def test_without_a_random_crop_images_are_resized_as_on_the_cpu(size: tuple[int, int]) -> None:
    images = photograph_data(size)
    pairs = zip(
        batches("augmentation=none", images=images),
        batches("augmentation=none", "data.pipeline=cpu", "data.num_workers=0", images=images),
        strict=True,
    )
    for device, cpu in pairs:
        assert_close(to_pixels(device[0]), to_pixels(cpu[0]), levels=2, share=0.02)


def test_batch_depends_only_on_seed_epoch_and_number() -> None:
    def epoch(number: int, start: int = 0, seed: int = 0) -> list[torch.Tensor]:
        loader = batches("augmentation=paper", f"seed={seed}")
        loader.sampler.epoch, loader.sampler.start = number, start
        torch.manual_seed(number + start)  # without effect
        return [pixels for pixels, _ in loader]

    whole = epoch(2)
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], epoch(2, start=1), strict=True))
    assert not torch.equal(whole[0], epoch(1)[0])
    assert not torch.equal(whole[0], epoch(2, seed=1)[0])


def test_a_teams_shares_are_the_batch() -> None:
    shares = [batches("augmentation=paper", world=World(rank, 2)) for rank in range(2)]
    for alone, *parts in zip(batches("augmentation=paper"), *shares, strict=True):
        together = {image.numpy().tobytes() for pixels, _ in parts for image in pixels}
        assert together == {image.numpy().tobytes() for image in alone[0]}


@pytest.mark.slow
def test_a_run_learns(train: Callable[..., Finished]) -> None:
    done = train(
        "data.pipeline=device", "augmentation=randaugment", "model.d_model=32", "model.depth=4",
        "model.kernel_size=3", "data.train_fraction=1", "trainer.epochs=8",
    )  # fmt: skip
    assert done.summary["status"] == "completed"
    assert done.summary["test/accuracy"] >= 0.93


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_never_stopped(
    train: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["data.pipeline=device", "augmentation=paper", "model.kernel_size=3", "data.train_fraction=0.4"]
    uninterrupted = train(*overrides).metrics
    config = checked(*TINY, *overrides, f"output_dir={tmp_path}", "sweep=stopped")
    make, made = DeviceBatches.__getitem__, []

    def make_and_stop(self: DeviceBatches, key: BatchSpec) -> Any:
        made.append(key)
        if len(made) == 20:  # of 34 in two epochs
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self, key)

    with monkeypatch.context() as context:
        context.setattr(DeviceBatches, "__getitem__", make_and_stop)
        with pytest.raises(SystemExit):
            run.run(config, overrides)
    run.run(config, overrides)
    (folder,) = [path.parent for path in (tmp_path / "stopped").glob("*/config.yaml")]
    columns = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    assert Finished(folder, run.Result("completed")).metrics[columns].equals(uninterrupted[columns])
