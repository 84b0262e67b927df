"""The procedural set: it has the documented shapes and statistics, and one modality alone cannot solve it."""

import dataclasses

import pytest
import torch
from torch import Generator, Tensor

from ave.data.procedural import CATEGORIES, LOOK_OF, SOUND_OF, draw_script, make_procedural_set

AVE_EVENT_LENGTHS = torch.tensor([1, 0, 214, 220, 217, 196, 200, 139, 111, 95, 2750])
BACKGROUND = 28
FITTING = set(zip(LOOK_OF.tolist(), SOUND_OF.tolist(), strict=True))


@pytest.fixture(scope="module")
def data():
    return make_procedural_set(num_train=320, num_val=20, num_test=120, num_background=20)


@pytest.fixture(scope="module")
def script():
    """Draw what is seen and heard in many videos, without making their features."""
    return draw_script(torch.arange(5600) % 28, Generator().manual_seed(0))


def tensors_of(data):
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return {name: value for name, value in (values | values["splits"]).items() if isinstance(value, Tensor)}


def test_shapes_and_dtypes():
    data = make_procedural_set(num_train=5, num_val=3, num_test=2, num_background=4)
    expected = {
        "visual": ((10, 10, 7, 7, 512), torch.float16),
        "audio": ((10, 10, 128), torch.float16),
        "labels": ((10, 10, 29), torch.float32),
        "video_labels": ((10, 29), torch.float32),
        "background_visual": ((4, 10, 7, 7, 512), torch.float16),
        "background_audio": ((4, 10, 128), torch.float16),
        "background_labels": ((4, 29), torch.float32),
        "object_cells": ((10, 10, 7, 7), torch.bool),
        "decoy_cells": ((10, 10, 7, 7), torch.bool),
        "train": ((5,), torch.int64),
        "val": ((3,), torch.int64),
        "test": ((2,), torch.int64),
    }
    assert {name: (tuple(value.shape), value.dtype) for name, value in tensors_of(data).items()} == expected


def test_features_are_like_those_of_relu(data):
    for features, zeros in [(data.audio, 0.65), (data.background_audio, 0.65), (data.visual[::9], 0.74)]:
        assert (features >= 0).all()
        assert features.isfinite().all()
        assert (features == 0).float().mean().item() == pytest.approx(zeros, abs=0.04)


def test_labels(data):
    assert (data.labels.sum(-1) == 1).all()
    assert (data.labels.amax(-1) == 1).all()
    assert (data.video_labels.sum(-1) == 1).all()
    assert (data.video_labels[:, BACKGROUND] == 0).all()
    segment, video = data.labels.argmax(-1), data.video_labels.argmax(-1, keepdim=True)
    assert ((segment == video) | (segment == BACKGROUND)).all()
    assert (data.background_labels.argmax(-1) == BACKGROUND).all()
    assert (data.background_labels.sum(-1) == 1).all()
    assert video.unique().tolist() == list(range(28))


def test_categories(data):
    """Every look and every sound belongs to two categories."""
    assert data.categories == CATEGORIES
    assert len(set(CATEGORIES)) == len(FITTING) == 28
    assert all(name.startswith("look ") and ", sound " in name for name in CATEGORIES)
    assert (LOOK_OF.bincount() == 2).all()
    assert (SOUND_OF.bincount() == 2).all()


def test_splits(data):
    rows = torch.cat(list(data.splits.values()))
    assert list(data.splits) == ["train", "val", "test"]
    assert [len(split) for split in data.splits.values()] == [320, 20, 120]
    assert rows.sort().values.equal(torch.arange(460))
    assert not any(split.equal(split.sort().values) for split in data.splits.values())


def test_events_are_as_long_as_those_of_ave(script):
    lengths = script.event.sum(1)
    shares = lengths.bincount(minlength=11) / len(lengths)
    torch.testing.assert_close(shares, AVE_EVENT_LENGTHS / AVE_EVENT_LENGTHS.sum(), atol=0.02, rtol=0)
    assert 0 < shares[0] < 0.02


def test_events_are_contiguous_and_anywhere(script):
    padded = torch.nn.functional.pad(script.event.int(), (1, 1)).diff()
    assert ((padded == 1).sum(1) <= 1).all()
    of_two = script.event[script.event.sum(1) == 2]
    assert of_two.int().argmax(1).unique().tolist() == list(range(9))


def test_event_is_where_both_are(script):
    """Outside of events there is the object alone, the sound alone, or neither, and each is frequent."""
    seen, heard = script.cells[:, 0].flatten(2).any(-1), script.heard[:, 0]
    assert (script.event == (seen & heard)).all()
    outside = ~script.event
    kinds = torch.stack([seen & ~heard, heard & ~seen, ~seen & ~heard])[:, outside]
    torch.testing.assert_close(kinds.float().mean(1), torch.full((3,), 1 / 3), atol=0.05, rtol=0)


