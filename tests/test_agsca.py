"""AGSCA equals Eq. 1-3 with every product of maps built."""

import pytest
import torch
from torch import nn

import oracles
from crossmodal_attn import AGSCA, channel_attention, spatial_attention
from oracles import CASES, fill_parameters


@pytest.fixture
def layer():
    return CASES["agsca"].make()


@pytest.mark.parametrize("spatial", [(6,), (3, 2), (2, 3, 1), (1,)], ids=str)
@pytest.mark.parametrize("leading", [(), (5,), (2, 5), (2, 3, 5)], ids=str)
def test_agsca_is_the_equations_in_loops(layer, draw, assert_close, leading, spatial):
    """The output and both maps are right for all leading and spatial dimensions."""
    video, audio = draw(*leading, *spatial, 19), draw(*leading, 17)
    output, channel_map, spatial_map = layer(video, audio, need_weights=True)
    places = torch.Size(spatial).numel()
    expected = oracles.agsca(layer, video.reshape(-1, places, 19), audio.reshape(-1, 17))
    shapes = ((*leading, 19), (*leading, 19), (*leading, *spatial))
    for actual, literal, shape in zip((output, channel_map, spatial_map), expected, shapes, strict=True):
        assert_close(actual, literal.reshape(shape))
    assert torch.equal(layer(video, audio), output)


def test_space_is_one_set_of_places(layer, draw, assert_close):
    """The output does not depend on the shape of space or the order of positions."""
    video, audio = draw(2, 5, 3, 2, 19), draw(2, 5, 17)
    output = layer(video, audio)
    assert_close(layer(video.flatten(2, 3), audio), output)
    assert_close(layer(video.flip(2), audio), output)


def test_maps_are_probabilities(layer, draw):
    """The channel map lies in (0, 1) and the spatial map sums to one, for large features too, in every dtype."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        own = CASES["agsca"].make(dtype)
        video, audio = draw(2, 5, 3, 2, 19, dtype=dtype) * 1000, draw(2, 5, 17, dtype=dtype) * 1000
        output, channel_map, spatial_map = own(video, audio, need_weights=True)
        assert output.isfinite().all()
        assert channel_map.min() >= 0
        assert channel_map.max() <= 1
        torch.testing.assert_close(spatial_map.double().sum((-1, -2)), torch.ones(2, 5).double(), rtol=0, atol=0.02)


def test_a_place_that_is_asked_for_is_found():
    """The one position with the feature that the audio selects gets e^2 times the weight of the others."""
    video = torch.zeros(7, 3, dtype=torch.float64)
    video[:, 1] = 100.0
    video[4] = torch.tensor([100.0, 0.0, 0.0])
    weight, audio = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    attention = spatial_attention(video, audio, weight)
    torch.testing.assert_close(attention[4] / attention[0], torch.tensor(torch.e**2, dtype=torch.float64))


def test_silence_leaves_the_bias(draw, assert_close):
    """If the projected audio is negative, the spatial map is uniform and the channel map depends only on the biases."""
    video, silence = draw(2, 7, 19), -draw(2, 19).abs()
    squeeze, excite = (fill_parameters(nn.Linear(*widths, dtype=torch.float64)) for widths in ((19, 23), (23, 19)))
    bias = torch.tensor([0.3], dtype=torch.float64)
    flat = spatial_attention(video, silence, draw(19), bias)
    assert_close(flat, torch.full((2, 7), 1 / 7, dtype=torch.float64))
    assert_close(
        channel_attention(video, silence, squeeze, excite), excite(squeeze.bias.relu()).sigmoid().expand(2, 19)
    )


def test_channel_attention_gradients(draw):
    squeeze, excite = (fill_parameters(nn.Linear(*widths, dtype=torch.float64)) for widths in ((3, 2), (2, 3)))
    inputs = draw(2, 5, 3).requires_grad_(), draw(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda video, audio: channel_attention(video, audio, squeeze, excite), inputs)
    assert torch.autograd.gradgradcheck(lambda video, audio: channel_attention(video, audio, squeeze, excite), inputs)


def test_spatial_attention_gradients(draw):
    inputs = [draw(*shape).requires_grad_() for shape in ((2, 5, 3), (2, 3), (3,), (1,))]
    assert torch.autograd.gradcheck(spatial_attention, inputs)
    assert torch.autograd.gradgradcheck(spatial_attention, inputs)


def test_agsca_gradients(draw):
    """First and second derivatives equal finite differences, for all features and parameters."""
    layer = fill_parameters(AGSCA(3, 2, 2, dtype=torch.float64))
    parameters = dict(layer.named_parameters())

    def run(video, audio, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (video, audio))

    inputs = (draw(2, 2, 2, 3).requires_grad_(), draw(2, 2).requires_grad_(), *parameters.values())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_initialization_of_the_spatial_weight_is_that_of_a_linear_map():
    """W_2 and its bias are drawn from the range of nn.Linear(hidden_dim, 1)."""
    layers = [AGSCA(3, 2, 401) for _ in range(20)]
    bound = 401**-0.5
    weights = torch.cat([layer.spatial_weight.detach() for layer in layers])
    biases = torch.stack([layer.spatial_bias.detach() for layer in layers])
    assert 0.99 * bound < weights.abs().max() <= bound
    assert 0.7 * bound < biases.abs().max() <= bound
    torch.testing.assert_close(weights.std(), torch.tensor(bound / 3**0.5), rtol=0.05, atol=0)
