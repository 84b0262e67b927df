"""The rivals of CMRAN equal their public code and their equations in loops; padding, saving, compiling and export work.

`golden/rivals.npz` has the results of the public code in float64. Weights and inputs are drawn by a rule from their
names, which are those of the code.
"""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ave.networks import load_network
from ave.networks.agva import AGVA
from ave.networks.avel import AVEL
from ave.networks.avsdn import AVSDN
from ave.networks.dam import DAM
from ave.networks.ed_tcn import EDTCN
from ave.networks.localizer import SegmentClassifier
from ave.networks.padded import run_lstm
from ave.networks.registry import NETWORKS
from ave.networks.two_scores import Logits, video_scores
from crossmodal_attn import padding_mask
from oracles import fill_parameters

FIGURES = np.load(Path(__file__).parent / "golden/rivals.npz")
MODULES = sorted({name.split("/")[1] for name in FIGURES.files})
PARAMETERS = {
    "ed-tcn": 273_565,
    "avel-a": 282_525,
    "avel-v": 675_741,
    "avel-v-att": 1_054_670,
    "avel-av": 956_317,
    "avel-av-att": 1_335_246,
    "avel-dmrn": 1_571_150,
    "avsdn": 1_783_581,
    "avsdn-cpsp": 2_162_510,
    "dam": 1_208_141,
}
THEIR_NAMES = (
    (r"^sequence_to_sequence\.|^residual\.|fusion\.", ""),
    (r"^decoder\.(?=\w+_l0)", "lstm_a_v."),
    (r"^(audio|video)_(lstm|encoder)", r"lstm_\1"),
    (r"^attention\.(audio|video)_proj", r"affine_\1"),
    (r"^attention\.video_units", "affine_v"),
    (r"^attention\.audio_units", "affine_g"),
    (r"^attention\.score", "affine_h"),
    (r"^video_map", "U_v"),
    (r"^audio_map", "U_a"),
    (r"^(event|category)_head", r"\1_classifier.0"),
    (r"^head\.(?=weight|bias)", "classifier."),
    (r"^head\.1", "L1"),
    (r"^head\.[03]", "L2"),
)
"""Turn the name of a parameter of ours into that of the public code, one rule after the other."""

RIVALS = [name for name in NETWORKS if name != "cmran"]
CASES = {
    **{f"{name}-supervised": (name, "supervised", {}) for name in RIVALS},
    **{f"{name}-weak": (name, "weak", {}) for name in RIVALS if name not in ("dam", "ed-tcn")},
    "avel-add": ("avel-av", "supervised", {"fusion": "add"}),
    "avel-mean-weak": ("avel-av", "weak", {"pooling": "mean"}),
    "avel-published": ("avel-av-att", "supervised", {"as_published": True}),
    "avel-published-weak": ("avel-av-att", "weak", {"as_published": True}),
    "avsdn-published": ("avsdn-cpsp", "supervised", {"as_published": True}),
}
MASK = ~torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0]], dtype=torch.bool)
"""Padding of three videos, behind, amid and before their segments."""


def make(name, setting="supervised", **options):
    """Build a small network in float64 without dropout: 11 visual and 7 audio channels, 5 categories, 6 cells."""
    widths = {"avel": {"hidden_dim": 3}, "avsdn": {"hidden_dim": 3}, "dam": {"embed_dim": 13}}.get(
        name.split("-")[0], {}
    )
    if "att" in name or name in ("avel-dmrn", "avsdn-cpsp", "dam"):
        widths["attention_dim"] = 6
    if name == "ed-tcn":
        widths |= {"channels": (5, 3), "dropout": 0.0}
    model = NETWORKS[name](setting, video_dim=11, audio_dim=7, num_categories=5, **widths, **options)
    return fill_parameters(model.double())


@pytest.fixture(params=[pytest.param(case, id=name) for name, case in CASES.items()])
def model(request):
    """Return each network in each of its settings."""
    name, setting, options = request.param
    return make(name, setting, **options)


