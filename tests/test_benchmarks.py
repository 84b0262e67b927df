"""The implementations in a benchmark compute the same function, peak memory is right, and the report is complete.

Sizes are tiny and rounds are few. No test asserts a time.
"""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from ave.networks.authors_weights import load_official_state_dict
from ave.networks.cmran import CMRAN
from ave.networks.registry import NETWORKS
from ave.networks.two_scores import supervised_loss
from benchmarks import __main__ as command
from benchmarks import (
    agsca,
    cmra,
    epoch,
    growth,
    machine,
    measuring,
    network,
    published,
    report,
    rival_networks,
    streams,
    windows,
)
from benchmarks.literal_networks import LITERAL_NETWORKS, copy_weights
from benchmarks.measuring import Form, Session, compare
from benchmarks.memory import measure_peak_bytes
from benchmarks.passes import TASKS, make_pass
from benchmarks.pictures import draw_ratios
from benchmarks.products import count_operations, make_replay, record_products
from benchmarks.published import PublishedCMRAN
from benchmarks.rivals import ATTENTION_RIVALS, FLEX_ATTENTION, X_TRANSFORMERS, DecoderLayer, LiteralAGSCA
from crossmodal_attn import AGSCA, CMRA, CrossModalRelation, padding_mask, relation_mask, relation_window
from oracles import fill_parameters
from test_official import draw_inputs, draw_labels, draw_weights

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden"
FIGURES = np.load(GOLDEN / "official.npz")


@pytest.mark.parametrize("padded", [False, True], ids=["dense", "padded"])
@pytest.mark.parametrize("name", [name for name in ATTENTION_RIVALS if name != FLEX_ATTENTION])
def test_attention_rivals_compute_cmra(name, padded, draw, assert_close):
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    if name == X_TRANSFORMERS:
        pytest.importorskip("x_transformers")
        for module in layer.children():
            nn.init.zeros_(module.bias)
    rival = ATTENTION_RIVALS[name](layer)
    query, context = draw(2, 7, 39).requires_grad_(), draw(2, 5, 39).requires_grad_()
    paddings = (padding_mask([7, 4]), padding_mask([3, 5])) if padded else (None, None)
    ours = layer(query, context, query_padding_mask=paddings[0], context_padding_mask=paddings[1])
    theirs = rival(query, context, *paddings)
    upstream = draw(*ours.shape)
    if padded:  # what stands at a padded query is anything
        ours, theirs, upstream = (tensor[~paddings[0]] for tensor in (ours, theirs, upstream))
    assert_close(theirs, ours)
    gradients = [torch.autograd.grad(output, (query, context), upstream) for output in (theirs, ours)]
    assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_computes_cmra(draw, assert_close):
    """FlexAttention, which has only a forward pass on a CPU, equals CMRA, also when the padding changes."""
    layer = fill_parameters(CMRA(39, 3, dtype=torch.float64))
    rival = ATTENTION_RIVALS[FLEX_ATTENTION](layer)
    query, context = draw(2, 7, 39), draw(2, 5, 39)
    assert_close(rival(query, context), layer(query, context))
    for lengths in ([7, 4], [3, 7]):
        paddings = padding_mask(lengths, 7), padding_mask([3, 5])
        ours = layer(query, context, query_padding_mask=paddings[0], context_padding_mask=paddings[1])
        assert_close(rival(query, context, *paddings)[~paddings[0]], ours[~paddings[0]])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_computes_the_window(draw, assert_close, monkeypatch):
    """Both block masks of FlexAttention are the window that it is compared with."""
    monkeypatch.setattr(windows, "WINDOW", 3)
    layer, length = fill_parameters(CMRA(39, 3, dtype=torch.float64)), 11
    query, context = draw(1, length, 39), draw(1, windows.RATE * length, 39)
    window = relation_window(length, [windows.RATE * length], window=3)
    expected = layer(query, context, attn_mask=window)
    for given in (None, window):
        with torch.compiler.set_stance("force_eager"):
            found = windows.FlexWindow(layer, length, given)(query, context)
        assert_close(found, expected)


