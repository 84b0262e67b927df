"""relation_mask equals its docstring in loops over exact fractions, and excludes what it promises in the layers.

test_relation_window.py compares relation_window with it.
"""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal_attn import CMRA, CrossModalRelation, InternalTemporalRelation, relation_mask, relation_window
from oracles import fill_parameters


def literal(length, memories, *, causal):
    """Compute the mask of the docstring pair by pair; memories are (length, rate, (back, ahead)) in exact fractions."""
    rows = []
    for i in range(length):
        row = []
        for size, rate, (back, ahead) in memories:
            for j in range(size):
                start, end = j / rate, (j + 1) / rate
                forbidden = causal and end > i + 1
                forbidden |= back is not None and end <= i - back
                forbidden |= ahead is not None and start >= i + 1 + ahead
                row.append(forbidden)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.bool).reshape(length, -1)


NUMBERS = st.sampled_from(["0", "0.1", "0.25", "0.3", "0.7", "1", "1.5", "2", "3", "10"])
RATES = st.sampled_from(["0.1", "0.3", "0.5", "0.7", "1", "1.1", "2.5", "3", "31.25"])
BOUNDS = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS)
WINDOWS = st.none() | NUMBERS | BOUNDS


def given_as(window):
    """Convert an exact window to what a user writes: int or the nearest float, as a number or a pair."""
    if isinstance(window, tuple):
        return tuple(map(given_as, window))
    return window if window is None else int(window) if window.isdigit() else float(window)


def exact(window):
    pair = window if isinstance(window, tuple) else (window, window)
    return tuple(bound if bound is None else Fraction(bound) for bound in pair)


@settings(max_examples=100)
@given(data=st.data(), length=st.integers(1, 11), causal=st.booleans(), window=WINDOWS)
def test_mask_is_its_docstring_in_loops(data, length, causal, window):
    lengths = data.draw(st.lists(st.integers(0, 13), max_size=3))
    each = {"min_size": len(lengths), "max_size": len(lengths)}
    rates = data.draw(st.none() | st.lists(RATES, **each))
    windows = data.draw(st.none() | st.lists(WINDOWS, **each))
    include_query = data.draw(st.booleans()) or not lengths
    mask = relation_mask(
        length,
        lengths,
        causal=causal,
        window=given_as(window),
        context_windows=None if windows is None else [given_as(entry) for entry in windows],
        context_rates=None if rates is None else [float(rate) for rate in rates],
        include_query=include_query,
    )
    memories = [
        (
            size,
            Fraction(size, length) if rates is None else Fraction(rates[index]),
            exact(window if windows is None else windows[index]),
        )
        for index, size in enumerate(lengths)
    ]
    memories += [(length, Fraction(1), exact(window))] if include_query else []
    expected = literal(length, memories, causal=causal)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)
    if include_query:
        assert not mask[:, -length:].diagonal().any()


TENTHS = st.integers(1, 30).map(lambda tenths: Fraction(tenths, 10))


@st.composite
def stamps(draw, length):
    """Draw the segments [s, e) of a modality, sorted and exact, and the tensor that a user would give."""
    steps = draw(st.lists(TENTHS, min_size=length, max_size=length))
    starts = [sum(steps[: index + 1], Fraction(-2)) for index in range(length)]
    ends = [*starts[1:], 2 * starts[-1] - starts[-2]] if length > 1 else []
    if length != 1 and draw(st.booleans()):
        return list(zip(starts, ends, strict=True)), torch.tensor([float(s) for s in starts], dtype=torch.float64)
    size = draw(TENTHS)
    pairs = [(start, start + size) for start in starts]
    return pairs, torch.tensor([[float(s), float(e)] for s, e in pairs], dtype=torch.float64).reshape(length, 2)


@given(data=st.data(), length=st.integers(1, 7), size=st.integers(0, 9), causal=st.booleans(), window=WINDOWS)
def test_time_stamps_in_loops(data, length, size, causal, window):
    """Time stamps replace i, i + 1 and s, e. An offset is added to the times of a context."""
    query, query_times = data.draw(stamps(length))
    context, context_times = data.draw(stamps(size))
    offset = data.draw(TENTHS) - 1
    back, ahead = exact(window)
    expected = [
        [
            (causal and e > end) or (back is not None and e <= start - back) or (ahead is not None and s >= end + ahead)
            for s, e in [*((s + offset, e + offset) for s, e in context), *query]
        ]
        for start, end in query
    ]
    mask = relation_mask(
        length,
        [size],
        causal=causal,
        window=given_as(window),
        query_times=query_times,
        context_times=[context_times],
        context_offsets=[float(offset)],
    )
    assert torch.equal(mask, torch.tensor(expected))