def draw_labels(model, batch, time, seed=0):
    """Draw one-hot labels, background last, of segments, or of videos in the weak setting."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (batch, time), generator=generator)
    labels = labels if model.setting == "supervised" else labels[:, 0]
    return torch.nn.functional.one_hot(labels, 6).double()


# ---- Figures of the public code ----


def golden(key, shape, low=0.0, high=1.0):
    count = int(np.prod(shape))
    uniform = (np.random.PCG64(zlib.crc32(f"avel1/{key}".encode())).random_raw(count) >> 11) * 2.0**-53
    return torch.from_numpy(low + (high - low) * uniform).reshape(shape)


def fill_as_published(model, module):
    weights = {}
    for name, parameter in model.named_parameters():
        theirs = name
        for pattern, replacement in THEIR_NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        bound = 0.1 if parameter.dim() == 1 else math.sqrt(3 / math.prod(parameter.shape[1:]))
        weights[name] = golden(f"{module}/{theirs}", parameter.shape, -bound, bound)
    model.load_state_dict(weights)
    return model


def assert_golden(actual, name, tolerance=1e-10):
    expected = torch.from_numpy(FIGURES[f"avel1/{name}"])
    torch.testing.assert_close(actual.detach().reshape(expected.shape), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("module", MODULES)
def test_figures_of_the_public_code(module):
    """Outputs, six training losses and the first gradient norm equal those of the public code."""
    row = module.replace("_weak", "").replace("_", "-")
    setting = "weak" if "weak" in module else "supervised"
    options = {"dropout": 0.0} if row == "ed-tcn" else {"as_published": True}
    model = NETWORKS["avsdn-cpsp" if row == "avsdn" else row](setting, **options).double()
    fill_as_published(model, module)
    video, audio = golden("visual", (2, 10, 7, 7, 512)), golden("audio", (2, 10, 128))
    draws = golden("labels", (2, 10), 0, 29).floor().long().clamp(max=28)
    category = golden("category", (2,), 0, 28).floor().long()
    labels = torch.nn.functional.one_hot(torch.where(draws >= 14, 28, category[:, None]), 29).double()
    target = labels if setting == "supervised" else labels.mean(1)

    with torch.no_grad():
        logits = model(video, audio)
        if isinstance(model, SegmentClassifier):
            outputs = {"probabilities": logits.softmax(-1), "segment_logits": logits}
            outputs["video_scores"] = model.pool(logits).softmax(-1)
        else:
            outputs = {**model.name_logits(logits), "video_scores": video_scores(logits)}
            outputs["features"] = model.sequence_to_sequence(model.attention(video, audio), audio, None)
        if module == "avel_av_att":
            outputs["attended"], outputs["attention"] = model.attention(video, audio, need_weights=True)
    arrays = {name.split("/")[2] for name in FIGURES.files if name.startswith(f"avel1/{module}/")}
    for array in arrays - {"losses", "grad_norm"}:
        assert_golden(outputs[array], f"{module}/{array}")

    recipe = model.recipes[setting]
    optimizer = recipe.optimizer(model.parameters(), lr=recipe.lr)
    losses, norms = [], []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(model.loss(model(video, audio), target))
        losses[-1].backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm or math.inf))
        optimizer.step()
    assert_golden(norms[0], f"{module}/grad_norm", 1e-8)
    assert_golden(torch.stack(losses), f"{module}/losses", 1e-8)


@pytest.mark.parametrize("name", RIVALS)
def test_number_of_parameters(name):
    assert sum(parameter.numel() for parameter in NETWORKS[name]().parameters()) == PARAMETERS[name]


# ---- Equations in loops ----


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def affine(linear, x):
    rows = [
        sum(float(w) * x[i] for i, w in enumerate(row)) + (0 if linear.bias is None else linear.bias[o])
        for o, row in enumerate(linear.weight.detach())
    ]
    return torch.stack(rows)


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def loop_agva(layer, video, audio):
    """Compute AGVA for one segment, video (N, C) and audio (A,); return the attended features and the attention."""
    heard = affine(layer.audio_units, affine(layer.audio_proj, audio).clamp(min=0))
    scores = []
    for cell, features in enumerate(video):
        units = affine(layer.video_units, affine(layer.video_proj, features).clamp(min=0))
        units = [
            math.tanh(float(unit) + float(heard[k if layer.form == "paper" else cell])) for k, unit in enumerate(units)
        ]
        scores.append(sum(float(w) * unit for w, unit in zip(layer.score.weight[0], units, strict=True)))
    attention = softmax(scores)
    return sum(share * features for share, features in zip(attention, video, strict=True)), double(attention)


def loop_lstm(lstm, sequence, hidden, cell):
    """Compute an LSTM over one video (T, D) in both directions from states (2, H). Return output and states."""
    width, outputs, states = lstm.hidden_size, [], []
    for direction, suffix in enumerate(("", "_reverse")):
        w_x, w_h, b_x, b_h = (
            getattr(lstm, f"{kind}_l0{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h, c, found = hidden[direction], cell[direction], {}
        for t in range(len(sequence)) if direction == 0 else reversed(range(len(sequence))):
            i, f, g, o = (w_x @ sequence[t] + b_x + w_h @ h + b_h).split(width)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            found[t] = h = o.sigmoid() * c.tanh()
        outputs.append(torch.stack([found[t] for t in range(len(sequence))]))
        states.append((h, c))
    return torch.cat(outputs, -1), torch.stack([h for h, _ in states]), torch.stack([c for _, c in states])


def loop_residual(block, audio, video):
    def mapped(layers, x):
        return affine(layers[2], affine(layers[0], x).tanh())

    mean = (mapped(block.audio_map, audio) + mapped(block.video_map, video)) / 2
    return ((video + mean).tanh() + (audio + mean).tanh()) / 2


@pytest.mark.parametrize(("form", "spatial"), [("paper", (5, 3)), ("paper", (2,)), ("code", (3, 2))])
@torch.no_grad()
def test_agva_is_its_equation(form, spatial, draw, assert_close):
    """AGVA equals a loop, for any map in the paper's form, and for as many cells as hidden units in the code's form."""
    layer = fill_parameters(AGVA(11, 7, 6, form=form).double())
    video, audio = draw(2, 3, *spatial, 11), draw(2, 3, 7)
    attended, attention = layer(video, audio, need_weights=True)
    for b in range(2):
        for t in range(3):
            expected = loop_agva(layer, video[b, t].flatten(0, -2), audio[b, t])
            assert_close((attended[b, t], attention[b, t].flatten()), expected)
    assert_close(layer(video, audio), attended)


@pytest.mark.parametrize("stateful", [False, True])
@torch.no_grad()
def test_masked_lstm_is_its_equation(stateful, draw, assert_close):
    """Output and last states of a padded video are those of its valid segments alone."""
    lstm = fill_parameters(nn.LSTM(5, 3, batch_first=True, bidirectional=True).double())
    sequence, hidden, cell = draw(3, 7, 5), draw(2, 3, 3), draw(2, 3, 3)
    if not stateful:
        hidden, cell = torch.zeros_like(hidden), torch.zeros_like(cell)
    output, states = run_lstm(lstm, sequence, MASK, (hidden, cell) if stateful else None)
    for b in range(3):
        expected = loop_lstm(lstm, sequence[b, ~MASK[b]], hidden[:, b], cell[:, b])
        assert_close((output[b, ~MASK[b]], states[0][:, b], states[1][:, b]), expected)
    assert not output[MASK].any()


@pytest.mark.parametrize("variant", [{}, {"attention": False, "fusion": "add"}, {"fusion": "dmrn"}])
@torch.no_grad()
def test_avel_is_its_equation(variant, draw, assert_close):
    """AVEL equals a loop, with attention or the mean, both LSTMs, and each kind of fusion."""
    model = AVEL(video_dim=11, audio_dim=7, num_categories=5, hidden_dim=3, attention_dim=4, **variant)
    fill_parameters(model.double())
    video, audio, zeros = draw(2, 3, 2, 5, 11), draw(2, 3, 7), torch.zeros(2, 3, dtype=torch.float64)
    logits = model(video, audio)
    for b in range(2):
        cells = [video[b, t].flatten(0, 1) for t in range(3)]
        if model.attention is None:
            seen = torch.stack([sum(cell) / 10 for cell in cells])
        else:
            seen = torch.stack([loop_agva(model.attention, cells[t], audio[b, t])[0] for t in range(3)])
        heard, _, _ = loop_lstm(model.audio_lstm, audio[b], zeros, zeros)
        seen, _, _ = loop_lstm(model.video_lstm, seen, zeros, zeros)
        for t in range(3):
            if model.fusion == "dmrn":
                expected = affine(model.head[0], loop_residual(model.residual, heard[t], seen[t]))
            else:
                fused = heard[t] + seen[t] if model.fusion == "add" else torch.cat([heard[t], seen[t]])
                expected = affine(model.head[3], affine(model.head[1], fused.clamp(min=0)).clamp(min=0))
            assert_close(logits[b, t], expected)


@torch.no_grad()
def test_avsdn_is_its_equation(draw, assert_close):
    """AVSDN equals a loop: mean map, encoders, fused states, decoder, one linear layer."""
    model = fill_parameters(AVSDN(video_dim=11, audio_dim=7, num_categories=5, hidden_dim=3).double())
    video, audio, zeros = draw(2, 3, 2, 5, 11), draw(2, 3, 7), torch.zeros(2, 3, dtype=torch.float64)
    logits, parts = model(video, audio), model.sequence_to_sequence
    for b in range(2):
        mean = torch.stack([sum(video[b, t].flatten(0, 1)) / 10 for t in range(3)])
        _, *heard = loop_lstm(parts.audio_encoder, audio[b], zeros, zeros)
        _, *seen = loop_lstm(parts.video_encoder, mean, zeros, zeros)
        states = [
            torch.stack([loop_residual(parts.fusion, h[d].clamp(min=0), s[d].clamp(min=0)) for d in range(2)])
            for h, s in zip(heard, seen, strict=True)
        ]
        both = torch.stack([torch.cat([audio[b, t], mean[t]]) for t in range(3)])
        decoded, _, _ = loop_lstm(parts.decoder, both, *states)
        assert_close(logits[b], torch.stack([affine(model.head, step.clamp(min=0)) for step in decoded]))


def loop_self_attention(layer, local):
    """Compute one head of self-attention, then the mean over time: (T, D) to (D,)."""
    width = len(local[0])
    queries = [affine(layer.q_proj, step) for step in local]
    keys, values = zip(*(affine(layer.kv_proj, step).split(width) for step in local), strict=True)
    total = 0
    for query in queries:
        weights = softmax([float(query @ key) / math.sqrt(width) for key in keys])
        total += affine(layer.out_proj, sum(w * value for w, value in zip(weights, values, strict=True)))
    return total / len(local)


@torch.no_grad()
def test_dam_is_its_equation(draw, assert_close):
    """Logits, loss and decision of DAM equal a loop with probabilities."""
    model = make("dam")
    video, audio, labels = draw(2, 5, 2, 3, 11), draw(2, 5, 7), torch.tensor([[5, 2, 2, 5, 2], [5, 5, 5, 5, 5]])
    logits = model(video, audio)
    event_loss = category_loss = 0
    for b in range(2):
        attended = [loop_agva(model.attention, video[b, t].flatten(0, 1), audio[b, t])[0] for t in range(5)]
        local_video = [affine(model.video_proj, step) for step in attended]
        local_audio = [affine(model.audio_proj, step) for step in audio[b]]
        global_video = loop_self_attention(model.video_self_attention, local_video)
        global_audio = loop_self_attention(model.audio_self_attention, local_audio)
        hidden = affine(model.category_head[0], torch.cat([global_audio, global_video])).clamp(min=0)
        category = affine(model.category_head[2], hidden)
        assert_close(logits.category[b], category)
        category_loss -= math.log(
            softmax(category)[2 if b == 0 else 0]
        )  # without an event, a video counts as the first
        for t in range(5):
            heard = 1 / (1 + math.exp(-float(global_video @ local_audio[t]) / math.sqrt(13)))
            seen = 1 / (1 + math.exp(-float(global_audio @ local_video[t]) / math.sqrt(13)))
            relevance = (heard + seen) / 2
            assert_close(logits.event[b, t].sigmoid(), double(relevance))
            assert model.decide(logits).labels[b, t] == (5 if relevance < 0.5 else int(category.argmax()))
            event_loss -= math.log(relevance if labels[b, t] < 5 else 1 - relevance)
    expected = 0.5 * category_loss / 2 + 0.5 * event_loss / 10
    assert_close(model.loss(logits, torch.nn.functional.one_hot(labels, 6)), double(expected))


@pytest.mark.parametrize(("channels", "kernel", "time"), [((5, 3), 3, 7), ((3,), 5, 4), ((2, 3, 5), 1, 9)])
@torch.no_grad()
def test_ed_tcn_is_its_equation(channels, kernel, time, draw, assert_close):
    """ED-TCN equals a loop, for any number of layers, at lengths that pooling halves evenly or not."""
    model = EDTCN(video_dim=11, audio_dim=7, num_categories=5, channels=channels, kernel_size=kernel, dropout=0.0)
    fill_parameters(model.double())
    video = draw(2, time, 2, 3, 11)
    logits = model(video, draw(2, time, 7))

    def convolved(layer, steps):
        found = []
        for t in range(len(steps)):
            total = layer.bias.clone()
            for k in range(kernel):
                if 0 <= t + k - kernel // 2 < len(steps):
                    total = total + layer.weight[..., k] @ steps[t + k - kernel // 2]
            total = total.clamp(min=0)
            found.append(total / (max(total.tolist()) + 1e-5))
        return found

    for b in range(2):
        steps = [sum(features.flatten(0, 1)) / 6 for features in video[b]]
        while len(steps) % 2 ** len(channels):
            steps.append(-torch.ones(11, dtype=torch.float64))
        for layer in model.encoder:
            steps = convolved(layer, steps)
            steps = [torch.maximum(*steps[t : t + 2]) for t in range(0, len(steps), 2)]
        for layer in model.decoder:
            steps = convolved(layer, [step for step in steps for _ in range(2)])
        assert_close(logits[b], torch.stack([affine(model.head, step) for step in steps[:time]]))


# ---- Losses and decisions ----


@pytest.mark.parametrize("as_published", [False, True])
def test_loss_of_segments(as_published, draw, assert_close):
    """The loss is the mean over valid labeled segments of the cross-entropy, or of the public code's soft margin."""
    model = make("avel-av-att", as_published=as_published)
    logits, labels = draw(2, 3, 6), torch.nn.functional.one_hot(torch.tensor([[5, 2, 2], [1, 5, 0]]), 6).double()
    labels[0, 1] = 0
    labels[1, 2] = torch.nan
    mask = padding_mask([3, 2])
    terms = []
    for b, t in ((0, 0), (0, 2), (1, 0), (1, 1)):
        probabilities = softmax(logits[b, t])
        if as_published:
            margins = [
                math.log(1 / (1 + math.exp(-p if y else p))) for p, y in zip(probabilities, labels[b, t], strict=True)
            ]
            terms.append(-sum(margins) / 6)
        else:
            terms.append(-math.log(probabilities[int(labels[b, t].argmax())]))
    assert_close(model.loss(logits, labels, padding_mask=mask), double(sum(terms) / 4))
    assert model.loss(logits, torch.zeros_like(labels)) == 0


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_loss_of_videos(as_published, pooling, draw, assert_close):
    """The weak loss is the same for logits that are pooled over the valid segments."""
    model = make("avel-av-att", "weak", as_published=as_published, pooling=pooling)
    logits, target = draw(2, 3, 6), torch.tensor([[0, 0, 1, 0, 0, 0], [0.5, 0, 0, 0, 0, 0.5]]).double()
    terms = []
    for b, length in ((0, 3), (1, 2)):
        columns = logits[b, :length].T.tolist()
        scores = softmax([max(column) if pooling == "max" else sum(column) / length for column in columns])
        for p, y in zip(scores, target[b].tolist(), strict=True):
            margin = y * math.log(1 / (1 + math.exp(-p))) + (1 - y) * math.log(1 / (1 + math.exp(p)))
            terms.append(-margin / 6 if as_published else -y * math.log(p))
    assert_close(model.loss(logits, target, padding_mask=padding_mask([3, 2])), double(sum(terms) / 2))