@pytest.mark.parametrize("name", ATTENTION_RIVALS)
def test_attention_rivals_hold_the_same_weights(name):
    if name == X_TRANSFORMERS:
        pytest.importorskip("x_transformers")
    layer = CMRA(39, 3)
    weights, theirs = (
        sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
        for module in (layer, ATTENTION_RIVALS[name](layer))
    )
    assert weights == theirs


def test_decoder_layer_is_torch_s(draw, assert_close):
    block = CrossModalRelation(39, 3, 29, dropout=0.0, dtype=torch.float64)
    rival = DecoderLayer(block)
    query, context = draw(2, 7, 39), draw(2, 5, 39)
    assert rival.layer.linear1.out_features == 29
    assert_close(rival(query, context), rival.layer(query, context))
    padding = padding_mask([3, 5])
    changed = context.masked_fill(padding.unsqueeze(-1), 3.0)
    assert_close(rival(query, changed, None, padding), rival(query, context, None, padding))


def test_literal_agsca_computes_agsca(draw, assert_close):
    literal = fill_parameters(LiteralAGSCA(19, 17, 23).double())
    layer = load_official_state_dict(AGSCA(19, 17, 23, dtype=torch.float64), literal.state_dict())
    video, audio = draw(2, 3, 5, 4, 19).requires_grad_(), draw(2, 3, 17).requires_grad_()
    ours, theirs = layer(video, audio), literal(video, audio)
    assert_close(theirs, ours)
    upstream = draw(*ours.shape)
    same = (
        ((video, audio, layer.channel_video_proj.weight, layer.spatial_weight), ours),
        ((video, audio, literal.affine_video_1.weight, literal.affine_v_s_att.weight), theirs),
    )
    expected, actual = (torch.autograd.grad(output, leaves, upstream) for leaves, output in same)
    assert_close([gradient.squeeze(0) for gradient in actual], [gradient.squeeze(0) for gradient in expected])


def test_published_network_has_the_authors_parameters():
    shapes = json.loads((GOLDEN / "official_shapes.json").read_text())["cmran_supervised"]
    assert {name: list(value.shape) for name, value in PublishedCMRAN().state_dict().items()} == shapes


def test_published_network_gives_the_authors_figures_and_ours():
    published = PublishedCMRAN(dropout=0.0, input_dropout=0.0).double()
    published.load_state_dict(draw_weights("cmran_supervised"))
    ours = load_official_state_dict(CMRAN(dropout=0.0, input_dropout=0.0).double(), published.state_dict())
    labels = draw_labels()
    losses, norms = [], []
    for model in (published, ours):
        logits = model(*draw_inputs())
        for name, part in logits._asdict().items():
            expected = torch.from_numpy(FIGURES[f"case1/cmran_supervised/{name}_logits"])
            torch.testing.assert_close(part.detach(), expected, rtol=0, atol=1e-10)
        loss = supervised_loss(logits, labels)
        loss.backward()
        losses.append(loss.detach())
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-10)
    torch.testing.assert_close(*norms, rtol=0, atol=1e-8)
    expected = torch.from_numpy(FIGURES["case1/cmran_supervised/grad_norm"])
    torch.testing.assert_close(norms[0], expected, rtol=0, atol=1e-8)


def test_every_rival_is_measured():
    assert set(rival_networks.RIVALS) == set(LITERAL_NETWORKS) == set(NETWORKS) - {"cmran"}


