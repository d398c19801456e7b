"""Random number generators: seeded for every step, and restored after augmentation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_rngs(seed: int, step: int, rank: int) -> None:
    """Reseed all RNGs from (seed, step), so that a resumed run draws the same numbers.

    NumPy's and Python's state is the same on all ranks, e.g. for mixup's ratio. PyTorch's differs, e.g. for dropout.
    """
    python, numpy, dropout = np.random.SeedSequence([seed, step]).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.random.default_generator.manual_seed(dropout + rank)  # torch.manual_seed takes 100 times as long
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(dropout + rank)


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the RNG state on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