def test_decision_by_segment():
    """The decision is the best class; the event score is the probability of all categories together."""
    probabilities = torch.tensor([[[0.2, 0.1, 0.1, 0.1, 0.1, 0.4], [0.1, 0.5, 0.1, 0.1, 0.1, 0.1]]]).double()
    decision = make("avel-av").decide(probabilities.log())
    assert decision.labels.tolist() == [[5, 1]]
    torch.testing.assert_close(decision.event_score, torch.tensor([[0.6, 0.9]]).double())
    torch.testing.assert_close(decision.category_score, torch.tensor([[0.2 / 0.6, 0.5 / 0.9]]).double())


@pytest.mark.parametrize("name", ["dam", "avsdn-cpsp"])
def test_decision_of_two_scores(name):
    """The decision is the video's category where the event score is at least 0.5, else background."""
    event, category = torch.tensor([[0.0, -1.0, 1.0]]), torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]])
    decision = make(name).decide(Logits(event, category.log()))
    assert decision.labels.tolist() == [[1, 5, 1]]
    torch.testing.assert_close(decision.event_score, event.sigmoid())
    torch.testing.assert_close(decision.category_score, torch.full((1, 3), 0.3))


# ---- Padding ----


def gradients_of(model, loss, *inputs):
    found = torch.autograd.grad(loss, [*model.parameters(), *inputs], allow_unused=True)
    return found[: len(found) - len(inputs)], found[len(found) - len(inputs) :]


