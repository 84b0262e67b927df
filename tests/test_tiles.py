"""AGSCA's passes over the map in tiles: the same as by torch's own operations, under every transform of torch's."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from crossmodal_attn import AGSCA, _tiles, guided
from crossmodal_attn._tiles import tiles_apply
from crossmodal_attn.dropout import Dropout
from oracles import fill_parameters


@pytest.fixture
def layer():
    return fill_parameters(AGSCA(5, 3, 2, dtype=torch.float64))


@pytest.fixture
def inputs(draw):
    """2 x 3 segments of 7 positions."""
    return draw(2, 3, 7, 5).requires_grad_(), draw(2, 3, 3).requires_grad_()


@pytest.fixture(params=[1, 15, 1024], ids=["one segment", "two segments", "all segments"])
def rows(request, monkeypatch):
    """Tiles of different sizes; the 6 segments of 7 positions fill them, or do not."""
    monkeypatch.setattr(_tiles, "ROWS", request.param)


def call(layer, parameters, video, audio):
    return torch.func.functional_call(layer, parameters, (video, audio), {"need_weights": True})


def total(layer, parameters, video, audio):
    """A number that depends on the output and on the spatial map."""
    output, _, spatial_map = call(layer, parameters, video, audio)
    return output.sin().sum() + (spatial_map**2).sum()


def gradient_penalty(layer, parameters, video, audio):
    """Second derivatives and first ones through the same graph, in one backward pass."""
    value = total(layer, parameters, video, audio)
    (d_video,) = torch.autograd.grad(value, video, create_graph=True)
    return torch.autograd.grad((d_video**2).sum() + value, (video, audio, *parameters.values()))


def batched_gradients(layer, parameters, video, audio):
    output = call(layer, parameters, video, audio)[0]
    directions = torch.stack([torch.ones_like(output), output.detach()])
    return torch.autograd.grad(output, (video, audio, *parameters.values()), directions, is_grads_batched=True)


TRANSFORMS = {
    "forward": call,
    "inference mode": lambda *arguments: torch.inference_mode()(call)(*arguments),
    "backward": lambda layer, parameters, *inputs: torch.autograd.grad(
        total(layer, parameters, *inputs), (*inputs, *parameters.values())
    ),
    "gradient penalty": gradient_penalty,
    "batched gradients": batched_gradients,
    "vmap": lambda layer, parameters, *inputs: torch.vmap(lambda *one: call(layer, parameters, *one))(*inputs),
    "ensemble": lambda layer, parameters, *inputs: torch.vmap(lambda values: total(layer, values, *inputs))(
        {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}
    ),
    "gradients of each video": lambda layer, parameters, *inputs: torch.vmap(
        torch.func.grad(lambda values, *one: total(layer, values, *one)), in_dims=(None, 0, 0)
    )(parameters, *inputs),
    "gradient of vmap": lambda layer, parameters, *inputs: torch.func.grad(
        lambda values: torch.vmap(lambda *one: total(layer, values, *one))(*inputs).sum()
    )(parameters),
    "forward mode": lambda layer, parameters, *inputs: torch.func.jvp(
        lambda *values: call(layer, parameters, *values), inputs, inputs
    ),
    "hessian": lambda layer, parameters, video, audio: torch.func.hessian(
        lambda values: total(layer, parameters, video, values)
    )(audio),
    "reverse over reverse": lambda layer, parameters, video, audio: torch.func.jacrev(
        torch.func.jacrev(lambda values: total(layer, parameters, values, audio))
    )(video),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.usefixtures("rows")
def test_tiles_change_nothing(layer, inputs, assert_close, monkeypatch, transform):
    """Values and derivatives are those of the plain forms."""
    arguments = (layer, dict(layer.named_parameters()), *inputs)
    actual = _pytree.tree_leaves(transform(*arguments))
    monkeypatch.setattr(guided, "tiles_apply", lambda *_: False)
    expected = _pytree.tree_leaves(transform(*arguments))
    for value, plain in zip(actual, expected, strict=True):
        assert_close(value, plain)


@pytest.mark.filterwarnings("ignore:Please use .torch.vmap. instead:FutureWarning")  # gradcheck itself, in torch 2.6
@pytest.mark.usefixtures("rows")
def test_gradients(layer, inputs):
    """First, second, forward-mode and batched derivatives, against differences."""
    parameters = dict(layer.named_parameters())

    def run(*values):
        output, _, spatial_map = call(layer, dict(zip(parameters, values[2:], strict=True)), *values[:2])
        return output, spatial_map

    values = (*inputs, *parameters.values())
    assert torch.autograd.gradcheck(run, values, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("frozen", ["video", "channel_video_proj", "spatial_video_proj", "all but video"])
@pytest.mark.usefixtures("rows")
def test_frozen_parts_get_no_gradient(layer, inputs, assert_close, frozen):
    """And the others the same as ever."""
    leaves = {"video": inputs[0], "audio": inputs[1], **dict(layer.named_parameters())}
    whole = dict(zip(leaves, torch.autograd.grad(layer(*inputs).sin().sum(), leaves.values()), strict=True))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != "video" if frozen == "all but video" else not name.startswith(frozen))
    if frozen == "all but video":
        for name, leaf in leaves.items():
            leaf.requires_grad_(name == "video")
    left = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    assert 0 < len(left) < len(leaves)
    for name, gradient in zip(left, torch.autograd.grad(layer(*inputs).sin().sum(), left.values()), strict=True):
        assert_close(gradient, whole[name])


@pytest.mark.parametrize("used", [0, 1, 2], ids=["output", "channel map", "spatial map"])
def test_one_result_is_enough(layer, inputs, assert_close, monkeypatch, used):
    """A loss of a single result: the gradients of the others are missing."""
    leaves = (*inputs, *layer.parameters())

    def differentiate():
        return torch.autograd.grad(layer(*inputs, need_weights=True)[used].sin().sum(), leaves, allow_unused=True)

    actual = differentiate()
    monkeypatch.setattr(guided, "tiles_apply", lambda *_: False)
    for gradient, expected in zip(actual, differentiate(), strict=True):
        zero = torch.zeros(())
        assert_close(*(zero.double() if value is None else value for value in (gradient, expected)))


def test_two_backward_passes_give_the_same(layer, inputs):
    """Nothing that a pass has given out is written to by the next."""
    value = layer(*inputs).sin().sum()
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(value, inputs)
    for gradient, copy, again in zip(first, copies, second, strict=True):
        assert torch.equal(gradient, copy)
        assert torch.equal(again, copy)


def test_another_default_device_changes_nothing(layer, inputs):
    expected = torch.autograd.grad(layer(*inputs).sum(), inputs)
    with torch.device("meta"):
        gradients = torch.autograd.grad(layer(*inputs).sum(), inputs)
        assert Dropout(0.5)(inputs[0]).device.type == "cpu"
    assert all(map(torch.equal, gradients, expected))


def test_other_features_may_depend_on_the_video(inputs):
    """The video's gradient adds up from the layer and from other uses of it, whose gradients are left alone."""
    layer = fill_parameters(AGSCA(5, 5, 2, dtype=torch.float64))
    video = inputs[0]
    assert torch.autograd.gradcheck(lambda video: layer(video * 2, video.mean(-2)) + video.sum(-2), (video,))