def test_contexts_without_stamps():
    """Such contexts cover the time of the query, or start with it at their rate; an offset shifts them."""
    seconds = torch.arange(7) * 2 + 100
    options = {"causal": True, "include_query": False}
    for given_rates, rates, shift in ((None, None, 0), ([1.25], [2.5], 0), ([1.25], [2.5], 3)):
        expected = relation_mask(7, [11], window=1.5, context_rates=rates, context_offsets=[shift], **options)
        timed = {"query_times": seconds, "context_rates": given_rates, "context_offsets": [2 * shift]}
        assert torch.equal(relation_mask(7, [11], window=3, **timed, **options), expected)
    late = relation_mask(7, [7], context_rates=[1], context_offsets=[2], **options)
    assert torch.equal(late, torch.ones(7, 7, dtype=torch.bool).triu(-1))


def test_stamps_in_float32_mean_what_they_say():
    """Rounding to float32 moves no edge in minutes of video."""
    stamped = relation_mask(
        4999, [997], window=0.48, query_times=torch.arange(4999) / 25, context_times=[torch.arange(997) / 5]
    )
    assert torch.equal(stamped, relation_mask(4999, [997], window=12, context_rates=[0.2]))


@pytest.mark.parametrize("rate", ["0.1", "0.3", "0.7", "1.1", "10"])
@pytest.mark.parametrize("window", ["0.3", "0.7", "0.9"])
def test_decimals_mean_what_they_say(rate, window):
    """Decimal rates and windows such as 0.3, which have no exact float, do not move any edge."""
    mask = relation_mask(
        31, [37], causal=True, window=(float(window), None), context_rates=[float(rate)], include_query=False
    )
    ahead = relation_mask(31, [37], window=(None, float(window)), context_rates=[float(rate)], include_query=False)
    assert torch.equal(mask, literal(31, [(37, Fraction(rate), (Fraction(window), None))], causal=True))
    assert torch.equal(ahead, literal(31, [(37, Fraction(rate), (None, Fraction(window)))], causal=False))


@pytest.mark.parametrize("length", [1, 7, 1009])
def test_equal_rates_give_the_masks_that_everyone_knows(length):
    """Equal rates give the causal triangle and the band of a sliding window."""
    ones = torch.ones(length, length, dtype=torch.bool)
    assert torch.equal(relation_mask(length, causal=True), ones.triu(1))
    assert torch.equal(relation_mask(length, window=(3, 2)), ~(ones.triu(-3) & ones.tril(2)))
    assert torch.equal(relation_mask(length, window=5), ~(ones.triu(-5) & ones.tril(5)))
    assert torch.equal(relation_mask(length, window=(None, 0)), ones.triu(1))
    assert torch.equal(relation_mask(length, [length]), torch.zeros(length, 2 * length, dtype=torch.bool))


def test_long_modalities_are_aligned_to_the_segment():
    """In hours of video, rounding moves no edge: a window of 0 leaves exactly the 48 audio steps of each segment."""
    mask = relation_mask(997, [997 * 48], window=0, include_query=False)
    assert torch.equal(~mask, torch.eye(997, dtype=torch.bool).repeat_interleave(48, 1))


def test_memories_are_masked_one_by_one():
    """The columns of each memory are those of the mask for this memory alone."""
    mask = relation_mask(7, [11, 3], causal=True, window=(2, 1), context_windows=[1, None], context_rates=[1.5, 0.5])
    alone = [
        relation_mask(7, [11], causal=True, window=1, context_rates=[1.5], include_query=False),
        relation_mask(7, [3], causal=True, context_rates=[0.5], include_query=False),
        relation_mask(7, causal=True, window=(2, 1)),
    ]
    assert torch.equal(mask, torch.cat(alone, 1))


def test_shorter_contexts_at_their_rates_are_the_first_columns():
    """If rates are given, more padding does not change the mask of earlier segments."""
    longer = relation_mask(7, [23], window=2, context_rates=[2.5], include_query=False)
    assert torch.equal(relation_mask(5, [11], window=2, context_rates=[2.5], include_query=False), longer[:5, :11])


def expand(mask, *shape):
    return mask.expand(*shape, *mask.shape)


