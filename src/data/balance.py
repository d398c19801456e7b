"""Sizes of classes, and class weights and a sampler for imbalanced ones."""

import numpy as np
from numpy.typing import NDArray

from data.splits import DataSplits, Split

IMBALANCED = 2  # ratio of the largest class to the smallest, in training images, above which a run warns


def counts(split: Split, classes: list[str]) -> NDArray[np.int64]:
    """Count the images of each class."""
    return np.bincount(split.labels, minlength=len(classes))


def parts(data: DataSplits) -> dict[str, Split]:
    """Collect the splits that have images, by their names in messages."""
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    return {name: split for name, split in splits.items() if split}


def sizes(data: DataSplits) -> str:
    """Describe the data, e.g. "10 classes, 1,293 training, 144 validation, 360 test images"."""
    listed = ", ".join(f"{len(split):,} {name}" for name, split in parts(data).items())
    return f"{len(data.classes):,} classes, {listed} images"


def class_lines(data: DataSplits) -> list[str]:
    """Describe each class in one line: its images in each split."""
    table = {name: counts(split, data.classes) for name, split in parts(data).items()}
    return [
        f"class {name}: " + ", ".join(f"{column[i]:,} {part}" for part, column in table.items())
        for i, name in enumerate(data.classes)
    ]


def imbalance(data: DataSplits) -> list[str]:
    """Report classes without images in a split, and a majority class, in a line each."""
    lines = []
    for part, split in parts(data).items():
        empty = np.flatnonzero(counts(split, data.classes) == 0)
        if len(empty):
            names = ", ".join(data.classes[i] for i in empty[:5]) + (", …" if len(empty) > 5 else "")
            lines.append(f"{len(empty):,} of {len(data.classes):,} classes without {part} images: {names}")
    train, test = counts(data.train, data.classes), counts(data.test, data.classes)
    largest, smallest = int(train.argmax()), int(np.where(train, train, train.max()).argmin())
    if train[largest] > IMBALANCED * train[smallest]:
        most, fewest, share = data.classes[largest], data.classes[smallest], test[largest] / len(data.test)
        lines.append(
            f"imbalanced classes: {train[largest]:,} training images of {most}, {train[smallest]:,} of {fewest}; "
            f"always answering {most} has {share:.1%} test accuracy. See balanced accuracy and macro-F1, "
            "trainer.class_weights=balanced, data.sampler=balanced"
        )
    return lines


def balanced_weights(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    """Compute class weights whose sum over the images is equal for all classes; their mean over images is 1.

    Source: King & Zeng, "Logistic Regression in Rare Events Data", 2001, as scikit-learn's class_weight="balanced".
    """
    images = np.bincount(labels, minlength=n_classes)
    return (len(labels) / (np.count_nonzero(images) * np.maximum(images, 1))).astype(np.float32)


def balanced_order(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many images as there are labels, equally many of each class, in random order.

    Images of rare classes repeat. Each image of a class is drawn equally often, plus or minus one. Source: oversampling
    in Buda et al., "A systematic study of the class imbalance problem", arXiv 1710.05381.
    """
    present = random.permutation(np.unique(labels))
    order = random.permutation(np.resize(present, len(labels)))  # a class for each position
    for label in present:
        positions = np.flatnonzero(order == label)
        order[positions] = -1 - np.resize(random.permutation(np.flatnonzero(labels == label)), len(positions))
    return -1 - order
