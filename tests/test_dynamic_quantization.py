"""Layers and CMRAN work under PyTorch's dynamic quantization, where ``weight`` of a linear layer is a method."""

import copy

import pytest
import torch
from torch import nn

from crossmodal_attn import padding_mask
from oracles import CASES, make_cmran

quantization = pytest.importorskip("torch.ao.quantization")

pytestmark = [
    pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="this torch has no engine for int8"),
    # PyTorch leaves it to torchao, and its int8 tensors with it.
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor"),
]


def quantized(layer: nn.Module) -> nn.Module:
    copied = quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear})
    assert not any(isinstance(module, nn.Linear) for module in copied.modules())
    return copied


def assert_near(actual, expected):
    """Check that outputs are close, within a fifth of their size, but not equal."""
    assert actual.isfinite().all()
    assert 0 < (actual - expected).norm() < 0.2 * expected.norm()


def test_layers(case, draw):
    layer = case.make(torch.float32)
    lengths = case.lengths(5, 7, 2, 3, 11)
    features = case.features(draw, 3, lengths, torch.float32)
    paddings = [padding_mask([length, 1, 1], length) for length in lengths] if case.masked else None
    assert_near(case(quantized(layer), features, paddings), case(layer, features, paddings))


def test_maps_of_agsca(draw):
    layer = CASES["agsca"].make(torch.float32)
    features = CASES["agsca"].features(draw, 2, [5, 5], torch.float32)
    for actual, expected in zip(
        quantized(layer)(*features, need_weights=True), layer(*features, need_weights=True), strict=True
    ):
        assert_near(actual, expected)


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_network(setting, draw):
    layer = make_cmran(setting).float().eval()
    inputs = draw(3, 5, 3, 2, 11, dtype=torch.float32), draw(3, 5, 7, dtype=torch.float32)
    mask = padding_mask([5, 2, 1], 5)
    outputs, expected = (network(*inputs, padding_mask=mask) for network in (quantized(layer), layer))
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_near(actual, wanted)
    with pytest.raises(ValueError, match=r"video must have shape \(batch, time, height, width, 11\)"):
        quantized(layer)(inputs[0][..., :7], inputs[1])
