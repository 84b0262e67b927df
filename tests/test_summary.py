"""Summaries of attention weights, against loops over every row, and with layers whose attention is known."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal_attn import CMRA, AVInteraction, padding_mask, record_attention, summarize_relations
from crossmodal_attn.summary import RelationSummary
from oracles import fill_parameters


def literal(row, lengths, k):
    """One row of weights, as a list: shares, and the k largest with their places, in loops."""
    shares, places = [], []
    for memory, length in enumerate(lengths):
        first = sum(lengths[:memory])
        shares.append(sum(row[first : first + length]))
        places += [(memory, segment) for segment in range(length)]
    left, top = list(range(len(row))), []
    for _ in range(k):
        best = max(left, key=lambda column: row[column], default=None)  # the first of equals
        if best is None or row[best] == 0:
            top.append((0.0, -1, -1))
            continue
        left.remove(best)
        top.append((row[best], *places[best]))
    return shares, *zip(*top, strict=True)


@settings(max_examples=50)
@given(data=st.data(), k=st.integers(1, 7), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_summary_is_loops_over_rows(assert_close, data, k, dtype):
    """Of any leading dimensions and memories, empty ones too; with ties, with zeros, with fewer segments than asked."""
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    leading = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    weights = torch.randint(0, 4, (*leading, sum(lengths)), generator=generator).to(dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    summary = summarize_relations(weights, lengths, k=k)
    expected = [literal(row, lengths, k) for row in weights.reshape(-1, max(1, sum(lengths))).tolist() if sum(lengths)]
    if not sum(lengths):
        expected = [literal([], lengths, k) for _ in range(torch.Size(leading).numel())]
    size = len(lengths)
    for actual, values, width in zip(summary, zip(*expected, strict=True), (size, k, k, k), strict=False):
        assert actual.shape == (*leading, width)
        literally = torch.tensor(values, dtype=torch.float64).reshape(*leading, width)
        assert_close(actual.double(), literally, dtype=dtype)
    assert summary.shares.dtype == summary.top_weights.dtype == dtype
    assert summary.top_memories.dtype == summary.top_segments.dtype == torch.int64


@pytest.mark.parametrize("masked", [False, True])
def test_shares_of_a_layer_sum_to_one_or_zero(draw, masked):
    """To zero where a segment may attend to nothing; and the memories are in the layer's order."""
    layer = fill_parameters(CMRA(39, 3, context_dim=17, dtype=torch.float64))
    video, audio, text = draw(2, 5, 39), draw(2, 11, 17), draw(2, 3, 17)
    paddings = [padding_mask([7, 0], 11), padding_mask([3, 0], 3)] if masked else None
    query_padding = padding_mask([5, 0], 5) if masked else None
    _, weights = layer(
        video,
        [audio, text],
        query_padding_mask=query_padding,
        context_padding_mask=paddings,
        need_weights=True,
    )
    summary = summarize_relations(weights, [11, 3, 5])
    assert isinstance(summary, RelationSummary)
    sums = summary.shares.sum(-1)
    torch.testing.assert_close(sums[0], torch.ones_like(sums[0]))
    torch.testing.assert_close(sums[1], torch.zeros_like(sums[1]) if masked else torch.ones_like(sums[1]))
    assert torch.equal(summary.intra, summary.shares[..., 2])
    assert torch.equal(summary.inter, summary.shares[..., :2])
    torch.testing.assert_close(summary.intra, weights[..., 14:].sum(-1))
    if masked:
        assert (summary.top_memories[1] == -1).all()
        assert (summary.top_segments[1] == -1).all()
        assert (summary.top_segments[0][summary.top_memories[0] == 0] < 7).all()


