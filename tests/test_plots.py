"""Tests of figures: their panels, no text cut off or overlapping, whole files."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from comparison.crossing import means_by_levels
from comparison.results import read
from rendering.figure import comparison_figure
from run_folders import DEPTH, KERNEL, REFERENCE, compared, write_run, write_sweep
from tracking.plots import COLORS, confusion_matrix, depthwise_kernels, patch_embedding_filters, save_figure


def shown_texts(figure: Figure) -> list[Text]:
    """List the texts that are drawn; Matplotlib also keeps tick labels beyond an axis' limits."""
    FigureCanvasAgg(figure).draw()
    hidden = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not axes.axison or not min(limits) - 1e-9 <= tick.get_loc() <= max(limits) + 1e-9:
                    hidden |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in hidden]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def assert_legible(figure: Figure) -> None:
    """Check that texts have 7 points or more, are on the page, and do not overlap."""
    boxes = [(text, text.get_window_extent()) for text in shown_texts(figure)]
    page = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert text.get_fontsize() >= 7, text  # type: ignore[operator]
        assert page.x0 - 2 <= box.x0 and box.x1 <= page.x1 + 2, f"{text} is cut off"
        assert page.y0 - 2 <= box.y0 and box.y1 <= page.y1 + 2, f"{text} is cut off"
        for other, other_box in boxes[:i]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert width < 1.5 or height < 1.5, f"{text} overlaps {other}"


def labels(figure: Figure) -> list[str]:
    return [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]


def figure_of(folder: Path) -> Figure:
    figure = comparison_figure(read([folder]))
    assert figure is not None
    return figure


def around(middle: float, n: int) -> Sequence[float]:
    return np.random.default_rng(round(middle * 1e6)).normal(middle, 0.002, n).tolist()


@pytest.mark.parametrize("seeds", [1, 5])
def test_two_factors_have_curves_a_heat_map_costs_and_effects(tmp_path: Path, seeds: int) -> None:
    values = {(k, d): around(0.9 + k / 1000 + d / 500, seeds) for k in (3, 5, 9) for d in (4, 8, 16)}
    figure = figure_of(write_sweep(tmp_path / "s", values))
    assert labels(figure)[:3] == ["epoch", "kernel_size", "parameters"]
    assert labels(figure)[3].split(" (")[0] == "val/accuracy, points"
    texts = [text.get_text() for text in shown_texts(figure)]
    assert ("Effects, no interval with one seed" in texts) == (seeds == 1)
    assert "2 others" in texts, "seven settings have a color of their own"
    assert_legible(figure)


def test_figure_of_one_factor_has_no_heat_map(tmp_path: Path) -> None:
    figure = figure_of(write_sweep(tmp_path / "s", {(k, 8): [0.9, 0.91, 0.92] for k in (3, 5, 7)}))
    assert "kernel_size" not in labels(figure)
    assert "Effects, 95 % interval" in [text.get_text() for text in shown_texts(figure)]
    assert_legible(figure)


def test_a_heat_map_averages_over_what_all_its_cells_have() -> None:
    """The best combination also ran at a bad rate; its cell must not count that rate alone."""
    rates = {0.01: 0.0, 0.1: -0.2}
    settings = [
        ({KERNEL: kernel, DEPTH: depth, "optimizer.lr": rate}, [0.8 + kernel / 100 + depth / 1000 + loss])
        for kernel in (3, 5) for depth in (8, 16) for rate, loss in rates.items()
        if rate == 0.01 or (kernel, depth) == (5, 16)
    ]  # fmt: skip
    means, is_fair = means_by_levels(compared(settings), DEPTH, KERNEL)
    assert is_fair and means == pytest.approx(np.array([[0.838, 0.858], [0.846, 0.866]]))


def test_one_setting_has_only_curves(tmp_path: Path) -> None:
    figure = figure_of(write_sweep(tmp_path / "s", {(5, 8): [0.9]}))
    assert labels(figure) == ["epoch"]
    assert_legible(figure)


