"""Rotary positions in time: the equation in loops, usual rotary embeddings, shifted clocks, and all transforms."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracles
from crossmodal_attn import (
    CMRA,
    AVInteraction,
    CrossModalRelation,
    InternalTemporalRelation,
    RelationAware,
    RotaryTime,
    padding_mask,
    record_attention,
    rotate_by_time,
)
from oracles import affine, fill_parameters

ROTARY = RotaryTime(min_period=3.0, max_period=700.0)


def rotate(features, times, shortest=3.0, longest=700.0):
    """Rotate each pair of channels of features (B, H, T, D) as a complex number, one by one."""
    rotated = features.clone()
    pairs = features.shape[-1] // 2
    for b, h, t, i in torch.cartesian_prod(*(torch.arange(size) for size in (*features.shape[:3], pairs))).tolist():
        period = shortest * (longest / shortest) ** (i / max(pairs - 1, 1))
        angle = 2 * math.pi * float(times[b, t] if times.dim() == 2 else times[t]) / period
        real, imaginary = features[b, h, t, 2 * i].item(), features[b, h, t, 2 * i + 1].item()
        turned = complex(real, imaginary) * complex(math.cos(angle), math.sin(angle))
        rotated[b, h, t, 2 * i], rotated[b, h, t, 2 * i + 1] = turned.real, turned.imag
    return rotated


def attend(layer, query, contexts, query_times, context_times, mask=None):
    """Compute output and weights of a CMRA with one projection for each context, in loops."""
    memory = list(zip(contexts, layer.context_kv_projs, context_times, strict=True))
    memory += [(query, layer.kv_proj, query_times)]
    queries = rotate(split(layer, affine(layer.q_proj, query)), query_times)
    projected = [affine(project, features).chunk(2, -1) for features, project, _ in memory]
    keys = [rotate(split(layer, own[0]), memory[i][2]) for i, own in enumerate(projected)]
    values = [split(layer, own[1]) for own in projected]
    output, weights = oracles.attention(queries, torch.cat(keys, 2), torch.cat(values, 2), mask)
    return affine(layer.out_proj, output.transpose(1, 2).flatten(2)), weights


def split(layer, projected):
    return projected.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)


@settings(max_examples=10)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 3),
    width=st.integers(1, 7),
    batched=st.booleans(),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.int64]),
)
def test_rotation_is_the_formula(assert_close, batch, length, width, batched, transposed, dtype):
    """The rotation is right for any shape, layout and times; the last of an odd number of channels does not change."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 2, length, width, generator=generator, dtype=torch.float64)
    features = features.mT.contiguous().mT if transposed else features
    times = (1000 * torch.randn((batch, length) if batched else (length,), generator=generator)).to(dtype)
    assert_close(rotate_by_time(features, times, min_period=3, max_period=700), rotate(features, times))


def test_layer_is_the_equation_in_loops(draw, assert_close):
    """Each modality has its own times, with NaN at padding; a mask leaves some queries with nothing."""
    layer = fill_parameters(CMRA(39, 3, context_dim=[17, 23], rotary=ROTARY).double())
    query, contexts = draw(2, 5, 39), [draw(2, 7, 17), draw(2, 3, 23)]
    query_times, context_times = 40 * draw(2, 5), [40 * draw(7), 40 * draw(2, 3)]
    paddings = [None, padding_mask([3, 1]), padding_mask([5, 2])]
    mask = draw(2, 1, 5, 15) > 0.4
    mask[:, :, 1] = True
    masked = mask | torch.cat([torch.zeros(2, 7, dtype=torch.bool), *paddings[1:]], 1)[:, None, None]
    expected = attend(layer, query, contexts, query_times, context_times, masked)
    query_times[paddings[2]], context_times[1][paddings[1]] = torch.nan, torch.nan
    arguments = {
        "query_padding_mask": paddings[2],
        "context_padding_mask": paddings[:2],
        "query_times": query_times,
        "context_times": context_times,
        "attn_mask": mask,
    }
    with record_attention(layer) as maps:
        output, weights = layer(query, contexts, **arguments, need_weights=True)
    valid = ~paddings[2]
    assert_close(output[valid], expected[0][valid])
    assert_close(weights.transpose(1, 2)[valid], expected[1].transpose(1, 2)[valid])
    assert torch.equal(maps[""], weights)
    assert output.isfinite().all()