@pytest.mark.parametrize("name", LITERAL_NETWORKS)
def test_literal_rivals_are_the_example_s(name, draw, assert_close):
    """With the same weights, the logits, the loss and the gradients of the inputs are the same."""
    network = fill_parameters(NETWORKS[name]().double().eval())
    literal = copy_weights(LITERAL_NETWORKS[name]().double().eval(), network)
    counts = [sum(weight.numel() for weight in module.parameters()) for module in (network, literal)]
    assert counts[0] == counts[1]
    video, audio = draw(2, 7, 3, 5, 512).requires_grad_(), draw(2, 7, 128).requires_grad_()
    labels = nn.functional.one_hot(torch.tensor([[28, 5, 5, 28, 5, 5, 5], [28] * 7]), 29).double()
    found = []
    for module in (network, literal):
        logits = module(video, audio)
        loss = module.loss(logits, labels)
        gradients = torch.autograd.grad(loss, (video, audio), materialize_grads=True)
        if name == "dam" and module is network:
            logits = (logits.event.sigmoid(), logits.category)  # the literal form gives the probability
        found.append([*([logits] if isinstance(logits, torch.Tensor) else logits), loss, *gradients])
    assert_close(*found)


@pytest.mark.parametrize("name", streams.STREAMS)
@torch.no_grad()
def test_steps_of_a_stream_compute_the_whole(name, draw, assert_close):
    """The outputs of the steps, from empty memories on, are those of the whole stream."""
    masks = relation_mask(5, causal=True), relation_mask(5, [5], causal=True)
    module, whole, remember, step = streams.STREAMS[name](*masks)
    module.double().eval()
    video, audio = draw(1, 5, streams.WIDTH), draw(1, 5, streams.WIDTH)
    memories, outputs = remember(video[:, :0]), []
    for now in range(5):
        output, memories = step(video[:, now : now + 1], audio[:, now : now + 1], memories)
        outputs.append(output)
    assert_close(torch.cat(outputs, 1), whole(video, audio))


def test_passes_of_the_rivals_keep_no_gradients():
    torch.manual_seed(3)
    network = NETWORKS["avel-a"]()
    call = rival_networks.make_call(network, *rival_networks.draw_batch(2))
    torch.testing.assert_close(call(), call())
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_steps_of_the_network_learn_the_same(precision, assert_close):
    """The timed functions give the same loss before each of two steps, without dropout."""
    torch.manual_seed(1)
    options = {"dropout": 0.0, "input_dropout": 0.0}
    published = PublishedCMRAN(7, 5, 3, **options)
    ours = load_official_state_dict(
        CMRAN(video_dim=7, audio_dim=5, num_categories=3, **options), published.state_dict()
    )
    video, audio = torch.rand(2, 3, 2, 2, 7), torch.rand(2, 3, 5)
    labels = nn.functional.one_hot(torch.tensor([[0, 3, 1], [2, 2, 3]]), 4).float()
    steps = [
        network.make_call(network.STEP, model, precision, False, video, audio, labels) for model in (published, ours)
    ]
    before = [parameter.clone() for parameter in ours.parameters()]
    for _ in range(2):
        assert_close(*(step() for step in steps))
    assert all(not torch.equal(*pair) for pair in zip(before, ours.parameters(), strict=True))


def test_floor_is_the_products_over_the_map(draw, assert_close):
    layer, video = AGSCA(19, 17, 23, dtype=torch.float64), draw(2, 3, 4, 19)
    weights = (layer.channel_video_proj.weight, layer.spatial_video_proj.weight)
    products = [video.flatten(0, -2) @ weight.T for weight in weights]
    assert_close(agsca.make_floor(layer, video, TASKS[0])(), products)
    gradients = agsca.make_floor(layer, video, TASKS[1])()
    assert [gradient.shape for gradient in gradients] == [(19, 19), (24, 19), (23, 19), (24, 19)]


