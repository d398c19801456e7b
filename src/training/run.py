"""One run, from its config to its record: the training loop, written out."""

import gc
import logging
import math
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config.errors import first_line
from config.schema import Config
from data import datasets
from data.batches import DistributedBatchSampler, make_eval_loader, make_train_loader
from data.transforms import MixAndErase, Normalize
from runtime import workers
from runtime.console import RunProgress
from runtime.device import (
    autocast,
    choose_device,
    describe,
    peak_memory,
    reset_peak_memory,
    to_device,
)
from runtime.distributed import World, init_distributed
from runtime.rng import seed_rngs
from runtime.signals import Stopped, StopRequest
from tracking.checkpoint import Checkpoints
from tracking.run_folder import Record, RunBusy
from tracking.wandb_logger import run_of_agent
from training.metrics import Best, NotFinite, Patience, Sums
from training.model import count_macs, make_average, make_model, memory_format, spread
from training.optimization import check_schedule, learning_rate, make_optimizer, set_lr

log = logging.getLogger(__name__)

FAILED = math.nan


def run(config: Config, overrides: list[str]) -> float | None:
    """Train one ConvMixer and record it; go on where it was interrupted; do nothing where it is completed.

    Returns:
        The objective: the best epoch's `trainer.monitor`; None without validation, while another process trains the
        run, or where the sweep was told to stop; NaN if the run failed.

    Raises:
        SystemExit: a signal asked for a stop, or the run failed and on_failure=stop.
    """
    world = init_distributed()
    if world.rank:
        logging.getLogger().setLevel(logging.ERROR)  # one voice is enough
    if workers.stopped_by:
        return None
    try:
        record = Record(config, overrides, world)
    except RunBusy as busy:
        log.warning(str(busy))
        return None
    if record.is_completed:
        log.info(f"{record.name}: completed before → {record.folder}")
        record.close()
        return record.summary["objective"]
    try:
        return train(config, record, world)
    except Stopped as stop:
        traceback.clear_frames(stop.__traceback__)  # which ends the processes that load its batches
        log.warning(f"{stop}: {record.name} is kept; the same command with sweep={config.sweep} goes on with it")
        record.close(exit_code=128 + stop.number)
        world.broadcast(None)  # torchrun ends the first process, which records, as soon as another has ended
        if callable(stop.previous):
            try:
                stop.previous(stop.number, None)
            except Exception as refusal:  # submitit's: the job may not be requeued any more
                log.error(first_line(refusal))
                return None
        if workers.is_worker():  # the others of the sweep stop in their own time
            return None
        # For the agent of a W&B sweep, which stops runs itself, any other code is a failure; a few end it.
        raise SystemExit(0 if run_of_agent() else 128 + stop.number) from None
    except (KeyboardInterrupt, SystemExit):
        record.close(exit_code=1)
        raise
    except Exception as error:
        record.fail(error)
        log.error(f"FAILED {record.name}: {first_line(error)} ({record.folder}/train.log)")
    if config.on_failure == "stop" and workers.is_worker():
        workers.stop_the_others()
    elif config.on_failure == "stop" or world.size > 1:  # the other ranks would wait for this one
        raise SystemExit(1)
    gc.collect()  # what the failed run held in memory is the next one's
    torch.cuda.empty_cache()
    return FAILED