def join(alone):
    """Put the logits of single videos at the places of their segments in the batch; all others are zero."""

    def scatter(parts):
        joined = parts[0].new_zeros(3, 7, *parts[0].shape[2:])
        return joined.index_put((~MASK).nonzero(as_tuple=True), torch.cat([part[0] for part in parts]))

    if isinstance(alone[0], Logits):
        events, categories = zip(*alone, strict=True)
        return Logits(scatter(events), torch.cat(categories))
    return scatter(alone)


@pytest.mark.parametrize("fill", [0.5, torch.nan])
def test_padded_batch_equals_videos_one_by_one(model, fill, draw, assert_close):
    """Logits, decisions, loss and gradients of a padded batch equal those of its videos, and no parameter is unused."""
    video, audio = draw(3, 7, 3, 2, 11), draw(3, 7, 7)
    expected = join([model(video[b : b + 1, ~MASK[b]], audio[b : b + 1, ~MASK[b]]) for b in range(3)])
    video[MASK], audio[MASK] = fill, fill
    batch = model(video.requires_grad_(), audio.requires_grad_(), padding_mask=MASK)
    for actual, logits in zip(tree_leaves(batch), tree_leaves(expected), strict=True):
        assert actual.isfinite().all()
        over_time = actual.shape[1] == 7
        assert_close(actual[~MASK] if over_time else actual, logits[~MASK] if over_time else logits)
    for actual, decision in zip(model.decide(batch), model.decide(expected), strict=True):
        assert_close(actual[~MASK].double(), decision[~MASK].double())

    target = draw_labels(model, 3, 7)
    loss, loss_alone = (model.loss(logits, target, padding_mask=MASK) for logits in (batch, expected))
    assert_close(loss, loss_alone)
    gradients, of_inputs = gradients_of(model, loss, video, audio)
    assert all(gradient is not None for gradient in gradients)
    assert_close(gradients, gradients_of(model, loss_alone)[0])
    for gradient in of_inputs:
        assert gradient is None or (gradient.isfinite().all() and not gradient[MASK].any() and gradient[~MASK].any())


