"""Images with their classes, divided into training, validation and test parts."""

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split

from data.image_files import DataError, open_image


@dataclass(frozen=True)
class Split:
    """Images and their classes.

    Attributes:
        images: uint8 [images, height, width, channels], or the paths of the files.
        labels: int64 [images].
        mode: PIL's name of what files are read as, "RGB" or "L" (grey).
        files: the paths of the files, also of decoded images; None where there are none.
    """

    images: NDArray[np.uint8] | NDArray[np.str_]
    labels: NDArray[np.int64]
    mode: str = "RGB"
    files: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        if not self.decoded:
            return open_image(self.images[index], self.mode)
        pixels = self.images[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    @property
    def decoded(self) -> bool:
        return self.images.dtype == np.uint8

    def subset(self, indices: NDArray[np.int64]) -> "Split":
        images, files = self.images[indices], self.files
        if files is not None:
            files = cast(NDArray[np.str_], images) if files is self.images else files[indices]  # a copy is enough
        return replace(self, images=images, labels=self.labels[indices], files=files)


@dataclass(frozen=True)
class DataSplits:
    """The training, validation and test images of a run.

    Attributes:
        val: None where nothing is split off for validation.
        remarks: what was decided where a folder leaves it open, for the run's log and record.
        skipped: images that cannot be read, each with the reason.
    """

    train: Split
    val: Split | None
    test: Split
    classes: list[str]
    channels: int
    image_size: tuple[int, int]  # height, width
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def divide(split: Split, fraction: float, seed: int, key: str, classes: list[str]) -> tuple[Split, Split]:
    """Divide at random, with the same share of every class on both sides; the second has `fraction`.

    Raises:
        DataError: a side would have fewer images than there are classes, or a class has a single image.
    """
    try:
        rest, part = train_test_split(
            np.arange(len(split)), test_size=fraction, stratify=split.labels, random_state=seed
        )
    except ValueError as error:
        counts = np.bincount(split.labels, minlength=len(classes))
        single = [name for name, count in zip(classes, counts, strict=True) if count == 1]
        lowest, highest = math.ceil(1e4 * len(classes) / len(split)), math.floor(1e4 - 1e4 * len(classes) / len(split))
        expected = f"two images of {', '.join(single)}" if single else f"{lowest / 1e4} to {highest / 1e4}"
        raise DataError(
            f"{key}={fraction}: of {len(split)} images in {len(classes)} classes, each side needs one of every class; "
            f"expected {expected}"
        ) from error
    return split.subset(np.sort(rest)), split.subset(np.sort(part))
