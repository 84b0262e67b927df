"""A memory gives the same results as the contexts that it was made from; a stream with a memory equals the whole."""

import copy
import io
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossmodal_attn import (
    CMRA,
    CrossModalRelation,
    Memory,
    RelationAware,
    RotaryTime,
    padding_mask,
    record_attention,
    relation_mask,
)
from oracles import fill_parameters
from test_errors import check_refused

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
"""The largest difference, divided by the largest number of the expected tensor if that is more than one."""

LAYERS = {
    "shared": (lambda **options: CMRA(39, 3, **options), (39, 39)),
    "other width": (lambda **options: CMRA(39, 3, context_dim=17, **options), (17, 17)),
    "own projections": (lambda **options: CMRA(39, 3, context_dim=[17, 39], **options), (17, 39)),
    "without the query": (lambda **options: CMRA(39, 3, 0.0, False, include_query=False, **options), (39, 39)),
    "rotary": (lambda **options: CMRA(39, 3, rotary=RotaryTime(2, 50), **options), (39, 39)),
    "block": (lambda **options: CrossModalRelation(39, 3, 29, context_dim=[17, 23], **options), (17, 23)),
    "pre-norm block": (lambda **options: CrossModalRelation(39, 3, 29, norm_first=True, **options), (39, 39)),
}


def make(name, dtype=torch.float64):
    build, widths = LAYERS[name]
    return fill_parameters(build(dtype=dtype)).eval(), widths


def check_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        largest = TOLERANCES[other.dtype] * max([1, *other.detach().abs().flatten().tolist()])
        torch.testing.assert_close(one, other, rtol=0, atol=largest)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_memory_stands_for_its_context(name, dtype, draw):
    """Outputs, weights and gradients are those with the features: for memories alone, or mixed with features."""
    layer, widths = make(name, dtype)
    query, contexts = (
        draw(2, 5, 39, dtype=dtype),
        [draw(2, 7, widths[0], dtype=dtype), draw(2, 11, widths[1], dtype=dtype)],
    )
    contexts[0][1, 3:] = torch.nan
    inputs = [tensor.requires_grad_() for tensor in (query, *contexts)] + list(layer.parameters())
    paddings, valid = [padding_mask([7, 3]), None], ~padding_mask([5, 2])
    times = [torch.rand(7, dtype=dtype), torch.rand(2, 11, dtype=dtype)] if name == "rotary" else [None, None]
    length = 18 if name == "without the query" else 23
    options = {"query_padding_mask": ~valid, "attn_mask": draw(2, 5, length, dtype=dtype), "need_weights": True}
    if name == "rotary":
        options["query_times"] = torch.arange(5)

    def run(given, masks=None, stamps=None):
        output, weights = layer(query, given, context_padding_mask=masks, context_times=stamps, **options)
        loss = output[valid].sin().sum() + weights[valid.unsqueeze(1).expand(2, 3, 5)].square().sum()
        return [output[valid], weights, *torch.autograd.grad(loss, inputs, retain_graph=True)]

    whole = run(contexts, paddings, times)
    first, second = layer.remember(contexts, context_padding_mask=paddings, context_times=times)
    assert (first.length, second.length, second.padding_mask) == (7, 11, None)
    check_equal(run([first, second]), whole)
    check_equal(run([first, contexts[1]], [None, None], [None, times[1]]), whole)
    check_equal(run([contexts[0], second], [paddings[0], None], [times[0], None]), whole)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_stream_equals_the_whole(name, dtype, draw):
    """Outputs and gradients of a padded stream, in pieces of any size, are those of the whole with a causal window."""
    layer, widths = make(name, dtype)
    own, pieces, back = name != "without the query", (0, 3, 1, 5, 2), 4
    query = draw(2, 11, 39, dtype=dtype).requires_grad_()
    contexts = [draw(2, 22, width, dtype=dtype).requires_grad_() for width in widths]
    paddings = [padding_mask([11, 9]), padding_mask([22, 17]), None]
    rotary = name == "rotary"
    times = [None] * 3 if not rotary else [torch.arange(11) + 0.5, torch.arange(22) / 2, torch.arange(22) / 2 + 0.1]
    mask = relation_mask(11, [22, 22], causal=True, window=back, include_query=own)
    masks = {"query_padding_mask": paddings[0], "context_padding_mask": paddings[1:]}
    stamps = {"query_times": times[0], "context_times": times[1:]} if rotary else {}
    whole = layer(query, contexts, attn_mask=mask, **masks, **stamps)

    kept, outputs, start = [None, None, None], [], 0
    for size in pieces:
        stop = start + size
        cut, cuts = slice(start, stop), slice(2 * start, 2 * stop)
        new = layer.remember(
            [context[:, cuts] for context in contexts],
            context_padding_mask=[padding if padding is None else padding[:, cuts] for padding in paddings[1:]],
            context_times=[stamp if stamp is None else stamp[cuts] for stamp in times[1:]],
        )
        reach = 2 * (back + size)  # what no segment of this piece may attend to is dropped
        heard = [
            more if memory is None else memory.append(more, max_length=reach)
            for memory, more in zip(kept, new, strict=False)
        ]
        # The columns of the mask whose segments are kept: of the contexts up to now, of the query before now.
        columns = [torch.arange(22)[max(0, 2 * stop - memory.length) : 2 * stop] for memory in heard]
        columns = [columns[0], columns[1] + 22]
        given = list(heard)
        if own:
            columns.append(torch.arange(start - (0 if kept[2] is None else kept[2].length), stop) + 44)
            given += [] if kept[2] is None else [kept[2]]
        if size:
            outputs.append(
                layer(
                    query[:, cut],
                    given,
                    query_padding_mask=paddings[0][:, cut],
                    attn_mask=mask[cut][:, torch.cat(columns)],
                    **({"query_times": times[0][cut]} if rotary else {}),
                )
            )
        kept[:2] = heard
        if own:
            past = layer.remember(
                query[:, cut],
                context_padding_mask=paddings[0][:, cut],
                context_times=times[0][cut] if rotary else None,
                own=True,
            )
            kept[2] = past if kept[2] is None else kept[2].append(past, max_length=back)
        start = stop
    assert [memory and memory.length for memory in kept] == [12, 12, 4 if own else None]
    streamed, valid = torch.cat(outputs, 1), ~paddings[0]
    inputs = [query, *contexts, *layer.parameters()]
    gradients = [torch.autograd.grad(output[valid].sin().sum(), inputs) for output in (streamed, whole)]
    check_equal([streamed[valid], *gradients[0]], [whole[valid], *gradients[1]])


