"""Tests of the page of a comparison in a real browser, from disk and from its own server."""

import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from comparison.results import Comparison, read
from conftest import command
from publishing import watch
from publishing.page import ASSETS, PLOTLY, render_update
from publishing.publish import publish
from rendering.findings import interaction_lines
from run_folders import write_run, write_sweep
from runtime.files import write_text
from test_images import sweep as predicted_sweep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

TINY = (
    "model.d_model=8", "model.depth=1", "data.train_fraction=0.2", "data.num_workers=0", "trainer.epochs=2",
    "trainer.figures=false", "wandb.mode=disabled",
)  # fmt: skip
SEARCH = (
    "-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(0.001, 0.1))", "model.kernel_size=choice(3,5)",
    *TINY, "sweep=s",
)  # fmt: skip
RACE = (
    "-m", "hydra/sweeper=race", "hydra.sweeper.first_seeds=3", "hydra.sweeper.max_seeds=4",
    "optimizer.lr=0.03,0.04,0.00001", *TINY, "model.d_model=16", "data.batch_size=16", "data.train_fraction=0.4",
    "sweep=r",
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.xdist_group("page"),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two kernel sizes with three seeds each, and one failed run with a hostile message."""
    folder = tmp_path_factory.mktemp("outputs") / "sweep"
    for kernel in (5, 9):
        for seed in range(3):
            accuracy = 0.90 + 0.01 * (kernel == 9) + 0.001 * seed
            write_run(
                folder / f"k{kernel}-{seed}", f"model.kernel_size={kernel}", f"seed={seed}",
                overrides={"model.kernel_size": kernel, "seed": seed}, best__val__accuracy=accuracy,
                test__accuracy=accuracy, parameters=1000 * kernel,
            )  # fmt: skip
    write_run(folder / "k9-3", "model.kernel_size=9", "seed=3", status="failed", error=HOSTILE)
    (folder / "k9-3" / "train.log").write_text(f"{HOSTILE}\n")
    publish(read([folder]), folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Open pages from disk; every complaint of the browser fails the test."""
    complaints: list[str] = []
    pages: list[Page] = []

    def dismissed(dialog: "Dialog") -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    def opened(path: Path, **context: Any) -> "Page":
        page = browser.new_page(**({"viewport": {"width": 390, "height": 800}} | context))
        pages.append(page)
        page.set_default_timeout(120_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", dismissed)
        page.goto(path.as_uri())
        page.wait_for_selector("#settings tbody tr")
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture
def page(open_page: Callable[..., "Page"], sweep: Path) -> "Page":
    page = open_page(sweep / "comparison.html")
    page.wait_for_selector("#chart-effects .main-svg")
    return page


def click(page: "Page", chart: str, point: int, trace: int = 0) -> None:
    """Click a point of a chart, as a reader does."""
    x, y = page.evaluate(
        """([chart, point, trace]) => {
            const div = byId(`chart-${chart}`).querySelector(".chart");
            div.scrollIntoView({ block: "center" });
            const { xaxis, yaxis } = div._fullLayout, { x, y } = div.data[trace], box = div.getBoundingClientRect();
            const place = (axis, value) => axis._offset + axis.l2p(axis.d2c(value));
            return [box.left + place(xaxis, x[point]), box.top + place(yaxis, y[point])];
        }""",
        [chart, point, trace],
    )
    page.mouse.move(x - 1, y)
    page.wait_for_selector(f"#chart-{chart} .hoverlayer .hovertext", state="attached")
    page.mouse.click(x - 1, y)


@pytest.mark.slow
def test_page_answers_sorts_filters_and_links_selections(page: "Page", sweep: Path) -> None:
    assert "kernel_size=9" in page.inner_text("#answer p >> nth=0")
    rows = page.locator("#settings tbody tr")
    assert rows.count() == 2

    def first_cell() -> str:
        return rows.nth(0).locator("td").nth(0).inner_text().removeprefix("▸")

    page.click("#settings th button >> nth=0")
    page.click("#settings th button >> nth=0")
    assert first_cell() == "5"
    page.fill("#filter", "kernel_size=9")
    assert rows.count() == 1 and first_cell() == "9"
    page.fill("#filter", "")

    assert page.locator("#details").is_hidden()
    rows.nth(1).press("Enter")
    assert page.locator("#runs article").count() == 4
    assert page.locator("#settings tbody tr[aria-selected=true]").count() == 1
    faded = page.evaluate("byId('chart-curves').querySelector('.chart').data.map((trace) => trace.opacity)")
    assert {0.2, 1} <= set(faded)  # the chart shows the selection, too
    click(page, "cost", 0)  # drawn last to first: the other setting
    assert page.locator("#runs article").count() == 7
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # on a phone nothing sticks out


@pytest.mark.slow
def test_page_is_used_by_keyboard_and_keeps_the_focus(page: "Page") -> None:
    def focused() -> str:
        return page.evaluate("document.activeElement.dataset.id ?? ''")

    page.locator("#settings th button >> nth=0").press("Enter")
    assert page.locator("#settings th >> nth=0").get_attribute("aria-sort") == "descending"
    assert focused().startswith("sort")
    page.locator("#settings .unfold >> nth=0").press("Enter")
    assert page.locator("#settings tr.seed").count() == 4
    assert focused().startswith("unfold")
    page.locator("#settings tr.seed >> nth=0").press("Space")
    assert page.locator("#runs article").count() == 1
    assert focused().startswith("row seed")
    page.locator("#chart-curves input").press("Space")
    assert focused() == "seeds"


@pytest.mark.slow
def test_charts_and_controls_have_names(page: "Page") -> None:
    for chart in page.locator("#charts .chart").all():
        assert chart.get_attribute("role") == "img" and len(chart.get_attribute("aria-label") or "") > 10
    controls = "[...document.querySelectorAll('button, input, select')]"
    assert page.evaluate(f"{controls}.every((e) => e.textContent || e.ariaLabel || e.labels?.length)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_of_the_page_have_contrast(scheme: str) -> None:
    """WCAG 2.2 asks for 4.5 to 1 for text, and 3 to 1 for lines and marks."""
    light, dark = re.findall(r":root \{(.*?)\}", (ASSETS / "page.css").read_text(), re.S)
    colors = dict(re.findall(r"--([\w-]+): #(\w{6})", light if scheme == "light" else dark))

    def luminance(name: str) -> float:
        channels = [int(colors[name][i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    pairs = {
        (a, b): 4.5 for a in ("text", "muted", "accent", "failed", "running") for b in ("page", "panel", "selected")
    }
    pairs |= {(name, "page"): 3.0 for name in colors if name.startswith("series-")}
    assert len(pairs) == 15 + 8
    poor = {pair: round(contrast(*pair), 2) for pair, least in pairs.items() if contrast(*pair) < least}
    assert not poor


@pytest.mark.slow
def test_names_from_outside_are_text(page: "Page") -> None:
    page.fill("#filter", "failed")
    page.locator("#settings tbody tr").first.click()
    assert HOSTILE in page.inner_text("#runs")
    assert page.locator("#runs img").count() == 0


@pytest.mark.slow
def test_page_has_the_numbers_of_the_table(page: "Page", sweep: Path) -> None:
    table = pd.read_csv(sweep / "comparison.csv").set_index("model.kernel_size")
    settings = page.evaluate("state.data.settings")
    assert len(settings) == len(table)
    for setting in settings:
        row = table.loc[setting["levels"][0]]
        for metric in ("val/accuracy", "test/accuracy"):
            shown = setting["values"][metric]
            expected = [row[metric], row[f"{metric}/low"], row[f"{metric}/high"]]
            assert [shown["value"], shown["low"], shown["high"]] == pytest.approx(expected, rel=1e-5)
        assert setting["n"] == row["n"]


@pytest.mark.slow
def test_page_keeps_its_selection_when_runs_report(page: "Page", sweep: Path) -> None:
    page.locator("#settings tbody tr").first.press("Enter")
    selected = page.inner_text("#selected")
    update = render_update(Comparison("renamed", read([sweep]).runs), sweep)
    write_text(sweep / "comparison.live.js", update)
    page.evaluate("poll()")
    pytest.importorskip("playwright.sync_api").expect(page).to_have_title(
        "renamed", timeout=60_000
    )  # eval is forbidden
    assert page.inner_text("#selected") == selected
    page.evaluate("poll = () => {}")  # the file is gone for the tests after this one
    (sweep / "comparison.live.js").unlink()


@pytest.mark.slow
def test_cells_of_a_heat_map_select_their_runs(open_page: Callable[..., "Page"], tmp_path: Path) -> None:
    values = {(k, d): [0.8 + k * d / 1000, 0.801 + k * d / 1000] for k in (5, 9) for d in (2, 4)}
    comparison = read([write_sweep(tmp_path / "grid", values)])
    publish(comparison, tmp_path / "grid")
    page = open_page(tmp_path / "grid" / "comparison.html")
    click(page, "heat", 0)
    names = page.locator("#runs h3").all_inner_texts()
    assert len(names) == 2 and all("kernel_size=5" in name and "depth=2" in name for name in names)
    assert page.locator("#chart-effects .sentences li").all_inner_texts() == interaction_lines(comparison) != []


@pytest.mark.slow
def test_page_of_a_search_links_trials_to_runs(open_page: Callable[..., "Page"], tmp_path: Path) -> None:
    """Ten completed trials and the pruned ones are drawn, with the search's own findings."""
    done = command(*SEARCH, "hydra.sweeper.n_trials=11", "hydra.sweeper.pruner=median", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "s"
    record = json.loads((sweep / "search.json").read_text())
    page = open_page(sweep / "comparison.html")
    shown = page.evaluate("byId('chart-trials').querySelector('.chart').data.slice(1).map((trace) => trace.x)")
    assert shown == [
        [trial["number"] for trial in record["trials"] if trial["status"] == status]
        for status in ("completed", "pruned")
    ]
    assert sum(map(len, shown)) == 11
    caveats = page.inner_text("#caveats")
    assert all(" ".join(line.split()) in " ".join(caveats.split()) for line in record["lines"])
    click(page, "trials", 0, trace=1)
    (name,) = page.locator("#runs h3").all_inner_texts()
    first = next(trial for trial in record["trials"] if trial["status"] == "completed")
    assert f"kernel_size={first['params']['model.kernel_size']}" in name
    page.select_option("#chart-keys select", "model.kernel_size")
    keys = page.evaluate("byId('chart-keys').querySelector('.chart').data[0].x")
    assert set(keys) <= {"3", "5"}


@pytest.mark.slow
def test_page_of_a_race_answers_as_the_race_did(open_page: Callable[..., "Page"], tmp_path: Path) -> None:
    """One learning rate hardly trains, and is dropped after the first round."""
    done = command(*RACE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "r"
    record = json.loads((sweep / "race.json").read_text())
    page = open_page(sweep / "comparison.html")
    assert page.locator("#answer p").all_inner_texts() == record["lines"]
    bars = page.evaluate("byId('chart-race').querySelector('.chart').data[0]")
    assert bars["x"] == [setting["seeds"] for setting in reversed(record["settings"])]
    assert bars["text"] == [setting["outcome"] for setting in reversed(record["settings"])]
    assert [len(folders) for folders in bars["meta"]] == bars["x"]
    assert {folder for folders in bars["meta"] for folder in folders} == {
        path.parent.name for path in sweep.glob("*/summary.json")
    }


@pytest.mark.slow
def test_images_won_and_lost_are_on_the_page(open_page: Callable[..., "Page"], tmp_path: Path) -> None:
    """They are shown after --images, and leave the page when other runs are compared."""
    predicted_sweep(tmp_path, {(5, 8): 0.9, (3, 8): 0.7}, seeds=2)
    compare = partial(command, str(tmp_path), cwd=tmp_path, script="compare")
    assert compare("--images").returncode == 0
    page = open_page(tmp_path / "comparison.html")
    record = json.loads((tmp_path / "images.json").read_text())
    pictures = page.locator("#images img")
    assert pictures.count() == sum(len(row["images"]) for row in record["rows"]) > 12
    assert page.evaluate("[...document.querySelectorAll('#images img')].every((image) => image.naturalWidth > 0)")
    assert page.inner_text("#images h3 >> nth=0") == record["rows"][0]["title"]
    shutil.rmtree(tmp_path / "3-8-1")
    assert compare().returncode == 0
    assert open_page(tmp_path / "comparison.html").locator("#images img").count() == 0


def test_server_gives_the_folder_and_nothing_else(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep.parent / "secret.txt").write_text("secret")
    (sweep / "link.txt").symlink_to(sweep.parent / "secret.txt")
    watch.serve(sweep)
    address = capsys.readouterr().out.split()[-1]
    assert address.startswith("http://127.0.0.1:")
    root = address.removesuffix("/sweep/comparison.html")

    def get(path: str) -> int:
        try:
            with urllib.request.urlopen(f"{root}/{path}", timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert get("sweep/comparison.html") == get(PLOTLY) == get("sweep/k9-0/config.yaml") == 200
    for outside in ("", "sweep/", "secret.txt", "sweep/../secret.txt", "sweep/%2e%2e/secret.txt", "sweep/link.txt"):
        assert get(outside) == 404, outside
    (sweep / "link.txt").unlink()


@pytest.mark.slow
def test_watch_ends_with_the_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page stays live while a run is missing. After the last one the watch ends, and its script is removed."""
    monkeypatch.setattr(watch, "EVERY", 0.05)
    planned = {"name": "late", "data": "digits", "epochs": 2, "epoch_size": 1.0}
    (sweep / "sweep.json").write_text(json.dumps({"late": planned}))
    assert '"is_watched":false' in (sweep / "comparison.html").read_text()  # it would look for a script in vain
    watching = threading.Thread(target=watch.watch, args=(lambda: read([sweep]), sweep))
    watching.start()
    while not (sweep / "comparison.live.js").exists():
        assert watching.is_alive()
    write_run(sweep / "k5-late", "model.kernel_size=5", "seed=4", best__val__accuracy=0.9, test__accuracy=0.9)
    watching.join(120)
    assert not watching.is_alive()
    assert not (sweep / "comparison.live.js").exists()
    assert '"is_watched":true' in (sweep / "comparison.html").read_text()
