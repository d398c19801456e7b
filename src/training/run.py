"""One run: load the data, build and train the model, record the result."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from config.command_line import override
from config.errors import ConfigError, first_line
from config.schema import Config
from config.text import shell
from data import datasets
from data.balance import class_lines, imbalance, sizes
from data.splits import DataSplits
from pipeline.batches import make_loaders
from runtime.cores import warn_of_busy_cores
from runtime.device import choose_device, describe, free_memory, is_gpu_lost, peak_memory, reserved_memory
from runtime.distributed import World, init_distributed
from runtime.launcher import Launcher, detect_launcher
from runtime.rng import seed_rngs
from runtime.signals import Interrupted, interrupted_at_once
from tracking import plots
from tracking.identity import data_fingerprint
from tracking.run_folder import RunBusy, RunFolder
from tracking.trial import Pruned
from tracking.wandb_logger import end_service, log_exceptions
from training.layer import REFERENCE, Backend, Layer
from training.loop import Trainer
from training.model import make_model, memory_format
from training.optimization import freeze
from training.preview import augmentation_figure
from training.selection import images_at_once, select
from training.state import TrainingState
from training.summary import as_lines, check_memory, summarize
from weights.pretrained import load_pretrained, normalize_as_before

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """The end of a run.

    Attributes:
        status: completed, pruned, interrupted or failed; running if another process trains the run.
        objective: `trainer.monitor` of the best epoch; None without validation, or if the run is not completed.
    """

    status: str
    objective: float | None = None

    @property
    def is_error(self) -> bool:
        return self.status in ("failed", "running")


def run(config: Config, overrides: Sequence[str], choices: Mapping[str, str | None] | None = None) -> Result:
    """Train one ConvMixer and record it. Resume an interrupted run; skip a completed one.

    Args:
        config: The parsed config, complete but for the backend, which is selected for this machine.
        overrides: The run's overrides, for its name and its record.
        choices: The option that Hydra chose from each config group.

    Raises:
        ConfigError: This machine cannot train such a run.
        SystemExit: A signal has ended the run, or it failed and on_failure=stop.
    """
    world = init_distributed()
    launcher = detect_launcher(world)
    on_gpu = config.trainer.device in ("auto", "cuda") and torch.cuda.is_available()
    if world.size > 1 and config.trainer.sync_batch_norm and not on_gpu:
        raise ConfigError("trainer.sync_batch_norm=true: PyTorch has it for GPUs only; leave it out on the CPU")
    if world.rank:
        logging.getLogger().setLevel(logging.ERROR)  # log on rank 0 only
    try:
        folder = RunFolder(config, overrides, world, choices)
    except RunBusy as busy:
        log.warning(str(busy))
        return Result("running")
    status = folder.summary.get("status")
    if status == "completed" or (status == "pruned" and config.trial):
        log.info(f"{folder.name}: {status} before → {folder.path}")
        folder.relog()
        folder.release()
        return Result(status, folder.summary.get("objective"))
    try:
        return train(config, folder, launcher, world)
    except (KeyboardInterrupt, SystemExit):
        folder.close(exit_code=1)
        raise
    except (Interrupted, Exception) as reason:
        traceback.clear_frames(reason.__traceback__)  # end its data loading workers, and free its memory
        return stop(reason, folder, launcher)
    finally:
        free_memory()


def train(config: Config, folder: RunFolder, launcher: Launcher, world: World) -> Result:
    """Build the trainer, start or resume, train, and save the results."""
    checkpoint = folder.checkpoints.load(config.trainer.epochs) or {}
    folder.start(checkpoint.get("rows", []))
    device = choose_device(config.trainer.device, config.trainer.precision)
    data = datasets.load(config.data, config.model.patch_size)
    trainer = make_trainer(data, device, folder, launcher, world, checkpoint.get("selection"))
    state, data, selection = trainer.state, trainer.data, trainer.state.selection
    assert selection
    if checkpoint:
        with folder.checkpoints.restoring():
            state.load_state_dict(checkpoint)

    # Log model and data.
    parts = summarize(config, data.channels, len(data.classes), data.image_size)
    parameters = parts[-1].parameters
    remarks = [*data.remarks, *imbalance(data)]
    folder.update(
        parameters=parameters,
        macs=parts[-1].macs,
        device=describe(device),
        **selection.summary,
        images={"train": len(data.train), "val": len(data.val or ()), "test": len(data.test)},
        classes=data.classes,
        **({"remarks": remarks} if remarks else {}),
        **({"skipped_images": data.skipped} if data.skipped else {}),
    )
    log.info(
        f"{folder.name}: ConvMixer-{config.model.d_model}/{config.model.depth}, {parameters:,} parameters; "
        f"{config.data.name} {data.image_size[0]}×{data.image_size[1]}, {sizes(data)}; "
        f"{describe(device)}, {config.trainer.precision}"
        + (f"; resumes after step {state.step} of epoch {state.epoch}" if checkpoint else "")
    )
    for remark in remarks:
        log.info(f"  {remark}")
    if device.type == "cpu" and world.size == 1:
        warn_of_busy_cores(torch.get_num_threads())
    if selection.milliseconds:
        log.info(f"  {selection}")
    for line in (*class_lines(data), *as_lines(parts)):
        log.info(f"  {line}", extra={"file_only": True})
    if images := data_fingerprint(config):
        folder.update(data_fingerprint=images)

    if config.trainer.figures and world.rank == 0:
        with log_exceptions():
            folder.save_preview(augmentation_figure(trainer.train_loader, data, config))

    tested = trainer.fit()

    # Save the results.
    folder.save_predictions(tested.predictions, data.test, data.classes)
    if config.trainer.figures and world.rank == 0:
        with log_exceptions():
            labels, predictions = tested.predictions["label"], tested.predictions["prediction"]
            confusion = confusion_matrix(labels, predictions, labels=range(len(data.classes)))
            folder.save_figures(plots.model_figures(state.evaluated.state_dict(), confusion, data.classes))
    best = folder.best
    folder.close(
        exit_code=0,
        status="completed",
        **{f"test/{name}": value for name, value in tested.figures.items()},
        objective=best[config.trainer.monitor],
        peak_memory=peak_memory(device) if device.type == "cuda" else None,  # on the CPU, of the whole process
        reserved_memory=reserved_memory(device),
        seconds=state.clock.seconds,
        images_per_second=float(np.median([row["images_per_second"] for row in folder.rows])),
    )
    validated = f"{best['val/accuracy']:.2%} validation, " if data.val else ""
    averages = f", balanced {tested.figures['balanced_accuracy']:.2%}" if imbalance(data) else ""
    log.info(
        f"  {folder.name}: {validated}{tested.metrics.accuracy:.2%} test{averages} (epoch {best['epoch']}) "
        f"in {state.clock.seconds:.0f} s → {folder.path}"
    )
    return Result("completed", best[config.trainer.monitor])


def make_trainer(
    data: DataSplits,
    device: torch.device,
    folder: RunFolder,
    launcher: Launcher,
    world: World,
    before: dict[str, Any] | None,
) -> Trainer:
    """Select a backend and build the trainer. If the backend fails with the run's whole network, select another.

    Args:
        before: `Selection.state` of the interrupted run; None for a new one.
    """
    config, excluded = folder.config, list[Backend]()
    shape = images_at_once(config, len(data.train), data.channels, data.image_size, world)
    check_memory(config, data.channels, data.image_size, images=shape[0])
    passes = config.trainer.epochs * config.trainer.accumulation_steps * len(data.train) / config.data.batch_size
    layer = Layer(config, shape, device, passes)
    while True:
        with interrupted_at_once(launcher):
            selection = select(layer, world, before, excluded)
        config = selection.config
        seed_rngs(config.seed, 0, rank=0)  # the same initial weights on every rank
        model = make_model(config, data.channels, len(data.classes))
        if config.model.pretrained:
            weights, taken = load_pretrained(model, config.model, data.channels, data.classes)
            data = normalize_as_before(data, weights, config.data)
            folder.update(pretrained=taken)
            log.info(f"{folder.name}: {taken}")
        freeze(model, config.trainer.freeze)
        loaders = make_loaders(data, config, world, device)  # before NCCL starts with the model
        model = model.to(device).to(memory_format=memory_format(config))
        trainer = Trainer(TrainingState(model, config, world, device, selection), data, loaders, folder, launcher)
        if not selection.milliseconds or selection.backend == REFERENCE:
            return trainer
        reason = trainer.train_step.rehearsal_error(trainer.sampler)
        if not any(world.all_reduce_max(bool(reason))):
            return trainer
        log.warning(f"{selection.backend}: not taken for this run: {reason or 'it failed on another rank'}")
        excluded.append(selection.backend)
        del model, loaders, trainer
        free_memory()


def stop(reason: Interrupted | Exception, folder: RunFolder, launcher: Launcher) -> Result:
    """Record why a run was not completed, and let its launcher requeue it or end the sweep."""
    resume = f"the same command with {shell(override('sweep', folder.config.sweep))} resumes"
    match reason:
        case Interrupted():
            log.warning(f"{reason}: {folder.name} is kept; {resume} it")
            folder.close(exit_code=128 + reason.number)
            end_service()
            launcher.after_interrupt(reason.number)
            return Result("interrupted")
        case Pruned():
            log.info(f"  {folder.name}: pruned after epoch {len(folder.rows)} → {folder.path}")
            folder.close(status="pruned")
            return Result("pruned")
        case _:
            folder.fail(reason)
            log.error(f"FAILED {folder.name}: {first_line(reason)} ({folder.path}/train.log)")
            gpu_is_lost = is_gpu_lost()
            if gpu_is_lost:
                log.error(f"the GPU no longer answers, so the sweep ends; {resume}")
            launcher.after_failure(stop_sweep=gpu_is_lost or folder.config.on_failure == "stop")
            return Result("failed")