def test_equal_clocks_are_a_plain_rotary_embedding(draw, assert_close):
    """The usual base of 10000 is one choice of periods."""
    xt = pytest.importorskip("x_transformers.x_transformers")
    features = draw(2, 3, 11, 26, dtype=torch.float32)
    plain = RotaryTime(2 * math.pi, 2 * math.pi * 10000 ** (24 / 26))
    angles, _ = xt.RotaryEmbedding(26).forward_from_seq_len(11)
    assert_close(plain(features, torch.arange(11)), xt.apply_rotary_pos_emb(features, angles))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_weights_depend_on_differences_of_times(draw, dtype, tolerance):
    """Weights stay the same if all clocks shift, also by more than a day, and change if one clock shifts."""
    layer = fill_parameters(CMRA(44, 2, rotary=ROTARY).to(dtype))
    query, contexts = draw(2, 5, 44, dtype=dtype), [draw(2, 7, 44, dtype=dtype), draw(2, 3, 44, dtype=dtype)]
    times = [(300 * draw(size, dtype=dtype)).round() / 8 for size in (5, 7, 3)]  # a shift of them is exact

    def weigh(*shifts):
        query_times, *context_times = (own + shift for own, shift in zip(times, shifts, strict=True))
        return layer(query, contexts, query_times=query_times, context_times=context_times, need_weights=True)[1]

    expected = weigh(0, 0, 0)
    for shift in (-37.25, 1e5):
        assert (weigh(shift, shift, shift) - expected).abs().max() < tolerance
        assert (weigh(0, shift, 0) - expected).abs().max() > 1e-3


def call_with_context(layer, features, times=(None, None), paddings=(None, None)):
    return layer(
        *features,
        query_padding_mask=paddings[0],
        context_padding_mask=paddings[1],
        query_times=times[0],
        context_times=times[1],
    )


def call_alone(layer, features, times=(None, None), paddings=(None, None)):
    return layer(features[0], padding_mask=paddings[0], times=times[0])


def call_aligned(layer, features, times=(None, None), paddings=(None, None)):
    return layer(features[0], features[0].flip(-1), padding_mask=paddings[0], times=times[0])


BLOCKS = {
    "cmra": (lambda: CMRA(44, 2, include_query=False, rotary=ROTARY), call_with_context),
    "cross-relation": (lambda: CrossModalRelation(44, 2, 29, norm_first=True, rotary=ROTARY), call_with_context),
    "relation-aware": (lambda: RelationAware(44, 44, 44, 2, 1, 29, rotary=ROTARY), call_with_context),
    "internal-relation": (lambda: InternalTemporalRelation(44, 2, 1, 29, rotary=ROTARY), call_alone),
    "interaction": (lambda: AVInteraction(44, 2, rotary=ROTARY), call_aligned),
}


@pytest.fixture(params=BLOCKS)
def block(request):
    """Return a layer, and a function that calls it with features, times and padding masks, the query first in each."""
    build, call = BLOCKS[request.param]
    return fill_parameters(build().double()).eval(), call


def test_without_times_segments_follow_one_another(block, draw, assert_close):
    """Contexts cover the time of the query, also in M_self."""
    layer, call = block
    features = draw(2, 5, 44), draw(2, 7, 44)
    output, starts = call(layer, features), (torch.arange(5), torch.arange(7).double() * 5 / 7)
    assert_close(call(layer, features, starts), output)
    assert not torch.allclose(call(layer, features, [own * 2 for own in starts]), output)


