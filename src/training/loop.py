"""The training loop: each epoch trains, validates, adds a row to metrics.csv and saves a checkpoint.

Metrics are read, and the GPU synchronized, at most once a second and at the end of an epoch.
"""

import logging
import math
from typing import Any

from data.splits import DataSplits
from pipeline.batches import Loader, Loaders
from runtime.console import RunProgress
from runtime.device import prefetch, reset_peak_memory
from runtime.launcher import Launcher
from runtime.signals import Interrupted, SignalRecord, handle_signals
from tracking.checkpoint import describe_model
from tracking.run_folder import VALIDATED, RunFolder
from tracking.trial import Pruned
from training.evaluation import Evaluation, evaluate
from training.metrics import Metrics, NotFinite, bad_epochs
from training.optimization import check_batch_statistics, check_schedule, learning_rate, train_mode
from training.state import TrainingState
from training.step import TrainStep

log = logging.getLogger(__name__)

STEPS_BETWEEN_SYNCS = 8  # ranks agree so often whether to save or stop


class Trainer:
    """The training of one run, from its current state to the test.

    Args:
        state: Model, optimizer and counters; a new run's or a checkpoint's.
        folder: The run folder, for metrics and checkpoints.
        launcher: How the run was started: which signals end it, and whether other runs share the terminal.
    """

    def __init__(
        self, state: TrainingState, data: DataSplits, loaders: Loaders, folder: RunFolder, launcher: Launcher
    ) -> None:
        self.state, self.data, self.folder, self.launcher = state, data, folder, launcher
        self.config, self.world = config, world = state.config, state.world
        self.train_loader, self.val_loader, self.test_loader = loaders
        self.sampler = self.train_loader.sampler
        self.steps_per_epoch = len(self.train_loader)
        check_schedule(config, self.steps_per_epoch)
        check_batch_statistics(config, self.sampler, data.image_size)
        self.train_step = TrainStep(state, data, whole_batch=self.sampler.size(0))
        self.new_best: dict[str, Any] | None = None  # written with the next checkpoint
        self.non_finite_step = 0  # when the metrics were last read
        self.signals = SignalRecord(launcher)
        quiet = world.rank > 0 or launcher.shares_terminal
        self.progress = RunProgress(config.trainer.epochs, self.steps_per_epoch, quiet)

    def fit(self) -> Evaluation:
        """Train to the last epoch, then evaluate the test set once, with the best epoch's weights.

        Raises:
            Interrupted: A signal has ended the run; its checkpoint is saved.
            Pruned: The search has pruned the run; its checkpoint is saved.
            NotFinite: A loss became NaN or infinite.
        """
        state = self.state
        state.clock.start()
        first_epoch = state.epoch
        with self.progress, handle_signals(self.signals.receive):
            try:
                while not self.is_done:
                    if state.epoch <= first_epoch + 1:  # the first epoch tries out kernels, which takes memory
                        reset_peak_memory(state.device)
                    train = self.train_epoch()
                    val = self.validate()
                    self.record_epoch(train, val)
                    self.train_step.check_measurement()
                    state.begin_epoch()
                    self.save_or_stop(due=self.is_done or self.folder.checkpoints.is_due(state.epoch - 1))
            except Interrupted:
                self.save()
                raise
            self.world.barrier()  # rank 0 has written best.pt
            self.folder.checkpoints.load_best(state.evaluated)
            tested = self.evaluate(self.test_loader)
        state.clock.stop()
        return tested

    @property
    def is_done(self) -> bool:
        return self.state.epoch > self.config.trainer.epochs or self.stops_early

    @property
    def stops_early(self) -> bool:
        config = self.config.trainer.early_stopping
        return config.patience is not None and bad_epochs(self.folder.rows, config) >= config.patience

    def train_epoch(self) -> Metrics:
        state, sampler = self.state, self.sampler
        sampler.epoch, sampler.start = state.epoch, state.step
        train_mode(self.train_step.network)
        state.epoch_clock.start()
        for pixels, labels in prefetch(self.signals.watch(self.train_loader), state.device):
            step, batch_size = self.steps_done + 1, sampler.size(state.step)
            parts = sampler.micro_batches(state.step, self.config.trainer.accumulation_steps)
            self.train_step(pixels, labels, step, self.lr(step), batch_size, parts)
            state.step += 1
            if self.world.rank == 0 and self.progress.is_due:
                self.report_progress()
            if self.world.size == 1 or step % STEPS_BETWEEN_SYNCS == 0:
                self.save_or_stop(due=self.folder.checkpoints.is_due())
        metrics = state.metrics.all_reduced(self.world)
        if bad_step := metrics.first_non_finite_step():
            raise NotFinite("training", bad_step, self.lr(bad_step))
        self.world.broadcast_buffers(state.evaluated)
        state.epoch_clock.stop()
        return metrics.compute()

    @property
    def steps_done(self) -> int:
        """Number of completed steps of the run."""
        return (self.state.epoch - 1) * self.steps_per_epoch + self.state.step

    def lr(self, step: int) -> float:
        return learning_rate(self.config, step, self.steps_per_epoch)

    def report_progress(self) -> None:
        """Show the epoch's metrics so far in the terminal and in W&B."""
        state, lr = self.state, self.lr(self.steps_done)
        self.non_finite_step = state.metrics.first_non_finite_step()
        loss, accuracy = state.metrics.compute()
        images = min(state.step * self.config.data.batch_size, len(self.data.train))
        rate = images / state.epoch_clock.seconds
        self.progress.show(state.epoch, state.step, loss, accuracy, lr, rate)
        figures = {"loss": loss, "accuracy": accuracy, "lr": lr, "images_per_second": rate}
        self.folder.wandb.log_progress((state.epoch - 1) * len(self.data.train) + images, figures)

    def validate(self) -> Evaluation | None:
        if self.val_loader is None:
            return None
        evaluation = self.evaluate(self.val_loader)
        if not math.isfinite(evaluation.metrics.loss):
            raise NotFinite("validation", self.steps_done, self.lr(self.steps_done))
        return evaluation

    def evaluate(self, loader: Loader) -> Evaluation:
        state, normalize, precision = self.state, self.train_step.normalize, self.config.trainer.precision
        return evaluate(state.evaluated, loader, normalize, precision, state.device, self.world, self.signals.watch)

    def record_epoch(self, train: Metrics, val: Evaluation | None) -> None:
        """Add the epoch's row, keep its weights if they are the best, and log the epoch."""
        state, folder, epochs = self.state, self.folder, self.config.trainer.epochs
        figures = val.figures if val else {}
        row = {
            "epoch": state.epoch,
            "images": state.epoch * len(self.data.train),
            "train/loss": train.loss,
            "train/accuracy": train.accuracy,
            **{f"val/{name}": figures.get(name) for name in VALIDATED},
            "lr": self.lr(self.steps_done),
            "images_per_second": len(self.data.train) / state.epoch_clock.seconds,
            "seconds": state.clock.seconds,
        }
        folder.add_epoch(row)
        of_run = f"{folder.name}: " if self.launcher.shares_terminal else ""
        validated = f", val {val.metrics.loss:.3f} {val.metrics.accuracy:.1%}" if val else ""
        log.info(
            f"  {of_run}epoch {state.epoch}/{epochs}: train {train.loss:.3f} {train.accuracy:.1%}{validated}, "
            f"lr {row['lr']:.2g}, {row['images_per_second']:,.0f} images/s"
        )
        if folder.best is row:
            weights = {name: value.detach().cpu().clone() for name, value in state.evaluated.state_dict().items()}
            self.new_best = {**describe_model(self.folder.config, self.data), "model": weights, "metrics": row}
        if self.stops_early:
            patience = self.config.trainer.early_stopping.patience
            log.info(
                f"  {of_run}early stopping after epoch {state.epoch}: val/loss has not fallen for {patience} epochs"
            )

    def save_or_stop(self, due: bool) -> None:
        """Agree across ranks whether to save, stop or fail; call it on all ranks after the same step."""
        due = self.signals.save_requested or (due and self.world.rank == 0)
        on_this_rank = self.signals.number, due, self.non_finite_step, self.folder.is_pruned
        signal, save, bad_step, pruned = self.world.all_reduce_max(*on_this_rank)
        if bad_step:
            raise NotFinite("training", bad_step, self.lr(bad_step))
        if signal:
            raise Interrupted(signal)
        if save or pruned:
            self.save()
        if pruned:
            raise Pruned

    def save(self) -> None:
        state = self.state.state_dict()
        if self.world.rank == 0:
            checkpoint = {**describe_model(self.folder.config, self.data), **state, "rows": self.folder.rows}
            self.folder.checkpoints.save(checkpoint, self.new_best)
        self.new_best, self.signals.save_requested = None, False
