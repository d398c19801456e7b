"""Tests of compare.py: the terminal, the files, and one-line errors."""

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from comparison.results import read
from comparison.runs import Run
from config.errors import ConfigError
from config.text import markdown_table
from conftest import command
from processes import REPOSITORY
from publishing.publish import publish
from rendering.figure import comparison_figure
from rendering.findings import not_completed_lines
from rendering.report import differing_keys, page_of, table, table_csv
from run_folders import DEPTH, KERNEL, REFERENCE, as_yaml, report, rows, write_run, write_sweep


def compare(folders: Sequence[Path], filters: Sequence[str] = ()) -> list[Run]:
    comparison = read(folders, filters=filters)
    publish(comparison, folders[0], filters)
    return comparison.runs


def test_seeds_share_a_row_and_varied_keys_have_columns(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92, 0.94], (9, 8): [0.95, 0.96, 0.97]})
    compare([folder])
    first, second = rows(folder)
    assert (first[KERNEL], first["n"], first["seeds"]) == ("9", "3", "0 1 2")
    assert DEPTH not in first and "seed" not in first and "output_dir" not in first
    assert float(second["val/accuracy"]) == pytest.approx(0.92)
    low, high = stats.t.interval(0.95, 2, 0.92, 0.02 / math.sqrt(3))
    assert (float(second["val/accuracy/low"]), float(second["val/accuracy/high"])) == pytest.approx((low, high))
    assert float(second["test/accuracy"]) == pytest.approx(0.915)
    assert {path.name for path in folder.glob("comparison.*")} == {
        "comparison.csv", "comparison.html", "comparison.md", "comparison.png", "comparison.svg",
    }  # fmt: skip
    runs = list(csv.DictReader((folder / "comparison-runs.csv").open(newline="")))
    assert [(run[KERNEL], run["seed"], run["status"]) for run in runs[:2]] == [
        ("9", "0", "completed"), ("9", "1", "completed"),
    ]  # fmt: skip
    assert [float(run["val/accuracy"]) for run in runs] == [0.95, 0.96, 0.97, 0.9, 0.92, 0.94]
    assert not list(folder.glob(".comparison*"))


def test_output_of_one_seed_names_the_best_without_a_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.95], (5, 16): [0.91], (9, 16): [0.94]})
    compare([folder])
    out = capsys.readouterr().out
    assert "Best: depth=8 kernel_size=9 with 95.00 % val/accuracy" in out
    assert "kernel_size 9 instead of 5: +4.00 points, higher in 2 of 2 pairs" in out
    assert "8 more runs, 100 s" in out, "what it takes to know"
    assert f"{folder}/comparison.html, comparison.png" in out
    assert "±" not in out and "It is " not in out, "nothing is claimed"


def test_a_best_setting_of_one_seed_has_its_probability_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {(5, 8): [0.9, 0.91, 0.92], (9, 8): [0.94], (7, 8): [0.91, 0.9, 0.93]}
    comparison = read([write_sweep(tmp_path / "s", values)])
    publish(comparison, tmp_path / "s")
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("Best: "))
    best, after = lines[place : place + 2]
    assert "kernel_size=9 with 94.00 %" in best and "one seed" in after
    assert f"{100 * (comparison.probability_best(comparison.valued[0]) or 0):.0f} % probability" in after


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_two_runs_show_differing_keys_and_both_curves(tmp_path: Path, seeds: tuple[int, int]) -> None:
    for name, kernel, seed in (("z", 5, seeds[0]), ("a", 5 if seeds[1] else 9, seeds[1])):
        write_run(tmp_path / name, f"{KERNEL}={kernel}", f"seed={seed}", "trainer.device=cpu", "sweep=" + name,
                  best__val__accuracy=0.8)  # fmt: skip
    comparison = read([tmp_path / "z", tmp_path / "a"])
    expected = [["seed", "0", "1"]] if seeds[1] else [[KERNEL, "5", "9"]]
    assert differing_keys(comparison) == expected
    assert markdown_table(["key"], expected)[2] in page_of(comparison)
    figure = comparison_figure(comparison)
    assert figure
    lines = {line.get_label() for axes in figure.axes for line in axes.get_lines()}
    assert {"A val", "A train", "B val", "B train"} <= lines
    write_run(tmp_path / "third", f"{KERNEL}=3", best__val__accuracy=0.8)
    assert not differing_keys(read([tmp_path]))


