"""A memory grows without a copy of what it holds, and nobody can tell: the room after a memory."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal_attn import CMRA, RotaryTime, _room, cmra, relation_mask
from oracles import fill_parameters
from test_memory import check_equal

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "gradients": torch.enable_grad}


@pytest.fixture
def layer():
    return fill_parameters(CMRA(39, 3, dtype=torch.float64)).eval()


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    batch=st.integers(0, 3),
    window=st.integers(1, 7),
    least=st.integers(0, 7),
    large=st.sampled_from([0, 2**17]),
    rotary=st.booleans(),
    modes=st.lists(st.sampled_from(list(MODES)), min_size=9, max_size=9),
)
def test_any_pieces_of_a_stream_equal_the_whole(sizes, batch, window, least, large, rotary, modes):
    """Of any sizes and with any room, joined or apart, also if the mode changes from piece to piece."""
    layer = fill_parameters(CMRA(6, 2, rotary=RotaryTime(2, 50) if rotary else None, dtype=torch.float64)).eval()
    generator, length = torch.Generator().manual_seed(0), sum(sizes)
    query, audio = torch.randn(2, batch, max(length, 1), 6, generator=generator, dtype=torch.float64)[:, :, :length]
    times = torch.arange(length)
    stamps = {"query_times": times, "context_times": times} if rotary else {}
    mask = relation_mask(max(length, 1), [max(length, 1)], causal=True, window=window)
    whole = layer(query, audio, attn_mask=mask[:length, torch.cat([times, times + max(length, 1)])], **stamps)
    heard, past, outputs, start = None, None, [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_room, "LEAST", least)
        patch.setattr(cmra, "LARGE", large)
        for size, mode in zip(sizes, modes, strict=False):
            cut, start = slice(start, start + size), start + size
            clock = {"context_times": times[cut]} if rotary else {}
            with MODES[mode]():
                more = layer.remember(audio[:, cut], **clock)
                heard = more if heard is None else heard.append(more, max_length=window + size)
                given = [heard] if past is None else [heard, past]
                columns = [times[max(0, start - heard.length) : start]]
                columns += [times[cut.start - (0 if past is None else past.length) : start] + max(length, 1)]
                clocks = {"query_times": times[cut]} if rotary else {}
                outputs.append(layer(query[:, cut], given, attn_mask=mask[cut][:, torch.cat(columns)], **clocks))
                own = layer.remember(query[:, cut], own=True, **clock)
                past = own if past is None else past.append(own, max_length=window)
    check_equal([torch.cat([output.detach() for output in outputs], 1)], [whole])


def test_memories_that_grow_apart(layer, draw):
    """Two memories that continue one share its steps, and neither they nor it ever change."""
    with torch.no_grad():
        steps = [layer.remember(draw(2, 3, 39), own=True) for _ in range(5)]
        trunk = steps[0].append(steps[1])
        first, query = trunk.append(steps[2]), draw(2, 2, 39)
        second = trunk.append(steps[3])
        memories = [trunk, first, second, first.append(steps[4]), second.append(steps[4])]
        kept = [copy.deepcopy(memory) for memory in memories]
        orders = [(0, 1), (0, 1, 2), (0, 1, 3), (0, 1, 2, 4), (0, 1, 3, 4)]
        for memory, copied, order in zip(memories, kept, orders, strict=True):
            expected = [torch.cat([steps[index][field] for index in order], 2) for field in (0, 1)]
            check_equal([*memory[:2], layer(query, memory)], [*expected, layer(query, copied)])
        for memory, copied in zip(memories, kept, strict=True):
            check_equal(memory[:2], copied[:2])
    assert first.keys.data_ptr() == trunk.keys.data_ptr()
    assert second.keys.data_ptr() != trunk.keys.data_ptr()
    mixed = first._replace(values=first.values + 1)
    with torch.no_grad():
        check_equal([mixed.append(steps[4]).values], [torch.cat([mixed.values, steps[4].values], 2)])


def test_backward_after_the_memory_has_grown(layer, draw):
    """What autograd saved of a memory stays valid, and gradients of what is detached are those of copies."""
    query, segments = draw(2, 1, 39).requires_grad_(), draw(5, 2, 1, 39)
    past = layer.remember(segments[0], own=True).append(layer.remember(segments[1], own=True), detach=True)
    longer = past.append(layer.remember(segments[2], own=True), detach=True)
    assert longer.keys.data_ptr() == past.keys.data_ptr()
    output = layer(query, longer)
    with torch.no_grad():
        grown = longer.append(layer.remember(segments[3], own=True))
        layer(segments[4], grown)
    assert not grown.keys.requires_grad
    inputs = [query, *layer.parameters()]
    gradients = torch.autograd.grad(output.sin().sum(), inputs)
    copied = layer(query, copy.deepcopy(longer))
    check_equal([output, *gradients], [copied, *torch.autograd.grad(copied.sin().sum(), inputs)])


def test_another_thread_is_not_waited_for(layer, draw):
    """While another thread writes into the room, a call copies."""
    with torch.no_grad():
        past = layer.remember(draw(2, 3, 39), own=True).append(layer.remember(draw(2, 2, 39), own=True))
        own = layer.remember(draw(2, 1, 39), own=True)
        with _room._places[past.keys].room.lock:
            other = past.append(own)
        assert other.keys.data_ptr() != past.keys.data_ptr()
        check_equal(other[:2], past.append(own)[:2])


def test_transforms_do_without_the_room(layer, draw):
    """In vmap each sample has a memory of its own; in forward mode the tangents are kept."""
    queries, steps = draw(5, 2, 1, 39), draw(5, 2, 1, 39)
    with torch.no_grad():
        past = layer.remember(draw(2, 3, 39), own=True).append(layer.remember(draw(2, 2, 39), own=True))

        def run(query, step):
            longer = past.append(layer.remember(step, own=True))
            return layer(query, longer), longer.keys

        expected = [torch.stack(parts) for parts in zip(*map(run, queries, steps), strict=True)]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            check_equal(torch.func.vmap(run)(queries, steps), expected)
            _, tangents = torch.func.jvp(lambda step: run(queries[0], step)[1], (steps[0],), (steps[1],))
        check_equal(
            [tangents[:, :, -1]], [(layer.kv_proj(steps[1]) - layer.kv_proj.bias).chunk(2, -1)[0].view(2, 3, 13)]
        )


@pytest.mark.parametrize("kind", ["none", "bool", "float", "of heads"])
def test_attention_apart_is_attention_joined(kind, draw):
    """With every mask, empty memories and empty rows: outputs and gradients."""
    query, keys, values = draw(2, 3, 5, 7), [draw(2, 3, size, 7) for size in (11, 0, 2)], []
    values = [draw(*own.shape) for own in keys]
    inputs = [tensor.requires_grad_() for tensor in (query, *keys, *values)]
    mask = {"none": None, "bool": draw(2, 1, 5, 13) > 0, "float": draw(5, 13), "of heads": draw(3, 1, 13) > 0}[kind]
    if kind == "bool":
        mask[1, :, 3] = True
    joined = cmra.relation_attention(query, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=mask)
    apart = cmra._attend_apart(query, keys, values, mask, 0.0)
    gradients = [torch.autograd.grad(output.sin().sum(), inputs) for output in (apart, joined)]
    check_equal([apart, *gradients[0]], [joined, *gradients[1]])
    function = lambda query, first: cmra._attend_apart(query, [first, *keys[1:]], values, mask, 0.0)  # noqa: E731
    assert torch.autograd.gradcheck(function, (query, keys[0]), fast_mode=True)


def test_dropout_apart():
    """Each weight is zero, or divided by the probability that it is kept."""
    keys, eye = torch.zeros(1, 1, 400, 1), torch.eye(400).view(1, 1, 400, 400)
    torch.manual_seed(0)
    weights = 400 * cmra._attend_apart(
        torch.ones(1, 1, 8, 1), [keys[:, :, :300], keys[:, :, 300:]], [eye[:, :, :300], eye[:, :, 300:]], None, 0.2
    )
    kept = weights > 0
    torch.testing.assert_close(weights, kept * 1.25)
    assert 0.75 < kept.double().mean() < 0.85