def test_times_at_padding_reach_nothing(block, draw, assert_close):
    """A NaN time at padding changes neither valid outputs nor any gradient."""
    layer, call = block
    features, paddings = (draw(2, 5, 44), draw(2, 7, 44)), (padding_mask([5, 2]), padding_mask([3, 7]))
    times = [40 * draw(2, 5), 40 * draw(2, 7)]
    results = []
    for value in (0.0, torch.nan, torch.inf):
        filled = [
            own.masked_fill(padding, value).requires_grad_() for own, padding in zip(times, paddings, strict=True)
        ]
        layer.zero_grad()
        output = call(layer, features, filled, paddings)[~paddings[0]]
        output.square().sum().backward()
        gradients = [*(own.grad for own in filled), *(parameter.grad for parameter in layer.parameters())]
        results.append([output, *[gradient for gradient in gradients if gradient is not None]])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_gradients(draw):
    """Gradients by features and times equal finite differences."""
    layer = fill_parameters(CMRA(10, 2, context_dim=3, rotary=ROTARY).double())

    def attend(query, context, query_times, context_times):
        return layer(query, context, query_times=query_times, context_times=context_times)

    inputs = [own.requires_grad_() for own in (draw(2, 3, 10), draw(2, 2, 3), draw(3), draw(2, 2))]
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("places", [slice(1, 5), slice(0, 12, 3)], ids=["odd offset", "odd stride"])
def test_gradients_of_any_layout(places, assert_close):
    """Incoming gradients may be views with odd offsets or strides, as from a stream's joined memory."""
    upstream = torch.arange(12.0)[places].view(1, 1, 1, 4)
    features = torch.ones(1, 1, 1, 4, requires_grad=True)
    found = [
        torch.autograd.grad(rotate_by_time(features, torch.ones(1), min_period=3, max_period=7), features, given)
        for given in (upstream, upstream.clone(memory_format=torch.contiguous_format))
    ]
    assert_close(*found)


@pytest.mark.parametrize("length", [0, 1])
def test_gradients_of_a_stream(length, draw):
    """One video, heads of an odd width, and a past of length 0 or 1."""
    layer = fill_parameters(CMRA(3, 1, rotary=ROTARY).double())
    first, now = draw(1, length, 3).requires_grad_(), draw(1, 1, 3).requires_grad_()

    def attend(first, now):
        past = layer.remember(first, own=True, context_times=torch.zeros(length))
        return layer(now, past, query_times=torch.ones(1))

    assert torch.autograd.gradcheck(attend, (first, now))


@pytest.mark.parametrize("timed", [True, False])
def test_compiles_once_for_all_sizes(draw, assert_close, timed):
    """One graph serves all sizes, also equal lengths. The ONNX tests export layers with times."""
    layer, counter = fill_parameters(CMRA(44, 2, rotary=ROTARY).double()), CompileCounterWithBackend("eager")
    compiled = torch.compile(call_with_context, fullgraph=True, dynamic=True, backend=counter)
    for batch, length, other in [(2, 5, 7), (3, 11, 11)]:
        features = draw(batch, length, 44), draw(batch, other, 44)
        arguments = (layer, features, (draw(length), draw(batch, other))) if timed else (layer, features)
        assert_close(compiled(*arguments), call_with_context(*arguments))
    assert counter.frame_count == 1


def test_vmap_is_a_loop(block, draw, assert_close):
    """vmap over features and times equals a loop."""
    layer, call = block
    features, times = (draw(3, 2, 5, 44), draw(3, 2, 7, 44)), (draw(3, 2, 5), draw(3, 7))

    def attend(*tensors):
        return call(layer, tensors[:2], tensors[2:])

    with sdpa_kernel(SDPBackend.MATH):
        mapped = torch.func.vmap(attend)(*features, *times)
    assert_close(mapped, torch.stack([attend(*own) for own in zip(*features, *times, strict=True)]))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_late_times_apart(draw, assert_close, autocast):
    """Angles are not computed in half precision, where 5000 and 5001 are one number."""
    layer = fill_parameters(CMRA(44, 2, rotary=ROTARY)).bfloat16()
    query, context = draw(2, 5, 44, dtype=torch.bfloat16), draw(2, 7, 44, dtype=torch.bfloat16)
    times = {"query_times": 5000 + torch.arange(5), "context_times": 5000.5 + torch.arange(7)}
    expected = copy.deepcopy(layer).double()(query.double(), context.double(), **times)
    layer = layer.float() if autocast else layer
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(query, context, **times)
    assert output.dtype == torch.bfloat16
    assert_close(output.double(), expected, torch.bfloat16)