def test_notes_are_shown_beside_their_setting(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.8]})
    assert "notes" not in table(read([folder]))[0]
    for seed, text in enumerate(["wide, on purpose", "again", "again"], start=1):
        write_run(folder / f"k9-{seed}", f"{KERNEL}=9", f"{DEPTH}=8", f"seed={seed}", f"notes='{text}'",
                  best__val__accuracy=0.8)  # fmt: skip
    comparison = read([folder])
    header, rows = table(comparison)
    assert comparison.factors == [KERNEL]
    assert [row[header.index("notes")] for row in rows] == ["", "wide, on purpose; again"]
    assert "wide, on purpose" in table_csv(comparison)


def test_effects_are_significant_or_not_in_words(tmp_path: Path) -> None:
    wide, narrow = [0.9, 0.93, 0.88, 0.91, 0.92], [0.95, 0.97, 0.94, 0.95, 0.97]
    compare([write_sweep(tmp_path / "s", {(5, 8): wide, (9, 8): narrow, (7, 8): [0.91, 0.92, 0.89, 0.9, 0.92]})])
    text = report(tmp_path / "s")
    assert re.search(r"kernel_size 9 instead of 5: \+4\.80 points \[\+\S+, \+\S+\]; significant \(p", text)
    assert re.search(r"kernel_size 7 instead of 5: \+0\.00 points \[-\S+, \+\S+\]; not significant \(p", text)
    assert "Holm" in text and "2 comparisons" in text


def test_a_config_groups_option_stands_for_the_keys_it_sets(tmp_path: Path) -> None:
    light = ("augmentation.hflip=0.5", "augmentation.hue=0.1")
    simple = ("augmentation.hflip=0.5", "augmentation.hue=0.0")
    none = ("augmentation.hflip=0.0", "augmentation.hue=0.0", "augmentation.shift=0.0")
    for option, keys, accuracy in (("light", light, 0.93), ("simple", simple, 0.92), ("none", none, 0.9)):
        for kernel in (5, 9):
            write_run(
                tmp_path / "s" / f"{option}{kernel}", f"{KERNEL}={kernel}", *keys,
                overrides={"augmentation": option, KERNEL: kernel}, best__val__accuracy=accuracy + kernel / 1000,
            )  # fmt: skip
    compare([tmp_path / "s"])
    text = report(tmp_path / "s")
    assert "Best: augmentation=light kernel_size=9 with" in text
    assert "augmentation simple instead of none: +2.00 points, higher in 2 of 2 pairs" in text
    assert {"augmentation", "augmentation.hflip", "augmentation.hue"} < set(rows(tmp_path / "s")[0])