def test_floor_of_the_network_has_every_product_once():
    """The operations equal those computed by hand from the sizes of CMRAN's layers, forward and backward."""
    batch, time, places, channels, sounds, categories = 2, 3, 4, 7, 5, 3
    width, heads, hidden, squeezed = 256, 4, 2048, 256
    segments = batch * time
    positions = segments * places
    forward = backward = 0

    def linear(rows, inputs, outputs, needs_input=True):
        nonlocal forward, backward
        product = 2 * rows * inputs * outputs
        forward += product
        # The gradient of the inputs of a single output is an outer product, which the floor does without.
        backward += product * (2 if needs_input and outputs > 1 else 1)

    def attention(memory):
        nonlocal forward, backward
        linear(segments, width, width)
        linear(batch * memory, width, 2 * width)
        scores = 2 * batch * heads * time * memory * (width // heads)
        forward += 2 * scores
        backward += 4 * scores
        linear(segments, width, width)

    def block(memory):
        attention(memory)
        linear(segments, width, hidden)
        linear(segments, hidden, width)

    linear(positions, channels, channels, needs_input=False)
    linear(positions, channels, channels)
    linear(segments, sounds, channels, needs_input=False)
    linear(segments, channels, squeezed)
    linear(segments, squeezed, channels)
    linear(segments, sounds, squeezed, needs_input=False)
    linear(positions, channels, squeezed)
    for contraction in (squeezed, channels):  # the logits of the places, and the sum over them
        forward += 2 * positions * contraction
        backward += 2 * positions * contraction
    for query, context in ((channels, sounds), (sounds, channels)):
        linear(segments, context, width, needs_input=context == channels)
        block(time)
        block(time)
        linear(segments, query, width, needs_input=query == channels)
        block(2 * time)
    attention(2 * time)
    linear(segments, width, 1)
    linear(batch, width, categories)

    video, audio = torch.rand(batch, time, 2, 2, channels), torch.rand(batch, time, sounds)
    labels = nn.functional.one_hot(torch.zeros(batch, time, dtype=torch.int64), categories + 1).float()
    counts = {}
    for task in network.TASKS:
        products = network.record_floor(task, video, audio, labels)
        counts[task] = count_operations(products)
    assert counts[network.INFERENCE] == forward
    assert counts[network.GRADIENTS] == counts[network.STEP] == forward + backward


def test_products_are_replayed_as_they_were(draw, monkeypatch):
    """Replayed products have the recorded shapes and strides, and share memory where the recorded ones did."""
    left = torch.empty(5, 3, device="meta")

    def call():
        product = left @ torch.empty(7, 3, device="meta").T
        torch.addmm(product, left, left.T @ product)
        torch.baddbmm(product[None], left[None], torch.empty(1, 3, 7, device="meta"))
        torch.empty(5, 1, device="meta") @ torch.empty(1, 7, device="meta")

    replay = make_replay(record_products(call), CPU, torch.float64)
    calls = []
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, lambda *operands: calls.append(operands))
    replay()
    shapes = [tuple(tuple(operand.shape) for operand in operands) for operands in calls]
    assert shapes == [((5, 3), (3, 7)), ((3, 5), (5, 7)), ((5, 3), (3, 7)), ((1, 5, 3), (1, 3, 7))]
    assert [operands[0].stride() for operands in calls] == [(3, 1), (1, 3), (3, 1), (15, 3, 1)]
    assert calls[0][1].stride() == (1, 3)
    assert len({operands[0].data_ptr() for operands in calls}) == 1
    assert len({operand.data_ptr() for operands in calls for operand in operands}) == 5
    assert all(operand.dtype == torch.float64 for operands in calls for operand in operands)


def test_unknown_products_raise_an_error():
    with pytest.raises(NotImplementedError, match="convolution"):
        record_products(lambda: nn.functional.conv1d(*(torch.empty(1, 1, 3, device="meta") for _ in range(2))))


def test_ratios_of_the_network_are_within_a_precision_or_to_a_wider_one():
    names = [
        "as published, float64",
        "as published, bf16 autocast",
        "CMRAN, float64, eager",
        "CMRAN, bf16 autocast, eager",
    ]
    assert network.pair([*names, "matrix products alone, bf16 autocast"]) == [
        ("as published, float64", "CMRAN, float64, eager"),
        ("as published, float64", "CMRAN, bf16 autocast, eager"),
        ("as published, bf16 autocast", "CMRAN, bf16 autocast, eager"),
        ("as published, bf16 autocast", "matrix products alone, bf16 autocast"),
        ("CMRAN, bf16 autocast, eager", "matrix products alone, bf16 autocast"),
    ]


