"""A window gives what its mask gives, in every layer and under every transform, at a cost linear in the length."""

import copy
import pickle
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from crossmodal_attn import (
    CMRA,
    AVInteraction,
    CrossModalRelation,
    InternalTemporalRelation,
    RelationAware,
    _block_mask,
    _blocks,
    padding_mask,
    record_attention,
    relation_attention,
    relation_mask,
    relation_weights,
    relation_window,
    summarize_relations,
)
from oracles import attention, fill_parameters


@contextmanager
def blocks_of(size):
    """Divide the queries into blocks of this size, however short they are."""
    with patch.multiple(_blocks, BLOCK_SIZES=(size,), COPY_COST=0.01 - size):
        yield


def small_window(*arguments, **options):
    with blocks_of(4):
        return relation_window(*arguments, **options)


NUMBERS = st.sampled_from([0, 0.3, 1, 2.5])
BOUNDS = st.none() | NUMBERS | st.tuples(st.none() | NUMBERS, st.none() | NUMBERS)


@st.composite
def stamps(draw, length):
    """Draw sorted starts, with gaps and overlaps if ends are drawn too."""
    starts = torch.tensor(draw(st.lists(st.integers(1, 9), min_size=length, max_size=length))).cumsum(0) / 4
    if length == 1 or draw(st.booleans()):
        return torch.stack([starts, starts + draw(st.sampled_from([0.1, 1, 5]))], 1)
    return starts


@st.composite
def arguments(draw):
    """Draw the arguments of relation_mask."""
    length, lengths = draw(st.integers(1, 13)), draw(st.lists(st.integers(0, 17), max_size=3))
    each = {"min_size": len(lengths), "max_size": len(lengths)}
    timed = [draw(st.booleans()) for _ in lengths]
    rates = draw(st.none() | st.lists(st.sampled_from([0.3, 1, 2.5]), **each))
    return (length, lengths), {
        "causal": draw(st.booleans()),
        "window": draw(BOUNDS),
        "context_windows": draw(st.none() | st.lists(BOUNDS, **each)),
        "context_rates": rates and [None if own else rate for rate, own in zip(rates, timed, strict=True)],
        "context_offsets": draw(st.none() | st.lists(st.sampled_from([-1.5, 0, 0.3, 40]), **each)),
        "query_times": draw(st.none() | stamps(length)),
        "context_times": [draw(stamps(size)) if own else None for size, own in zip(lengths, timed, strict=True)],
        "include_query": draw(st.booleans()) or not lengths,
    }


