"""augmentation.png: a dozen training images as the model sees them."""

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from config.schema import Config
from data.splits import DataSplits
from pipeline.batches import BatchSpec, Loader
from pipeline.transforms import MixAndErase, Normalize
from runtime.rng import preserve_rng_state, seed_rngs
from tracking.plots import contact_sheet

IMAGES = 12
SEED = 0  # the same for all runs: their pictures can be compared


def augmentation_figure(loader: Loader, data: DataSplits, config: Config) -> Figure:
    """Draw training images after augmentation, each with its classes; the run's random numbers stay as they are."""
    random = np.random.default_rng(SEED)
    count = min(IMAGES, len(data.train) - len(data.train) % 2)
    indices = random.choice(len(data.train), count, replace=False)
    seeds = random.integers(2**32, size=count)
    with preserve_rng_state():
        pixels, labels = loader.tensors(loader.batches[BatchSpec(indices, np.arange(count), seeds, SEED, count)])
        seed_rngs(SEED, 0, rank=0)
        cpu = torch.device("cpu")
        mix_and_erase = MixAndErase(config.augmentation, len(data.classes), cpu)
        images, targets = mix_and_erase(Normalize(data, cpu)(pixels.cpu()), labels.cpu())
    shares = targets if targets.ndim == 2 else F.one_hot(targets, len(data.classes))
    std, mean = (torch.tensor(values)[:, None, None] for values in (data.std, data.mean))
    drawn = (255 * (images * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return contact_sheet(
        [Image.fromarray(image[..., 0] if data.channels == 1 else image) for image in drawn],
        [caption(of_image, data.classes) for of_image in shares],
    )


def caption(shares: Tensor, classes: list[str]) -> str:
    """E.g. "cat", or "cat 0.7, dog 0.3" of a mixed image."""
    present = [i for i in shares.argsort(descending=True).tolist() if shares[i] > 0]
    names = [classes[i] if len(classes[i]) <= 18 else f"{classes[i][:17]}…" for i in present]
    if len(names) == 1:
        return names[0]
    return "\n".join(f"{name} {float(shares[i]):.2f}" for name, i in zip(names, present, strict=True))