def test_video_of_nothing_but_padding_is_finite(model, draw, assert_close):
    """A video that is all padding does not change the others, and a batch of such videos has a finite loss."""
    video, audio, mask = draw(2, 5, 3, 2, 11), draw(2, 5, 7), padding_mask([5, 0], 5)
    expected = model(video[:1], audio[:1])
    video[1], audio[1] = torch.nan, torch.nan
    batch = model(video, audio, padding_mask=mask)
    for actual, alone in zip(tree_leaves(batch), tree_leaves(expected), strict=True):
        assert_close(actual[:1], alone)
        assert actual.isfinite().all()
    target = draw_labels(model, 2, 5)
    losses = [model.loss(batch, target, padding_mask=mask)]
    nothing = torch.ones_like(mask)
    losses.append(model.loss(model(video * torch.nan, audio, padding_mask=nothing), target, padding_mask=nothing))
    for loss in losses:
        gradients, _ = gradients_of(model, loss)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_mask_without_padding_equals_no_mask(model, draw, assert_close):
    inputs = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    assert_close(model(*inputs, padding_mask=torch.zeros(2, 5, dtype=torch.bool)), model(*inputs))


# ---- Initial weights, saving, compilation, export, errors ----


def test_initial_weights_are_drawn_as_in_the_code():
    """Initial weights have the variance of Xavier's distribution, in DMRN only those of the head."""

    def drawn_by_xavier(layer):
        weight, fans = layer.weight.detach(), sum(layer.weight.shape[:2]) * math.prod(layer.weight.shape[2:])
        # The rarest of draws are 4 standard deviations off; PyTorch's own variance is off by a sixth or more.
        return float(weight.square().mean()) == pytest.approx(2 / fans, rel=0.1 + 4 / weight.numel() ** 0.5)

    torch.manual_seed(0)
    network = AVEL()
    assert all(map(drawn_by_xavier, (*network.attention.children(), network.head[1], network.head[3])))
    network = AVEL(fusion="dmrn")
    assert drawn_by_xavier(network.head[0])
    assert not any(map(drawn_by_xavier, network.attention.children()))
    network = NETWORKS["avsdn-cpsp"]()
    assert all(map(drawn_by_xavier, (*network.attention.children(), network.event_head, network.category_head)))
    network = EDTCN()
    assert all(drawn_by_xavier(layer) and not layer.bias.any() for layer in (*network.encoder, *network.decoder))