@settings(max_examples=40)
@given(drawn=arguments(), size=st.sampled_from([1, 2, 3, 5, 512]), batch=st.integers(0, 3), data=st.data())
def test_window_gives_what_its_mask_gives(drawn, size, batch, data):
    """Outputs, weights and gradients are equal, with NaN in padding and queries that may attend to nothing."""
    (length, lengths), options = drawn
    with blocks_of(size):
        window = relation_window(length, lengths, **options)
    mask = relation_mask(length, lengths, **options)
    assert torch.equal(window.mask(), mask)
    layer = fill_parameters(CMRA(6, 2, include_query=options["include_query"], dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    features, paddings = [], []
    for steps in (length, *lengths):
        features.append(torch.randn(batch, steps, 6, generator=generator, dtype=torch.float64))
        paddings.append(None)
        if data.draw(st.booleans()):
            paddings[-1] = torch.rand(batch, steps, generator=generator) < 0.4
            features[-1][paddings[-1]] = torch.nan
    found = []
    for given_mask in (window, mask):
        inputs = [tensor.clone().requires_grad_() for tensor in features]
        output, weights = layer(
            inputs[0],
            inputs[1:],
            query_padding_mask=paddings[0],
            context_padding_mask=paddings[1:],
            attn_mask=given_mask,
            need_weights=True,
        )
        weights = window.to_dense(weights) if given_mask is window else weights
        upstream = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in (output, weights)]
        loss = (output * upstream[0]).sum() + (weights * upstream[1]).sum()
        leaves = [*inputs, *layer.parameters()]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        found.append([output, weights, *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_attention_within_a_window_is_eq_5(draw, assert_close):
    """The output and the weights are those of loops over the steps that the window leaves."""
    query, key, value = draw(2, 3, 11, 5), draw(2, 3, 24, 5), draw(2, 3, 24, 5)
    window = small_window(11, [13], window=(1.5, 0), causal=True, context_rates=[1.1])
    output, weights = attention(query, key, value, window.mask())
    assert_close(relation_attention(query, key, value, attn_mask=window), output)
    banded = relation_weights(query, key, attn_mask=window)
    assert_close(window.to_dense(banded), weights)
    columns = window.columns()
    assert torch.equal(banded > 0, (columns >= 0).expand_as(banded))
    assert torch.equal(columns[columns >= 0], (~window.mask()).nonzero()[:, 1])


def test_cost_grows_with_the_length(draw):
    """Scores and copies per query do not depend on the length, and equal blocks share their mask."""
    costs = []
    for length in (8192, 1024):
        window = relation_window(length, [3 * length], window=5)
        query, memory = draw(1, 1, length, 1), draw(1, 1, 4 * length, 1)
        groups = _blocks.gather_blocks(window, query, memory)
        assert max(mask.numel() for *_, mask in groups) < 300 * 300
        scores = sum(queries.shape[0] * queries.shape[2] * keys.shape[2] for queries, keys, _, _ in groups)
        costs.append((scores / length, sum(keys.numel() for _, keys, _, _ in groups) / length))
    assert costs[0] == costs[1]
    assert costs[0][0] < 4 * (64 + 2 * 5) + 4
    output, expected = (relation_attention(query, memory, memory, attn_mask=mask) for mask in (window, window.mask()))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_cost_grows_with_the_length_at_uneven_times(draw):
    """Long spans where a context has many steps do not widen the spans of other blocks."""
    costs = []
    for length in (8192, 1024):
        gaps = torch.rand(3 * length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        dense = slice(length, length + 3 * length // 8)  # an eighth of all steps, within one step of the query
        gaps[dense] = 1 / length
        times = gaps.cumsum(0)
        window = relation_window(
            length, [3 * length], window=5, query_times=torch.arange(length), context_times=[times]
        )
        query, memory = draw(1, 1, length, 1), draw(1, 1, 4 * length, 1)
        groups = _blocks.gather_blocks(window, query, memory)
        scores = sum(queries.shape[0] * queries.shape[2] * keys.shape[2] for queries, keys, _, _ in groups)
        costs.append((scores / length, sum(keys.numel() for _, keys, _, _ in groups) / length))
    assert all(longer < 2 * shorter for longer, shorter in zip(*costs, strict=True))  # one or two blocks see them
    output, expected = (relation_attention(query, memory, memory, attn_mask=mask) for mask in (window, window.mask()))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 500], ids=str)
def test_window_of_everything_copies_nothing(draw, window):
    """Where a mask is as good, the attention is one block of the keys themselves."""
    query, memory = draw(1, 2, 600, 3), draw(1, 2, 1200, 3)
    [(queries, keys, _, _)] = _blocks.gather_blocks(relation_window(600, [600], window=window), query, memory)
    assert queries.shape == query.shape
    assert keys.data_ptr() == memory.data_ptr()


@settings(max_examples=20)
@given(drawn=arguments(), padded=st.booleans())
def test_block_mask_is_that_of_the_dense_mask(drawn, padded):
    """Its function equals the dense mask. Skipped blocks are fully masked there, and full blocks not at all."""
    window = relation_window(*drawn[0], **drawn[1])
    length, memory = window.query_length, sum(window.memory_lengths)
    generator = torch.Generator().manual_seed(0)
    padding = torch.rand(2, memory, generator=generator) < 0.2 if padded else None
    with patch.object(_block_mask, "SIZE", 4):
        found = window.block_mask(padding)
    mask = window.mask()[None, None] if padding is None else window.mask() | padding[:, None, None]
    assert found.shape == (*mask.shape[:2], length, memory)
    blocks = F.pad(~mask, (0, -memory % 4, 0, -length % 4)).unfold(2, 4, 4).unfold(3, 4, 4)
    assert (found.to_dense() >= blocks.any(5).any(4)).all()
    full = torch.zeros_like(blocks[..., 0, 0])
    full.scatter_(3, found.full_kv_indices.long(), torch.arange(full.shape[3]) < found.full_kv_num_blocks.unsqueeze(3))
    assert torch.equal(full, blocks.all(5).all(4))
    assert torch.equal(create_mask(found.mask_mod, *mask.shape, device="cpu"), ~mask)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="FlexAttention of torch 2.6 takes heads of 2^n numbers only")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_with_a_block_mask(draw):
    window, padding = relation_window(150, [300], window=3, causal=True), padding_mask([450, 360], 450)
    heads = [draw(2, 1, length, 4) for length in (150, 450, 450)]  # torch 2.6 needs a power of two
    output = relation_attention(*heads, attn_mask=window.mask() | padding[:, None, None])
    torch.testing.assert_close(
        flex_attention(*heads, block_mask=window.block_mask(padding)), output, rtol=1e-12, atol=1e-12
    )


def test_block_mask_skips_what_no_query_sees():
    """At constant rates it has exactly the blocks of torch, also on another device."""
    window = relation_window(300, [600], window=3)
    found = window.block_mask()
    expected = create_block_mask(found.mask_mod, None, None, 300, 900, "cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert window.block_mask(device="meta").kv_indices.is_meta


def test_every_layer_takes_a_window(draw, assert_close):
    def compare(call, *windows):
        assert_close(call(*windows), call(*(window.mask() for window in windows)))

    x, y, z = draw(3, 13, 6), draw(3, 17, 6), draw(3, 7, 6)
    padding, paddings = padding_mask([13, 5, 0], 13), [padding_mask([17, 3, 9], 17), None]
    cross = small_window(13, [17, 7], window=2)
    own, of_y, both = small_window(13, window=(3, 1)), small_window(17, causal=True, window=2), small_window(13, [13])
    make = {"dropout": 0.0, "dtype": torch.float64}
    block = fill_parameters(CrossModalRelation(6, 2, 5, **make))
    compare(lambda w: block(x, [y, z], context_padding_mask=paddings, attn_mask=w), cross)
    for layers in (0, 2):
        internal = fill_parameters(InternalTemporalRelation(6, 2, layers, 5, **make))
        compare(lambda w, internal=internal: internal(x, padding_mask=padding, attn_mask=w), own)
    aware = fill_parameters(RelationAware(6, [6, 6], 6, 2, 1, 5, **make))
    masks = {"query_padding_mask": padding, "context_padding_mask": paddings}
    compare(lambda w, v: aware(x, [y, z], attn_mask=w, context_attn_mask=[v, None], **masks), cross, of_y)
    fuse = fill_parameters(AVInteraction(6, 2, **make))
    without = small_window(13, [13, 13], window=1, include_query=False)
    compare(lambda w: fuse(x, x + 1, padding_mask=padding, attn_mask=w), without)
    compare(lambda w: fuse(x, x + 1, attn_mask=w), both)


def test_recorded_weights_are_the_banded_ones(draw):
    layer = fill_parameters(CMRA(6, 2, dtype=torch.float64))
    window = small_window(13, [17], window=1)
    with record_attention(layer) as maps:
        _, weights = layer(draw(2, 13, 6), draw(2, 17, 6), attn_mask=window, need_weights=True)
    assert torch.equal(maps[""], weights)
    assert weights.shape == (2, 2, *window.columns().shape)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 13, dtype=torch.float64))
    with pytest.raises(ValueError, match="of a relation_window, convert them by its method to_dense"):
        summarize_relations(weights, window.memory_lengths)
    assert summarize_relations(window.to_dense(weights), window.memory_lengths).shares.shape == (2, 2, 13, 2)


def test_dropout_drops_weights():
    """Half of the weights are dropped, the others doubled, and a seed repeats it."""
    query, memory = torch.zeros(1, 2, 301, 3), torch.ones(1, 2, 602, 3)
    window = relation_window(301, [301], window=8)

    def attend(dropout_p):
        torch.manual_seed(0)
        return relation_attention(query, memory, memory, attn_mask=window, dropout_p=dropout_p)

    assert not attend(1.0).any()
    assert torch.equal(attend(0.5), attend(0.5))
    assert attend(0.5).std() > 0.1
    assert abs(attend(0.5).mean() - 1) < 0.05


class Windowed(nn.Module):
    """A layer with its window, as a user would compile or export it."""

    def __init__(self, layer, window):
        super().__init__()
        self.layer, self.window = layer, window

    def forward(self, query, context, padding, need_weights=False):
        masks = {"context_padding_mask": padding, "attn_mask": self.window}
        return self.layer(query, context, **masks, need_weights=need_weights)


def make_windowed(dtype=torch.float64, **times):
    window = small_window(13, [37], window=(2.5, 1), causal=True, **times)
    return Windowed(fill_parameters(CMRA(6, 2, dtype=dtype)), window)


def make_uneven():
    """Return a layer with a window whose blocks are not in the order of time."""
    times = torch.arange(37).clamp(max=5) + torch.arange(37) / 40
    module = make_windowed(query_times=torch.arange(13), context_times=[times])
    assert module.window._blocks.order.tolist() == [1, 2, 0, 3]
    return module


def inputs(draw, batch, dtype=torch.float64):
    return draw(batch, 13, 6, dtype=dtype), draw(batch, 37, 6, dtype=dtype), draw(batch, 37) > 1


def test_compiles_for_all_batch_sizes(draw, assert_close):
    """One graph gives the eager outputs, weights and gradients for every batch size."""
    module, counter = make_uneven(), CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for batch in (5, 3, 7):
        batch_inputs, found = inputs(draw, batch), []
        for run in (compiled, module):
            output, weights = run(*batch_inputs, need_weights=True)
            gradients = torch.autograd.grad(output.square().sum() + weights.square().sum(), list(module.parameters()))
            found.append([output, weights, *gradients])
        assert_close(*found)
    assert counter.frame_count == 1  # torch takes sizes as equal that are in the first call: 5 is no other size


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 fixes sizes in the graph that are to stay open")
def test_exports_with_a_dynamic_batch(draw, assert_close):
    module, batch = make_uneven(), torch.export.Dim("batch")
    program = torch.export.export(module, inputs(draw, 3), dynamic_shapes=({0: batch},) * 3)
    other = inputs(draw, 5)
    assert_close(program.module()(*other), module(*other))


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 fixes sizes in the graph that are to stay open")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
def test_exports_to_onnx(draw, assert_close, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, sizes = make_windowed(torch.float32), ({0: torch.export.Dim.DYNAMIC},) * 3
    torch.onnx.export(
        module.eval(),
        inputs(draw, 3, torch.float32),
        tmp_path / "x.onnx",
        dynamo=True,
        dynamic_shapes=sizes,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    other = inputs(draw, 5, torch.float32)
    names = [entry.name for entry in session.get_inputs()]
    [found] = session.run(None, {name: value.numpy() for name, value in zip(names, other, strict=True)})
    assert_close(torch.from_numpy(found), module(*other))


def test_function_transforms(draw, assert_close):
    """The gradients of each sample, by vmap, are those of one sample alone."""
    module, (query, context, _) = make_windowed(), inputs(draw, 3)
    parameters = dict(module.layer.named_parameters())

    def loss(parameters, query, context):
        arguments = query[None], context[None]
        output = torch.func.functional_call(module.layer, parameters, arguments, {"attn_mask": module.window})
        return output.square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, query, context)
        alone = [torch.func.grad(loss)(parameters, query[b], context[b]) for b in range(3)]
    assert_close(mapped, {name: torch.stack([gradients[name] for gradients in alone]) for name in mapped})


def test_gradcheck(draw):
    query, key, value = (draw(2, 1, length, 2).requires_grad_() for length in (7, 12, 12))
    window = small_window(7, [5], window=(1, 0.5))
    assert torch.autograd.gradcheck(
        lambda *heads: relation_attention(*heads, attn_mask=window), (query, key, value), fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda *heads: relation_weights(*heads, attn_mask=window), (query, key), fast_mode=True
    )


def test_copies_devices_and_precision(draw):
    window = small_window(13, [37], window=1)
    for twin in (copy.deepcopy(window), pickle.loads(pickle.dumps(window))):  # noqa: S301
        assert torch.equal(twin.mask(), window.mask())
    assert repr(window) == "RelationWindow(query_length=13, memory_lengths=(37, 13))"
    assert window.mask(device="meta").device.type == "meta"
    assert window.to("meta").mask(device="meta").shape == window.to("cpu").mask().shape
    query, context, _ = inputs(draw, 3, torch.float32)
    assert CMRA(6, 2, device="meta")(query.to("meta"), context.to("meta"), attn_mask=window).shape == query.shape
    layer = CMRA(6, 2)
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):  # the default device changes nothing
        output, weights = layer(query, context, attn_mask=window, need_weights=True)
    assert output.dtype == weights.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(query, context, attn_mask=window), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda window: CMRA(6, 2)(torch.ones(1, 12, 6), torch.ones(1, 37, 6), attn_mask=window),
            r"attn_mask must be a window for 12 query segments and a memory of 49, got one for 13 and 50 \(37 \+ 13\)",
            id="other lengths",
        ),
        pytest.param(
            lambda window: CMRA(6, 2)(
                torch.ones(1, 13, 6), [torch.ones(1, 30, 6), torch.ones(1, 7, 6)], attn_mask=window
            ),
            r"attn_mask must be a window for memories of the lengths \[30, 7, 13\], in this order, got .* \[37, 13\]",
            id="other memories",
        ),
        pytest.param(
            lambda window: InternalTemporalRelation(6, 2, 0)(torch.ones(1, 13, 6), attn_mask=window),
            r"attn_mask must be a window for 13 query segments and a memory of 13, got one for 13 and 50",
            id="without layers",
        ),
        pytest.param(
            lambda window: RelationAware(6, 6, 6, 2)(
                torch.ones(1, 13, 6), torch.ones(1, 37, 6), context_attn_mask=window
            ),
            "context_attn_mask must be a window for 37 query segments and a memory of 37, got one for 13 and 50",
            id="of M_self",
        ),
        pytest.param(
            lambda _: RelationAware(6, [6, 6], 6, 2)(
                torch.ones(1, 5, 6),
                [torch.ones(1, 3, 6), torch.ones(1, 13, 6)],
                context_attn_mask=[None, relation_window(13, [11, 2], include_query=False)],
            ),
            r"context_attn_mask\[1\] must be a window for memories of the lengths \[13\], .* got one for \[11, 2\]",
            id="of one M_self, with other memories",
        ),
        pytest.param(
            lambda _: InternalTemporalRelation(6, 2, 0)(
                torch.ones(1, 13, 6), attn_mask=relation_window(13, [11, 2], include_query=False)
            ),
            r"attn_mask must be a window for memories of the lengths \[13\], in this order, got one for \[11, 2\]",
            id="without layers, with other memories",
        ),
        pytest.param(
            lambda window: window.block_mask(torch.zeros(2, 37, dtype=torch.bool)),
            r"padding_mask must have shape \(2, 50\), got \(2, 37\)",
            id="padding of one memory",
        ),
        pytest.param(
            lambda window: window.to_dense(torch.ones(2, 13, 50)),
            r"weights must have shape \(\*, 13, \d+\), as a layer returns them for this window, got \(2, 13, 50\)",
            id="dense weights",
        ),
    ],
)
def test_wrong_use_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_window(13, [37], window=1))