def test_segments_that_were_made_alike_are_found():
    """Keys equal to the queries of other segments: each query finds its own in each memory."""
    layer = CMRA(8, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.q_proj.weight.copy_(torch.eye(8))
        layer.kv_proj.weight.copy_(torch.eye(8).repeat(2, 1))
    video = 20 * torch.eye(8, dtype=torch.float64)[None, :5]
    audio = 19 * torch.eye(8, dtype=torch.float64)[None, [3, 4, 0, 1, 2]]
    _, weights = layer(video, audio, need_weights=True)
    summary = summarize_relations(weights, [5, 5], k=2)
    assert summary.top_memories[0, 0].tolist() == [[1, 0]] * 5
    assert summary.top_segments[0, 0].tolist() == [[0, 2], [1, 3], [2, 4], [3, 0], [4, 1]]


def test_recorded_maps_are_summarized(draw):
    """Those of AVInteraction, whose memory has no query, and the mean over heads."""
    layer = AVInteraction(39, 3, dtype=torch.float64)
    with record_attention(layer) as maps:
        layer(draw(2, 5, 39), draw(2, 5, 39))
    summary = summarize_relations(maps["attention"].mean(1), (5, 5), k=1)
    assert summary.shares.shape == (2, 5, 2)
    torch.testing.assert_close(summary.shares[..., 0], maps["attention"][..., :5].sum(-1).mean(1))
    assert summary.top_weights.shape == (2, 5, 1)


def test_gradients_reach_the_weights(draw):
    """So that relations can be trained for, as by a loss on the intra-modality share."""
    weights = draw(2, 3, 5, 7).softmax(-1).requires_grad_()
    summarize_relations(weights, [4, 3]).intra.sum().backward()
    assert torch.equal(weights.grad, torch.tensor([0.0] * 4 + [1.0] * 3).double().expand(2, 3, 5, 7))


def test_summary_in_compiled_code(draw):
    compiled = torch.compile(lambda weights: summarize_relations(weights, [4, 3]), fullgraph=True, backend="eager")
    weights = draw(2, 3, 5, 7).softmax(-1)
    for actual, expected in zip(compiled(weights), summarize_relations(weights, [4, 3]), strict=True):
        assert torch.equal(actual, expected)


class Summarizing(torch.nn.Module):
    """What a user would export to see relations where the model runs."""

    def __init__(self):
        super().__init__()
        self.layer = CMRA(39, 3, dtype=torch.float64)

    def forward(self, video, audio):
        return summarize_relations(self.layer(video, audio, need_weights=True)[1], [3, 5])


def test_summary_of_an_exported_program_that_was_saved(draw):
    module, inputs = Summarizing().eval(), (draw(2, 5, 39), draw(2, 3, 39))
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, inputs), file)
    file.seek(0)
    summary = torch.export.load(file).module()(*inputs)
    assert isinstance(summary, RelationSummary)
    for actual, expected in zip(summary, module(*inputs), strict=True):
        assert torch.equal(actual, expected)


WEIGHTS = torch.ones(2, 3, 5, 7) / 7
T, V = TypeError, ValueError


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: summarize_relations([[1.0]], [1]), T, "weights must be a torch.Tensor, got list", id="a list"
        ),
        pytest.param(
            lambda: summarize_relations(WEIGHTS.int(), [7]),
            T,
            "weights must have a floating-point dtype",
            id="integers",
        ),
        pytest.param(
            lambda: summarize_relations(WEIGHTS[0, 0, 0], [7]),
            V,
            r"weights must have shape \(\*, query length, memory length\), got \(7,\)",
            id="one row",
        ),
        pytest.param(
            lambda: summarize_relations(WEIGHTS, 7),
            T,
            "lengths must be a list or tuple of the memories' lengths, got int",
            id="one length",
        ),
        pytest.param(lambda: summarize_relations(WEIGHTS, [4.0, 3]), T, r"lengths\[0\] must be an int", id="fraction"),
        pytest.param(
            lambda: summarize_relations(WEIGHTS, [8, -1]), V, r"lengths\[1\] must be at least 0", id="negative"
        ),
        pytest.param(
            lambda: summarize_relations(WEIGHTS, [4, 4]),
            V,
            r"lengths must sum to the memory length of weights, 7, got \[4, 4\]",
            id="another sum",
        ),
        pytest.param(lambda: summarize_relations(WEIGHTS[..., :0], []), V, r"lengths must sum .* got \[\]", id="none"),
        pytest.param(lambda: summarize_relations(WEIGHTS, [7], k=0), V, "k must be at least 1, got 0", id="k"),
        pytest.param(lambda: summarize_relations(WEIGHTS, [7], k=1.0), T, "k must be an int, got float", id="k float"),
    ],
)
def test_wrong_call_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