def test_a_live_relation_stack_equals_the_whole(draw):
    """Each block has its own memory: M_self over the audio, then M_cmra of the video to both, segment by segment."""
    model = fill_parameters(RelationAware(19, 17, 39, 3, 2, 29, dtype=torch.float64)).eval()
    video, audio = draw(2, 7, 19), draw(2, 7, 17)
    masks = {"attn_mask": relation_mask(7, [7], causal=True), "context_attn_mask": relation_mask(7, causal=True)}
    whole = model(video, audio, **masks)
    blocks, cross = [*model.internal_relation.layers], model.cross_relation
    pasts, heard = [block.remember(draw(2, 0, 39), own=True) for block in (*blocks, cross)], None
    outputs = []
    for step in range(7):
        heard_now, seen = model.context_proj(audio[:, step : step + 1]), model.query_proj(video[:, step : step + 1])
        for index, block in enumerate(blocks):
            own = block.remember(heard_now, own=True)
            heard_now = block(heard_now, pasts[index])
            pasts[index] = pasts[index].append(own)
        more = cross.remember(heard_now)
        heard = more if heard is None else heard.append(more)
        outputs.append(cross(seen, [heard, pasts[-1]]))
        pasts[-1] = pasts[-1].append(cross.remember(seen, own=True))
    check_equal([torch.cat(outputs, 1)], [whole])