@pytest.mark.parametrize("name", RIVALS)
def test_saved_network_is_loaded(name, draw, tmp_path, assert_close):
    """A saved network is loaded with the same variant and weights."""
    network = make(name).float().eval()
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    inputs = draw(2, 5, 3, 2, 11, dtype=torch.float32), draw(2, 5, 7, dtype=torch.float32)
    assert_close(loaded(*inputs), network(*inputs))
    assert json.loads((tmp_path / "config.json").read_text())["num_categories"] == 5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("avel-a", {"video_dim": 2048}),
        ("ed-tcn", {"audio_dim": 2048}),
        ("cmran", {"relation": "none", "num_layers": 0}),
    ],
)
def test_arguments_that_no_weight_has_are_loaded(name, options, tmp_path):
    """Arguments are restored that do not show in the shapes of the weights."""
    NETWORKS[name](**options).save_pretrained(tmp_path)
    loaded = load_network(str(tmp_path))
    assert all(getattr(loaded, option) == value for option, value in options.items() if option.endswith("dim"))


def test_a_network_of_no_known_name_is_refused(tmp_path):
    NETWORKS["avel-a"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for network in ([], "Transformer"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "network": network}))
        with pytest.raises(ValueError, match="must be one of CMRAN, EDTCN, "):
            load_network(str(tmp_path))


