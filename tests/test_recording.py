"""record_attention records every map and changes nothing else; summarize_relations equals loops over every row."""

import copy
import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from crossmodal_attn import CMRA, AVInteraction, padding_mask, record_attention, summarize_relations
from crossmodal_attn.recording import RelationSummary
from oracles import CASES, Case, fill_parameters

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
    """Maps are recorded by module path, detached, with the right shapes; rows sum to one; outputs keep every bit."""
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
def test_recording_ends_with_its_context(cmran, inputs, draw, where):
    """Recording ends after the context, even if its body or a layer's forward raises an exception."""
    with record_attention(cmran) as maps:
        cmran(*inputs)
        assert not count_hooks(cmran)

    def fail():
        with record_attention(cmran) as failed:
            recordings.append(failed)
            if where == "body":
                raise ValueError("video: none of it")
            cmran(inputs[0], inputs[1][:1])

    recordings = [maps]
    with pytest.raises(ValueError, match="video"):
        fail()
    before = [{path: recorded.clone() for path, recorded in recording.items()} for recording in recordings]
    cmran(draw(2, 5, 3, 2, 11), draw(2, 5, 7))
    for recording, copies in zip(recordings, before, strict=True):
        assert recording.keys() == copies.keys()
        assert all(torch.equal(recording[path], copies[path]) for path in copies)


def test_recording_goes_on_after_a_caught_exception(draw):
    """After a forward that raised an exception, the next calls work, with and without weights."""
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
    """Calls with and without need_weights return what they asked for while both are recorded."""
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
    """Both recordings get the maps, and the outer one goes on after the inner one has ended."""
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
    """Gradients inside the context are those outside; under no_grad nothing is tracked."""
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
    """Paths are those of the original model; after the context the compiled code runs without recompilation."""
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


def test_first_compilation_of_a_process_may_lie_inside_the_recording():
    """The recording has imported the compiler, so even code that is compiled inside it runs eagerly."""
    script = """
import sys, torch
from crossmodal_attn import CMRA, record_attention
layer, query = CMRA(6, 2), torch.ones(2, 3, 6)
assert "torch._dynamo" not in sys.modules
with record_attention(layer) as maps:
    torch.compile(layer, backend="eager")(query)
assert maps[""].shape == (2, 2, 3, 3)
"""
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603


def test_shared_layer_is_recorded_once(draw):
    layer = CASES["cmra-self"].make()
    model = nn.ModuleDict({"first": layer, "second": layer})
    with record_attention(model) as maps:
        model["second"](draw(2, 5, 39))
    assert list(maps) == ["first"]


def test_foreign_model_with_layers_inside_is_recorded(draw):
    """Layers inside a Sequential, which has no need_weights, are recorded."""
    model = nn.Sequential(nn.Linear(11, 39), CMRA(39, 3), nn.ReLU()).double()
    with record_attention(model) as maps:
        model(draw(2, 5, 11))
    assert {path: tuple(recorded.shape) for path, recorded in maps.items()} == {"1": (2, 3, 5, 5)}


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),  # noqa: S301
    "torch.save": saved_and_loaded,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("name", ["cmra-self", "agsca"])
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_made_inside_are_ordinary_models(draw, name, duplicate):
    """Copies do not write to the recording, open or closed, and contain nothing of it."""
    case = CASES[name]
    layer = case.make()
    features, others = (case.features(draw, 2, case.lengths(5)) for _ in range(2))
    with record_attention(layer) as maps:
        copied = duplicate(layer)
        case(layer, features)
        before = {path: recorded.clone() for path, recorded in maps.items()}
        case(copied, others)
    assert not count_hooks(copied)
    assert torch.equal(case(copied, others), case(layer, others))
    assert before
    assert all(torch.equal(maps[path], before[path]) for path in before)
    with record_attention(copied) as own:
        case(copied, features)
    assert all(torch.equal(a, b) for a, b in zip(own.values(), before.values(), strict=True))


