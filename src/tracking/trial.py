"""A run as a trial of a search (sweeps/search.py): it reports every epoch, and the pruner may stop it.

Trials are kept in OUTPUT_DIR/SWEEP/search.db, which the run's process opens as well.
"""

import sqlite3
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from config.schema import Config

if TYPE_CHECKING:  # Optuna takes a second to import, and most runs are not a search's
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage

SMALLEST = 512  # bytes of a database; SQLite takes a part of one for an empty one
PRUNER = "pruner"  # attribute of a study: none, median or hyperband
PRUNED_AT = "pruned_at"  # attribute of a trial: the epoch after which the pruner stops it
FINISH = "finish"  # attribute of a trial: it is finished although the pruner would stop it


class Pruned(Exception):
    """The search's pruner has stopped the run."""


class Trial:
    """The trial that `config.trial` names, STUDY/NUMBER."""

    def __init__(self, config: Config) -> None:
        import optuna

        assert config.trial
        study, number = config.trial.split("/")
        self.epochs = config.trainer.epochs
        self.storage = open_storage(Path(config.output_dir, config.sweep, "search.db"))
        self.study = optuna.load_study(study_name=f"{config.sweep}-{study}", storage=self.storage)
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        self.id = self.storage.get_trial_id_from_study_id_trial_number(study_id, int(number))

    def report(self, epoch: int, value: float) -> bool:
        """Report an epoch's `trainer.monitor` to the search; return whether to stop the run.

        A run that resumes trains epochs again that it has reported: they are not reported twice, and the answer is
        the one that was given.
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
        ValueError: the file is no database, or a part of it does not fit the others.
        sqlite3.Error: it cannot be read.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    if not path.is_file():
        raise ValueError("is no file")
    if path.stat().st_size < SMALLEST:
        raise ValueError("is cut off")
    with closing(sqlite3.connect(path, timeout=60)) as database:
        if (found := database.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise ValueError(found)


def open_storage(path: Path) -> "RDBStorage":
    """Open a database file by path, as `?` and `%` have a meaning in a URL."""
    from optuna.storages import RDBStorage

    return RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path, timeout=60)})