def test_distractors_are_in_event_and_background_alike(script):
    for there in (script.cells[:, 1].flatten(2).any(-1), script.heard[:, 1]):
        event, background = (there[where].float().mean().item() for where in (script.event, ~script.event))
        assert 0.3 < event < 0.6
        assert event == pytest.approx(background, abs=0.04)


def test_distractors_fit_nothing(script):
    """A distractor look or sound never completes a category."""
    pairs = {(own, other) for own in range(2) for other in range(2)} - {(0, 0)}
    for look, sound in pairs:
        drawn = set(zip(script.looks[:, look].tolist(), script.sounds[:, sound].tolist(), strict=True))
        assert not drawn & FITTING


def test_distractors_tell_nothing(script):
    """The two categories with the same look have the same distractor looks, and likewise for sounds."""
    category = torch.arange(5600) % 28
    for shared, own, drawn in (
        (LOOK_OF, script.looks[:, 0], script.looks),
        (SOUND_OF, script.sounds[:, 0], script.sounds),
    ):
        assert (own == shared[category]).all()
        for value in range(14):
            met = [drawn[category == one, 1].unique().tolist() for one in (shared == value).nonzero().flatten()]
            assert met[0] == met[1]
            assert len(met[0]) == 11


def test_object_cells_are_few_connected_and_move(script):
    cells = script.cells[:, 0]
    seen = cells.flatten(2).any(-1)
    assert set(cells.flatten(2).sum(-1)[seen].tolist()) == {1, 2, 4}
    rows, columns = cells.any(-1), cells.any(-2)
    # A filled rectangle of at most 2 x 2 is connected.
    assert (cells == rows.unsqueeze(-1) & columns.unsqueeze(-2)).all()
    for lines in (rows, columns):
        assert (lines.sum(-1) <= 2).all()
        assert ((torch.nn.functional.pad(lines.int(), (1, 1)).diff(dim=-1) == 1).sum(-1) <= 1).all()
    both = seen[:, 1:] & seen[:, :-1]
    moved = (cells[:, 1:] != cells[:, :-1]).flatten(2).any(-1)[both]
    assert moved.float().mean() > 0.75
    assert (cells.float().mean((0, 1)) > 0.005).all()


def test_object_cells_show_the_look(data):
    """The cells of an object are brighter than the others, whether or not it sounds."""
    brightness, cells = data.visual[:100].float().mean(-1), data.object_cells[:100]
    event = data.labels[:100, :, BACKGROUND] == 0
    on_event, on_silent = (brightness[cells & when[..., None, None]].mean().item() for when in (event, ~event))
    assert on_event > 1.5 * brightness[~cells].mean()
    assert on_event == pytest.approx(on_silent, rel=0.15)


def test_background_videos_have_no_event():
    script = draw_script(torch.arange(560) % 28, Generator().manual_seed(0), with_events=False)
    assert not script.event.any()
    assert script.heard[:, 0].any()
    assert script.cells[:, 0].any()


def test_seed_decides_everything():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sizes = {"num_train": 4, "num_val": 3, "num_test": 3, "num_background": 2}
    first, again, other = (tensors_of(make_procedural_set(seed, **sizes)) for seed in (1, 1, 2))
    assert all(first[name].equal(again[name]) for name in first)
    same = {name for name in first if first[name].equal(other[name])}
    assert same == {"background_labels"}
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("name", ["num_train", "num_val", "num_test", "num_background"])
@pytest.mark.parametrize("size", [0, -3, 2.0])
def test_sizes_that_cannot_be(name, size):
    with pytest.raises(ValueError, match=rf"{name} must be a positive integer, got {size}"):
        make_procedural_set(**{name: size})


def accuracy_of_linear_probe(features, data):
    """Return the test accuracy of ridge regression that is fitted on the training segments."""
    features = (features - features.mean((0, 1))) / features.std((0, 1))
    train, test = data.splits["train"], data.splits["test"]
    inputs, targets = features[train].flatten(0, 1), data.labels[train].flatten(0, 1)
    ridge = len(inputs) * torch.eye(inputs.shape[-1])
    weights = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ (targets - targets.mean(0)))
    scores = features[test] @ weights + targets.mean(0)
    return (scores.argmax(-1) == data.labels[test].argmax(-1)).float().mean().item()


def test_neither_sense_suffices(data):
    """A linear probe of pooled features is far better with both modalities than with one, which is above chance."""
    sight = torch.stack([video.float().mean((1, 2)) for video in data.visual])
    hearing = data.audio.float()
    sees, hears, both = (
        accuracy_of_linear_probe(features, data) for features in (sight, hearing, torch.cat([sight, hearing], -1))
    )
    assert 0.2 < sees < 0.45
    assert 0.2 < hears < 0.45
    assert both > max(sees, hears) + 0.15