@pytest.mark.parametrize("name", ["cmra-self", "agsca"])
def test_maps_given_to_a_caller_are_its_own(draw, name):
    """In-place changes of returned maps do not change the recorded ones."""
    case = CASES[name]
    layer = case.make().requires_grad_(False)
    features = case.features(draw, 2, case.lengths(5))
    expected = [weights.clone() for weights in layer(*features, need_weights=True)[1:]]
    with record_attention(layer) as maps:
        for weights in layer(*features, need_weights=True)[1:]:
            weights.zero_()
    assert all(torch.equal(kept, weights) for kept, weights in zip(maps.values(), expected, strict=True))


@pytest.mark.parametrize("name", ["cmra-self", "agsca"])
def test_threads_get_what_they_ask_for(draw, name):
    """Threads in the same layer at the same time get what they asked for, and all of them are recorded."""
    case, threads, rounds = CASES[name], 4, 3
    layer = case.make()
    features = case.features(draw, 2, case.lengths(5))
    barrier = Barrier(threads)

    def meet(*_):
        barrier.wait(600)

    next(module for module in layer.modules() if isinstance(module, nn.Linear)).register_forward_hook(meet)
    with record_attention(layer, every_call=True) as maps, ThreadPoolExecutor(threads) as pool:
        asked = [index % 2 == 0 for index in range(threads)] * rounds
        results = list(pool.map(lambda ask: layer(*features, need_weights=ask), asked))
    assert [isinstance(result, tuple) for result in results] == asked
    assert all(len(recorded) == threads * rounds for recorded in maps.values())


def test_compiled_code_is_back_when_the_last_of_overlapping_recordings_is_closed(draw):
    """Compiled code runs again after the last recording is closed, not after the first."""
    torch._dynamo.reset()
    ran = []
    layer = CASES["cmra-self"].make()
    compiled = torch.compile(layer, backend=lambda graph, _: lambda *args: ran.append("compiled") or graph(*args))
    query = draw(2, 5, 39)
    opened, closed = Event(), Event()

    def first():
        with record_attention(layer):
            opened.set()
            assert closed.wait(600)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(first)
        assert opened.wait(600)
        with record_attention(layer) as maps:
            closed.set()
            done.result()
            compiled(query)
            assert not ran
    assert maps[""].shape == (2, 3, 5, 5)
    compiled(query)
    assert ran


