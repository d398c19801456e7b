"""Tests of the index of a sweep's runs, and of other processes on the same sweep."""

import json
import os
from pathlib import Path

from runtime import claims
from tracking.run_index import RunIndex


def test_summary_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    index = RunIndex(tmp_path / "s")
    assert index.summary("1a") == {}
    run = tmp_path / "s" / "depth_2-1a"
    run.mkdir(parents=True)
    (tmp_path / "s" / ".locks").mkdir()
    index.list()
    assert index.folders == {"1a": run} and index.summary("1a") == {}
    file = run / "summary.json"
    for status in ("interrupted", "completed"):
        file.with_suffix(".new").write_text(json.dumps({"status": status}))
        file.with_suffix(".new").replace(file)
        os.utime(file, ns=(0, len(status)))
        assert index.summary("1a") == {"status": status}
        assert index.summary("1a") is index.summary("1a")


def test_processes_of_a_sweep_are_counted_until_they_end(tmp_path: Path) -> None:
    assert claims.processes_of(tmp_path) == 1
    for count in (1, 2, 3):
        claims.join_sweep(tmp_path)
        assert claims.processes_of(tmp_path) == count
        assert claims.processes_of(tmp_path / "other") == 1
    for count in (2, 1, 1):
        claims.held.pop().release()
        assert claims.processes_of(tmp_path) == count