def test_passes_give_all_gradients_and_keep_none(draw):
    layer = CMRA(6, 3, dtype=torch.float64)
    query, context = draw(2, 5, 6), draw(2, 7, 6)
    gradients = make_pass(TASKS[1], layer, lambda: layer(query, context), (query, context))()
    assert [gradient.shape for gradient in gradients] == [
        tensor.shape for tensor in (query, context, *layer.parameters())
    ]
    assert all(tensor.grad is None for tensor in (query, context, *layer.parameters()))
    assert layer.training
    output = make_pass(TASKS[0], layer, lambda: layer(query, context), (query, context))()
    assert not output.requires_grad
    assert not layer.training


def test_peak_bytes_count_what_is_allocated_at_one_time():
    numbers = torch.zeros(1000, dtype=torch.float64)
    assert measure_peak_bytes(numbers.exp, CPU) == 8000
    assert measure_peak_bytes(numbers.sin_, CPU) == 0

    def one_after_the_other():
        first = numbers.exp()
        del first
        return numbers.exp()

    assert measure_peak_bytes(one_after_the_other, CPU) == 8000
    weight = numbers.clone().requires_grad_()

    def forward_and_backward():
        output = weight.exp().sin()  # both are kept for backward, as is the gradient while it is used
        return torch.autograd.grad(output, weight, torch.ones_like(output))

    assert 4 * 8000 <= measure_peak_bytes(forward_and_backward, CPU) <= 6 * 8000


def test_forms_take_turns():
    calls = []
    forms = [Form(name, lambda name=name: calls.append(name)) for name in ("first", "second")]
    result = compare(Session(CPU, quick=True), {"size": 7}, forms, [("first", "second"), ("first", "none")])
    assert result["case"] == {"size": 7}
    assert result["rounds"] == 2
    for form in result["forms"].values():
        assert len(form["seconds"]["all"]) == 2
        assert form["peak_bytes"] == 0
    (ratio,) = result["ratios"]
    first, second = (result["forms"][name]["seconds"]["all"] for name in ("first", "second"))
    expected = sum(a / b for a, b in zip(first, second, strict=True)) / 2
    assert ratio["time"]["median"] == pytest.approx(expected, rel=1e-4)
    assert ratio["memory"] is None
    changes = [name for name, before in zip(calls[1:], calls, strict=False) if name != before]
    # Warm-ups and memory, then a round in this order, and one that starts with the second.
    assert changes == ["second", "first", "second", "first"]


def test_a_form_that_fails_is_skipped(capsys):
    def fail():
        raise torch.OutOfMemoryError("out of memory\ndetails")

    forms = [Form("works", lambda: None), Form("fails", fail)]
    result = compare(Session(CPU, quick=True), {"size": 7}, forms, [("fails", "works")], {"absent": "not installed"})
    assert result["forms"]["fails"] == {"skipped": "OutOfMemoryError: out of memory"}
    assert result["forms"]["absent"] == {"skipped": "not installed"}
    assert "seconds" in result["forms"]["works"]
    assert result["ratios"] == []
    assert "size 7" in capsys.readouterr().err


def test_cases_that_are_too_slow_are_skipped(monkeypatch):
    rates = {torch.float32: 1e9, torch.bfloat16: 1e8, torch.float64: 5e8}
    monkeypatch.setattr(machine, "product_rate", lambda _, dtype: rates[dtype])
    assert machine.out_of_reach(CPU, torch.float32, 1e9, limit=2) is None
    assert "10 times slower" in machine.out_of_reach(CPU, torch.bfloat16, 0, limit=2)
    assert Session(CPU).skips(torch.float32, 9e9) is None
    assert "quick" in Session(CPU, quick=True).skips(torch.float32, 1e11)
    assert "about 4.0 s" in machine.out_of_reach(CPU, torch.float64, 2e9, limit=2)


