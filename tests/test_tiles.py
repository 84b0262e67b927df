"""AGSCA in tiles equals AGSCA by torch's own operations, under every transform of torch."""

import io
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_attn import AGSCA, _tiles
from crossmodal_attn._tiles import tiles_apply
from crossmodal_attn.dropout import Dropout
from oracles import fill_parameters


@pytest.fixture
def layer():
    return fill_parameters(AGSCA(5, 3, 2, dtype=torch.float64))


@pytest.fixture
def inputs(draw):
    """Return 2 x 3 segments of 7 positions."""
    return draw(2, 3, 7, 5).requires_grad_(), draw(2, 3, 3).requires_grad_()


@pytest.fixture(params=[1, 15, 1024], ids=["one segment", "two segments", "all segments"])
def rows(request, monkeypatch):
    """Set the tile size; the 6 segments of 7 positions fill the tiles completely or partly."""
    monkeypatch.setattr(_tiles, "ROWS", request.param)


def call(layer, parameters, video, audio):
    return torch.func.functional_call(layer, parameters, (video, audio), {"need_weights": True})


def total(layer, parameters, video, audio):
    """Return a number that depends on the output and on the spatial map."""
    output, _, spatial_map = call(layer, parameters, video, audio)
    return output.sin().sum() + (spatial_map**2).sum()


def gradient_penalty(layer, parameters, video, audio):
    """Return first and second derivatives through the same graph, in one backward pass."""
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
    """Values and derivatives equal those of the plain functions."""
    arguments = (layer, dict(layer.named_parameters()), *inputs)
    actual = _pytree.tree_leaves(transform(*arguments))
    monkeypatch.setattr(_tiles, "tiles_apply", lambda *_: False)
    expected = _pytree.tree_leaves(transform(*arguments))
    for value, plain in zip(actual, expected, strict=True):
        assert_close(value, plain)


@pytest.mark.filterwarnings("ignore:Please use .torch.vmap. instead:FutureWarning")  # gradcheck itself, in torch 2.6
@pytest.mark.usefixtures("rows")
def test_gradients(layer, inputs):
    """First, second, forward-mode and batched derivatives equal finite differences."""
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
    """Frozen inputs and parameters get no gradient, and the gradients of the others do not change."""
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
    """Gradients are right if the loss depends on only one of the results."""
    leaves = (*inputs, *layer.parameters())

    def differentiate():
        return torch.autograd.grad(layer(*inputs, need_weights=True)[used].sin().sum(), leaves, allow_unused=True)

    actual = differentiate()
    monkeypatch.setattr(_tiles, "tiles_apply", lambda *_: False)
    for gradient, expected in zip(actual, differentiate(), strict=True):
        zero = torch.zeros(())
        assert_close(*(zero.double() if value is None else value for value in (gradient, expected)))


def test_two_backward_passes_give_the_same(layer, inputs):
    """A second backward pass does not modify the results of the first."""
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
    """If the video has other uses, their gradients are added to the layer's and are not modified."""
    layer = fill_parameters(AGSCA(5, 5, 2, dtype=torch.float64))
    video = inputs[0]
    assert torch.autograd.gradcheck(lambda video: layer(video * 2, video.mean(-2)) + video.sum(-2), (video,))


def test_tiles_apply_to_plain_linear_layers_on_a_cpu_only(layer, draw):
    """A projection that is replaced, wrapped, traced or has hooks is called on the whole map."""
    video = draw(2, 7, 5)
    linear = layer.channel_video_proj
    assert tiles_apply(video, linear)
    assert tiles_apply(video.float(), nn.Linear(5, 5))
    assert not tiles_apply(video, linear, nn.Sequential(linear))
    assert not tiles_apply(video, nn.Linear(5, 5, bias=False))
    assert not tiles_apply(video.to("meta"), linear.to_empty(device="meta"))
    plain = nn.Linear(5, 5).double()
    hooks = [
        plain.register_forward_hook,
        plain.register_forward_pre_hook,
        plain.register_full_backward_hook,
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ]
    for register in hooks:
        handle = register(lambda *_: None)
        assert not tiles_apply(video, plain)
        handle.remove()
        assert tiles_apply(video, plain)
    compiled = nn.Linear(5, 5).double()
    compiled.compile(backend="eager")
    assert not tiles_apply(video, compiled)
    parametrize.register_parametrization(plain, "weight", nn.Identity())
    assert not tiles_apply(video, plain)


@pytest.fixture(params=["channel_video_proj", "spatial_video_proj"])
def name(request):
    """Return the name of a projection of the map."""
    return request.param


