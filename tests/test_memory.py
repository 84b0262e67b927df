"""A memory stands for the contexts that it was made from, and a stream with a memory equals the whole sequence."""

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
    InternalTemporalRelation,
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
        largest = TOLERANCES[other.dtype] * max(1, float(other.detach().abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=largest)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_memory_stands_for_its_context(name, dtype, draw):
    """Outputs, weights and gradients are those with the features, alone or mixed with them, with masks and NaN."""
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
