"""Tests by a small part of fuzz.py; all of it runs each night."""

from pathlib import Path

import pytest

from conftest import command


@pytest.mark.slow
def test_hostile_input_ends_in_words(tmp_path: Path) -> None:
    """It runs in a separate process, as its forks limit their memory and are bound to one core."""
    done = command("--seed", "1", "--share", "0.016", cwd=tmp_path, script="../tests/fuzz")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" cases in ") == 4
