"""Size of the page of a comparison of many runs, time to write it, and time to open and sort it in Chromium.

python experiments/speed/large_page.py 5000
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]

from comparison.results import read  # noqa: E402
from publishing.page import render_page  # noqa: E402
from run_folders import as_yaml, write_run  # noqa: E402


def write_runs(folder: Path, runs: int) -> None:
    """Write runs of five kernel sizes, five depths and many learning rates, five seeds each."""
    generator = np.random.default_rng(0)
    config = as_yaml("model.kernel_size=<0>", "model.depth=<1>", "optimizer.lr=<2>", "seed=<3>")
    for i in range(runs):
        setting, seed = divmod(i, 5)
        levels = (3 + 2 * (setting % 5), 4 * (1 + setting // 5 % 5), f"{0.001 * (1 + setting // 25):.3f}", seed)
        text = config
        for place, level in enumerate(levels):
            text = text.replace(f"<{place}>", str(level))
        accuracy = generator.normal(0.9 + levels[0] / 1000, 0.01)
        write_run(folder / str(i), config=text, best__val__accuracy=accuracy, test__accuracy=accuracy)
        rows = "".join(f"{epoch},1,0.5,1,{accuracy * (1 - 0.5**epoch)},0.01,800,{epoch}\n" for epoch in range(1, 31))
        header = "epoch,train/loss,train/accuracy,val/loss,val/accuracy,lr,images_per_second,seconds\n"
        (folder / str(i) / "metrics.csv").write_text(header + rows)


def main() -> None:
    runs = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sweep"
        write_runs(folder, runs)
        started = time.process_time()
        comparison = read([folder])
        compared = time.process_time()
        page = folder / "comparison.html"
        page.write_text(render_page(comparison, folder))
        written = time.process_time()
        print(f"{runs:,} runs, {len(comparison.settings):,} settings")
        print(f"comparison {compared - started:.1f} s, page {written - compared:.1f} s of processor time")
        print(f"page {page.stat().st_size / 1e6:.2f} MB")
        if browser := shutil.which("chromium") or shutil.which("google-chrome"):
            look(page, browser)


def look(page: Path, browser: str) -> None:
    """Print the processor time of the browser's main thread for the page and its script."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_page()
        tab.set_default_timeout(500_000)
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def processor_seconds() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

        sort = "sortBy('val %')"
        filtered, selected = "state.filter = 'kernel_size=9'; drawTable()", "select(foldersOf(state.data.settings[0]))"
        tab.goto(page.as_uri())
        tab.wait_for_selector("#settings tbody tr")
        print(f"open: {processor_seconds():.2f} s of processor time")
        for action in (sort, filtered, selected):
            before = processor_seconds()
            tab.evaluate(f"() => {{ {action} }}")
            tab.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # until it is drawn
            print(f"{action}: {processor_seconds() - before:.2f} s")


if __name__ == "__main__":
    main()
