"""Recording attention maps: every map, no trace."""

import pytest
import torch
from torch import nn

from crossmodal_attn import CMRA, record_attention
from oracles import CASES, Case

ATTENTION = {
    "interaction.attention": (2, 3, 5, 10),
    **{
        f"{modality}_relation.{path}": (2, 3, 5, 5 * (1 + path.startswith("cross")))
        for modality in ("video", "audio")
        for path in (
            "internal_relation.layers.0.attention",
            "internal_relation.layers.1.attention",
            "cross_relation.attention",
        )
    },
}
GUIDED = {
    "spatial_channel_attention.channel_map": (2, 5, 11),
    "spatial_channel_attention.spatial_map": (2, 5, 3, 2),
}


@pytest.fixture
def inputs(draw):
    return draw(2, 5, 3, 2, 11), draw(2, 5, 7)


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_every_layer_of_cmran_leaves_its_map(cmran, setting, inputs):
    """By module path, with the right shape, detached; rows sum to one; the outputs keep every bit."""
    expected = cmran(*inputs)
    with record_attention(cmran) as maps:
        output = cmran(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    heads = {"interaction.attention": (2, 2 if setting == "weak" else 3, 5, 10)}
    assert {path: tuple(recorded.shape) for path, recorded in maps.items()} == ATTENTION | GUIDED | heads
    assert not any(recorded.requires_grad for recorded in maps.values())
    for path in ATTENTION:
        torch.testing.assert_close(maps[path].sum(-1), torch.ones(maps[path].shape[:-1], dtype=torch.float64))
    spatial = maps["spatial_channel_attention.spatial_map"]
    torch.testing.assert_close(spatial.sum((-1, -2)), torch.ones(2, 5, dtype=torch.float64))


def test_maps_are_those_of_need_weights(draw):
    case = CASES["cmra-4-contexts"]
    layer = case.make()
    features = case.features(draw, 2, [5, 7, 2, 3, 11])
    with record_attention(layer) as maps:
        case(layer, features)
    assert list(maps) == [""]
    assert torch.equal(maps[""], layer(features[0], features[1:], need_weights=True)[1])


def test_a_layer_by_itself_has_the_empty_path(draw):
    case = CASES["agsca"]
    layer = case.make()
    features = case.features(draw, 2, [5, 5])
    with record_attention(layer) as maps:
        case(layer, features)
    _, channel_map, spatial_map = layer(*features, need_weights=True)
    assert list(maps) == ["channel_map", "spatial_map"]
    assert torch.equal(maps["channel_map"], channel_map)
    assert torch.equal(maps["spatial_map"], spatial_map)


@pytest.mark.parametrize("setting", ["supervised"])
def test_maps_are_those_of_the_latest_pass(cmran, inputs, draw):
    with record_attention(cmran) as maps:
        cmran(*inputs)
        cmran(draw(1, 2, 4, 1, 11), draw(1, 2, 7))
    assert maps["interaction.attention"].shape == (1, 3, 2, 4)


@pytest.mark.parametrize("setting", ["supervised"])
@pytest.mark.parametrize("where", ["body", "forward"])
def test_hooks_are_gone_on_exit(cmran, inputs, where):
    """Also after an exception in the body of the context, or inside a layer's forward."""
    before = count_hooks(cmran)
    with record_attention(cmran):
        assert count_hooks(cmran) == before + 2 * 8
        cmran(*inputs)
    assert count_hooks(cmran) == before
    expected = cmran(*inputs)

    def fail():
        with record_attention(cmran):
            if where == "body":
                raise ValueError("video: none of it")
            cmran(inputs[0], inputs[1][:1])

    with pytest.raises(ValueError, match="video"):
        fail()
    assert count_hooks(cmran) == before
    assert all(torch.equal(a, b) for a, b in zip(cmran(*inputs), expected, strict=True))


def test_recording_goes_on_after_a_caught_exception(draw):
    """A forward that failed leaves nothing that the next one trips over, neither with nor without weights."""
    layer = CASES["cmra-self"].make()
    query = draw(2, 5, 39)
    with record_attention(layer) as maps:
        with pytest.raises(ValueError, match="query"):
            layer(query[..., :3], need_weights=True)
        assert isinstance(layer(query), torch.Tensor)
        assert isinstance(layer(query, need_weights=True), tuple)
    assert maps[""].shape == (2, 3, 5, 5)


@pytest.mark.parametrize("name", ["cmra-self", "cross-relation", "interaction", "agsca"])
def test_caller_that_asks_for_weights_gets_them(draw, name):
    """And only that caller: the two kinds of calls mix freely."""
    case = CASES[name]
    layer = case.make()
    features = case.features(draw, 2, case.lengths(5, 7))
    expected = layer(*features, need_weights=True)
    with record_attention(layer) as maps:
        actual = layer(*features, need_weights=True)
        alone = layer(*features)
    assert isinstance(alone, torch.Tensor)
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert torch.equal(list(maps.values())[-1], expected[-1])


@pytest.mark.parametrize("asked", [False, True])
def test_nested_recordings_both_record(draw, asked):
    """And the caller gets what it asked for; the outer one goes on after the inner one is over."""
    layer = CASES["cross-relation"].make()
    features = draw(2, 5, 39), draw(2, 7, 39)
    expected = layer(*features, need_weights=True)
    with record_attention(layer) as outer:
        with record_attention(layer.attention) as inner:
            output = layer(*features, need_weights=asked)
        assert torch.equal(inner[""], expected[1])
        assert torch.equal(outer.pop("attention"), expected[1])
        assert isinstance(layer(*features), torch.Tensor)
        assert torch.equal(outer["attention"], expected[1])
    assert torch.equal(output[0] if asked else output, expected[0])
    assert isinstance(output, tuple) is asked


def test_gradients_flow_through_a_recording(draw, assert_close):
    """Training inside the context is training; under no_grad nothing is tracked."""
    layer = CASES["relation-aware"].make()
    features = draw(2, 5, 19), draw(2, 7, 17)
    expected = torch.autograd.grad(layer(*features).square().sum(), list(layer.parameters()))
    with record_attention(layer):
        assert_close(torch.autograd.grad(layer(*features).square().sum(), list(layer.parameters())), expected)
    with torch.no_grad(), record_attention(layer) as maps:
        assert not layer(*features).requires_grad
    assert len(maps) == 2


def compile_whole(module, backend):
    return torch.compile(module, backend=backend)


def compile_in_place(module, backend):
    module.compile(backend=backend)
    return module


def compile_a_child(module, backend):
    module.attention = torch.compile(module.attention, backend=backend)
    return module


@pytest.mark.parametrize("compile_", [compile_whole, compile_in_place, compile_a_child])
def test_compiled_model_records_and_stays_compiled(draw, compile_):
    """Paths are those of the model as it was; afterwards the compiled code runs again, without a recompilation."""
    ran = []

    def backend(graph, _inputs):
        ran.append("compiled")

        def run(*args):
            ran.append("ran")
            return graph(*args)

        return run

    torch._dynamo.reset()
    case: Case = CASES["interaction"]
    layer = case.make()
    features = case.features(draw, 2, [5, 5])
    expected = layer(*features, need_weights=True)
    compiled = compile_(layer, backend)
    compiled(*features)
    assert ran == ["compiled", "ran"] * (len(ran) // 2)
    ran.clear()
    with record_attention(compiled) as maps:
        output = compiled(*features)
    assert not ran
    assert list(maps) == ["attention"]
    assert torch.equal(maps["attention"], expected[1])
    torch.testing.assert_close(output, expected[0])
    compiled(*features)
    assert set(ran) == {"ran"}


def test_shared_layer_is_recorded_once(draw):
    layer = CASES["cmra-self"].make()
    model = nn.ModuleDict({"first": layer, "second": layer})
    with record_attention(model) as maps:
        model["second"](draw(2, 5, 39))
    assert list(maps) == ["first"]


def test_foreign_model_with_layers_inside_is_recorded(draw):
    """A Sequential knows nothing of need_weights; its layers are asked all the same."""
    model = nn.Sequential(nn.Linear(11, 39), CMRA(39, 3), nn.ReLU()).double()
    with record_attention(model) as maps:
        model(draw(2, 5, 11))
    assert {path: tuple(recorded.shape) for path, recorded in maps.items()} == {"1": (2, 3, 5, 5)}
