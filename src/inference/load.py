"""A trained model in plain Python: load("outputs/SWEEP") returns the model, its classes and the transform of images."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from config.commands import Command, Compute
from config.schema import Data
from data.image_files import to_8_bits
from inference.checkpoint import open_checkpoint
from inference.prediction import as_data
from LLMConvMixer import ConvMixer
from pipeline.transforms import Normalize, evaluation_transform


class Loaded(NamedTuple):
    """A trained model, its classes and the transform of images.

    Attributes:
        model: The model in evaluation mode, from [batch, channels, height, width] to logits [batch, classes].
        classes: Names of the classes; numbers if the file has no names.
        transform: Function from an image of any size to the model's input, [channels, height, width], on its device.
    """

    model: ConvMixer
    classes: list[str]
    transform: Callable[[Image.Image], Tensor]


def load(path: str | Path, device: str = "auto") -> Loaded:
    """Load a run, a sweep, a file or a published model by its name, as `checkpoint=` of predict.py does.

    Raises:
        ConfigError: There is no such file, or it does not describe its images.
    """
    command = Command(checkpoint=str(path), data=Data(root=""), trainer=Compute(device=device))
    checkpoint = open_checkpoint(OmegaConf.structured(command), [f"trainer.device={device}"])
    data = as_data([], checkpoint)
    resize = evaluation_transform(checkpoint.config.data.crop_fraction, data)
    normalize = Normalize(data, checkpoint.device)
    assert resize  # image files always need a transform

    def transform(image: Image.Image) -> Tensor:
        pixels = np.atleast_3d(np.array(resize(to_8_bits(image).convert(data.test.mode))))
        return normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(checkpoint.device))[0]

    return Loaded(checkpoint.model, checkpoint.labels, transform)
