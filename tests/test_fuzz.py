"""A small part of fuzz.py: hostile overrides, run folders, checkpoints and images; the whole of it runs each night."""

import subprocess
import sys

import pytest

from processes import REPOSITORY, environment_of


@pytest.mark.slow
def test_hostile_input_ends_in_words() -> None:
    """In a process of its own, as its forks limit their memory and are bound to one core."""
    command = [sys.executable, str(REPOSITORY / "tests" / "fuzz.py"), "--seed", "1", "--share", "0.016"]
    done = subprocess.run(command, env=environment_of(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" cases in ") == 4