class Adapter(nn.Module):
    """A module that wraps a projection, adds to its output, and exposes its weights."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.weight, self.bias = base.weight, base.bias

    def forward(self, features):
        return self.base(features) + 3.0


def shift_output(monkeypatch, layer, name, way):
    """Add 3 to the output of a projection, in one of the ways in which users modify modules."""
    projection = getattr(layer, name)
    forward = projection.forward
    if way == "another module":
        setattr(layer, name, Adapter(projection))
    elif way == "another forward":
        projection.forward = lambda features: forward(features) + 3.0
    elif way == "a hook":
        projection.register_forward_hook(lambda *arguments: arguments[-1] + 3.0)
    else:
        original = nn.Linear.forward
        monkeypatch.setattr(
            nn.Linear, "forward", lambda self, features: original(self, features) + 3.0 * (self is projection)
        )


@pytest.mark.parametrize("way", ["another module", "another forward", "a hook", "another nn.Linear.forward"])
def test_a_changed_projection_takes_effect(layer, inputs, assert_close, monkeypatch, name, way):
    """Output and gradients are those of a bias that is larger by the same number."""
    leaves = [*inputs, *layer.parameters()]
    with torch.no_grad():
        getattr(layer, name).bias += 3.0
    expected = torch.autograd.grad(total(layer, {}, *inputs), leaves)
    with torch.no_grad():
        getattr(layer, name).bias -= 3.0
    shift_output(monkeypatch, layer, name, way)
    for gradient, other in zip(torch.autograd.grad(total(layer, {}, *inputs), leaves), expected, strict=True):
        assert_close(gradient, other)


def test_global_hooks_see_every_projection(layer, inputs):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    layer(*inputs)
    handle.remove()
    assert all(child in seen for child in layer.children())


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("counts_forward", [True, False], ids=["both passes", "the backward pass alone"])
def test_a_counter_of_flops_sees_every_projection(layer, inputs, counts_forward):
    """Under a FLOP counter no tiles start; if they ran before, it can count the operators of their backward pass."""
    segments, positions, channels, audio, hidden = 2 * 3, 7, 5, 3, 2
    projections = (
        2
        * segments
        * (positions * channels * (channels + hidden) + audio * (channels + hidden) + 2 * channels * hidden)
    )
    sums = 2 * segments * positions * (hidden + channels)  # the comparison with the sound, and the weighted sum
    with FlopCounterMode(display=False) if counts_forward else nullcontext() as counter:
        output = layer(*inputs)
    if counts_forward:
        assert counter.get_total_flops() == projections + sums
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    # The gradients of the sums are outer products in part, which tiles do without a matrix product.
    assert 2 * projections <= counter.get_total_flops() <= 2 * (projections + sums)


def test_selective_checkpointing_changes_nothing(layer, inputs, assert_close):
    """Selective checkpointing keeps the results of matrix products, which must not be overwritten."""
    leaves = (*inputs, *layer.parameters())
    expected = torch.autograd.grad(total(layer, {}, *inputs), leaves)
    save_products = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    value = checkpoint(partial(total, layer, {}), *inputs, use_reentrant=False, context_fn=save_products)
    assert_close(torch.autograd.grad(value, leaves), expected)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_projection_without_bias(layer, inputs, assert_close, name, frozen):
    """A projection without bias computes Eq. 1-3 without that bias."""
    projection = getattr(layer, name)
    unbiased = nn.Linear(projection.in_features, projection.out_features, bias=False).double()
    unbiased.weight = projection.weight
    nn.init.zeros_(projection.bias)
    projection.requires_grad_(not frozen)
    leaves = [*inputs, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    leaves = [leaf for leaf in leaves if leaf is not projection.bias]
    expected = torch.autograd.grad(total(layer, {}, *inputs), leaves)
    setattr(layer, name, unbiased)
    for gradient, other in zip(torch.autograd.grad(total(layer, {}, *inputs), leaves), expected, strict=True):
        assert_close(gradient, other)


class LargestTensor(TorchDispatchMode):
    """Record the largest number of elements of any result."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in _pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_stored_features_get_no_gradient(layer, inputs, assert_close, monkeypatch):
    """If the video needs no gradient, weight gradients are the same, and the backward pass builds no map."""
    monkeypatch.setattr(_tiles, "ROWS", 7)
    video, audio = inputs
    expected = torch.autograd.grad(total(layer, {}, video, audio), layer.parameters())
    value = total(layer, {}, video.detach(), audio)
    with LargestTensor() as largest:
        gradients = torch.autograd.grad(value, layer.parameters())
    assert 0 < largest.elements < video.numel()
    for gradient, other in zip(gradients, expected, strict=True):
        assert_close(gradient, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_half_precision(inputs, assert_close, monkeypatch, dtype, autocast):
    """Tiles round where the plain functions do: dtypes are equal, and so is the distance to float64."""
    layer = fill_parameters(AGSCA(5, 3, 2, dtype=torch.float64))
    expected = total(layer, dict(layer.named_parameters()), *inputs)
    layer, (video, audio) = layer.float(), (value.float() for value in inputs)
    if not autocast:
        layer, video, audio = layer.to(dtype), video.to(dtype), audio.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        results = layer(video, audio, need_weights=True)
        assert_close(total(layer, {}, video, audio).double(), expected, dtype)
        monkeypatch.setattr(_tiles, "tiles_apply", lambda *_: False)
        plain = layer(video, audio, need_weights=True)
    assert [value.dtype for value in results] == [value.dtype for value in plain]
    assert_close(results, plain, dtype)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # are deprecated, or not supported in Python 3.14
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning")
def test_traces_and_saves(layer, inputs, assert_close):
    """torch.jit.trace works, also as TensorBoard's ``add_graph`` calls it."""
    traced = torch.jit.trace(layer, inputs)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    others = [torch.cat([value, value], 0) for value in inputs]
    assert_close(torch.jit.load(buffer)(*others), layer(*others))
