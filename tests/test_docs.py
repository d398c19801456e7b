"""Tests of README.md and docs: commands compose, snippets run; keys, links and messages exist."""

import argparse
import ast
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

import wandb_sweep
from config import schema
from config.commands import COMMANDS, register_commands
from config.compose import compose_config
from config.errors import check_arguments
from config.parse import check_constraints, parse_config, parse_keys
from config.schema import GROUPS, Config, keys_of
from conftest import initialized, load_folder
from hydra_plugins.sweeper import Grid, Race, Search
from processes import REPOSITORY, shipped
from sweeps import plan

SRC = REPOSITORY / "src"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FOREIGN = {"cd", "git", "pip", "wandb", "find", "for", "optuna-dashboard", "export", ".venv/bin/pre-commit"}
EXAMPLES = {  # keys that CONTRIBUTING.md adds, and other repositories' keys
    "trainer.clip_grad_value", "augmentation.grayscale", "scheduler.power", "trainer.max_epochs", "model.lr",
}  # fmt: skip
FILES = (".py", ".yaml", ".csv", ".md", ".png", ".pth", ".pth.tar", ".onnx", ".pt2", ".safetensors")


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def command_lines(page: Path) -> list[list[str]]:
    """List the words of each command in a page's bash blocks."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    parts = [part for line in text.splitlines() for part in re.split(r"&&|(?<=\S) \| ", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def check_train(arguments: Sequence[str]) -> None:
    """Compose what a command would run: all runs of a grid, or the ends of a search's space."""
    check_arguments(arguments)
    task = [argument for argument in arguments if "=" in argument]
    if "--help" in arguments:
        return
    if "-m" not in arguments:
        parse_config(compose_config("train", task))
        return
    sweeper: object = Grid()
    if any("hydra" in argument or "experiment=" in argument for argument in task):
        overrides = plan.parse_overrides(task).values()
        single = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        sweeper = OmegaConf.to_object(compose("train", single, return_hydra_config=True).hydra.sweeper)
        check_constraints(sweeper, "hydra.sweeper.")
    of_runs = [argument for argument in task if not argument.lstrip("+~").startswith("hydra")]
    if isinstance(sweeper, Search):
        from sweeps.space import check_space, make_space  # takes seconds

        searched, fixed = plan.split_overrides(plan.parse_overrides(of_runs, sweeper.params))
        check_space("train", make_space("train", searched, fixed), fixed)
        return
    assert isinstance(sweeper, Grid | Race)
    for run in plan.expand_grid(plan.parse_overrides(of_runs, sweeper.params)):
        parse_config(compose_config("train", run))


