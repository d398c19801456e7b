"""One run, from its config to its record."""

import logging
import math
import traceback
from dataclasses import asdict

import numpy as np

from config.errors import first_line
from config.schema import Config
from data import datasets
from data.batches import make_loaders
from runtime.device import (
    choose_device,
    describe,
    free_memory,
    is_gpu_lost,
    peak_memory,
    reserved_memory,
    reset_peak_memory,
)
from runtime.distributed import World, init_distributed
from runtime.launcher import Launcher, detect_launcher
from runtime.rng import seed_rngs
from runtime.signals import Interrupted
from tracking import plots
from tracking.identity import data_fingerprint
from tracking.run_folder import RunBusy, RunFolder
from tracking.trial import Pruned
from tracking.wandb_logger import log_exceptions
from training.loop import Trainer
from training.model import make_model, memory_format
from training.optimization import freeze
from training.selection import Selection, images_at_once, select
from training.state import TrainingState
from training.summary import as_lines, summarize
from weights.pretrained import load_pretrained, normalize_as_before

log = logging.getLogger(__name__)

FAILED = math.nan


def run(config: Config, overrides: list[str]) -> float | None:
    """Train one ConvMixer and record it; resume where it was interrupted; do nothing where it is completed.

    Returns:
        The objective: the best epoch's `trainer.monitor`; None without validation, where its search has pruned the
        run, while another process trains it, or where the sweep was told to stop; NaN if the run failed.

    Raises:
        SystemExit: a signal has ended the run, or it failed and on_failure=stop.
    """
    world = init_distributed()
    launcher = detect_launcher(world)
    if world.rank:
        logging.getLogger().setLevel(logging.ERROR)  # log on rank 0 only
    try:
        folder = RunFolder.open(config, overrides, world)
    except RunBusy as busy:
        log.warning(str(busy))
        return None
    if folder.is_completed:
        log.info(f"{folder.name}: completed before → {folder.path}")
        folder.close()
        return folder.summary["objective"]
    if config.trial and folder.summary.get("status") == "pruned":
        log.info(f"{folder.name}: pruned before → {folder.path}")
        folder.close()
        return None
    try:
        return train(config, folder, launcher, world)
    except Interrupted as interrupted:
        traceback.clear_frames(interrupted.__traceback__)  # ends the processes that load its batches
        log.warning(f"{interrupted}: {folder.name} is kept; the same command with sweep={config.sweep} resumes it")
        folder.close(exit_code=128 + interrupted.number)
        launcher.after_interrupt(interrupted.number)
        return None
    except Pruned as pruned:
        traceback.clear_frames(pruned.__traceback__)  # ends the processes that load its batches
        log.info(f"  {folder.name}: pruned after epoch {len(folder.rows)} → {folder.path}")
        folder.prune()
        return None
    except (KeyboardInterrupt, SystemExit):
        folder.close(exit_code=1)
        raise
    except Exception as error:
        folder.fail(error)
        traceback.clear_frames(error.__traceback__)  # ends the processes that load its batches, and frees its memory
        log.error(f"FAILED {folder.name}: {first_line(error)} ({folder.path}/train.log)")
        gpu_is_lost = is_gpu_lost()
        if gpu_is_lost:
            log.error(
                f"the GPU no longer answers, so the sweep ends; the same command with sweep={config.sweep} resumes"
            )
        launcher.after_failure(stop_sweep=gpu_is_lost or config.on_failure == "stop")
        return FAILED
    finally:
        free_memory()


def train(config: Config, folder: RunFolder, launcher: Launcher, world: World) -> float | None:
    """Build what the run needs, resume or begin, train, and complete the record."""
    checkpoint = folder.checkpoints.load()
    folder.start(checkpoint["rows"] if checkpoint else [])
    seed_rngs(config.seed, 0, rank=0)  # the same initial weights on every rank
    device = choose_device(config.trainer.device, config.trainer.precision)
    data = datasets.load(config.data, config.model.patch_size)
    shape = images_at_once(config, data.channels, data.image_size, world)
    before = checkpoint.get("selection") if checkpoint else None
    selection = select(config, shape, device, world, Selection(**before) if before else None)
    config = selection.way.applied_to(config)
    model = make_model(config, data.channels, len(data.classes))
    if config.model.pretrained:
        weights, taken = load_pretrained(model, config.model, data.channels, data.classes)
        data = normalize_as_before(data, weights, config.data)
        folder.update(pretrained=taken)
        log.info(f"{folder.name}: {taken}")
    freeze(model, config.trainer.freeze)
    loaders = make_loaders(data, config, world, device)  # before NCCL starts with the model
    model = model.to(device).to(memory_format=memory_format(config))
    state = TrainingState(model, config, world, device, selection)
    trainer = Trainer(state, data, loaders, folder, launcher)
    if checkpoint:
        state.load_state_dict(checkpoint)

    parts = summarize(config, data.channels, len(data.classes), data.image_size)
    parameters = parts[-1].parameters
    folder.update(
        parameters=parameters,
        macs=parts[-1].macs,
        device=describe(device),
        **asdict(selection),
        images={"train": len(data.train), "val": len(data.val or ()), "test": len(data.test)},
        **state.best.summary(),
    )
    log.info(
        f"{folder.name}: ConvMixer-{config.model.d_model}/{config.model.depth}, {parameters:,} parameters; "
        f"{config.data.name} {data.image_size[0]}×{data.image_size[1]}, {len(data.train):,} images to train on; "
        f"{describe(device)}, {config.trainer.precision}"
        + (f"; resumes after step {state.step} of epoch {state.epoch}" if checkpoint else "")
    )
    if selection.layer_milliseconds:
        log.info(f"  {selection}")
    for line in as_lines(parts):
        log.info(f"  {line}", extra={"file_only": True})
    if images := data_fingerprint(config):
        folder.update(data_fingerprint=images)
    reset_peak_memory(device)
    tested = trainer.fit()

    folder.save_predictions(tested.predictions)
    if config.trainer.figures and world.rank == 0:
        with log_exceptions():
            confusion = tested.confusion(len(data.classes))
            folder.save_figures(plots.model_figures(state.evaluated.state_dict(), confusion, data.classes))
    best = state.best
    folder.complete(
        **{"test/loss": tested.metrics.loss, "test/accuracy": tested.metrics.accuracy},
        objective=best.value,
        peak_memory=peak_memory(device),
        reserved_memory=reserved_memory(device),
        seconds=state.clock.seconds,
        images_per_second=float(np.median([row["images_per_second"] for row in folder.rows])),
    )
    validated = f"{best.row['val/accuracy']:.2%} validation, " if data.val else ""
    log.info(
        f"  {folder.name}: {validated}{tested.metrics.accuracy:.2%} test (epoch {best.row['epoch']}) "
        f"in {state.clock.seconds:.0f} s → {folder.path}"
    )
    return best.value