@pytest.mark.parametrize(("kernels", "expected"), [((5, 9), ["parameters", "val/accuracy, points"]), ((5,), ["epoch"])])
def test_one_epoch_is_no_curve(tmp_path: Path, kernels: Sequence[int], expected: list[str]) -> None:
    """If there is one setting, nothing else can be drawn."""
    folder = write_sweep(tmp_path / "s", {(kernel, 8): [0.9 + kernel / 100] for kernel in kernels})
    for path in folder.glob("*/metrics.csv"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    figure = figure_of(folder)
    assert labels(figure) == expected
    assert_legible(figure)


def test_many_settings_stay_legible(tmp_path: Path) -> None:
    values = {(k, d): around(0.8 + k * d / 5000, 2) for k in range(3, 19, 2) for d in (2, 4, 8, 16, 32)}
    assert_legible(figure_of(write_sweep(tmp_path / "s", values)))


def test_long_names_and_failed_runs_stay_legible(tmp_path: Path) -> None:
    for i, name in enumerate(("rand-m9-mstd0.5-inc1", "rand-m12-mstd0.5-inc1-and-a-name-that-goes-on-and-on")):
        for j, smoothing in enumerate((0.0, 0.1)):
            for seed in (0, 1):
                write_run(
                    tmp_path / "s" / f"{i}{j}{seed}",
                    f"augmentation.auto_augment={name}", f"trainer.label_smoothing={smoothing}", f"seed={seed}",
                    status="failed" if (i, j) == (1, 1) else "completed",
                    best__val__accuracy=0.9 + 0.01 * i + 0.02 * j + 0.001 * seed,
                )  # fmt: skip
    assert_legible(figure_of(tmp_path / "s"))


def test_ours_stand_beside_the_reference(tmp_path: Path) -> None:
    values = {(k, 8): around(0.9 + k / 1000, 3) for k in (5, 7, 9)}
    figure = figure_of(write_sweep(tmp_path / "s", values, *REFERENCE))
    assert "reference" in [text.get_text() for text in shown_texts(figure)]
    assert "test/accuracy, %" in labels(figure)
    assert_legible(figure)


def test_the_pareto_front_is_what_nothing_beats_in_both(tmp_path: Path) -> None:
    for i, (parameters, accuracy) in enumerate(((10, 0.8), (20, 0.9), (30, 0.85), (40, 0.95), (40, 0.7))):
        write_run(
            tmp_path / "s" / str(i), f"{KERNEL}={i + 1}", f"{DEPTH}=8",
            parameters=parameters, best__val__accuracy=accuracy,
        )  # fmt: skip
    (axes,) = (axes for axes in figure_of(tmp_path / "s").axes if axes.get_xlabel() == "parameters")
    front = axes.lines[0].get_xydata()
    assert np.asarray(front).tolist() == [[10, 80], [20, 90], [40, 95]]


def test_figure_shows_time_if_work_differs_and_best_curve_on_top(tmp_path: Path) -> None:
    for i, rate in enumerate((0.1, 0.2, 0.3)):
        write_run(
            tmp_path / "s" / str(i), f"optimizer.lr={rate}", seconds=10.0 * (i + 1), best__val__accuracy=0.7 + rate
        )
    figure = figure_of(tmp_path / "s")
    assert labels(figure) and not any("training time" in axes.get_xlabel() for axes in figure.axes)
    (curves,) = (axes for axes in figure.axes if axes.get_xlabel() == "epoch")
    best = max(curves.get_lines(), key=lambda line: line.get_zorder())
    assert best.get_color() == COLORS[0]
    for i in range(3):
        write_run(tmp_path / "t" / str(i), f"trainer.epochs={i + 1}", seconds=10.0 * (i + 1), best__val__accuracy=0.8)
    (axes,) = (axes for axes in figure_of(tmp_path / "t").axes if "training time" in axes.get_xlabel())
    assert all(len(np.asarray(line.get_xdata())) == 1 for line in axes.get_lines())  # points alone, no front


def test_nothing_completed_has_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "f", status="failed")
    assert comparison_figure(read([tmp_path / "s"])) is None


def test_a_figure_is_saved_as_png_and_svg(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {(5, 8): [0.9], (9, 8): [0.95]})
    save_figure(figure_of(folder), tmp_path / "a")
    assert imread(tmp_path / "a.png").shape[1] >= 7 * 200
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


# A trained model.


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (1, 2), (3, 7), (4, 2)])
def test_every_filter_of_the_patch_embedding_is_shown(channels: int, size: int) -> None:
    weight = np.random.default_rng(0).normal(size=(20, channels, size, size))
    figure = patch_embedding_filters(weight)
    image = np.asarray(figure.axes[0].images[0].get_array())
    fine = -(-8 // size)
    first = image[: size * fine : fine, : size * fine : fine]
    if channels == 3:
        low, high = weight[0].min(), weight[0].max()
        assert first == pytest.approx(((weight[0] - low) / (high - low)).transpose(1, 2, 0))
    else:
        assert first == pytest.approx(weight[0].mean(0))
    assert_legible(figure)


def test_depthwise_kernels_have_a_panel_for_each_layer() -> None:
    weights = [np.random.default_rng(i).normal(size=(100, 1, 9, 9)) for i in range(6)]
    figure = depthwise_kernels(weights)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles == [f"layer {i}" for i in range(1, 7)]
    assert "64 of 100 channels" in figure.get_suptitle()
    assert_legible(figure)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_confusion_matrix_shows_shares_of_the_true_class(classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 5, (classes, classes)) + 20 * np.eye(classes, dtype=int)
    counts[1] = 0  # a class without images
    figure = confusion_matrix(counts, [f"the class of {i}" for i in range(classes)])
    shares = np.asarray(figure.axes[0].images[0].get_array())
    assert shares[0] == pytest.approx(100 * counts[0] / counts[0].sum())
    assert shares[1].tolist() == [0] * classes
    assert f"{np.trace(counts) / counts.sum():.2%}" in figure.axes[0].get_title(loc="left")
    assert_legible(figure)
