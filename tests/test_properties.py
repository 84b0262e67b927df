"""Properties that hold for every shape, dtype and mask, tested by hypothesis."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmodal_attn import AGSCA, CMRA, AVInteraction, InternalTemporalRelation, RelationAware, padding_mask
from oracles import fill_parameters

SIZES = st.integers(1, 5)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def cmra_calls(draw, include_query=None):
    """Draw a CMRA with any options, its features, and masks with any number of valid steps."""
    heads, width, batch = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    embed_dim, dtype = heads * width, draw(DTYPES)
    context_dim = draw(st.none() | SIZES)
    include = draw(st.booleans()) if include_query is None else include_query
    least = 0 if include and context_dim in (None, embed_dim) else 1
    lengths = draw(st.lists(SIZES, min_size=least, max_size=4))
    time = draw(SIZES)
    layer = CMRA(
        embed_dim,
        heads,
        bias=draw(st.booleans()),
        context_dim=context_dim,
        include_query=include,
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def features(length, size):
        return torch.randn(batch, length, size, generator=generator, dtype=dtype)

    def mask(length):
        if not draw(st.booleans()):
            return None
        return padding_mask(draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)), length)

    query, contexts = features(time, embed_dim), [features(length, layer.context_dim) for length in lengths]
    return fill_parameters(layer).eval(), query, contexts, mask(time), [mask(length) for length in lengths]


def call(layer, query, contexts, query_mask, masks, **options):
    return layer(query, contexts, query_padding_mask=query_mask, context_padding_mask=masks, **options)


@given(cmra_calls())
def test_shapes_dtypes_and_sums(assert_close, arguments):
    """The output is shaped like the query; each row of weights sums to one, or to zero if it may attend to nothing."""
    layer, query, contexts, query_mask, masks = arguments
    output, weights = call(*arguments, need_weights=True)
    memory = sum(context.shape[1] for context in contexts) + (query.shape[1] if layer.include_query else 0)
    assert output.shape == query.shape
    assert weights.shape == (len(query), layer.num_heads, query.shape[1], memory)
    assert output.dtype == weights.dtype == query.dtype
    assert output.isfinite().all()
    assert weights.min() >= 0 if weights.numel() else True
    paddings = [*zip(contexts, masks, strict=True), *([(query, query_mask)] if layer.include_query else [])]
    padding = [torch.zeros(f.shape[:2], dtype=torch.bool) if mask is None else mask for f, mask in paddings]
    left = ~torch.cat(padding, 1)
    assert_close(weights.sum(-1), left.any(1)[:, None, None].expand(weights.shape[:-1]).to(weights))
    assert not weights.masked_select(~left[:, None, None]).any()


@given(
    widths=st.lists(SIZES, min_size=1, max_size=4),
    include_query=st.booleans(),
    batch=st.integers(0, 3),
    time=SIZES,
    dtype=DTYPES,
    data=st.data(),
)
def test_lacking_modality_is_one_of_padding_alone(assert_close, widths, include_query, batch, time, dtype, data):
    """None, no steps, and any number of padded steps of NaN give the same, whichever contexts are lacking."""
    layer = fill_parameters(CMRA(6, 2, context_dim=widths, include_query=include_query, dtype=dtype))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, time, 6, generator=generator, dtype=dtype)
    lengths = data.draw(st.lists(SIZES, min_size=len(widths), max_size=len(widths)))
    lacking = data.draw(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)))
    if not include_query:
        lacking[data.draw(st.integers(0, len(widths) - 1))] = False
    sizes = zip(lengths, widths, strict=True)
    contexts = [torch.randn(batch, *size, generator=generator, dtype=dtype) for size in sizes]

    def give(replace):
        return [replace(context) if gone else context for context, gone in zip(contexts, lacking, strict=True)]

    output, weights = layer(query, give(lambda _: None), need_weights=True)
    left = sum(length for length, gone in zip(lengths, lacking, strict=True) if not gone) + time * include_query
    assert weights.shape == (batch, 2, time, left)
    assert_close(layer(query, give(lambda context: context[:, :0])), output)
    masks = [torch.full(context.shape[:2], gone) for context, gone in zip(contexts, lacking, strict=True)]
    padded = give(lambda context: torch.full_like(context, torch.nan))
    assert_close(layer(query, padded, context_padding_mask=masks), output)


@given(cmra_calls(), st.randoms(use_true_random=False))
def test_order_of_contexts_is_free(assert_close, arguments, random):
    """Reordering contexts does not change the output, and reorders the weights."""
    layer, query, contexts, query_mask, masks = arguments
    order = list(range(len(contexts)))
    random.shuffle(order)
    output, weights = call(*arguments, need_weights=True)
    reordered = [[values[index] for index in order] for values in (contexts, masks)]
    other, other_weights = call(layer, query, reordered[0], query_mask, reordered[1], need_weights=True)
    assert_close(other, output)
    if contexts:
        lengths = [context.shape[1] for context in contexts]
        parts = weights.split([*lengths, weights.shape[-1] - sum(lengths)], -1)
        assert_close(other_weights, torch.cat([*(parts[index] for index in order), parts[-1]], -1))


@given(cmra_calls(), st.randoms(use_true_random=False))
def test_order_of_videos_goes_through(assert_close, arguments, random):
    """Permuting the batch permutes the output: videos do not affect each other."""
    layer, query, contexts, query_mask, masks = arguments
    order = list(range(len(query)))
    random.shuffle(order)
    permuted = [values if values is None else values[order] for values in (query, query_mask)]
    output = call(
        layer,
        permuted[0],
        [context[order] for context in contexts],
        permuted[1],
        [mask if mask is None else mask[order] for mask in masks],
    )
    assert_close(output, call(*arguments)[order])


@given(cmra_calls(), st.randoms(use_true_random=False))
def test_order_of_time_goes_through(assert_close, arguments, random):
    """Permuting the query's steps permutes the output; permuting a context's steps does not change it."""
    layer, query, contexts, query_mask, masks = arguments
    order = list(range(query.shape[1]))
    random.shuffle(order)
    output = call(
        layer,
        query[:, order],
        [context.flip(1) for context in contexts],
        None if query_mask is None else query_mask[:, order],
        [mask if mask is None else mask.flip(1) for mask in masks],
    )
    assert_close(output, call(*arguments)[:, order])


@given(cmra_calls(), st.integers(0, 3), st.sampled_from([0.0, 1e30, torch.inf, torch.nan]))
def test_more_padding_changes_nothing(assert_close, arguments, more, fill):
    """More padding of query and contexts, with any values, does not change valid steps."""
    layer, query, contexts, query_mask, masks = arguments

    def longer(features, mask):
        padding = features.new_full((len(features), more, features.shape[2]), fill)
        mask = torch.zeros(features.shape[:2], dtype=torch.bool) if mask is None else mask
        return torch.cat([features, padding], 1), torch.cat([mask, mask.new_ones(len(mask), more)], 1)

    wide_query, wide_mask = longer(query, query_mask)
    wide = [longer(*pair) for pair in zip(contexts, masks, strict=True)]
    output = call(layer, wide_query, [pair[0] for pair in wide], wide_mask, [pair[1] for pair in wide])
    assert_close(output[:, : query.shape[1]], call(*arguments))


@given(batch=SIZES, time=SIZES, heads=SIZES, layers=st.integers(1, 2), dtype=DTYPES, data=st.data())
def test_self_attention_blocks_are_equivariant(assert_close, batch, time, heads, layers, dtype, data):
    """Permuting segments or videos, with their masks, permutes the output."""
    layer = fill_parameters(InternalTemporalRelation(2 * heads, heads, layers, 3, dtype=dtype)).eval()
    features = torch.randn(batch, time, 2 * heads, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = padding_mask(data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch)), time)
    times, videos = data.draw(st.permutations(range(time))), data.draw(st.permutations(range(batch)))
    output = layer(features, padding_mask=mask)
    assert_close(layer(features[:, times], padding_mask=mask[:, times]), output[:, times])
    assert_close(layer(features[videos], padding_mask=mask[videos]), output[videos])


@given(batch=SIZES, time=SIZES, memory=SIZES, widths=st.tuples(SIZES, SIZES), dtype=DTYPES, data=st.data())
def test_relation_aware_and_interaction_ignore_padding(assert_close, batch, time, memory, widths, dtype, data):
    generator = torch.Generator().manual_seed(0)
    relate = fill_parameters(RelationAware(*widths, 6, 2, 1, 5, dtype=dtype)).eval()
    fuse = fill_parameters(AVInteraction(6, 3, dtype=dtype)).eval()
    query = torch.randn(batch, time, widths[0], dtype=dtype, generator=generator)
    context = torch.randn(batch, memory, widths[1], dtype=dtype, generator=generator)
    lengths = st.lists(st.integers(0, memory), min_size=batch, max_size=batch)
    context_mask = padding_mask(data.draw(lengths), memory)
    related = relate(query, context, context_padding_mask=context_mask)
    assert related.shape == (batch, time, 6)
    assert related.dtype == dtype
    garbage = context.masked_fill(context_mask.unsqueeze(-1), torch.nan)
    assert_close(relate(query, garbage, context_padding_mask=context_mask), related)

    mask = padding_mask(data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch)), time)
    fused = fuse(related, related.flip(0), padding_mask=mask)
    assert fused.shape == (batch, time, 6)
    assert fused.isfinite().all()
    garbage = related.masked_fill(mask.unsqueeze(-1), torch.inf)
    assert_close(fuse(garbage, related.flip(0), padding_mask=mask)[~mask], fused[~mask])


@given(
    leading=st.lists(st.integers(0, 3), max_size=3),
    spatial=st.lists(SIZES, min_size=1, max_size=3),
    widths=st.tuples(SIZES, SIZES, SIZES),
    dtype=DTYPES,
)
def test_agsca_keeps_shapes(assert_close, leading, spatial, widths, dtype):
    """For any leading and spatial dimensions, shapes and ranges are right, and segments do not affect each other."""
    generator = torch.Generator().manual_seed(0)
    layer = fill_parameters(AGSCA(*widths, dtype=dtype))
    video = torch.randn(*leading, *spatial, widths[0], dtype=dtype, generator=generator)
    audio = torch.randn(*leading, widths[1], dtype=dtype, generator=generator)
    output, channel_map, spatial_map = layer(video, audio, need_weights=True)
    assert output.shape == channel_map.shape == (*leading, widths[0])
    assert spatial_map.shape == (*leading, *spatial)
    assert output.dtype == dtype
    assert_close(spatial_map.flatten(len(leading)).sum(-1), torch.ones(leading, dtype=dtype))
    if leading and leading[0]:
        assert_close(layer(video[-1], audio[-1]), output[-1])


@given(st.lists(st.integers(0, 9), max_size=7), st.integers(0, 5))
def test_padding_mask_is_its_lengths(lengths, more):
    """A mask has the valid steps first, as many as the length; lists, tensors and longer masks agree."""
    mask = padding_mask(lengths)
    assert (~mask).sum(1).tolist() == lengths
    assert torch.equal(mask, mask.cummax(1).values if mask.numel() else mask)
    longer = padding_mask(torch.tensor(lengths, dtype=torch.long), max(lengths, default=0) + more)
    assert torch.equal(longer[:, : mask.shape[1]], mask)
    assert longer[:, mask.shape[1] :].all()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_number_of_heads_is_only_a_cut(assert_close, heads):
    """With a memory of one step, the output does not depend on the number of heads."""
    layers = [fill_parameters(CMRA(4, own, dtype=torch.float64, include_query=False)) for own in (1, heads)]
    query, context = torch.randn(2, 3, 4).double(), torch.randn(2, 1, 4).double()
    assert_close(layers[0](query, context), layers[1](query, context))