class Padded(nn.Module):
    """A network that makes its padding mask from lengths."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, video, audio, lengths):
        return self.network(video, audio, padding_mask=padding_mask(lengths, audio.shape[1]))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of what passes from one graph to the next
@pytest.mark.parametrize("name", ["avsdn-cpsp", "dam", "ed-tcn"])
def test_compiled_network(name, draw, assert_close):
    """The network compiles as a whole, or around its LSTMs, which PyTorch does not compile."""
    network = Padded(make(name))
    compiled = torch.compile(network, fullgraph=name in ("dam", "ed-tcn"), backend="eager")
    inputs = draw(2, 5, 3, 2, 11), draw(2, 5, 7), torch.tensor([5, 2])
    assert_close(compiled(*inputs), network(*inputs))


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 fixes sizes in the graph that are to stay open")
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")  # of every LSTM of PyTorch
@pytest.mark.parametrize("name", ["avsdn-cpsp", "dam", "ed-tcn"])
def test_exported_network(name, draw, assert_close):
    """The exported network accepts any batch size, padding and length (for ED-TCN, lengths that its layers divide).

    With LSTMs, it accepts one length without padding: PyTorch exports no more.
    """
    batch, quarter, lstms = torch.export.Dim("batch"), torch.export.Dim("quarter", min=2, max=16), name == "avsdn-cpsp"
    axes = {0: batch} if lstms else {0: batch, 1: 4 * quarter}
    network = make(name) if lstms else Padded(make(name))

    def inputs(videos, time, lengths):
        features = draw(videos, time, 3, 2, 11), draw(videos, time, 7)
        return features if lstms else (*features, torch.tensor(lengths))

    shapes = (axes, axes) if lstms else (axes, axes, {0: batch})
    program = torch.export.export(network, inputs(2, 8, [7, 2]), dynamic_shapes=shapes)
    others = inputs(3, 8 if lstms else 12, [11, 2, 0])
    assert_close(tree_leaves(program.module()(*others)), tree_leaves(network(*others)))


INPUTS = torch.zeros(2, 3, 2, 2, 11), torch.zeros(2, 3, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DAM("weak"), 'setting must be "supervised", got .weak., which DAM does not have'),
        (lambda: AVEL("strong"), 'setting must be "supervised" or "weak", got \'strong\', which AVEL'),
        (lambda: AVEL(streams="audio"), 'attention must be False with streams="audio", which has no map, got True'),
        (lambda: AVEL(streams="smell"), "streams must be one of both, video, audio, got 'smell'"),
        (lambda: AVEL(streams="video", fusion="add"), "fusion must be left out with streams=\"video\", got 'add'"),
        (lambda: AVEL(num_categories=0), "num_categories must be an int of at least 1, got 0"),
        (lambda: AVEL(categories="Bark"), "categories must be a list or tuple of str, got 'Bark'"),
        (lambda: AVEL(categories=["Bark", "Bark"]), "categories must be 2 different names, .* got 2, 1 of them"),
        (lambda: AGVA(11, 7, form="letter"), 'form must be "paper" or "code", got \'letter\''),
        (lambda: AGVA(11, 7)(torch.zeros(3, 4, 11), torch.zeros(2, 7)), "video must have the leading dimensions of"),
        (
            lambda: make("avel-av-att", as_published=True).float()(*INPUTS),
            'video must have 6 cells with form="code", .* got 4: use form="paper"',
        ),
        (lambda: make("dam")(*INPUTS), "video must have the dtype of the weights, torch.float64, got torch.float32"),
        (lambda: make("dam")(None, INPUTS[1]), "video must be a torch.Tensor, got NoneType"),
        (
            lambda: DAM()(*INPUTS),
            r"video must have shape \(batch, time, height, width, 512\), .* got \(2, 3, 2, 2, 11\)",
        ),
        (
            lambda: make("dam").float()(INPUTS[0], INPUTS[0]),
            r"audio must have shape \(batch, time, 7\), where only the batch may be empty",
        ),
        (
            lambda: make("dam").float()(INPUTS[0], INPUTS[1][:1]),
            r"audio must have the batch and time of video, \(2, 3\)",
        ),
        (
            lambda: make("dam").float()(*INPUTS, padding_mask=torch.zeros(2, 3)),
            r"padding_mask must be bool, of the batch and time of video, \(2, 3\), got torch.float32 \(2, 3\)",
        ),
        (
            lambda: make("avel-av").loss(torch.zeros(2, 3, 6), torch.zeros(2, 6)),
            r"target must have shape \(2, 3, 6\), background last, got \(2, 6\)",
        ),
        (
            lambda: make("avsdn-cpsp", "weak").loss(Logits(*INPUTS), torch.zeros(2, 5)),
            r"target must have 6 columns, background last, got \(2, 5\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