def test_random_set_has_the_shapes_of_the_release():
    data = epoch.make_set((5, 3, 2), grid=2, video_dim=11)
    assert data.visual.shape == (10, 10, 2, 2, 11)
    assert data.visual.dtype == data.audio.dtype == torch.float16
    assert data.labels.shape == (10, 10, 29)
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(10))


class SmallCMRAN(CMRAN):
    def __init__(self, setting="supervised", **options):
        super().__init__(setting, **options, dim_feedforward=17)


@pytest.fixture
def tiny(monkeypatch):
    """Make every row group tiny, and do not compile."""
    monkeypatch.setattr(measuring.Session, "rounds", (2, 2))
    monkeypatch.setattr(measuring.Session, "block_seconds", 1e-4)
    monkeypatch.setattr(cmra, "SIZES", ((2, 3, 8, 2), (1, 16384, 8, 2)))
    for name, value in {"BATCHES": (2,), "LENGTH": 3, "GRID": 2, "CHANNELS": (11,)}.items():
        monkeypatch.setattr(agsca, name, value)
    for name, value in {"QUICK_BATCHES": (1,), "LENGTH": 2, "GRID": 1}.items():
        monkeypatch.setattr(network, name, value)
    for name, value in {"RIVALS": ("avel-a", "dam"), "LENGTH": 2, "GRID": 1}.items():
        monkeypatch.setattr(rival_networks, name, value)
    monkeypatch.setattr(published, "FEEDFORWARD", 17)
    for row in (network, epoch):
        monkeypatch.setattr(row, "CMRAN", SmallCMRAN)
    for name, value in {"LENGTHS": (4, 8, 16, 32), "FITTED_FROM": 16, "CONTEXT_LENGTH": 8}.items():
        monkeypatch.setattr(growth, name, value)
    for name, value in {"QUICK_LENGTH": 8, "LENGTHS": (16, 32), "WIDTH": 8, "GROWTH_WIDTH": 8}.items():
        monkeypatch.setattr(windows, name, value)
    for name, value in {"LENGTHS": (3,), "WIDTH": 8}.items():
        monkeypatch.setattr(streams, name, value)
    monkeypatch.setattr(epoch, "QUICK_SPLITS", (2, 1, 1))
    monkeypatch.setattr(gc, "collect", lambda: 0)  # between cases that leave nothing large, it would take longer
    with torch.compiler.set_stance("force_eager"):
        yield


def test_command_measures_and_reports_every_row(tiny, tmp_path, monkeypatch, capsys):
    command.main(["--quick", "--output", str(tmp_path)])
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in command.ROWS}
    text = (tmp_path / "report.md").read_text()
    for name, result in results.items():
        assert result["quick"] is True
        assert torch.__version__.startswith(result["machine"]["versions"]["torch"])  # which may leave out "+cu130"
        assert result["machine"]["threads"] == torch.get_num_threads()
        assert f"## {result['title']}" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert any("skipped" not in case for case in result["cases"]), name
        for case in result["cases"]:
            for form in case.get("forms", {}).values():
                assert "skipped" in form or form["seconds"]["median"] > 0
    assert "left to a GPU" in text
    first = next(case for case in results["cmra"]["cases"] if "forms" in case)
    assert {"CMRA", "CrossModalRelation", *ATTENTION_RIVALS} < set(first["forms"])
    assert {ratio["to"] for ratio in first["ratios"]} == {"CMRA", "CrossModalRelation"}
    assert all(case["fits"]["time"] for case in results["growth"]["cases"])
    epochs = next(case for case in results["epoch"]["cases"] if "parts" in case)
    assert {"data", "forward and backward", "optimizer", "evaluation"} <= set(epochs["parts"])

    # The pictures are drawn again, but written empty, which takes a fraction of the time.
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: path.touch())
    others = [tmp_path / f"{name}.json" for name in command.ROWS if name != "agsca"]
    before = [path.read_bytes() for path in others]
    command.main(["--quick", "--rows", "agsca", "--output", str(tmp_path)])
    assert [path.read_bytes() for path in others] == before
    text = (tmp_path / "report.md").read_text()

    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".md", ".png")}
    for name in made:
        (tmp_path / name).unlink()
    report.main([str(tmp_path)])
    assert (tmp_path / "report.md").read_text() == text
    assert {path.name for path in tmp_path.iterdir() if path.suffix in (".md", ".png")} == set(made)