def train(config: Config, record: Record, world: World) -> float | None:
    checkpoints = Checkpoints(record.folder / "checkpoints", record.run_id, config.checkpoint)
    state = checkpoints.load()
    record.start(state["rows"] if state else [])

    seed_rngs(config.seed, 0, rank=0)  # the same initial weights everywhere
    device = choose_device(config.trainer.device)
    images = datasets.load(config.data, config.model.patch_size)
    training = make_train_loader(images, config, world, device)
    order = cast(DistributedBatchSampler, training.sampler)
    validation = make_eval_loader(images.val, images, config, world) if images.val else None
    testing = make_eval_loader(images.test, images, config, world)
    normalize = Normalize(images, device)
    mix_and_erase = MixAndErase(config.augmentation, len(images.classes), device)

    model = make_model(config, images.channels, len(images.classes)).to(device)
    if config.trainer.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.optimizer)
    check_schedule(config, len(training))
    scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")
    average = make_average(model, config.trainer.ema_decay)
    evaluated = average.module if average else model
    network = spread(model, config, world, device)

    sums = Sums(device)
    best = Best(config.trainer.monitor)
    patience = Patience(config.trainer.early_stopping)
    first_epoch, steps_done, trained_before, seconds_before, over = 1, 0, 0.0, 0.0, False
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if average:
            average.load_state_dict(state["average"])
        if world.rank == 0:  # they are over all ranks
            sums.load_state_dict(state["sums"], device)
        best.row = state["best"]
        patience.lowest, patience.waited = state["patience"]
        first_epoch, steps_done, trained_before, seconds_before, over = state["position"]
    started = time.perf_counter() - seconds_before
    new_best: dict[str, Any] | None = None

    def save(epoch: int, step: int, trained: float = 0.0) -> None:
        """Write the state after a step of an epoch, which has taken `trained` seconds so far; all ranks together."""
        nonlocal new_best
        state = {
            **about(config, images),
            "model": model.state_dict(),
            "average": average.state_dict() if average else None,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "sums": sums.over(world).state_dict(),
            "best": best.row,
            "patience": (patience.lowest, patience.waited),
            "position": (epoch, step, trained, time.perf_counter() - started, over),
            "rows": record.rows,
        }
        if world.rank == 0:
            checkpoints.save(state, new_best)
        new_best = None

    parameters = sum(p.numel() for p in model.parameters())
    record.update(
        parameters=parameters,
        macs=count_macs(config, images),
        device=describe(device),
        images={"train": len(images.train), "val": len(images.val or ()), "test": len(images.test)},
        **(best.figures() if best.row else {}),
    )
    reset_peak_memory(device)
    log.info(
        f"{record.name}: ConvMixer-{config.model.d_model}/{config.model.depth}, {parameters:,} parameters; "
        f"{config.data.name} {images.image_size[0]}×{images.image_size[1]}, {len(images.train):,} images to train on; "
        f"{describe(device)}, {config.trainer.precision}"
        + (f"; goes on after step {steps_done} of epoch {first_epoch}" if state else "")
    )

    with (
        RunProgress(config.trainer.epochs, len(training), quiet=world.rank > 0 or workers.is_worker()) as progress,
        StopRequest() as stop,
    ):
        for epoch in range(first_epoch, config.trainer.epochs + 1):
            if over:
                break
            epoch_started = time.perf_counter() - trained_before
            order.epoch, order.start = epoch, steps_done
            if not steps_done:
                sums = Sums(device)

            # One epoch of training. Sums stay on the device: nothing in this loop waits for it,
            # but for a look at the numbers once a second.
            network.train()
            for step, (pixels, labels) in enumerate(to_device(training, device), start=steps_done + 1):
                update = (epoch - 1) * len(training) + step
                set_lr(optimizer, learning_rate(config, update, len(training)))
                seed_rngs(config.seed, update, world.rank)
                inputs, targets = mix_and_erase(normalize(pixels), labels)
                inputs = memory_format(inputs, config)
                parts = order.micro_batches(step - 1, config.trainer.accumulation_steps)
                for part, target in split_batch(inputs, targets, parts):
                    with autocast(device, config.trainer.precision):
                        logits = network(part)
                        loss = F.cross_entropy(logits, target, label_smoothing=config.trainer.label_smoothing)
                    share = len(target) * world.size / order.size(step - 1)  # DDP takes the mean over processes
                    scaler.scale(loss * share).backward()
                    sums.add(loss.detach(), logits.detach(), target, update)
                if config.trainer.clip_grad_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), config.trainer.clip_grad_norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if average:
                    average.update_parameters(model)

                if world.rank == 0 and progress.is_due():  # what the others meet reaches it with the next step
                    stop_if_not_finite(sums, config, len(training))
                    rate = step * config.data.batch_size / (time.perf_counter() - epoch_started)
                    progress.show(epoch, step, *sums.means(), current_lr(optimizer), rate)
                if world.size == 1 or update % 8 == 0:
                    asked = is_asked_to_stop(stop, world)
                    if asked or world.broadcast(checkpoints.is_due()):
                        save(epoch, step, time.perf_counter() - epoch_started)
                    if asked:
                        stop.heed()
            total = sums.over(world)
            stop_if_not_finite(total, config, len(training))
            world.broadcast_buffers(evaluated)
            trained = time.perf_counter() - epoch_started

            # Validation, the epoch's row, and its checkpoint.
            val_loss, val_accuracy = None, None
            if validation is not None:
                try:
                    validated = evaluate(evaluated, validation, normalize, config, device, world, stop)
                    val_loss, val_accuracy = validated.means()
                except Stopped:
                    save(epoch, len(training), trained)
                    raise
                if not math.isfinite(val_loss):
                    raise NotFinite("validation", epoch * len(training), current_lr(optimizer))
            row = {
                "epoch": epoch,
                "train/loss": total.means()[0],
                "train/accuracy": total.means()[1],
                "val/loss": val_loss,
                "val/accuracy": val_accuracy,
                "lr": current_lr(optimizer),
                "images_per_second": len(images.train) / trained,
                "seconds": time.perf_counter() - started,
            }
            steps_done, trained_before = 0, 0.0
            record.add_epoch(row)
            of = f"{record.name}: " if workers.is_worker() else ""  # the lines of several runs alternate
            log.info(
                f"  {of}{describe_epoch(row, config.trainer.epochs)}", extra={"file_only": progress.live.is_started}
            )
            if best.is_beaten_by(row):
                weights = {name: value.detach().cpu().clone() for name, value in evaluated.state_dict().items()}
                new_best = {**about(config, images), "model": weights, "metrics": row}
                record.update(**best.figures())
            over = patience.is_over(row)
            if over:
                log.info(
                    f"  {of}stopped early after epoch {epoch}: val/loss has not fallen for {patience.waited} epochs"
                )
            asked = is_asked_to_stop(stop, world)
            if over or epoch == config.trainer.epochs or asked or world.broadcast(checkpoints.is_due(epoch)):
                save(epoch + 1, 0)
            if asked:
                stop.heed()

        # The test set is looked at once, with the best epoch's weights.
        world.broadcast(None)  # the first process has written them
        evaluated.load_state_dict(checkpoints.load_best()["model"])
        tested = evaluate(evaluated, testing, normalize, config, device, world, stop, classes=len(images.classes))
    test_loss, test_accuracy = tested.means()
    seconds = time.perf_counter() - started
    if config.trainer.figures:
        record.draw(evaluated.state_dict(), tested.confusion, images.classes)
    record.complete(
        **{"test/loss": test_loss, "test/accuracy": test_accuracy},
        objective=best.value,
        peak_memory=peak_memory(device),
        seconds=seconds,
        images_per_second=float(np.median([row["images_per_second"] for row in record.rows])),
    )
    on_validation = f"{best.row['val/accuracy']:.2%} validation, " if images.val else ""
    log.info(
        f"  {record.name}: {on_validation}{test_accuracy:.2%} test (epoch {best.row['epoch']}) "
        f"in {seconds:.0f} s → {record.folder}"
    )
    return best.value


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    normalize: Normalize,
    config: Config,
    device: torch.device,
    world: World,
    stop: StopRequest,
    classes: int = 0,
) -> Sums:
    """Loss (without label smoothing), accuracy and, with the number of classes, their confusion.

    Raises:
        Stopped: a signal asked for it.
    """
    model.eval()
    sums = Sums(device, classes)
    for pixels, labels in to_device(batches, device):
        if world.size == 1:  # else the others would wait
            stop.heed(saved=False)
        with autocast(device, config.trainer.precision):
            logits = model(memory_format(normalize(pixels), config))
            loss = F.cross_entropy(logits, labels)
        sums.add(loss, logits, labels)
    return sums.over(world)


