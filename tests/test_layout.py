"""Tests of the layout of src: imports in one direction, short files and packages, paths that exist."""

import ast
import graphlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from processes import REPOSITORY

SRC = REPOSITORY / "src"
# From the commands down; a package may import from its own and from those after it.
ORDER = [
    "commands", "hydra_plugins", "sweeps", "benchmarks", "inference", "publishing", "rendering", "comparison",
    "training", "tracking", "weights", "pipeline", "data", "LLMConvMixer", "runtime", "ops", "stats", "config",
]  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FILES = sorted(SRC.rglob("*.py"))


def package_of(module: str) -> str | None:
    """Return the package of src to which a module belongs; None for other modules."""
    first = module.partition(".")[0]
    if first in ORDER:
        return first
    return "commands" if (SRC / f"{first}.py").exists() else None


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """List line and module of every import, also of those within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def test_every_package_has_its_place() -> None:
    assert len(FILES) > 50
    assert {package_of(".".join(path.relative_to(SRC).with_suffix("").parts)) for path in FILES} == set(ORDER)


def test_imports_run_one_way() -> None:
    upward = []
    for path in FILES:
        importer = package_of(".".join(path.relative_to(SRC).with_suffix("").parts))
        for line, module in imported(path):
            package = package_of(module)
            if package and importer and ORDER.index(package) < ORDER.index(importer):
                upward.append(f"{path.relative_to(SRC)}:{line} imports {module}")
    assert not upward


def test_comparisons_are_computed_without_drawing() -> None:
    drawing = {"jinja2", "matplotlib", "PIL", "plotly", "rich"}
    computing = [path for path in FILES if path.parent.name == "comparison"]
    assert len(computing) > 5
    assert not {module for path in computing for _, module in imported(path) if module.partition(".")[0] in drawing}


def test_no_files_import_each_other() -> None:
    """`from data import datasets` counts as an import of the file."""
    names = {".".join(path.relative_to(SRC).with_suffix("").parts): path for path in FILES}
    graph = {
        name: {module for _, module in (*imported(path), *members(path)) if module in names}
        for name, path in names.items()
    }
    assert sum(map(len, graph.values())) > 200
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names them


def members(path: Path) -> Iterator[tuple[int, str]]:
    """List what is imported from a package: its modules, and names that are not modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_the_model_is_never_timms() -> None:
    """Only the benchmark uses timm's models, as a peer."""
    importers = {path.parent.name for path in FILES for _, module in imported(path) if module.startswith("timm.models")}
    assert importers == {"benchmarks"}


def test_files_and_functions_are_short_enough_to_read_in_one_go() -> None:
    limits = {SRC / "training" / "loop.py": 200}
    files = {path: path.read_text() for path in FILES}
    long = {
        path.relative_to(SRC).as_posix() for path, text in files.items() if text.count("\n") > limits.get(path, 350)
    }
    assert not long
    packages = Counter({path.relative_to(SRC).parts[0]: 0 for path in FILES if path.parent != SRC})
    for path in SRC.rglob("*.*"):
        if path.suffix in (".py", ".js", ".css", ".html") and path.parent != SRC:
            packages[path.relative_to(SRC).parts[0]] += path.read_text().count("\n")
    assert max(packages.values()) <= 2000, packages
    functions = [node for text in files.values() for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)]
    assert len(functions) > 300
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 100] == []


def test_names_of_tests_have_at_most_60_characters() -> None:
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    assert len(names) > 700
    assert [name for name in names if name.startswith("test_") and len(name) > 60] == []


PATH = re.compile(r"(?<![\w./*$-])((?:[\w-]+/)*[\w-]+\.(?:py|ya?ml|md|sh|ipynb))(?![\w/])")
PLACEHOLDER = re.compile(r"[A-Z]{2,}")  # as in conf/experiment/NAME.yaml
WRITTEN = {"config.yaml", "comparison.md", "race.md"}  # by commands
ELSEWHERE = {  # in other repositories
    "convmixer.py", "timm/data/auto_augment.py", "distributed_train.sh", "validate.py", "eval.py",
}  # fmt: skip
NAME_IN_FILE = re.compile(r"`(\w+)`\s+in\s+`([\w/]+\.py)`")
EXAMPLES = {
    "stem",
    "svhn",
    "test_svhn",
    "group_norm",
    "depthwise_fft",
    "k11",
    "radam",
    "polynomial",
}  # CONTRIBUTING's, which a reader would add


def test_paths_that_pages_and_docstrings_name_exist() -> None:
    """A path is relative to the repository, to src, conf or tests, or to the folder of the page."""
    pages = [path for path in tracked() if path.suffix in (".md", ".py", ".yaml", ".toml") or path.name == "Makefile"]
    named, missing = 0, []
    for page in pages:
        text = page.read_text() if page.suffix != ".py" else "\n".join(prose(page))
        for match in PATH.finditer(text):
            path = match[1]
            is_example = EXAMPLES & {*Path(path).parts, Path(path).stem}
            if is_example or path in WRITTEN | ELSEWHERE or PLACEHOLDER.search(path.replace("README", "")):
                continue
            named += 1
            roots = [REPOSITORY, *(REPOSITORY / name for name in ("src", "conf", "tests")), *page.parents]
            if not any((root / path).exists() for root in roots):
                missing.append(f"{page.relative_to(REPOSITORY)}: {path}")
    assert named > 100
    assert not missing, "\n".join(missing)


def test_names_that_pages_place_in_a_file_are_defined_there() -> None:
    pages = [path for path in tracked() if path.suffix == ".md"]
    named = [(page.name, *match) for page in pages for match in NAME_IN_FILE.findall(page.read_text())]
    assert len(named) > 10
    missing = [(page, name, file) for page, name, file in named if name not in defined(SRC / file.removeprefix("src/"))]
    assert not missing


def defined(path: Path) -> set[str]:
    """Collect the names that a module defines."""
    names = set[str]()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        names |= {target.id for target in ast.walk(node) if isinstance(target, ast.Name) and target.col_offset == 0}
    return names


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [REPOSITORY / name for name in listed.split()]


def prose(path: Path) -> Iterator[str]:
    """Yield the docstrings and comments of a Python file."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    yield from re.findall(r"(?<!['\"])# .*$", text, re.M)
