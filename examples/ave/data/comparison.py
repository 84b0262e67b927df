"""Check that the labels of a dataset agree: labels of seconds, of videos and of background videos, and annotations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ave.data.dataset import AVE_CATEGORIES
from ave.data.layout import ANNOTATIONS
from ave.data.release import Found
from crossmodal_attn import padding_mask

__all__ = ["compare_labels"]


def compare_labels(found: Found) -> None:
    """Compare the labels of a dataset that could be read, and add differences to its problems."""
    if "labels" in found.tensors:
        labels = found.tensors["labels"]
        lengths = found.tensors.get("lengths", torch.full((len(labels),), labels.shape[1]))
        labels = labels.masked_fill(padding_mask(lengths, labels.shape[1]).unsqueeze(-1), 0)
        # For each video: which categories it has, and its single category, or -1 if it has none or several.
        shown = labels[..., :-1].amax(1)
        category = torch.where(shown.sum(-1) == 1, shown.argmax(-1), -1)
        for message in _check_labels(found, labels, shown):
            found.add("labels", message)
        for message in _check_video_labels(found, category, shown):
            found.add("mil_labels", message)
        for message in _check_annotations(found, labels, category):
            found.add(ANNOTATIONS, message)
        if unlabeled := int(lengths.sum() - labels.sum()):
            found.remarks.append(f"{unlabeled} of {int(lengths.sum())} seconds have no label, and are left out")
    if "labels_noisy" in found.tensors:
        eventful = found.tensors["labels_noisy"][:, -1] == 0
        if eventful.any():
            message = f"{found.paths['labels_noisy']} must hold only background, the last column, got other labels "
            message += f"in {_count(eventful)}"
            found.add("labels_noisy", message)


def _check_labels(found: Found, labels: Tensor, shown: Tensor) -> Iterator[str]:
    """Check that each split has labels, that background is the last column, and that each video has one category."""
    path = found.paths["labels"]
    for split, rows in found.splits.items():
        if not labels[rows].any():
            yield f"{path} must hold labels of {split}, got none for its {len(rows)} videos"
    several = shown.sum(-1) > 1
    if not several.any():
        return
    message = f"{path} must hold one category for each video, since the network predicts only one, "
    message += f"got several in {_count(several)}"
    # A column that all these videos have is probably background.
    common = shown[several].all(0).nonzero().flatten().tolist()
    if len(common) == 1 and int(several.sum()) > 1 and not labels[..., -1].any(1)[several].all():
        message += f"; all of these have column {common[0]}: if that is background, move it to the last column"
    yield message


def _check_video_labels(found: Found, category: Tensor, shown: Tensor) -> Iterator[str]:
    """Check that the label of each video is the category of its seconds, or background if it has none.

    In AVE, a video that is all background still has a category.
    """
    if "mil_labels" not in found.tensors:
        return
    said = found.tensors["mil_labels"].argmax(-1)
    background = shown.shape[-1]
    wrong = (category >= 0) & (said != category)
    if not found.is_ave:
        unshown = ~shown.any(-1) & (found.tensors["labels"][..., -1] == 1).all(-1)
        wrong |= unshown & (said != background)
    if wrong.any():
        path = found.paths["mil_labels"]
        expected = f"the category of the seconds in {found.paths['labels'].name}"
        yield f"{path} must hold {expected}, got other labels in {_count(wrong)}"


def _check_annotations(found: Found, labels: Tensor, category: Tensor) -> Iterator[str]:
    """Check that the annotations agree with the category, start and end of the event in each video."""
    if found.annotations is None or len(found.annotations) != len(labels):
        return
    expected = f"must agree with {found.paths['labels'].name}, line by line, got"
    names = found.categories or (AVE_CATEGORIES if found.is_ave else None)
    if names is not None and len(names) == labels.shape[-1] - 1:
        said = [names.index(name) if name in names else -1 for name, *_ in found.annotations]
        wrong = (category >= 0) & (torch.tensor(said) != category)
        if wrong.any():
            yield f"{ANNOTATIONS} {expected} other categories in {_count(wrong)}"
    spans = [(start, end) for *_, start, end in found.annotations]
    if not all(number.isdecimal() for span in spans for number in span):
        yield f"{ANNOTATIONS} must hold whole seconds as start and end of each event, got other values"
        return
    seconds = labels.shape[1]
    start, end = torch.tensor([[min(int(number), seconds) for number in span] for span in spans]).T.unsqueeze(-1)
    second, event = torch.arange(seconds), labels[..., :-1].any(-1)
    annotated = (second >= start) & (second < end)
    silent = annotated & ((second == start) | (second == end - 1)) & labels[..., -1].bool()
    wrong = ((event & ~annotated) | silent).any(1)
    if wrong.any():
        yield f"{ANNOTATIONS} {expected} other seconds of the event in {_count(wrong)}"


def _count(wrong: Tensor) -> str:
    """Describe how many videos are wrong, with one example."""
    rows = wrong.nonzero().flatten().tolist()
    return f"{len(rows)} of {len(wrong)} videos, for example row {rows[0]}"