def save_products(context, operator, *args, **kwargs):
    """Save matrix products and softmax, as a policy of selective checkpointing."""
    saved = (torch.ops.aten.bmm.default, torch.ops.aten.addmm.default, torch.ops.aten._softmax.default)
    return CheckpointPolicy.MUST_SAVE if operator in saved else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINTS = {
    "reentrant": {"use_reentrant": True},
    "non-reentrant": {"use_reentrant": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, save_products),
    },
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cross-relation", "reentrant"),
        ("cross-relation", "non-reentrant"),
        ("cross-relation", "selective"),
        ("agsca", "reentrant"),
        ("agsca", "non-reentrant"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_checkpointed_layers(draw, assert_close, name, kind, inside):
    """Gradients are right if backward runs inside or outside the context, and no pass is recorded twice."""
    case = CASES[name]
    layer = case.make()
    features = [tensor.requires_grad_() for tensor in case.features(draw, 2, case.lengths(5, 7))]
    sources = [*features, *layer.parameters()]
    with sdpa_kernel(SDPBackend.MATH):  # of operators that a policy can choose
        expected = torch.autograd.grad(case(layer, features).square().sum(), sources)
        with record_attention(layer, every_call=True) as maps:
            loss = checkpoint(lambda *given: case(layer, given), *features, **CHECKPOINTS[kind]).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
    assert_close([source.grad for source in sources], expected)
    assert maps
    assert all(len(recorded) == 1 for recorded in maps.values())


@pytest.mark.parametrize("name", ["cmra-self", "agsca"])
def test_maps_under_transforms_are_whole(draw, assert_close, name):
    """Under vmap, grad and jvp, maps are plain tensors whose first dimensions are the mapped ones, outermost first."""
    case = CASES[name]
    layer = case.make()
    batches = [
        torch.stack(pair) for pair in zip(*(case.features(draw, 2, case.lengths(5)) for _ in range(3)), strict=True)
    ]
    expected = [layer(*(batch[i] for batch in batches), need_weights=True)[1:] for i in range(3)]
    expected = [torch.stack(maps) for maps in zip(*expected, strict=True)]
    parameters = dict(layer.named_parameters())

    def loss(parameters, *features):
        return torch.func.functional_call(layer, parameters, features).square().mean()

    def of_one_video(parameters, *features):
        return loss(parameters, *(tensor.unsqueeze(0) for tensor in features))

    def mapped(function, dim):
        return torch.func.vmap(function, in_dims=(None, *(dim for _ in batches)))

    with sdpa_kernel(SDPBackend.MATH):
        with record_attention(layer) as maps:
            mapped(torch.func.grad(loss), 0)(parameters, *batches)
        with record_attention(layer) as nested:
            inner = mapped(torch.func.grad(of_one_video), 0)
            mapped(inner, 1)(parameters, *(batch.transpose(0, 1) for batch in batches))
        with record_attention(layer) as forward:
            first = tuple(batch[0] for batch in batches)
            torch.func.jvp(layer, first, first)
    assert_close(list(maps.values()), expected)
    assert_close([recorded.squeeze(2) for recorded in nested.values()], expected)
    assert_close(list(forward.values()), [weights[0] for weights in expected])


def test_every_call_is_kept(draw):
    """every_call keeps the maps of all calls of a layer in their order, also of different lengths."""
    case = CASES["cmra-self"]
    layer = case.make()
    queries = [draw(2, length, 39) for length in (5, 7, 3)]
    expected = [layer(query, need_weights=True)[1] for query in queries]
    with record_attention(layer, every_call=True) as maps, record_attention(layer) as latest:
        for query in queries:
            layer(query)
    layer(queries[0])
    assert list(maps) == [""]
    assert all(torch.equal(kept, weights) for kept, weights in zip(maps[""], expected, strict=True))
    assert torch.equal(latest[""], expected[-1])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.*deprecated")
def test_programs_made_inside_hold_no_recording(draw):
    """torch.export and torch.jit.trace give the same programs as outside, and nothing is recorded."""
    layer = CASES["cmra-self"].make()
    query = draw(2, 5, 39)

    def programs():
        exported = torch.export.export(layer, (query,), strict=False)
        return exported, torch.jit.trace(layer, query, check_trace=False)  # a check is one more call

    expected = programs()
    with record_attention(layer) as maps:
        exported, traced = programs()
    assert not maps
    assert str(exported.graph) == str(expected[0].graph)
    assert len(list(traced.graph.nodes())) == len(list(expected[1].graph.nodes()))
    torch.jit.save(traced, io.BytesIO())


def literal(row, lengths, k):
    """Compute the shares of one row of weights, and its k largest weights with their places, in loops."""
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
    """This holds for empty dimensions and memories, equal weights, zeros, and k larger than the memory."""
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
    """Shares sum to one, or to zero if a segment may attend to nothing, in the memory order of the layer."""
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
    """If a key of each memory equals a query, the summary finds it as the largest weight."""
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
    """The recorded maps of AVInteraction can be summarized, as the mean over heads."""
    layer = AVInteraction(39, 3, dtype=torch.float64)
    with record_attention(layer) as maps:
        layer(draw(2, 5, 39), draw(2, 5, 39))
    summary = summarize_relations(maps["attention"].mean(1), (5, 5), k=1)
    assert summary.shares.shape == (2, 5, 2)
    torch.testing.assert_close(summary.shares[..., 0], maps["attention"][..., :5].sum(-1).mean(1))
    assert summary.top_weights.shape == (2, 5, 1)


def test_gradients_of_a_summary_reach_the_weights(draw):
    """A loss on the intra-modality share has gradients."""
    weights = draw(2, 3, 5, 7).softmax(-1).requires_grad_()
    summarize_relations(weights, [4, 3]).intra.sum().backward()
    assert torch.equal(weights.grad, torch.tensor([0.0] * 4 + [1.0] * 3).double().expand(2, 3, 5, 7))


def test_summary_in_compiled_code(draw):
    compiled = torch.compile(lambda weights: summarize_relations(weights, [4, 3]), fullgraph=True, backend="eager")
    weights = draw(2, 3, 5, 7).softmax(-1)
    for actual, expected in zip(compiled(weights), summarize_relations(weights, [4, 3]), strict=True):
        assert torch.equal(actual, expected)


class Summarizing(torch.nn.Module):
    """A module that returns a RelationSummary, as a user would export it."""

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
def test_wrong_call_of_summarize_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
