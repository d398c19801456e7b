"""Folders of images: ROOT/train/CLASS/* with ROOT/test, ROOT/val or both, or ROOT/CLASS/* to be divided."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from config.text import printable
from data.image_files import (
    DataError,
    class_folders,
    first_reasons,
    image_files,
    open_image,
    split_folders,
    unreadable_error,
    unreadable_images,
)
from data.splits import DataSplits, Split, divide

DECODED_LIMIT = 2**30  # the most bytes of decoded images kept in memory
USES = ("training", "the test", "validation")
SAMPLE_SIZE = 500  # images whose size and mode decide those of the data set


def read_image_folder(root: Path, skip_unreadable: bool, test_fraction: float, split_seed: int) -> DataSplits:
    """Read all images of a folder.

    Without a test folder the validation folder is the test set. Without either, the test set is drawn from all images.

    Raises:
        DataError: A split or a class is missing, or an image cannot be read.
    """
    folders = split_folders(root)
    if "train" not in folders and (folders or not class_folders(root)):
        others = ", ".join(class_folders(root)[:5]) or "no folders"
        raise DataError(
            f"data.root={root}: expected train/CLASS/* and test/CLASS/* or val/CLASS/*, or CLASS/* alone; "
            f"it has {others}"
        )
    held_out = [folders[split] for split in ("test", "val") if split in folders]
    names = [folders.get("train", "."), *held_out]
    classes = class_folders(root / names[0])
    if len(classes) < 2:
        raise DataError(
            f"data.root={root}: expected two or more classes in {Path(names[0], 'CLASS/*')}; found {classes}"
        )
    for name in held_out:
        check_same_classes(root, names[0], name)
    splits = [list_images(root / name, classes) for name in names]
    uses = zip(names, USES, strict=False)
    remarks = [f"data.root={root}: {', '.join(f'{name} for {use}' for name, use in uses if name != '.')}"]
    if not held_out:
        remarks = [
            f"data.root={root}: no test folder; data.test_fraction={test_fraction} of each class is the test set, "
            f"drawn by data.split_seed={split_seed}"
        ]
    if folders and (unused := [name for name in class_folders(root) if name not in names]):
        remarks.append(f"data.root={root}: not used: {', '.join(map(printable, unused))}")
    skipped: list[str] = []
    if skip_unreadable:
        splits, skipped = without_unreadable(splits)
        remarks += [f"data.skip_unreadable=true: {len(skipped):,} skipped: {first_reasons(skipped)}"] if skipped else []
    for name, split in zip(names, splits, strict=True):
        check_no_class_is_empty(root / name, split, classes)
    if not held_out:
        splits = [*divide(splits[0], test_fraction, split_seed, "data.test_fraction", classes)]
    train, test, *val = splits
    data = DataSplits(train, val[0] if val else None, test, [*map(printable, classes)], 0, (0, 0))
    return decode_small(replace(data, remarks=tuple(remarks), skipped=tuple(skipped)))


def read_one_split(folder: Path, mode: str, skip_unreadable: bool) -> DataSplits:
    """Read one split for an evaluation, as training and as test images.

    Args:
        mode: The mode of the model's images, "RGB" or "L".

    Raises:
        DataError: There are no images, or one cannot be read.
    """
    classes = class_folders(folder)
    split = replace(list_images(folder, classes), mode=mode)
    (split,), skipped = without_unreadable([split]) if skip_unreadable else ([split], [])
    if not len(split):
        raise DataError(f"data.root: {folder} has no images in folders of classes, CLASS/*")
    classes = [*map(printable, classes)]
    return decode_small(DataSplits(split, None, split, classes, 0, (0, 0), skipped=tuple(skipped)), mode)


def check_same_classes(root: Path, train: str, held_out: str) -> None:
    """Check that two splits have the same classes.

    Raises:
        DataError: Only one of them has some class.
    """
    classes = {name: set(class_folders(root / name)) for name in (train, held_out)}
    for name, other in ((train, held_out), (held_out, train)):
        if only := classes[name] - classes[other]:
            raise DataError(
                f"data.root={root}: {train} and {held_out} differ in their classes: "
                f"only {name} has {', '.join(sorted(only))}"
            )


def list_images(folder: Path, classes: list[str]) -> Split:
    """List the files of a split, class by class, with their labels."""
    files = [image_files(folder / name) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files])
    paths = np.array([path for of_class in files for path in of_class], dtype=np.str_)
    return Split(paths, labels.astype(np.int64), files=paths)


def check_no_class_is_empty(folder: Path, split: Split, classes: list[str]) -> None:
    """Check that every class of a split has images.

    Raises:
        DataError: A class has none.
    """
    counts = np.bincount(split.labels, minlength=len(classes))
    if empty := [f"{folder.name}/{classes[i]}" for i in np.flatnonzero(counts == 0)]:
        raise DataError(f"data.root={folder.parent}: class {', '.join(empty)} has no images")


def without_unreadable(splits: list[Split]) -> tuple[list[Split], list[str]]:
    """Drop images that cannot be read; return the splits, and the dropped images with their reasons."""
    readable, skipped = [], list[str]()
    for split in splits:
        errors = unreadable_images(split.images.tolist())
        readable.append(split.subset(np.flatnonzero([path not in errors for path in split.images.tolist()])))
        skipped += errors.values()
    return readable, skipped


def decode_small(data: DataSplits, mode: str | None = None) -> DataSplits:
    """Set channels and image size; decode the images into memory if they are small and of one size.

    Args:
        mode: "RGB" or "L"; None: "L" if a sample of 500 training images is grey, else "RGB".

    Raises:
        DataError: An image cannot be read.
    """
    parts = {name: split for name in ("train", "test", "val") if (split := getattr(data, name))}
    files = np.concatenate([split.images for split in parts.values()])
    sample = data.train.images[np.linspace(0, len(data.train) - 1, min(len(data.train), SAMPLE_SIZE)).astype(int)]
    try:
        kinds = {(image.mode, image.height, image.width) for image in map(open_image, sample)}
        mode = mode or ("L" if {kind[0] for kind in kinds} == {"L"} else "RGB")
        channels = 1 if mode == "L" else 3
        sizes = {kind[1:] for kind in kinds}
        size = sizes.pop() if len(sizes) == 1 else None
        parts = {name: replace(split, mode=mode) for name, split in parts.items()}
        if size and len(files) * size[0] * size[1] * channels <= DECODED_LIMIT:
            parts = decode(parts, size, channels) or parts
    except DataError as error:
        raise unreadable_error(files.tolist(), error) from error
    return replace(data, **parts, channels=channels, image_size=size or (224, 224))


def decode(parts: dict[str, Split], size: tuple[int, int], channels: int) -> dict[str, Split] | None:
    """Decode the images of all splits into memory; return None if an image has another size."""
    in_memory = {}
    for name, split in parts.items():
        pixels = np.empty((len(split), *size, channels), dtype=np.uint8)
        for i in range(len(split)):
            image = split[i]
            if (image.height, image.width) != size:
                return None
            pixels[i] = np.asarray(image).reshape(*size, channels)
        in_memory[name] = replace(split, images=pixels)
    return in_memory
