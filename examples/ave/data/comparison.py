"""Compare what a dataset says twice: labels of seconds, labels of videos, background videos and annotations."""

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
    """Add to the problems of a dataset what does not fit together in those of its labels that could be read."""
    if "labels" in found.tensors:
        labels = found.tensors["labels"]
        lengths = found.tensors.get("lengths", torch.full((len(labels),), labels.shape[1]))
        labels = labels.masked_fill(padding_mask(lengths, labels.shape[1]).unsqueeze(-1), 0)
        # By video, the foreground labels that it has, and its one category, or -1 if it has none or several.
        shown = labels[..., :-1].amax(1)
        category = torch.where(shown.sum(-1) == 1, shown.argmax(-1), -1)
        for message in _check_labels(found, labels, shown):
            found.add("labels", message)
        for message in _check_video_labels(found, category, shown):
            found.add("mil_labels", message)
        for message in _check_annotations(found, labels, category):
            found.add(ANNOTATIONS, message)
        if unlabeled := int(lengths.sum() - labels.sum()):
            found.remarks.append(f"{unlabeled} of {int(lengths.sum())} seconds have no label, and count for nothing")
    if "labels_noisy" in found.tensors:
        eventful = found.tensors["labels_noisy"][:, -1] == 0
        if eventful.any():
            message = f"{found.paths['labels_noisy']} must hold background, the last column, alone, as these videos "
            message += f"show no event, got {_count(eventful)}"
            found.add("labels_noisy", message)


def _check_labels(found: Found, labels: Tensor, shown: Tensor) -> Iterator[str]:
    """Check that every split has labels, that background is the last column, and that a video has one category."""
    path = found.paths["labels"]
    for split, rows in found.splits.items():
        if not labels[rows].any():
            yield f"{path} must hold labels of {split}, got none for its {len(rows)} videos"
    several = shown.sum(-1) > 1
    if not several.any():
        return
    message = f"{path} must hold one category a video, which is all that the network can tell, "
    message += f"got several in {_count(several)}"
    # Background is what videos of different categories have in common.
    common = shown[several].all(0).nonzero().flatten().tolist()
    if len(common) == 1 and int(several.sum()) > 1 and not labels[..., -1].any(1)[several].all():
        message += f"; all of these have column {common[0]}: if that is background, it must become the last column"
    yield message


def _check_video_labels(found: Found, category: Tensor, shown: Tensor) -> Iterator[str]:
    """Check that the label of a video is the category of its seconds, or background where there is none.

    A video of AVE that is all background has a category all the same.
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
        yield f"{path} must hold {expected}, got others in {_count(wrong)}"


def _check_annotations(found: Found, labels: Tensor, category: Tensor) -> Iterator[str]:
    """Check that the annotations name the category of each video, and the first and last second of its event."""
    if found.annotations is None or len(found.annotations) != len(labels):
        return
    expected = f"must fit {found.paths['labels'].name}, line by line, got"
    names = found.categories or (AVE_CATEGORIES if found.is_ave else None)
    if names is not None and len(names) == labels.shape[-1] - 1:
        said = [names.index(name) if name in names else -1 for name, *_ in found.annotations]
        wrong = (category >= 0) & (torch.tensor(said) != category)
        if wrong.any():
            yield f"{ANNOTATIONS} {expected} other categories in {_count(wrong)}"
    spans = [(start, end) for *_, start, end in found.annotations]
    if not all(number.isdecimal() for span in spans for number in span):
        yield f"{ANNOTATIONS} must hold whole seconds as start and end of an event, got others"
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
    """Describe how many videos are wrong, and which one, for example."""
    rows = wrong.nonzero().flatten().tolist()
    return f"{len(rows)} of {len(wrong)} videos, for example row {rows[0]}"
