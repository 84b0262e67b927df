"""AVInteraction equals Eq. 9 in loops."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracles
from crossmodal_attn import AVInteraction, padding_mask
from oracles import CASES, fill_parameters


@pytest.fixture
def layer():
    return CASES["interaction"].make()


def test_interaction_is_the_equation(layer, draw, assert_close):
    video, audio = draw(2, 5, 39), draw(2, 5, 39)
    assert_close(layer(video, audio), oracles.av_interaction(layer, video, audio))


def test_memory_is_audio_then_video(layer, draw, assert_close):
    """The weights have the order [audio, video], and need_weights does not change the output."""
    video, audio = draw(2, 5, 39), draw(2, 5, 39)
    output, weights = layer(video, audio, need_weights=True)
    assert torch.equal(output, layer(video, audio))
    assert_close(weights, oracles.cmra(layer.attention, audio * video, [audio, video])[1])


def test_swapping_the_modalities_swaps_the_halves_of_the_weights(layer, draw, assert_close):
    """The output is symmetric in the two modalities, and the weights are not."""
    video, audio = draw(2, 5, 39), draw(2, 5, 39)
    output, weights = layer(video, audio, need_weights=True)
    swapped, swapped_weights = layer(audio, video, need_weights=True)
    assert_close(swapped, output)
    assert_close(swapped_weights, weights.roll(5, -1))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [(5, 10), (2, 5, 10), (2, 3, 5, 10)], ids=str)
def test_attention_mask_is_over_audio_then_video(layer, draw, assert_close, kind, shape):
    """Outputs equal Eq. 9 in loops. A query that may attend to nothing has zero weights."""
    video, audio = draw(2, 5, 39), draw(2, 5, 39)
    mask = draw(*shape) > 0.5
    mask[..., 1, :] = True
    if kind == "float":
        mask = draw(*shape).masked_fill(mask, -torch.inf)
    whole = mask.unsqueeze(1) if mask.dim() == 3 else mask
    output, weights = layer(video, audio, attn_mask=mask, need_weights=True)
    assert_close(output, oracles.av_interaction(layer, video, audio, whole))
    assert not weights[:, :, 1].any()
    padding = padding_mask([3, 5])
    padded = [features.masked_fill(padding.unsqueeze(-1), torch.nan) for features in (video, audio)]
    closed = torch.cat([padding, padding], 1)[:, None, None]
    joined = whole | closed if kind == "bool" else whole.masked_fill(closed, -torch.inf)
    expected = layer(video, audio, attn_mask=joined)
    assert_close(layer(*padded, padding_mask=padding, attn_mask=mask)[~padding], expected[~padding])


def test_gradients(draw):
    """First and second derivatives equal finite differences, for all features and parameters, with padding."""
    layer = fill_parameters(AVInteraction(4, 2, 0.0, dtype=torch.float64))
    parameters = dict(layer.named_parameters())
    masks = {"padding_mask": padding_mask([2, 1])}

    def run(video, audio, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (video, audio), masks)

    inputs = (draw(2, 2, 4).requires_grad_(), draw(2, 2, 4).requires_grad_(), *parameters.values())
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
