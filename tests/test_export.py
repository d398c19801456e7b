"""Models leave: folded, as ONNX, torch.export, safetensors and the published layouts."""

import itertools

import pytest
import torch
from torch import nn

from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from weights.folding import fold_batch_norm


def trained_looking(d: int = 12, depth: int = 3, k: int = 5, **options: object) -> ConvMixer:
    torch.manual_seed(0)
    shared = {key: value for key, value in options.items() if key in ("activation", "norm")}
    model = ConvMixer(
        ConvMixerLayer(d, k, **options), depth, ConvPatchEmbeddings(d, 2, 3, **shared), ConvClassificationHead(d, 7)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)  # some of them negative
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("residuals", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@torch.no_grad()
def test_folded_batch_norm_changes_no_logit(residuals: tuple[bool, bool], activation: str) -> None:
    model = trained_looking(
        activation=activation, residual_depthwise=residuals[0], residual_pointwise=residuals[1]
    ).double()
    folded = fold_batch_norm(model)
    images = torch.randn(4, 3, 12, 10, dtype=torch.float64)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-10, atol=1e-10)
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in m.modules()) for m in (model, folded)]
    assert norms == [1 + 2 * 3, 1 + 3 if residuals[1] else 1 + 2]


def test_without_batch_norm_nothing_is_folded() -> None:
    model = trained_looking(norm="layer")
    assert fold_batch_norm(model).state_dict().keys() == model.state_dict().keys()
