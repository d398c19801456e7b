"""Tests of the script that measures on a GPU, run without one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import summaries
from processes import REPOSITORY, environment_of


def on_a_gpu(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "experiments" / "speed" / "on_a_gpu.sh"
    return subprocess.run(
        ["bash", script, folder, *arguments],
        env=environment_of(**{"PYTHON": sys.executable, **environment}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_gpu_script_passes_overrides_and_exits_3_if_unfinished(tmp_path: Path) -> None:
    python = tmp_path / "python"  # writes down what would run
    python.write_text('#!/bin/sh\necho "$@"\n[ -z "$SLEEP" ] || exec sleep 60\n')
    python.chmod(0o755)
    done = on_a_gpu(tmp_path / "found", "train", "data=digits", PYTHON=str(python))
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("src/train.py -m experiment=short_cifar10 seed=0,1,2 sweep=short_cifar10 ")
    assert second.startswith("src/train.py -m experiment=paper_cifar10 seed=0 sweep=paper_cifar10 ")
    assert first.endswith(" data=digits")
    (tmp_path / "found" / "check.txt").write_text(
        "tests/test_a.py::test_b PASSED [ 50%]\ntests/test_a.py::test_c FAILED\n"
    )
    done = on_a_gpu(tmp_path / "found", "check", PYTHON=str(python))
    assert done.stdout.split()[-1] == "--deselect=tests/test_a.py::test_b"
    for part in ("first", "check", "choose", "steps", "train"):
        assert on_a_gpu(tmp_path / "found", part, PYTHON=str(python), LIMIT="0").returncode == 3
        assert on_a_gpu(tmp_path / "found", part, PYTHON=str(python), LIMIT="1", SLEEP="1").returncode == 3
    assert on_a_gpu(tmp_path / "found", "chek").returncode == 1


@pytest.mark.slow
def test_the_gpu_script_trains_and_reports(tmp_path: Path) -> None:
    tiny = ("data=digits", "model.d_model=8", "model.depth=1", "model.patch_size=1", "trainer.epochs=1",
            "hardware=any", "data.train_fraction=0.2", "data.batch_size=32", "trainer.figures=false")  # fmt: skip
    python = tmp_path / "python"  # for one of the two recipes; tests/test_studies.py trains both
    python.write_text(f'#!/bin/sh\ncase "$*" in *=paper_cifar10*) ;; *) exec {sys.executable} "$@" ;; esac\n')
    python.chmod(0o755)
    done = on_a_gpu(tmp_path, "train", *tiny, LIMIT="600", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert [summary["status"] for summary in summaries(tmp_path / "short_cifar10")] == 3 * ["completed"]
    reported = on_a_gpu(tmp_path, "report").stdout
    assert (tmp_path / "short_cifar10" / "comparison.md").read_text() in reported


GPU_TESTS = """
import pytest
pytestmark = pytest.mark.gpu
@pytest.mark.parametrize("options", ["trainer.compile=true trainer.compile_mode=reduce-overhead", "none"])
def test_a(options): pass
def test_b(): assert {passes}
"""


@pytest.mark.slow
def test_what_has_passed_on_a_gpu_is_not_run_again(tmp_path: Path) -> None:
    for file in ("pyproject.toml", "experiments/speed/on_a_gpu.sh"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    (tmp_path / "tests").mkdir()

    def check(passes: bool) -> tuple[int, str]:
        (tmp_path / "tests" / "test_gpu.py").write_text(GPU_TESTS.format(passes=passes))
        script = ["bash", str(tmp_path / "experiments/speed/on_a_gpu.sh"), str(tmp_path / "results"), "check"]
        done = subprocess.run(script, env=environment_of(PYTHON=sys.executable), capture_output=True, text=True)
        return done.returncode, done.stdout

    assert check(passes=False)[0] == 1
    code, output = check(passes=True)
    assert code == 0
    assert "1 passed, 2 deselected" in output
    assert check(passes=True)[0] == 0
