"""CMRAN's decisions and losses equal those written out by hand, and the network equals the paper's equations.

`test_official.py` compares it with the authors' results; `test_cmran_masks.py` tests padding.
"""

import io
import math

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import oracles
from ave.networks.cmran import CMRAN
from ave.networks.two_scores import Logits, decide, supervised_loss, video_scores, weak_loss
from crossmodal_attn import padding_mask

EVENT = torch.tensor([[0.0, -1e-6, 3.0], [-2.0, -1.0, -0.5]], dtype=torch.float64)
CATEGORY = torch.tensor([[0.3, 1.2, -0.5], [2.0, 0.1, 0.7]], dtype=torch.float64)
LABELS = torch.nn.functional.one_hot(torch.tensor([[3, 1, 1], [3, 3, 3]]))
"""The second video is all background."""


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(row):
    powers = [math.exp(x) for x in row]
    return [power / sum(powers) for power in powers]


def test_decide():
    """An event score of exactly 0.5 is an event; all others get the background that is named, 28 by default."""
    assert decide(Logits(EVENT, CATEGORY)).labels.tolist() == [[1, 28, 1], [28, 28, 28]]
    assert decide(Logits(EVENT, CATEGORY), background=3).labels.tolist() == [[1, 3, 1], [3, 3, 3]]


def test_localize_may_call_an_event_background_in_the_weak_setting():
    """Background is a category in the weak setting, so it can be the best one."""
    category = torch.tensor([[0.1, 0.2, 0.3, 0.9], [0.1, 0.8, 0.3, 0.4]])
    assert decide(Logits(EVENT.abs(), category), background=3).labels.tolist() == [[3, 3, 3], [1, 1, 1]]


def test_supervised_loss():
    events = [[0, 1, 1], [0, 0, 0]]
    pairs = [(float(x), y) for logits, row in zip(EVENT, events, strict=True) for x, y in zip(logits, row, strict=True)]
    event_loss = -sum(math.log(sigmoid(x) if y else 1 - sigmoid(x)) for x, y in pairs) / 6
    # The video without an event counts as category 0.
    category_loss = -sum(math.log(softmax(CATEGORY[video].tolist())[best]) for video, best in ((0, 1), (1, 0))) / 2
    assert supervised_loss(Logits(EVENT, CATEGORY), LABELS).item() == pytest.approx(event_loss + category_loss)


def test_supervised_category_is_the_highest_index():
    """If a video has two categories, the higher index is the target, as in the authors' code."""
    labels = torch.nn.functional.one_hot(torch.tensor([[2, 1, 3], [3, 3, 1]]))
    higher = torch.nn.functional.one_hot(torch.tensor([[2, 2, 3], [3, 3, 1]]))
    logits = Logits(EVENT, CATEGORY)
    assert torch.equal(supervised_loss(logits, labels), supervised_loss(logits, higher))