def test_tiles_apply_to_plain_computation_only(layer, draw):
    """A projection that is more than its weights is called; other precisions and code that is traced are torch's."""
    video = draw(2, 7, 5)
    linear = layer.channel_video_proj
    assert tiles_apply(video, linear)
    assert tiles_apply(video.float(), nn.Linear(5, 5))
    assert not tiles_apply(video.bfloat16(), nn.Linear(5, 5, dtype=torch.bfloat16))
    assert not tiles_apply(video, linear, nn.Sequential(linear))
    assert not tiles_apply(video.to("meta"), linear.to_empty(device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not tiles_apply(video.float(), nn.Linear(5, 5))
    hooked = nn.Linear(5, 5).double()
    handle = hooked.register_forward_hook(lambda *_: None)
    assert not tiles_apply(video, hooked)
    handle.remove()
    assert tiles_apply(video, hooked)
    parametrize.register_parametrization(hooked, "weight", nn.Identity())
    assert not tiles_apply(video, hooked)


@pytest.mark.parametrize("name", ["channel_video_proj", "spatial_video_proj"])
def test_a_replaced_projection_is_called(layer, inputs, name):
    """As by an adapter that adds to what a projection gives."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.weight, self.bias = base.weight, base.bias

        def forward(self, features):
            return self.base(features) + 1

    before = layer(*inputs)
    setattr(layer, name, Adapter(getattr(layer, name)))
    assert not torch.allclose(layer(*inputs), before)
