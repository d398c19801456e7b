"""The page of a comparison, opened in a real browser, from disk and from its own server."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from comparison import report, watch
from comparison.page import PLOTLY, render_update
from comparison.results import Comparison, read
from run_folders import write_run
from runtime.files import write_text

HOSTILE = "</script><img src=x onerror=alert(1)>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kernel sizes, three seeds each; one more run failed with a hostile message."""
    folder = tmp_path_factory.mktemp("outputs") / "sweep"
    for kernel in (5, 9):
        for seed in range(3):
            accuracy = 0.90 + 0.01 * (kernel == 9) + 0.001 * seed
            figures = {"best__val__accuracy": accuracy, "test__accuracy": accuracy}
            own = {"model.kernel_size": kernel, "seed": seed}
            write_run(
                folder / f"k{kernel}-{seed}", f"model.kernel_size={kernel}", f"seed={seed}", overrides=own, **figures
            )
    write_run(folder / "k9-3", "model.kernel_size=9", "seed=3", status="failed", error=HOSTILE)
    (folder / "k9-3" / "train.log").write_text(f"{HOSTILE}\n")
    report.publish(read([folder]), folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, sweep: Path) -> Iterator:
    """The page as opened from disk; anything that the browser complains about fails the test."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(120_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto((sweep / "comparison.html").as_uri())
    page.wait_for_selector("#chart-effects .main-svg")
    yield page
    page.close()
    assert complaints == []


def test_page_answers_sorts_filters_and_links_selections(page, sweep: Path) -> None:
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
    page.evaluate("choose(foldersOf(state.data.settings[1]))")  # as a click on a curve does
    assert page.locator("#runs article").count() == 7
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # on a phone nothing sticks out


def test_names_from_outside_are_text(page) -> None:
    page.fill("#filter", "failed")
    page.locator("#settings tbody tr").first.click()
    assert HOSTILE in page.inner_text("#runs")
    assert page.locator("#runs img").count() == 0


def test_page_has_the_numbers_of_the_table(page, sweep: Path) -> None:
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


def test_page_keeps_its_selection_when_runs_report(page, sweep: Path) -> None:
    page.locator("#settings tbody tr").first.press("Enter")
    selected = page.inner_text("#selected")
    update = render_update(Comparison("renamed", read([sweep]).runs), sweep)
    write_text(sweep / "comparison.live.js", update)
    page.evaluate("poll()")
    page.wait_for_function("document.title === 'renamed'")
    assert page.inner_text("#selected") == selected
    (sweep / "comparison.live.js").unlink()
    page.evaluate("poll = () => {}")


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


def test_watch_ends_with_the_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is still to come keeps the page alive; its end ends the watch, whose script goes."""
    monkeypatch.setattr(watch, "EVERY", 0.05)
    planned = {"name": "late", "data": "digits", "epochs": 2, "epoch_size": 1.0}
    (sweep / "sweep.json").write_text(json.dumps({"late": planned}))
    watching = threading.Thread(target=watch.watch, args=(lambda: read([sweep]), sweep))
    watching.start()
    while not (sweep / "comparison.live.js").exists():
        assert watching.is_alive()
    write_run(sweep / "k5-late", "model.kernel_size=5", "seed=4", best__val__accuracy=0.9, test__accuracy=0.9)
    watching.join(120)
    assert not watching.is_alive()
    assert not (sweep / "comparison.live.js").exists()