def test_append_keeps_the_newest_steps(draw):
    """A memory is not changed; with max_length the oldest steps are dropped, whichever of the two holds them."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    features, padding = draw(2, 12, 39), padding_mask([12, 3])
    features.requires_grad_()
    whole = layer.remember(features, context_padding_mask=padding)
    first = layer.remember(features[:, :7], context_padding_mask=padding[:, :7])
    second, bare = layer.remember(features[:, 7:], context_padding_mask=padding[:, 7:]), layer.remember(features[:, 7:])
    before = copy.deepcopy([tensor.detach() for tensor in first])
    for length in (0, 1, 5, 6, 11, 12, 13, None):
        kept = first.append(second, max_length=length)
        start = 0 if length is None else max(0, 12 - length)
        assert kept.length == 12 - start
        check_equal(kept[:2], [tensor[:, :, start:] for tensor in whole[:2]])
        assert torch.equal(kept.padding_mask, padding[:, start:])
    assert all(torch.equal(*pair) for pair in zip(first, before, strict=True))
    assert torch.equal(first.append(bare).padding_mask, padding & (torch.arange(12) < 7))
    assert torch.equal(
        bare.append(first).padding_mask, torch.cat([torch.zeros(2, 5, dtype=torch.bool), padding[:, :7]], 1)
    )
    assert bare.append(bare).padding_mask is None
    cut = first.append(second, detach=True)
    assert kept.keys.requires_grad
    assert not cut.keys.requires_grad
    assert not cut.values.requires_grad


def test_detached_memory_ends_the_backward_pass(draw):
    """Each step can be trained by itself: the backward pass of a step does not reach the steps before it."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    segments = [draw(2, 1, 39).requires_grad_() for _ in range(3)]
    past = layer.remember(segments[0], own=True).append(layer.remember(segments[1], own=True), detach=True)
    layer(segments[2], past).sum().backward()
    assert [segment.grad is None for segment in segments] == [True, True, False]


def test_gradients_are_numerically_right(draw):
    """The gradients through remember and append pass gradcheck, for features and weights."""
    layer = fill_parameters(CMRA(6, 2, context_dim=3, dtype=torch.float64))
    past, segment, context = draw(1, 2, 6), draw(1, 1, 6), draw(1, 3, 3)
    inputs = [tensor.requires_grad_() for tensor in (past, segment, context)]
    padding = padding_mask([2], 3)

    def call(past, segment, context, _weight):
        own = layer.remember(past[:, :1], own=True).append(layer.remember(past[:, 1:], own=True))
        return layer(segment, [layer.remember(context, context_padding_mask=padding), own])

    assert torch.autograd.gradcheck(call, (*inputs, layer.kv_proj.weight), fast_mode=True)


def test_weights_and_recording_count_the_columns_of_a_memory(draw):
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    with record_attention(layer) as maps:
        _, weights = layer(draw(2, 3, 39), layer.remember(draw(2, 7, 39)), need_weights=True)
    assert weights.shape == (2, 3, 3, 10)
    assert torch.equal(maps[""], weights)


def test_growing_memories_compile_few_times(draw):
    """A step of a stream, with its memory, is compiled for the first lengths, and then never again."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64)).eval()

    def step(segment, past):
        return layer(segment, past), past.append(layer.remember(segment, own=True), max_length=6)

    counter, frames = CompileCounterWithBackend("eager"), []
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    with torch.no_grad():
        past = layer.remember(draw(2, 2, 39), own=True)
        for _ in range(8):
            segment = draw(2, 1, 39)
            expected, (output, past) = step(segment, past), compiled(segment, past)
            check_equal([output, *past[:2]], [expected[0], *expected[1][:2]])
            frames.append(counter.frame_count)
    assert isinstance(past, Memory)
    assert past.length == 6
    assert frames[-1] <= 3 + (torch.__version__ < "2.7")  # the first length, all lengths, and the largest


@pytest.mark.parametrize(("padded", "size"), [(False, 1), (True, 3)])
def test_programs_take_memories_of_any_length(padded, size, draw):
    """An exported and saved program takes and returns memories; their length is dynamic."""

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = fill_parameters(CMRA(39, 3, dtype=torch.float64)).eval()

        def forward(self, segment, past):
            return self.layer(segment, past), past.append(self.layer.remember(segment, own=True))

    step = Step()

    @torch.no_grad()
    def draw_inputs(length):
        mask = padding_mask([length, 2]) if padded else None
        return draw(2, size, 39), step.layer.remember(draw(2, length, 39), context_padding_mask=mask)

    length = torch.export.Dim("length", min=2, max=2**20)
    shapes = ({}, Memory({2: length}, {2: length}, {1: length} if padded else None))
    program, file = torch.export.export(step, draw_inputs(5), dynamic_shapes=shapes), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for inputs in (draw_inputs(7), draw_inputs(23)):
        (output, memory), (expected, longer) = loaded(*inputs), step(*inputs)
        check_equal([output, *memory[:2]], [expected, *longer[:2]])
        assert isinstance(memory, Memory)


def test_vmap_is_a_loop(draw):
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    queries, features = draw(5, 2, 3, 39), draw(5, 2, 7, 39)

    def run(query, own):
        return layer(query, layer.remember(own).append(layer.remember(own)))

    with sdpa_kernel(SDPBackend.MATH):
        # vmap takes None among the inputs, but not among the outputs.
        memories = Memory(*torch.func.vmap(lambda own: layer.remember(own)[:2])(features))
        expected = torch.stack(
            [layer(query, layer.remember(own)) for query, own in zip(queries, features, strict=True)]
        )
        check_equal([torch.func.vmap(layer, (0, Memory(0, 0, None)))(queries, memories)], [expected])
        expected = torch.stack([run(query, own) for query, own in zip(queries, features, strict=True)])
        check_equal([torch.func.vmap(run)(queries, features)], [expected])


@pytest.mark.parametrize("remembered_in_half", [False, True])
def test_autocast(remembered_in_half, draw, assert_close):
    layer = fill_parameters(CMRA(39, 3)).eval()
    query, context = draw(2, 3, 39, dtype=torch.float32), draw(2, 7, 39, dtype=torch.float32)
    expected = layer(query, context)
    with torch.autocast("cpu", torch.bfloat16, enabled=remembered_in_half):
        memory = layer.remember(context)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(query, memory.append(layer.remember(context[:, :0])))
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), expected, torch.bfloat16)


def test_memories_are_copied_and_moved(draw):
    """A memory can be copied, pickled and saved, moved to another device and dtype, and is a pytree."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    with torch.no_grad():
        memory = layer.remember(draw(2, 7, 39), context_padding_mask=padding_mask([7, 3]))
    file = io.BytesIO()
    torch.save(memory, file)
    file.seek(0)
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory)), torch.load(file)):  # noqa: S301
        assert isinstance(other, Memory)
        assert all(torch.equal(*pair) for pair in zip(other, memory, strict=True))
    assert [tensor.dtype for tensor in memory.to(torch.float32)] == [torch.float32, torch.float32, torch.bool]
    assert all(tensor.is_meta for tensor in memory.to("meta"))
    assert torch.utils._pytree.tree_map(lambda leaf: leaf, memory) is not memory
    assert len(torch.utils._pytree.tree_leaves(memory)) == 3


