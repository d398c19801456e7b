"""Images with their classes, divided into training, validation and test images."""

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
        images: uint8 [images, height, width, channels], or paths of image files, [images].
        labels: Indices of the classes, [images].
        mode: Pillow's mode in which files are read, "RGB" or "L" (grey).
        files: Paths of the files, also after decoding; None for data sets without files.
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
        """True if the images are in memory, not files."""
        return self.images.dtype == np.uint8

    def subset(self, indices: NDArray[np.int64]) -> "Split":
        """Select images by their indices."""
        images, files = self.images[indices], self.files
        if files is not None:
            # One array of paths is shared by both attributes, which saves memory.
            files = cast(NDArray[np.str_], images) if files is self.images else files[indices]
        return replace(self, images=images, labels=self.labels[indices], files=files)


@dataclass(frozen=True)
class DataSplits:
    """The training, validation and test images of a run.

    Attributes:
        val: None without validation.
        classes: Names of the classes, in the order of their labels.
        channels: 1 for grey images, 3 for colors.
        image_size: Height and width of the model's input in pixels.
        mean: Mean of each channel, of pixels 0 … 1.
        std: Standard deviation of each channel, of pixels 0 … 1.
        remarks: Decisions about the folder, e.g. its test set, for the run's log and summary.
        skipped: Unreadable images, each with the reason.
    """

    train: Split
    val: Split | None
    test: Split
    classes: list[str]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def divide(split: Split, fraction: float, seed: int, key: str, classes: list[str]) -> tuple[Split, Split]:
    """Divide images at random in two parts with the same share of every class.

    Args:
        fraction: Share of the second part.
        key: The config key of the fraction, for errors.
        classes: Names of the classes, for errors.

    Raises:
        DataError: A part would have fewer images than there are classes, or a class has a single image.
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
            f"{key}={fraction}: both parts of {len(split)} images need one of each of the {len(classes)} classes; "
            f"expected {expected}"
        ) from error
    return split.subset(np.sort(rest)), split.subset(np.sort(part))