def test_copies_state_and_devices(block, draw, assert_close):
    """The option is copied and pickled with the layer, is no part of its state, and works on the meta device."""
    layer, call = block
    features = draw(2, 5, 44), draw(2, 7, 44)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert_close(call(copied, features), call(layer, features))
        assert repr(copied) == repr(layer)
    assert "rotary=RotaryTime(min_period=3.0, max_period=700.0)" in repr(layer)
    assert all(isinstance(own, torch.nn.Parameter) for own in layer.state_dict(keep_vars=True).values())
    output = call(
        layer.to("meta"), [own.to("meta") for own in features], [torch.empty(n, device="meta") for n in (5, 7)]
    )
    assert output.is_meta


X, Y, LAYER = torch.ones(2, 5, 8), torch.ones(2, 7, 8), CMRA(8, 2, rotary=ROTARY)
SECONDS = torch.arange(5.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RotaryTime(min_period=0), ValueError, "min_period must be greater than 0 and finite, got 0"),
        (lambda: RotaryTime(max_period=math.inf), ValueError, "max_period must be greater than 0 and finite, got inf"),
        (lambda: RotaryTime(4, 2), ValueError, "max_period must be at least min_period=4, got 2"),
        (lambda: RotaryTime("4"), TypeError, "min_period must be a number, got str"),
        (lambda: CMRA(8, 8, rotary=ROTARY), ValueError, "at least twice num_heads, got embed_dim=8 and num_heads=8"),
        (lambda: CMRA(8, 2, rotary=True), TypeError, "rotary must be a RotaryTime or None, got bool"),
        (
            lambda: InternalTemporalRelation(8, 2, 0, rotary=4.0),
            TypeError,
            "rotary must be a RotaryTime or None, got float",
        ),
        (
            lambda: CMRA(8, 2)(X, Y, query_times=SECONDS),
            ValueError,
            r"query_times must be None, since this CMRA was built without rotary, .* rotary=RotaryTime\(\)",
        ),
        (
            lambda: RelationAware(8, 8, 8, 2)(X, Y, context_times=SECONDS),
            ValueError,
            "context_times must be None, since this RelationAware was built without rotary",
        ),
        (
            lambda: AVInteraction(8, 2)(X, X, times=SECONDS),
            ValueError,
            "times must be None, since this AVInteraction was built without rotary",
        ),
        (
            lambda: InternalTemporalRelation(8, 2, 0)(X, times=SECONDS),
            ValueError,
            "times must be None, since this InternalTemporalRelation was built without rotary",
        ),
        (lambda: LAYER(X, Y, query_times=SECONDS), ValueError, "context_times must be given if query_times is"),
        (
            lambda: LAYER(X, [X, Y], query_times=SECONDS, context_times=[SECONDS, None]),
            ValueError,
            r"context_times\[1\] must be given if context_times\[0\] is, .* got None",
        ),
        (lambda: LAYER(X, X, context_times=SECONDS), ValueError, "query_times must be given if context_times is"),
        (
            lambda: LAYER(X, [X, Y], query_times=SECONDS, context_times=[SECONDS]),
            ValueError,
            "context_times must be a list with times or None for each context, 2 in all, got 1",
        ),
        (
            lambda: LAYER(X, [X, None], query_times=SECONDS, context_times=[SECONDS, SECONDS]),
            ValueError,
            r"context_times\[1\] must be None where context\[1\] is None, got Tensor",
        ),
        (lambda: LAYER(X, query_times=[0, 1]), TypeError, "query_times must be a torch.Tensor, got list"),
        (
            lambda: LAYER(X, query_times=SECONDS > 1),
            TypeError,
            "query_times must be floating point or integers, got torch.bool",
        ),
        (
            lambda: LAYER(X, query_times=torch.ones(5, 2)),
            ValueError,
            r"query_times must have shape \(5,\) or \(2, 5\), got \(5, 2\)",
        ),
        (
            lambda: LAYER(X, query_times=SECONDS.to("meta")),
            ValueError,
            "query_times must be on the device of its features, cpu, got meta",
        ),
        (
            lambda: rotate_by_time(X, SECONDS, min_period=1, max_period=2),
            ValueError,
            r"features must have shape \(batch, heads, time, width\), got \(2, 5, 8\)",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