def ones(*shape, **options):
    return torch.ones(shape, **options)


LAYER, TWO, WIDE = CMRA(8, 2), CMRA(8, 2, context_dim=[3, 8]), CMRA(8, 2, include_query=False)
TURNED = CMRA(8, 2, rotary=RotaryTime())
APART = CMRA(8, 2, context_dim=[8], include_query=False)
MEMORY = LAYER.remember(ones(2, 3, 8))
QUERY, BOOL = ones(2, 5, 8), torch.zeros(2, 3, dtype=torch.bool)
T, V = TypeError, ValueError

ERRORS = {
    "other heads": (
        lambda: LAYER(QUERY, [QUERY, CMRA(8, 4).remember(QUERY)]),
        V,
        r"context\[1\].keys must have shape \(batch, 2, time, 4\), as this CMRA has 2 heads of width 4, got "
        r"\(2, 4, 5, 2\): use remember\(\) of this layer",
    ),
    "other width": (
        lambda: CrossModalRelation(12, 2)(ones(2, 5, 12), MEMORY),
        V,
        r"context.keys must have shape \(batch, 2, time, 6\), as this CMRA has 2 heads of width 6, got \(2, 2, 3, 4\)",
    ),
    "other batch": (
        lambda: LAYER(ones(3, 5, 8), MEMORY),
        V,
        "context.keys must have the batch size of query, 3, got 2",
    ),
    "other dtype": (
        lambda: LAYER(QUERY, MEMORY.to(torch.float64)),
        T,
        "context.keys has dtype torch.float64, but query has torch.float32: convert",
    ),
    "other device": (
        lambda: LAYER(QUERY, MEMORY.to("meta")),
        V,
        "context.keys must be on the device of query, cpu, got meta",
    ),
    "not of tensors": (lambda: LAYER(QUERY, Memory([], [])), T, "context.keys must be a torch.Tensor, got list"),
    "values of another length": (
        lambda: LAYER(QUERY, Memory(MEMORY.keys, MEMORY.values[:, :, 1:])),
        V,
        "context.values must have the length of context.keys, 3, got 2",
    ),
    "its own mask": (
        lambda: LAYER(QUERY, MEMORY._replace(padding_mask=BOOL[:, 1:])),
        V,
        r"context.padding_mask must have shape \(2, 3\), got \(2, 2\)",
    ),
    "padding given again": (
        lambda: LAYER(QUERY, [MEMORY], context_padding_mask=[BOOL]),
        V,
        r"context_padding_mask\[0\] must be None where context\[0\] is a Memory, which already includes it, got Tensor",
    ),
    "mask without its columns": (
        lambda: LAYER(QUERY, MEMORY, attn_mask=ones(5, 5)),
        V,
        r"attn_mask must have shape \(5, 8\)",
    ),
    "a memory too many": (
        lambda: TWO(QUERY, [None, QUERY, MEMORY, MEMORY]),
        V,
        "context must have 2 entries, .* got 3",
    ),
    "features too many": (lambda: TWO(QUERY, [None, QUERY, QUERY]), V, "context must have 2 entries, .* got 3"),
    "a past that the layer does not attend to": (
        lambda: APART(QUERY, [QUERY, APART.remember([QUERY])[0]]),
        V,
        "context must have 1 entry, .* got 2",
    ),
    "relation-aware": (
        lambda: RelationAware(8, 8, 8, 2)(QUERY, MEMORY),
        T,
        "context must be a torch.Tensor, got Memory",
    ),
    "remember nothing": (lambda: LAYER.remember(None), T, "context must be a torch.Tensor, got NoneType"),
    "remember a memory": (lambda: LAYER.remember(MEMORY), T, "context must be a torch.Tensor, got Memory"),
    "remember one of two": (lambda: TWO.remember(QUERY), V, "context must have 2 entries, one for each width"),
    "remember another width": (
        lambda: LAYER.remember(ones(2, 3, 7)),
        V,
        "context has 7 channels in .* embed_dim|context_dim=8",
    ),
    "remember with a float mask": (
        lambda: LAYER.remember(QUERY, context_padding_mask=ones(2, 5), own=True),
        T,
        r"context_padding_mask must be bool",
    ),
    "own of a list": (lambda: LAYER.remember([QUERY], own=True), T, "context must be a torch.Tensor, got list"),
    "own without the query": (
        lambda: WIDE.remember(QUERY, own=True),
        V,
        "own must be False, .* include_query=False.*, got True",
    ),
    "times without rotary": (
        lambda: LAYER.remember(QUERY, context_times=ones(5)),
        V,
        "context_times must be None, since this CMRA was built without rotary",
    ),
    "rotary without times": (
        lambda: TURNED.remember([QUERY]),
        V,
        r"context_times\[0\] must be given, since this CMRA was built with rotary, got None",
    ),
    "own, rotary without times": (lambda: TURNED.remember(QUERY, own=True), V, "context_times must be given, since"),
    "rotary without query times": (
        lambda: TURNED(QUERY, TURNED.remember(QUERY, context_times=ones(5))),
        V,
        "query_times must be given where context is a Memory of a layer with rotary",
    ),
    "times given again": (
        lambda: TURNED(QUERY, MEMORY, query_times=ones(5), context_times=ones(3)),
        V,
        "context_times must be None where context is a Memory",
    ),
    "append features": (lambda: MEMORY.append(QUERY), T, "more must be a Memory, .* got Tensor"),
    "append another batch": (
        lambda: MEMORY.append(LAYER.remember(ones(3, 1, 8))),
        V,
        "more.keys must have the batch size of the keys of this memory, 2, got 3",
    ),
    "append other heads": (
        lambda: MEMORY.append(CMRA(8, 4).remember(QUERY)),
        V,
        "more.keys must have the number of heads of the keys of this memory, 2, got 4",
    ),
    "append narrow values": (
        torch.no_grad()(lambda: MEMORY.append(MEMORY._replace(values=MEMORY.values[..., :1]))),
        V,
        "more.values must have the width of heads of the values of this memory, 4, got 1",
    ),
    "append short values": (
        torch.no_grad()(lambda: MEMORY.append(MEMORY._replace(values=MEMORY.values[:, :, :1]))),
        V,
        "more.values must have the length of more.keys, 3, got 1",
    ),
    "append another dtype": (lambda: MEMORY.append(MEMORY.to(torch.float64)), T, "more.keys has dtype torch.float64"),
    "negative length": (lambda: MEMORY.append(MEMORY, max_length=-1), V, "max_length must be at least 0, got -1"),
    "fractional length": (lambda: MEMORY.append(MEMORY, max_length=2.0), T, "max_length must be an int, got float"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_calls_are_refused(name):
    check_refused(*ERRORS[name])