def test_comparison_of_a_search_states_no_effect_of_one_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trial has a different rate, one of four kernel sizes and one of two options."""
    none = "augmentation.hflip=0.0 augmentation.hue=0.0 augmentation.shift=0.0"
    options = {"none": none, "light": "augmentation.hflip=0.5 augmentation.hue=0.1"}
    for i in range(8):
        option, kernel, lr = list(options)[i // 4], (3, 5, 7, 9)[i % 4], 0.001 * 1.5**i
        write_run(
            tmp_path / "s" / str(i), f"{KERNEL}={kernel}", f"optimizer.lr={lr}", *options[option].split(),
            overrides={"augmentation": option, KERNEL: kernel, "optimizer.lr": lr}, best__val__accuracy=0.9 + i / 1000,
        )  # fmt: skip
    compare([tmp_path / "s"])
    out, text = capsys.readouterr().out, report(tmp_path / "s")
    assert re.search(r"augmentation +kernel_size +lr +val %", out)
    assert "Best: augmentation=light kernel_size=9 lr=0.0170859 with" in out
    assert "instead of" not in text and "in one factor alone" in text
    follow = [part.partition(":")[0] for part in text.split("; ") if "follows from the others" in part]
    assert set(follow) == {"`augmentation.hflip`", "`augmentation.hue`", "`augmentation.shift`"}


def test_runs_without_a_result_are_listed_with_their_reason(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.91]})
    write_run(folder / "f", f"{KERNEL}=5", f"{DEPTH}=8", "seed=2", status="failed", error="NotFinite: NaN\nat step 3")
    write_run(folder / "i", f"{KERNEL}=9", f"{DEPTH}=8", "trainer.epochs=10", status="interrupted", epochs=3)
    write_run(folder / "p", f"{KERNEL}=9", f"{DEPTH}=8", "trainer.epochs=10", status="pruned", epochs=2)
    write_run(folder / "nan", f"{KERNEL}=15", f"{DEPTH}=8", best__val__accuracy=math.nan)
    (write_run(folder / "cut") / "summary.json").write_text('{"sta')
    compare([folder])
    text = report(folder)
    assert "failed: f (NotFinite: NaN)" in text and "interrupted: i (after 3 of 10 epochs)" in text
    assert "pruned: p (after 2 of 10 epochs)" in text
    assert "unreadable: cut (summary.json:" in text and "Completed without val/accuracy: " in text
    assert {"1 failed", "1 interrupted, 1 pruned"} <= {row["without_result"] for row in rows(folder)}


def test_reason_of_several_runs_is_said_once(tmp_path: Path) -> None:
    for seed in range(7):
        write_run(tmp_path / f"k-{seed}", f"seed={seed}", status="failed", error="DataError: model.patch_size=3")
    (line,) = not_completed_lines(read([tmp_path]))
    assert line.count("model.patch_size=3") == 1 and "k-0, k-1" in line and "2 more" in line


def test_nothing_completed_is_said_and_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "s" / "f", status="failed", error="no memory")
    assert [run.status for run in compare([tmp_path / "s"])] == ["failed"]
    assert "No run has completed" in capsys.readouterr().out
    assert not (tmp_path / "s" / "comparison.png").exists()


@pytest.mark.slow
def test_the_reference_stands_beside_ours(tmp_path: Path) -> None:
    values = {(5, 8): [0.9, 0.92, 0.94], (9, 8): [0.959, 0.96, 0.961], (7, 8): [0.9, 0.9, 0.9]}
    folder = write_sweep(tmp_path / "s", values, *REFERENCE)
    compare([folder])
    by_kernel = {row[KERNEL]: row for row in rows(folder)}
    assert float(by_kernel["5"]["difference"]) == pytest.approx(0.915 - 0.91)
    assert [by_kernel[kernel]["reference_in_interval"] for kernel in "579"] == ["True", "", "False"]
    assert "the reference 99.00 %: -3.50 points, beyond" in report(folder) and "from the paper" in report(folder)


def test_without_validation_the_test_set_is_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a", f"{KERNEL}=5", best__val__accuracy=None, test__accuracy=0.9)
    write_run(tmp_path / "s" / "b", f"{KERNEL}=9", best__val__accuracy=None, test__accuracy=0.8)
    compare([tmp_path / "s"])
    assert "Best: kernel_size=5 with 90.00 % test/accuracy" in report(tmp_path / "s")


# Files.


def test_an_interrupted_comparison_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sweep(tmp_path / "s", {(3, 8): [0.9, 0.91], (5, 8): [0.95, 0.96]})
    compare([folder])

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    before = files()
    write_run(folder / "new", f"{KERNEL}=9", f"{DEPTH}=8", best__val__accuracy=0.5)
    whole = Figure.savefig

    def interrupted(figure: Figure, path: Path, **options: Any) -> None:
        whole(figure, path, **options)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare([folder])
    assert files() == before


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.8]})
    (folder / "comparison.csv").mkdir()  # root may write anywhere; but not a file where a folder is
    with pytest.raises(ConfigError, match=f"{folder}: .*written") as error:
        compare([folder])
    assert "\n" not in str(error.value) and "Best: kernel_size=5" in capsys.readouterr().out


@pytest.mark.slow
def test_a_comparison_of_some_runs_leaves_that_of_all(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.8], (9, 16): [0.7]})
    compare([folder])
    before = (folder / "comparison.csv").read_bytes()
    for condition in ("depth>8", "depth>=8", "depth<=8", "depth=8", "depth!=8"):
        compare([folder], filters=[condition])
    assert (folder / "comparison.csv").read_bytes() == before
    assert len(list(folder.glob("comparison*.csv"))) == 2 * 6, "a table of settings and one of runs each"
    assert len((folder / "comparison-depth_from_8.csv").read_text().splitlines()) == 4
    assert "](comparison-depth=8.png)" in (folder / "comparison-depth=8.md").read_text()


# The command.


@pytest.mark.slow
def test_the_table_keeps_to_a_terminal_and_is_whole_in_a_pipe(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92], (9, 16): [0.95, 0.96]})
    piped = command("s", cwd=tmp_path, script="compare", COLUMNS="80")
    assert piped.returncode == 0, piped.stderr
    headings = next(line for line in piped.stdout.splitlines() if "kernel_size" in line and "=" not in line).split("  ")
    shown = [heading.strip() for heading in headings if heading.strip()]
    assert shown == ["depth", "kernel_size", "n", "val %", "test %", "params", "MACs", "s", "img/s"]
    assert "91.00 ± 12.71" in piped.stdout and "…" not in piped.stdout and folder.joinpath("comparison.md").exists()

    terminal = command("s", cwd=tmp_path, script="compare", COLUMNS="60", FORCE_COLOR="1")
    plain = re.sub(r"\x1b\[[\d;]*m", "", terminal.stdout).splitlines()
    table = plain[1 : next(i for i, line in enumerate(plain) if line.startswith("Best"))]
    assert "val %" in "".join(table) and any("hidden columns" in line for line in table)
    assert max(map(len, table)) <= 60 and "…" not in "".join(table)


@pytest.fixture
def run_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str]]:
    """Run `python src/compare.py ARGUMENTS` within this process; return its exit code or message, and its output."""
    import compare as script

    def start(*arguments: str) -> tuple[Any, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
        code: Any = 0
        try:
            script.main()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return start


def test_json_is_all_that_is_printed_and_nothing_is_written(tmp_path: Path, run_compare: Callable[..., Any]) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9, 0.92], (9, 8): [math.nan, 0.96]})
    code, out = run_compare("s", "--json")
    tree = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0 and [row["n"] for row in tree["rows"]] == [1, 2] and tree["keys"] == [KERNEL]
    assert tree["effects"][0]["factor"] == KERNEL and tree["effects"][0]["is_significant"] is False
    assert not list(folder.glob("comparison.*"))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("loss", [1e160, 1e308])
def test_losses_of_any_size_are_json(tmp_path: Path, run_compare: Callable[..., Any], loss: float) -> None:
    for kernel, seed in itertools.product((5, 9), (0, 1, 2)):
        overrides = (f"{KERNEL}={kernel}", f"seed={seed}")
        write_run(tmp_path / "s" / f"{kernel}-{seed}", *overrides, best__val__loss=loss / (1 + kernel * seed))
    code, out = run_compare("s", "--json", "--metric", "val/loss")
    tree = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0 and len(tree["rows"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "error: nowhere: "),
        (("empty",), "error: empty: "),
        (("s", "--filter", "depth=99"), "error: s: "),
        (("s", "--filter", "name=["), "error: --filter name=["),
        (("s", "--metric", "val/acuracy"), "did you mean val/accuracy"),
        (("s", "--images"), "error: --images: "),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, run_compare: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9]})
    to_come = {"data": "digits", "epochs": 1, "epoch_size": 1.0}
    (folder / "sweep.json").write_text(json.dumps({"0": to_come}))  # whatever is under way
    code, _ = run_compare(*arguments)
    assert message in code and "\n" not in code
    assert not (tmp_path / "empty" / "comparison.csv").exists()


@pytest.mark.slow
def test_thousands_of_runs_take_seconds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    template = as_yaml(f"{KERNEL}=<0>", f"{DEPTH}=<1>", "optimizer.lr=<2>", "seed=<3>")
    for i in range(5000):
        config = template
        for place, value in enumerate((3 + 2 * (i % 5), 4 * (1 + i // 5 % 5), 0.001 * (1 + i // 25 % 40), i // 1000)):
            config = config.replace(f"<{place}>", str(value))
        write_run(tmp_path / "s" / f"{i}", config=config, best__val__accuracy=generator.normal(0.9, 0.01))
    measure = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r})\n"
        "import time; from pathlib import Path\n"
        "from comparison.results import read; from publishing.publish import publish\n"
        "publish(comparison := read([Path('s')]), Path('s'))\n"
        "assert len(comparison.runs) == 5000\n"
        "assert 'torch' not in sys.modules, 'it takes 450 MB'\n"
        "print(Path('/proc/self/status').read_text() if Path('/proc').exists() else 'VmHWM: 0 kB')\n"
        "print('seconds:', time.process_time())"
    )
    finished = subprocess.run([sys.executable, "-c", measure], cwd=tmp_path, capture_output=True, text=True, check=True)
    (seconds,) = re.findall(r"seconds: (.*)", finished.stdout)
    assert float(seconds) < 60, "of the processor, half of it on each of two cores"
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", finished.stdout)
    assert int(peak) * 1024 < 1.0e9
    assert len(rows(tmp_path / "s")) == 1000 and "980 more settings in comparison.csv" in finished.stdout