@pytest.mark.parametrize("ratios", [(0.96, 1.09), (0.8, 30.0)])
def test_charts_of_ratios_have_marks(ratios):
    """The axis has at least three labels, also if all ratios are near 1."""
    cases = [
        {
            "case": {"size": size},
            "ratios": [{"of": "a", "to": "b", "time": {"median": ratio, "quartiles": [ratio] * 2}}],
        }
        for size, ratio in enumerate(ratios)
    ]
    figure = draw_ratios({"title": "layers", "cases": cases})
    axes = figure.axes[0]
    lower, upper = axes.get_xlim()
    assert sum(lower <= place <= upper for place in axes.get_xticks()) >= 3


def test_bad_input_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "must contain results such as cmra.json, got none" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            command.main(["--device", "cuda", "--output", str(tmp_path)])
        assert "--device cuda needs a GPU" in capsys.readouterr().err


RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "cpu"
QUOTED = [
    ("network", {"videos": 32, "task": "training step"}, "as published, float64", "CMRAN, float32, eager"),
    ("network", {"videos": 32, "task": "training step"}, "as published, float32", "CMRAN, float32, eager"),
    ("network", {"videos": 256, "task": "training step"}, "as published, float64", "CMRAN, float32, eager"),
    ("network", {"videos": 256, "task": "training step"}, "as published, float32", "CMRAN, float32, eager"),
    ("agsca", {"map": "32 x 10 x 7 x 7 x 512", "task": "forward"}, "AGSCA", "matrix products alone"),
    ("agsca", {"map": "32 x 10 x 7 x 7 x 512", "task": "forward and backward"}, "Eq. 1-3 written out", "AGSCA"),
    (
        "cmra",
        {"length": 128, "padding": "none", "task": "forward and backward"},
        "nn.MultiheadAttention(need_weights=False)",
        "CMRA",
    ),
    ("cmra", {"length": 4096, "padding": "none", "task": "forward and backward"}, "nn.MultiheadAttention", "CMRA"),
]
"""The lines of the README's table: row group, case, and the two forms of the ratio."""


def test_readme_quotes_what_was_measured():
    """Each ratio in the README is that of the committed results, to two digits."""
    readme = (RESULTS.parents[2] / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.endswith("x |")]
    assert len(lines) == len(QUOTED)
    for line, (row, wanted, of, to) in zip(lines, QUOTED, strict=True):
        results = json.loads((RESULTS / f"{row}.json").read_text())
        assert not results["quick"]
        (ratio,) = [
            ratio
            for case in results["cases"]
            if wanted.items() <= case["case"].items()
            for ratio in case.get("ratios", ())
            if (ratio["of"], ratio["to"]) == (of, to)
        ]
        time, memory = (
            ratio["time"]["median"],
            ratio["memory"] if to != "matrix products alone" else 1 / ratio["memory"],
        )
        assert f"| {time:#.2g} times" in line
        assert f"| {memory:#.2g}x |".replace(".x", "x") in line


def test_docs_quote_what_was_measured_of_the_rivals():
    """The range of the ratios is that of the committed results, and no rival is slower by more than the spread."""
    results = json.loads((RESULTS.parent / "cpu-avx512" / "rival_networks.json").read_text())
    assert not results["quick"]
    assert [case["case"]["network"] for case in results["cases"]] == list(rival_networks.RIVALS)
    times = [case["ratios"][0]["time"] for case in results["cases"]]
    medians = [time["median"] for time in times]
    page = (RESULTS.parents[2] / "docs" / "benchmarks.md").read_text()
    assert f"from {min(medians):.2f} to {max(medians):.2f} times as long" in page
    assert all(time["quartiles"][1] >= 1 for time in times)