@pytest.mark.parametrize("options", [{"causal": True}, {"window": 1}, {"causal": True, "window": (0.5, 0)}], ids=str)
def test_cmra_attends_to_the_allowed_segments_alone(draw, assert_close, options):
    """Each output equals that of co-attention over a memory of only the allowed segments."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    video, audio, text = draw(2, 5, 39), draw(2, 11, 39), draw(2, 3, 39)
    mask = relation_mask(5, [11, 3], **options)
    output, weights = layer(video, [audio, text], attn_mask=mask, need_weights=True)
    apart = CMRA(39, 3, include_query=False, dtype=torch.float64)
    apart.load_state_dict(layer.state_dict())
    memory = torch.cat([audio, text, video], 1)
    for i in range(5):
        assert_close(output[:, i : i + 1], apart(video[:, i : i + 1], memory[:, ~mask[i]]))
    assert torch.equal(weights > 0, expand(~mask, 2, 3))


def test_a_slow_context_that_is_not_over_gives_zero_attention(draw):
    """If the query is not in the memory, a row may be empty; it gives zero, not NaN."""
    layer = CMRA(39, 3, include_query=False, bias=False, dtype=torch.float64)
    mask = relation_mask(5, [2], causal=True, include_query=False)
    assert mask.all(1).tolist() == [True, True, False, False, False]
    output, weights = layer(draw(2, 5, 39), draw(2, 2, 39), attn_mask=mask, need_weights=True)
    assert not output[:, :2].any()
    assert not weights[:, :, :2].any()
    assert output[:, 2:].isfinite().all()


def reach(mask_options, lengths, signal):
    """Return which moments of a signal have a gradient in each segment's output; all modalities average the signal."""
    video, audio, text = (signal.unflatten(1, (length, -1)).mean(2) for length in lengths)
    inner = fill_parameters(InternalTemporalRelation(6, 2, 2, 5, dtype=torch.float64)).eval()
    cross = fill_parameters(CrossModalRelation(6, 2, 5, dtype=torch.float64)).eval()
    heard = inner(audio, attn_mask=relation_mask(lengths[1], causal=mask_options.get("causal", False)))
    output = cross(video, [heard, text], attn_mask=relation_mask(lengths[0], lengths[1:], **mask_options))
    gradients = [torch.autograd.grad(row.square().sum(), signal, retain_graph=True)[0] for row in output.unbind(1)]
    return torch.stack([gradient[0].abs().sum(-1) > 0 for gradient in gradients])


