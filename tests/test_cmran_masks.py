"""Padding does not affect the logits, losses, scores and gradients of CMRAN, in both settings."""

import pytest
import torch

from ave.networks.two_scores import decide, supervised_loss, video_scores, weak_loss
from crossmodal_attn import padding_mask

LENGTHS = [5, 2, 1]


@pytest.fixture
def videos(draw):
    """Three videos of different lengths, each a batch of one."""
    return [(draw(1, length, 3, 2, 11), draw(1, length, 7)) for length in LENGTHS]


@pytest.fixture
def labels():
    """One-hot segment labels (1, T, 6) of each video, background last."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(0, 6, (1, length), generator=generator) for length in LENGTHS]
    return [torch.nn.functional.one_hot(label, 6).double() for label in drawn]


def pad(features, fill, length=7):
    """Stack batches of one into a padded batch."""
    batch = features[0].new_full((len(features), length, *features[0].shape[2:]), fill)
    for row, feature in zip(batch, features, strict=True):
        row[: feature.shape[1]] = feature[0]
    return batch


def loss_of(setting, logits, labels, mask=None):
    if setting == "supervised":
        return supervised_loss(logits, labels, padding_mask=mask)
    valid = labels.new_ones(labels.shape[:2]) if mask is None else (~mask).to(labels)
    means = (labels.nan_to_num() * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True)
    return weak_loss(logits, means, padding_mask=mask)


def gradients_of(model, loss, *inputs):
    found = torch.autograd.grad(loss, [*inputs, *model.parameters()])
    return found[: len(inputs)], found[len(inputs) :]


@pytest.mark.parametrize("fill", [0.5, torch.nan, torch.inf, 1e30])
def test_padded_batch_equals_videos_one_by_one(cmran, setting, videos, labels, assert_close, fill):
    """Logits, scores, decisions, the loss and all gradients are those of the single videos; labels are padded too."""
    mask = padding_mask(LENGTHS, max_length=7)
    video, audio = (pad(features, fill).requires_grad_() for features in zip(*videos, strict=True))
    batch = cmran(video, audio, padding_mask=mask)
    alone = [cmran(*inputs) for inputs in videos]
    assert all(logits.isfinite().all() for logits in batch)
    assert_close(batch.event[~mask], torch.cat([one.event[0] for one in alone]))
    assert_close(batch.category, torch.cat([one.category for one in alone]))
    scores = video_scores(batch, padding_mask=mask)
    assert_close(scores, torch.cat([video_scores(one) for one in alone]))
    decided = decide(batch, background=5).labels
    assert torch.equal(decided[~mask], torch.cat([decide(one, background=5).labels[0] for one in alone]))

    loss = loss_of(setting, batch, pad(labels, torch.nan if fill != 0.5 else 1.0), mask)
    # The mean over videos, except of the event term, which is the mean over valid segments.
    expected = torch.stack([loss_of(setting, one, label) for one, label in zip(alone, labels, strict=True)]).mean()
    if setting == "supervised":
        events = [
            torch.nn.functional.binary_cross_entropy_with_logits(one.event, label[..., :-1].amax(-1))
            for one, label in zip(alone, labels, strict=True)
        ]
        weighted = sum(event * length for event, length in zip(events, LENGTHS, strict=True)) / sum(LENGTHS)
        expected = expected - torch.stack(events).mean() + weighted
    assert_close(loss, expected)
    input_gradients, gradients = gradients_of(cmran, loss, video, audio)
    assert_close(gradients, torch.autograd.grad(expected, list(cmran.parameters())))
    for gradient in input_gradients:
        assert gradient.isfinite().all()
        assert not gradient[mask].any()
        assert gradient[~mask].any()


def test_mask_without_padding_equals_no_mask(cmran, setting, draw, assert_close):
    """Logits and losses are those without a mask."""
    inputs = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 5, 5], [5, 5, 3, 3, 3]]), 6).double()
    mask = torch.zeros(2, 5, dtype=torch.bool)
    plain, masked = cmran(*inputs), cmran(*inputs, padding_mask=mask)
    assert_close(masked, plain)
    assert_close(loss_of(setting, masked, labels, mask), loss_of(setting, plain, labels))


def test_fully_padded_video_is_finite(cmran, setting, draw):
    """A video that is all NaN padding has finite results and gradients, and does not change the other video."""
    video, audio = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    expected = cmran(video[:1], audio[:1])
    video[1], audio[1] = torch.nan, torch.nan
    mask = padding_mask([5, 0], max_length=5)
    batch = cmran(video.requires_grad_(), audio.requires_grad_(), padding_mask=mask)
    torch.testing.assert_close(batch.event[:1], expected.event)
    torch.testing.assert_close(batch.category[:1], expected.category)
    assert all(logits.isfinite().all() for logits in batch)
    assert video_scores(batch, padding_mask=mask).isfinite().all()
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 5, 5]] * 2), 6).double()
    means = labels.mean(1)
    losses = {"supervised": (supervised_loss, labels), "weak": (weak_loss, means)}
    function, target = losses[setting]
    loss = function(batch, target, padding_mask=mask)
    assert loss.isfinite()
    input_gradients, gradients = gradients_of(cmran, loss, video, audio)
    assert all(gradient.isfinite().all() for gradient in (*input_gradients, *gradients))


def test_batch_of_nothing_but_padding_is_finite(cmran, setting, draw):
    """The event loss then has no terms: it is zero, not NaN."""
    mask = torch.ones(2, 5, dtype=torch.bool)
    batch = cmran(draw(2, 5, 3, 2, 11) * torch.nan, draw(2, 5, 7), padding_mask=mask)
    loss = loss_of("supervised", batch, torch.ones(2, 5, 6 + (setting == "weak"), dtype=torch.float64), mask)
    assert loss.isfinite()
    _, gradients = gradients_of(cmran, loss)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_segments_are_seen_by_one_another(cmran, draw):
    """Without a mask, the last segment changes the logit of the first, so the masks above do hide something."""
    video, audio = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    before = cmran(video, audio).event[:, 0]
    video[:, -1] += 1
    assert (cmran(video, audio).event[:, 0] - before).abs().min() > 1e-6


def test_every_parameter_has_a_gradient(cmran, setting, draw):
    """Also with padding, in both settings; so DDP needs no find_unused_parameters."""
    mask = padding_mask([5, 2])
    batch = cmran(draw(2, 5, 3, 2, 11), draw(2, 5, 7), padding_mask=mask)
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 5, 5]] * 2), 6).double()
    loss_of(setting, batch, labels, mask).backward()
    assert all(parameter.grad is not None for parameter in cmran.parameters())