def parsed(script: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Parse a command's arguments with its parser, without running it."""
    namespaces = []

    def stop(namespace: argparse.Namespace) -> None:
        namespaces.append(namespace)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(argparse.ArgumentParser, name)
            patched.setattr(argparse.ArgumentParser, name, lambda self, parse=parse: stop(parse(self)))
        patched.setattr(sys, "argv", [f"src/{script}.py", *arguments])
        with pytest.raises(KeyboardInterrupt):
            importlib.import_module(script).main()
    return namespaces[0]


def check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose or parse one command; of other programs only the name is checked."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (REPOSITORY / "Makefile").read_text(), re.M)
        return
    if program == "torchrun":
        program, arguments = "python", [word for word in arguments if not word.startswith("--nproc")]
    if program != "python" or arguments[0] == "-m":
        assert program in FOREIGN or (REPOSITORY / program).exists() or Path(program).name == "python", words
        return
    script, *arguments = arguments
    name = Path(script).stem
    assert (REPOSITORY / script).is_file(), script
    if name == "train":
        check_train(arguments)
    elif name in COMMANDS:
        overrides = [word for word in arguments if word != "-m"]
        singles = [f"{key}={value.split(',')[0]}" for key, _, value in (word.partition("=") for word in overrides)]
        composed = compose(name, singles if "-m" in arguments else overrides)
        for key in ("data.name", "data.root"):  # as the checkpoint says
            if OmegaConf.is_missing(composed.data, key.removeprefix("data.")):
                OmegaConf.update(composed, key, "digits")
        parse_keys(composed)
    elif name == "wandb_sweep":
        namespace = parsed(name, arguments, monkeypatch)
        wandb_sweep.wandb_sweep(namespace.overrides, namespace.method, namespace.run_cap, namespace.hyperband)
    elif name == "benchmark":
        of_runs = [word for word in parsed(name, arguments, monkeypatch).arguments if "=" in word]
        OverridesParser.create().parse_overrides(of_runs)
        check_train(["-m", *(word for word in of_runs if not word.startswith("target="))])
    elif name in ("compare", "clean"):
        parsed(name, arguments, monkeypatch)


@pytest.fixture
def workplace(tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in which the pages' commands find a run, an image, and images with a table of labels."""
    for sweep in ("mine", "kernels"):
        shutil.copytree(digits_run, tmp_path / "outputs" / sweep / digits_run.name)
    Image.new("L", (20, 30), 100).save(tmp_path / "IMAGE.png")
    table = ["file,class,split"]
    for split, images in (("train", 20), ("test", 4)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (8, 8), (100 * (i % 2), 0, i)).save(tmp_path / "images" / split / f"{i}.png")
            table.append(f"{split}/{i}.png,{('cat', 'red panda')[i % 2]},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(table))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_composes(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_commands()
    schema.register()
    with initialized():
        for words in command_lines(page):
            try:
                check_command(words, monkeypatch)
            except BaseException as error:
                pytest.fail(f"{shlex.join(words)}: {type(error).__name__}: {error}")


def test_pages_have_commands() -> None:
    assert sum(len(command_lines(page)) for page in PAGES) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_snippet_of_a_page_runs(page: Path, workplace: Path) -> None:
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {})


@pytest.mark.parametrize("has_split", [True, False])
def test_labels_in_a_csv_file_become_classes(workplace: Path, has_split: bool) -> None:
    if not has_split:
        rows = (workplace / "labels.csv").read_text().splitlines()
        (workplace / "labels.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
    (code,) = (code for code in blocks(REPOSITORY / "docs" / "train.md", "python") if "labels.csv" in code)
    exec(compile(code, "train.md", "exec"), {})
    data = load_folder(workplace / "by_class")
    assert data.classes == ["cat", "red panda"]
    train, val = data.train, data.val
    assert val and len(train) + len(val) + len(data.test) == 24
    assert not has_split or len(data.test) == 4
    for split in (train, val, data.test):
        assert all(label == (np.asarray(split[i])[0, 0, 0] == 100) for i, label in enumerate(split.labels))


def known_keys() -> set[str]:
    sections = [Config(optimizer=optimizer()) for optimizer in (schema.Optimizer, *schema.OPTIMIZERS.values())]
    sections += [Config(scheduler=scheduler()) for scheduler in schema.SCHEDULERS.values()]
    keys = {key for section in sections for key, *_ in keys_of(section)}
    for name in ("basic", "side_by_side", "slurm"):
        with initialized():
            hydra = compose("train", [f"hydra/launcher={name}"], return_hydra_config=True).hydra
            keys |= {f"hydra.launcher.{key}" for key in hydra.launcher}
    keys |= {f"hydra.sweeper.{key}" for options in (Grid, Race, Search) for key in options.__dataclass_fields__}
    return keys


def test_every_key_that_pages_name_exists() -> None:
    schema.register()
    keys, named, unknown = known_keys(), 0, []
    sections = "|".join({key.partition(".")[0] for key in keys if "." in key} - {"hydra"})
    pattern = re.compile(
        rf"(?<![\w./-])((?:{sections}|hydra\.sweeper|hydra\.launcher)\.[a-z_0-9]+(?:\.[a-z_]+)?)(?![\w(/])"
    )
    for page in PAGES:
        for key in pattern.findall(re.sub(r"^```(text|python).*?^```$", "", page.read_text(), flags=re.M | re.S)):
            is_file = key.endswith(FILES)
            below = key.startswith(("optimizer.arguments.", "hydra.sweeper.params"))
            named += 1
            if not (is_file or below or key in keys or key in EXAMPLES):
                unknown.append(f"{page.name}: {key}")
    assert named > 80
    assert not unknown


def test_train_page_lists_every_option() -> None:
    text = (REPOSITORY / "docs" / "train.md").read_text()
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([\w/]+)` \| (.*?) \|", text, re.M)}
    for group in GROUPS:
        options = {path.stem for path in shipped(f"{group}/*.yaml")}
        assert options <= set(re.findall(r"`(\w+)`", rows[group])), group


def test_links_lead_somewhere() -> None:
    pages = [*PAGES, *REPOSITORY.glob("experiments/**/*.md")]
    missing, followed = [], 0
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                followed += 1
                if not (page.parent / target).exists():
                    missing.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert followed > 50
    assert not missing


VALUE = "\0"  # in a template, where the program puts a value


def template(node: ast.AST) -> str:
    """Return the text of a string expression, with VALUE for its variable parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return VALUE


def templates() -> set[str]:
    """Collect the messages of the program and the Makefile that have enough words to be recognized."""
    trees = [ast.parse(path.read_text()) for path in SRC.rglob("*.py")]
    kinds = ast.Constant | ast.JoinedStr | ast.BinOp
    texts = {template(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}
    makefile = (REPOSITORY / "Makefile").read_text()
    texts |= {text.replace("$(PYTHON)", VALUE) for text in re.findall(r'echo "(.*?)"', makefile)}
    return {text for text in texts if len(re.findall("[A-Za-z]", text)) >= 8}


def is_made_from(message: str, text: str) -> bool:
    """Return True if a template makes the message, or if a long template is a part of it."""
    pattern = ".*".join(map(re.escape, text.split(VALUE)))
    return bool(re.fullmatch(pattern, message) or (len(pattern) > 60 and re.search(pattern, message)))


def test_messages_of_the_troubleshooting_page_are_the_programs() -> None:
    texts = templates()
    messages = "".join(blocks(REPOSITORY / "docs" / "troubleshooting.md", "text")).splitlines()
    assert len(messages) >= 20
    for message in messages:
        message = message.removeprefix("error: ")
        likely = [text for text in texts if max(text.split(VALUE), key=len) in message]
        assert any(is_made_from(message, text) for text in likely), message


def test_sentences_that_the_compare_page_explains_are_printed() -> None:
    """The program's text has each part of a sentence of two words or more between values and punctuation."""
    text = "\n".join(templates()).lower()
    page = (REPOSITORY / "docs" / "compare.md").read_text().partition("## What the sentences mean")[2]
    sentences = re.findall(r"^\| (.*?) \|", page.partition("\n\n**")[0], re.M)[2:]
    assert len(sentences) > 15
    for sentence in sentences:
        pieces = [piece.strip() for piece in re.split(r"[^a-z ’']+|\b[ab]\b", sentence.lower())]
        missing = [piece for piece in pieces if " " in piece and piece not in text]
        assert not missing, sentence


def test_readme_is_a_first_page() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.encode()) <= 8192
    assert "GPU" in text[:1500]
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text, page.name