@pytest.mark.parametrize("lengths", [(4, 12, 4), (4, 2, 6), (3, 4, 12), (6, 4, 3), (1, 3, 2)], ids=str)
def test_nothing_of_the_future_reaches_a_causal_output(draw, lengths):
    """At all rates and through several layers, all of a segment reaches its output, and nothing after its end."""
    signal = draw(1, 12, 6).requires_grad_()
    reached = reach({"causal": True}, lengths, signal)
    for i, row in enumerate(reached.tolist()):
        end = 12 * (i + 1) // lengths[0]
        assert not any(row[end:])
        assert all(row[12 * i // lengths[0] : end])


def test_without_a_mask_everything_reaches_every_output(draw):
    """Without a mask, the test above would fail."""
    assert reach({}, (4, 2, 6), draw(1, 12, 6).requires_grad_()).all()


def test_device():
    assert relation_mask(3, [5], device="meta").device.type == "meta"
    with torch.device("meta"):
        assert relation_mask(3, [5], window=1).device.type == "meta"
        assert relation_mask(3, [5], device="cpu").device.type == "cpu"


def test_mask_is_made_in_compiled_code(draw):
    """Also with dynamic lengths, there is no graph break, and no compilation for each length."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    compilations = []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph

    def attend(video, audio):
        mask = relation_mask(video.shape[1], [audio.shape[1]], causal=True, window=(2.5, 1), context_windows=[0.3])
        return layer(video, audio, attn_mask=mask)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=backend)
    for length, memory in ((5, 11), (7, 13), (11, 3)):
        video, audio = draw(2, length, 39), draw(2, memory, 39)
        torch.testing.assert_close(compiled(video, audio), attend(video, audio))
    assert len(compilations) == 1


def timed(times, **options):
    """Make a window for three segments with these times."""
    return relation_window(3, query_times=times, **options)


T, V = TypeError, ValueError


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: relation_mask(3.0), T, "query_length must be an int, got float", id="length"),
        pytest.param(lambda: relation_mask(0), V, "query_length must be at least 1, got 0", id="no query"),
        pytest.param(
            lambda: relation_mask(3, 5),
            T,
            "context_lengths must be a list or tuple with an entry for each context, got int",
            id="one context",
        ),
        pytest.param(lambda: relation_mask(3, [5, "7"]), T, r"context_lengths\[1\] must be an int, got str", id="text"),
        pytest.param(
            lambda: relation_mask(3, [-1]), V, r"context_lengths\[0\] must be at least 0, got -1", id="negative context"
        ),
        pytest.param(
            lambda: relation_mask(3, include_query=False),
            V,
            r"context_lengths must have at least one entry if include_query=False, got \(\)",
            id="no memory",
        ),
        pytest.param(
            lambda: relation_mask(3, window="all"),
            T,
            r"window must be a number, None, or a pair \(back, ahead\) of these, got 'all'",
            id="window of text",
        ),
        pytest.param(lambda: relation_mask(3, window=(1, 2, 3)), T, r"window must be .* got \(1, 2, 3\)", id="triple"),
        pytest.param(lambda: relation_mask(3, window=True), T, "window must be a number, .* got True", id="bool"),
        pytest.param(
            lambda: relation_mask(3, window=(-1, 0)), V, r"window must be at least 0 .* got \(-1, 0\)", id="negative"
        ),
        pytest.param(lambda: relation_mask(3, window=math.inf), V, "or None for any distance, got inf", id="infinite"),
        pytest.param(lambda: relation_mask(3, window=math.nan), V, "at least 0 and finite.* got nan", id="NaN"),
        pytest.param(
            lambda: relation_mask(3, [5, 7], context_windows=[1]),
            V,
            "context_windows must have an entry for each context, 2 in all, got 1",
            id="too few windows",
        ),
        pytest.param(
            lambda: relation_mask(3, [5], context_windows=1), T, "context_windows must be a list .* got int", id="int"
        ),
        pytest.param(
            lambda: relation_mask(3, [5, 7], context_windows=[None, (0, -2)]),
            V,
            r"context_windows\[1\] must be at least 0 .* got \(0, -2\)",
            id="negative context window",
        ),
        pytest.param(
            lambda: relation_mask(3, [5], context_rates=[1, 2]),
            V,
            "context_rates must have an entry for each context, 1 in all, got 2",
            id="too many rates",
        ),
        pytest.param(
            lambda: relation_mask(3, [5], context_rates=[0]),
            V,
            r"context_rates\[0\] must be a finite number greater than 0, got 0",
            id="rate of zero",
        ),
        pytest.param(
            lambda: relation_mask(3, [5], context_rates=[None]),
            T,
            r"context_rates\[0\] must be a number of segments per unit of time, got NoneType",
            id="rate of None",
        ),
        pytest.param(
            lambda: relation_mask(3, [5], context_offsets=["1"]),
            T,
            r"context_offsets\[0\] must be a number of units of time that the context is late, got str",
            id="offset of text",
        ),
        pytest.param(
            lambda: relation_window(3, [5], context_offsets=[math.nan]),
            V,
            r"context_offsets\[0\] .* finite, got nan",
            id="offset",
        ),
        pytest.param(
            lambda: relation_window(3, [5], context_times=[]),
            V,
            "context_times must have an entry for each context, 1 in all, got 0",
            id="too few times",
        ),
        pytest.param(
            lambda: relation_window(3, [2], context_times=[torch.arange(2)], context_rates=[1]),
            V,
            r"context_rates\[0\] must be None, since context_times\[0\] is given, got 1",
            id="times and rate",
        ),
        pytest.param(lambda: timed([0, 1, 2]), T, "query_times must be a torch.Tensor, got list", id="list of times"),
        pytest.param(lambda: timed(torch.zeros(3).half()), T, "must have the dtype float32, float64 or", id="half"),
        pytest.param(
            lambda: timed(torch.zeros(2, 2)),
            V,
            r"query_times must have shape \(3,\) or \(3, 2\), got \(2, 2\)",
            id="shape",
        ),
        pytest.param(
            lambda: relation_window(1, query_times=torch.zeros(1)),
            V,
            r"query_times must have shape \(1, 2\), start and end, for a single segment, got \(1,\)",
            id="a single start",
        ),
        pytest.param(lambda: timed(torch.tensor([0, math.nan, 1])), V, "query_times must be finite", id="NaN in times"),
        pytest.param(lambda: timed(torch.tensor([0, 2, 1])), V, "query_times must be sorted", id="unsorted"),
        pytest.param(
            lambda: timed(torch.tensor([[0, 9], [1, 2], [2, 10]])), V, "query_times must be sorted", id="unsorted ends"
        ),
        pytest.param(
            lambda: timed(torch.tensor([0, 1, 1])),
            V,
            "query_times must have segments that end after they start",
            id="empty",
        ),
    ],
)
def test_wrong_call_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
