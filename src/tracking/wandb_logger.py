"""A run in Weights & Biases."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from config.errors import first_line
from config.schema import Config, flatten

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15  # to wait for the server at the start
FINISH_SECONDS = 20  # and at the end, for the last figures; they stay on disk
unreachable = False  # once the server could not be had, this process does not wait for it again


def run_of_agent() -> str | None:
    """The id of the W&B run that this process is for, where the agent of a W&B sweep has started it."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def start_wandb(config: Config, folder: Path, name: str, run_id: str) -> Any:
    """A W&B run inside the run's folder, or None where wandb.mode=disabled.

    A run that goes on is the same W&B run; its files begin with the rows that it has already.
    Where the server cannot be reached or refuses, the run is recorded offline, to be synchronized later.
    """
    global unreachable
    if config.wandb.mode == "disabled":
        return None
    import wandb

    by_agent = run_of_agent() is not None  # then the client knows the run's id and place
    # An agent's run has the sweep's parameters in its config already, under keys with dots; and in a nested config
    # a group among them, e.g. dropout=blocks, would take its section's place.
    tree = dict(flatten(asdict(config))) if by_agent else asdict(config)

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            mode=mode,
            id=None if by_agent else run_id,
            resume="allow" if mode == "online" else None,
            project=None if by_agent else config.wandb.project,
            entity=None if by_agent else config.wandb.entity,
            group=config.sweep,
            name=name,
            tags=config.wandb.tags,
            config=tree,
            dir=str(folder.absolute()),  # its service may work in another folder
            settings=wandb.Settings(
                init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS, silent=True, console="off"
            ),
        )

    if config.wandb.mode == "online" and not unreachable:
        try:
            return start("online")
        except wandb.Error as error:
            unreachable = True
            wandb.teardown()  # or the client would hold the run's id to be in use
            log.warning(
                f"W&B is out of reach ({first_line(error)}); this run is recorded offline. "
                f"Later: wandb sync {folder}/wandb/offline-*"
            )
    return start("offline")


@contextmanager
def log_exceptions() -> Iterator[None]:
    """Training goes on whatever W&B or a picture runs into; all of it is in metrics.csv and summary.json."""
    try:
        yield
    except Exception as error:
        log.warning(f"not recorded: {first_line(error)}")
