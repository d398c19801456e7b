"""Trials of a search (sweeps/search.py): runs that report every epoch, and that the pruner may stop.

The study is the database OUTPUT_DIR/SWEEP/search.db, which both the search and its runs open.
"""

import sqlite3
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from config.schema import Config

if TYPE_CHECKING:  # Optuna takes a second to import, and most runs belong to no search.
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage

SMALLEST = 512  # bytes of the smallest database; SQLite reads a shorter file as an empty database
PRUNER = "pruner"  # attribute of a study: none, median or hyperband
PRUNED_AT = "pruned_at"  # attribute of a trial: the epoch after which the pruner stops it
FINISH = "finish"  # attribute of a trial that runs to its end although the pruner would stop it


class Pruned(Exception):
    """A run's end by the search's pruner."""


class Trial:
    """The trial of a run, named by `config.trial`, STUDY/NUMBER."""

    def __init__(self, config: Config) -> None:
        import optuna

        assert config.trial
        study, number = config.trial.split("/")
        self.epochs = config.trainer.epochs
        self.storage = open_storage(Path(config.output_dir, config.sweep, "search.db"))
        self.study = optuna.load_study(study_name=f"{config.sweep}-{study}", storage=self.storage)
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        self.id = self.storage.get_trial_id_from_study_id_trial_number(study_id, int(number))

    def report_epoch(self, epoch: int, value: float) -> bool:
        """Report an epoch's `trainer.monitor` to the search; return True if the run shall stop.

        A resumed run may train an epoch again. The epoch is not reported again, and the answer is the same as before.
        """
        trial = self.storage.get_trial(self.id)
        if epoch not in trial.intermediate_values:
            self.storage.set_trial_intermediate_value(self.id, epoch, value)
            trial = self.storage.get_trial(self.id)
        pruned_at = trial.user_attrs.get(PRUNED_AT)
        is_new = pruned_at is None and epoch == trial.last_step and epoch < self.epochs
        if is_new and self.pruner.prune(self.study, trial):
            self.storage.set_trial_user_attr(self.id, PRUNED_AT, epoch)
            pruned_at = epoch
        return pruned_at is not None and epoch >= pruned_at and not trial.user_attrs.get(FINISH)

    @cached_property
    def pruner(self) -> "BasePruner":
        """The pruner of the study, with Optuna's defaults."""
        from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

        match self.study.user_attrs.get(PRUNER):
            case "median":
                return MedianPruner()
            case "hyperband":
                return HyperbandPruner(max_resource=self.epochs)
            case _:
                return NopPruner()


def check_storage(path: Path) -> None:
    """Check that a file is an intact database of a search.

    Raises:
        ValueError: The file is not a database, or is damaged.
        sqlite3.Error: The file cannot be read.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    if not path.is_file():
        raise ValueError("is no file")
    if path.stat().st_size < SMALLEST:
        raise ValueError("is cut off")
    with closing(sqlite3.connect(path, timeout=60)) as database:
        if (problem := database.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise ValueError(problem)


def open_storage(path: Path) -> "RDBStorage":
    """Open a database by its path; in a URL, `?` and `%` of the path would have a meaning."""
    from optuna.storages import RDBStorage

    return RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path, timeout=60)})
