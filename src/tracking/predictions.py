"""Tables of predictions by path and class name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.text import csv_text
from data.splits import Split
from runtime.files import write_text


def write_predictions(
    folder: Path, predictions: NDArray[np.void], split: Split, root: str, classes: Sequence[str]
) -> None:
    """Write predictions.csv, a row for each image, and wrong_images.csv, the most confident errors first.

    Args:
        predictions: Label, prediction and probability of the label of each image, in the split's order.
        root: The folder of the data set; paths are relative to it. Images without files are numbered.
    """
    import pandas as pd  # takes long, and is needed only at the end of a run

    table = pd.DataFrame({"image": image_names(split, root)})
    for column in ("label", "prediction"):
        table[column] = np.asarray(classes, dtype=object)[predictions[column]]
    table["probability"] = predictions["probability"]
    wrong = table[predictions["label"] != predictions["prediction"]].sort_values("probability", kind="stable")
    write_text(folder / "predictions.csv", csv_text(table, index=False))
    write_text(folder / "wrong_images.csv", csv_text(wrong, index=False))


def image_names(split: Split, root: str) -> Sequence[str] | Sequence[int]:
    """List the paths of images relative to `root`, or numbers for images without files."""
    if split.files is None:
        return range(len(split))
    return [Path(path).relative_to(root).as_posix() for path in split.files.tolist()]
