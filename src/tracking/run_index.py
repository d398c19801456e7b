"""An index of a sweep's runs by ID, which reads a summary again only if the file has changed."""

import os
from pathlib import Path
from typing import Any

from runtime.files import read_json
from tracking.records import Summary


class RunIndex:
    """An index of the runs in a sweep's folder.

    Attributes:
        folders: The runs' folders by ID, as last listed.
    """

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.folders: dict[str, Path] = {}
        self.summaries: dict[str, tuple[int, dict[str, Any]]] = {}  # ID → time of the file's last change, its content
        self.list()

    def list(self) -> None:
        """List the runs again, to find new ones."""
        if self.sweep.is_dir():
            with os.scandir(self.sweep) as entries:  # three times as fast as pathlib, for thousands of runs
                for entry in entries:
                    stem, _, run_id = entry.name.rpartition("-")
                    if stem:
                        path = Path(entry.path)
                        other = self.folders.get(run_id, path)
                        self.folders[run_id] = path if other == path else min(other, path, key=copy_order)

    def summary(self, run_id: str) -> dict[str, Any]:
        """Read a run's summary.json; return an empty dict if there is none."""
        if run_id not in self.folders:
            return {}
        path = self.folders[run_id] / "summary.json"
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return {}
        if self.summaries.get(run_id, (0,))[0] != changed:
            self.summaries[run_id] = changed, read_json(path, Summary)
        return self.summaries[run_id][1]


def copy_order(folder: Path) -> tuple[bool, bool, int, int]:
    """Return the key that sorts copies of a run's folder: completed ones first, then the most epochs."""
    summary = read_json(folder / "summary.json", Summary)
    return not folder.exists(), summary.get("status") != "completed", -summary.get("epochs", 0), len(folder.name)