def test_weak_loss():
    scores = []
    for event, category in zip(EVENT.tolist(), CATEGORY.tolist(), strict=True):
        scores.append(softmax([max(sigmoid(x) * logit for x in event) for logit in category]))
    logits = Logits(EVENT, CATEGORY)
    torch.testing.assert_close(video_scores(logits), torch.tensor(scores, dtype=torch.float64))
    labels = [[0, 1, 0], [0, 0.5, 0.5]]
    terms = [
        math.log(sigmoid(x)) * y + math.log(sigmoid(-x)) * (1 - y)
        for row, target in zip(scores, labels, strict=True)
        for x, y in zip(row, target, strict=True)
    ]
    assert weak_loss(logits, torch.tensor(labels)).item() == pytest.approx(-sum(terms) / 6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_labels_of_any_dtype(dtype):
    logits = Logits(EVENT, CATEGORY)
    expected = supervised_loss(logits, LABELS.double())
    assert torch.equal(supervised_loss(logits, LABELS.to(dtype)), expected)
    video_labels = LABELS[:, -1, 1:].to(dtype)
    assert torch.equal(weak_loss(logits, video_labels), weak_loss(logits, video_labels.double()))


def test_whole_network_is_the_paper_s(cmran, draw, assert_close):
    """In both settings, the network equals the paper's equations in loops, without dropout."""
    video, audio = draw(3, 7, 3, 2, 11), draw(3, 7, 7)
    event_logits, category_logits = oracles.cmran(cmran, video, audio)
    assert_close(tuple(cmran(video, audio)), (event_logits, category_logits))


@pytest.mark.parametrize("setting", ["supervised"])
def test_exported_network_is_saved_and_loaded(cmran, draw, assert_close):
    """The loaded program returns the named tuple of logits."""
    inputs = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    cmran.eval()
    file = io.BytesIO()
    torch.export.save(torch.export.export(cmran, inputs), file)
    file.seek(0)
    logits = torch.export.load(file).module()(*inputs)
    assert isinstance(logits, Logits)
    assert_close(logits, cmran(*inputs))


@pytest.mark.filterwarnings("ignore:`torch.jit")  # are deprecated, or not supported in Python 3.14
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # checks of shapes hold for these shapes alone
def test_traced_network_is_saved_and_drawn(cmran, draw, assert_close, tmp_path):
    """A trace computes at other sizes; TensorBoard draws the graph, in training too."""
    inputs = draw(2, 3, 2, 2, 11), draw(2, 3, 7)
    torch.jit.trace(cmran.eval(), inputs).save(tmp_path / "network.pt")
    others = draw(5, 13, 2, 3, 11), draw(5, 13, 7)
    assert_close(torch.jit.load(tmp_path / "network.pt")(*others), tuple(cmran(*others)))
    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(cmran.train(), inputs)
    assert list(tmp_path.glob("events.*"))


def test_heads_of_the_settings():
    """28 categories and 4 heads supervised, 29 and 2 weak, as in the authors' code."""
    supervised, weak = CMRAN(), CMRAN("weak")
    assert (supervised.category_head.out_features, supervised.interaction.attention.num_heads) == (28, 4)
    assert (weak.category_head.out_features, weak.interaction.attention.num_heads) == (29, 2)


@pytest.mark.parametrize(("senses", "silent"), [("sight", 1), ("hearing", 0)])
@pytest.mark.parametrize("lengths", [None, [5, 2]])
def test_one_sense(senses, silent, lengths, draw):
    """The output does not depend on the other modality, even if that is NaN, and equals that for zeros in its place."""
    model = CMRAN(video_dim=11, audio_dim=7, senses=senses).double().eval()
    mask = None if lengths is None else padding_mask(torch.tensor(lengths), 5)
    inputs = [draw(2, 5, 3, 2, 11), draw(2, 5, 7)]
    expected = model(*inputs, padding_mask=mask)
    changed = list(inputs)
    changed[silent] = torch.full_like(changed[silent], torch.nan)
    torch.testing.assert_close(model(*changed, padding_mask=mask), expected)
    both = CMRAN(video_dim=11, audio_dim=7).double().eval()
    both.load_state_dict(model.state_dict())
    changed[silent] = torch.zeros_like(changed[silent])
    torch.testing.assert_close(both(*changed, padding_mask=mask), expected)
    changed[1 - silent] = changed[1 - silent] + 1
    assert not torch.equal(model(*changed, padding_mask=mask).event, expected.event)


def test_categories_are_counted():
    named = CMRAN(video_dim=11, audio_dim=7, categories=["Bark", "Clock", "Horse"])
    assert (named.num_categories, named.categories) == (3, ("Bark", "Clock", "Horse"))
    assert named.category_head.out_features == 3
    assert CMRAN("weak", video_dim=11, audio_dim=7, categories=("Bark",)).category_head.out_features == 2
    nameless = CMRAN(video_dim=11, audio_dim=7, num_categories=5)
    assert (nameless.num_categories, nameless.categories) == (5, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CMRAN("strong"), r'setting must be "supervised" or "weak", got \'strong\', which CMRAN does not have'),
        (
            lambda: CMRAN()(torch.rand(2, 5, 3, 2, 11), torch.rand(2, 5, 128)),
            r"video must have shape \(batch, time, height, width, 512\), .* got \(2, 5, 3, 2, 11\)",
        ),
        (
            lambda: CMRAN()(torch.rand(2, 5, 3, 2, 512), torch.rand(2, 5, 7)),
            r"audio must have shape \(batch, time, 128\), .* got \(2, 5, 7\)",
        ),
        (
            lambda: CMRAN()(
                torch.rand(2, 5, 3, 2, 512), torch.rand(2, 5, 128), padding_mask=torch.ones(2, 3, dtype=torch.bool)
            ),
            r"padding_mask must be bool, of the batch and time of video, \(2, 5\), got torch.bool \(2, 3\)",
        ),
        (
            lambda: CMRAN()(torch.rand(2, 5, 3, 2, 512), torch.rand(2, 7, 128)),
            r"audio must have the batch and time of video, \(2, 5\), got \(2, 7\)",
        ),
        (lambda: CMRAN()(torch.rand(2, 0, 3, 2, 512), torch.rand(2, 0, 128)), r"where only the batch may be empty"),
        (lambda: CMRAN(num_categories=0), "num_categories must be an int of at least 1, got 0"),
        (lambda: CMRAN(senses="smell"), 'senses must be "both", "sight" or "hearing", got \'smell\''),
        (
            lambda: CMRAN(num_categories=3, categories=["Bark", "Clock"]),
            "categories must be 3 different names, as num_categories says, got 2, 2 of them different",
        ),
        (lambda: CMRAN(categories=["Bark", "Bark"]), "categories must be 2 different names, .* got 2, 1 of them"),
        (lambda: CMRAN(categories=[]), "num_categories must be an int of at least 1, got 0"),
        (lambda: CMRAN(categories="Bark"), "categories must be a list or tuple of str, got 'Bark'"),
        (lambda: CMRAN(categories=["Bark", 3]), "categories must be a list or tuple of str, got "),
        (lambda: CMRAN()(torch.rand(2, 5, 3, 2, 512).double(), torch.rand(2, 5, 128)), "video must have the dtype of"),
        (lambda: CMRAN()([1.0], torch.rand(2, 5, 128)), "video must be a torch.Tensor, got list"),
        (
            lambda: supervised_loss(Logits(EVENT, CATEGORY), LABELS[..., :-1]),
            r"labels must have shape \(2, 3, 4\), background last, got \(2, 3, 3\)",
        ),
        (
            lambda: weak_loss(Logits(EVENT, CATEGORY), LABELS),
            r"video_labels must have shape \(2, 3\), background last, got \(2, 3, 4\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
