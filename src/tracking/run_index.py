"""The runs of a sweep's folder by their IDs: listed once, each summary read once and again only when it has changed."""

import os
from pathlib import Path
from typing import Any

from runtime.files import read_json


class RunIndex:
    """
    Attributes:
        folders: ID → the run's folder, as last listed.
    """

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.folders: dict[str, Path] = {}
        self.summaries: dict[str, tuple[int, dict[str, Any]]] = {}  # ID → time of the file's last change, content
        self.list()

    def list(self) -> None:
        """Find the runs that have begun since."""
        if self.sweep.is_dir():
            with os.scandir(self.sweep) as entries:  # of thousands, three times as fast as pathlib
                for entry in entries:
                    stem, _, run_id = entry.name.rpartition("-")
                    if stem:
                        self.folders[run_id] = Path(entry.path)

    def summary(self, run_id: str) -> dict[str, Any]:
        """The run's summary.json; empty where it has none."""
        if run_id not in self.folders:
            return {}
        path = self.folders[run_id] / "summary.json"
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return {}
        if self.summaries.get(run_id, (0,))[0] != changed:
            self.summaries[run_id] = changed, read_json(path)
        return self.summaries[run_id][1]