def is_asked_to_stop(stop: StopRequest, world: World) -> bool:
    """Whether any rank is: all of them stop after the same step."""
    (number,) = world.all_reduce_max(stop.number)
    if number:
        stop.number = number  # but no 0, which would undo a signal that has just come
    return number > 0


def stop_if_not_finite(sums: Sums, config: Config, steps_per_epoch: int) -> None:
    """
    Raises:
        NotFinite: the training loss was NaN or infinite at some step of the epoch.
    """
    if step := sums.bad_step():
        raise NotFinite("training", step, learning_rate(config, step, steps_per_epoch))


def about(config: Config, images: datasets.DataSplits) -> dict[str, Any]:
    """What a checkpoint needs to be used without this run's data."""
    return {
        "config": asdict(config),
        "classes": images.classes,
        "channels": images.channels,
        "image_size": list(images.image_size),
        "mean": list(images.mean),
        "std": list(images.std),
    }


def split_batch(inputs: Tensor, targets: Tensor, parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    validated = "" if row["val/loss"] is None else f", val {row['val/loss']:.3f} {row['val/accuracy']:.1%}"
    return (
        f"epoch {row['epoch']}/{epochs}: train {row['train/loss']:.3f} {row['train/accuracy']:.1%}{validated}, "
        f"lr {row['lr']:.2g}, {row['images_per_second']:,.0f} images/s"
    )
