"""Tests of names from files, folders and servers: every medium shows them unchanged, and none obeys them."""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from config import text
from config.command_line import override
from conftest import TINY, command
from processes import REPOSITORY

HOSTILE = "=1+1[b][link=http:x]a\x1b[2J$5_$10<script>alert`|\u202e\n# *x*](http:x)"  # also the name of a file
RACE = (
    "hydra/sweeper=race",
    "hydra.sweeper.first_seeds=3",
    "hydra.sweeper.max_seeds=3",
    "trainer.epochs=1",
    "scheduler=constant",
)
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")  # by a terminal


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run every command; return its output by its name. The files are in `folder`."""
    folder = tmp_path_factory.mktemp("names")
    for part, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("cat", HOSTILE)):
            (folder / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 255, (12, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "images" / part / name / f"{HOSTILE if i == label else i}.png")
    (folder / "images" / "val" / "cat" / f"broken {HOSTILE}.png").write_bytes(b"")
    sweep, printed = folder / "outputs" / HOSTILE, {"folder": str(folder)}
    data = ("data=image_folder", "data.root=images", "data.skip_unreadable=true", "data.train_fraction=1")
    options = (*TINY, *data, override("sweep", HOSTILE), "model.kernel_size=3,5")

    def run(name: str, script: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> None:
        done = command(*arguments, cwd=folder, script=script, **({} if name != "wandb" else {"WANDB_MODE": "offline"}))
        assert done.returncode in codes, done.stdout + done.stderr
        printed[name] = done.stdout + done.stderr

    run("plan", "train", "-m", *options, "plan=true")
    run("wandb", "wandb_sweep", *options)
    run("train", "train", "-m", *options, "trainer.figures=true")
    run("race", "train", "-m", *options, *RACE)
    summary = next(iter(sweep.glob("*/summary.json")))
    content = json.loads(summary.read_text())
    content["name"] = f"{HOSTILE} [/old] kernel_size=3"
    content["overrides"] |= {
        "+hydra.callbacks.x._target_": "os.system", "hydra.callbacks.x": HOSTILE, "model._target_": "os.system",
        "notes": HOSTILE,
    }  # fmt: skip
    summary.write_text(json.dumps(content))
    run("images", "compare", str(sweep), "--images")
    summary.write_text(json.dumps(content | {"status": "failed", "error": f"{HOSTILE} [/old] \x9b2J"}))
    run("compare", "compare", str(sweep))
    run("json", "compare", str(sweep), "--json")
    run("filter", "compare", str(sweep), "--filter", f"kernel_size={HOSTILE}", codes=(1,))
    checkpoint = override("checkpoint", str(summary.parent))
    run("evaluate", "evaluate", checkpoint, "data.root=images", "output=evaluated")
    run("predict", "predict", checkpoint, "images=images/val", "output=predicted.csv", codes=(2,))
    run("export", "export", checkpoint, "format=safetensors", f"output={folder / 'weights.safetensors'}")
    return printed


def written(outputs: dict[str, str], pattern: str) -> Iterator[Path]:
    paths = [path for path in Path(outputs["folder"]).rglob(pattern) if "wandb" not in path.parts]
    assert paths
    yield from paths


@pytest.mark.slow
def test_terminal_obeys_no_name(outputs: dict[str, str]) -> None:
    for name, printed in outputs.items():
        assert not OBEYED.search(printed), (name, OBEYED.search(printed))
    for path in written(outputs, "train.log"):
        assert not OBEYED.search(path.read_text())
    assert text.printable(HOSTILE) in outputs["compare"]
    assert text.printable(HOSTILE) in outputs["predict"]


@pytest.mark.slow
def test_spreadsheet_computes_no_name(outputs: dict[str, str]) -> None:
    cells = set()
    for path in written(outputs, "*.csv"):
        with path.open(newline="") as file:
            cells |= {cell for row in csv.reader(file) for cell in row}
    formulas = {cell for cell in cells if re.match(r"[=+@\t\r]|-(?![\d.]+(e[-+]?\d+)?$)", cell)}
    assert not formulas
    assert f"'{text.printable(HOSTILE)}" in cells


@pytest.mark.slow
def test_markdown_renders_names_as_text(outputs: dict[str, str]) -> None:
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    seen = 0
    for path in written(outputs, "*.md"):
        page = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(), flags=re.S).replace(
            "<!-- Written by export.py. -->", ""
        )
        tokens = [token for block in markdown.parse(page) for token in (block, *(block.children or ()))]
        kinds = {token.type for token in tokens}
        assert not kinds & {"html_block", "html_inline", "link_open", "em_open"}, path
        headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
        assert not any(heading.startswith("*x") for heading in headings)
        seen += "".join(token.content for token in tokens if token.type == "text").count("<script>")
    assert seen


@pytest.mark.slow
def test_page_shows_names_as_text(outputs: dict[str, str]) -> None:
    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[Any]) -> None:
            elements.append((tag, dict(attributes)))

    for path in written(outputs, "comparison.html"):
        elements: list[tuple[str, dict[str, Any]]] = []
        Elements().feed(path.read_text())
        assert len([tag for tag, _ in elements if tag == "script"]) == 3


@pytest.mark.slow
def test_printed_commands_have_only_keys_of_the_schema(outputs: dict[str, str]) -> None:
    card = (Path(outputs["folder"]) / "weights.md").read_text()
    printed = [*outputs["compare"].splitlines(), *card.splitlines()]
    commands = [line.strip() for line in printed if line.strip().startswith("python ")]
    assert commands
    for line in commands:
        assert not re.search("hydra.callbacks|_target_|notes", line), line
        assert shlex.split(line, comments=True)


def test_each_medium_has_one_writer() -> None:
    owners = {"shlex": {"text.py"}, ".to_csv(": {"text.py"}, "markup=True": set(), "csv.writer": set()}
    files = list((REPOSITORY / "src").rglob("*.py"))
    assert {pattern: {path.name for path in files if pattern in path.read_text()} for pattern in owners} == owners


@pytest.mark.parametrize("name", ["-1", "-2.5e-3", "cat", "n01440764", "5"])
def test_honest_cells_stay(name: str) -> None:
    assert text.cell(name) == name
    assert text.csv_text(pd.DataFrame({"a": [name], "b": [1]}), index=False) == f"a,b\n{name},1\n"


@pytest.mark.parametrize(
    "line",
    ["kernel_size 9 instead of 5: +1.20 points [+0.40, +2.00]; p < 0.001 (p = 0.012).", "data.root=/a/b_c: 2.5 x"],
)
def test_honest_markdown_stays(line: str) -> None:
    assert text.markdown(line) == line
