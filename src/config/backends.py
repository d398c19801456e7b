"""The values of model.backend; ops/depthwise.py says what they are. Apart, so that the model needs no Hydra."""

BACKENDS = ("auto", "reference", "stacked", "banded")
