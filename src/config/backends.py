"""The values of model.backend, explained in ops/depthwise.py; the model imports them without Hydra."""

BACKENDS = ("auto", "reference", "stacked", "banded")
