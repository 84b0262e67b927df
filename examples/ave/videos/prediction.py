"""Find the events in a video while its features are extracted: only the features of a window are held.

Axes: T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ave.events import Prediction, cut_windows, find_events, join_windows
from ave.networks.localizer import Decision, Localizer
from crossmodal_attn import AGSCA, record_attention

__all__ = ["VideoPrediction", "predict_seconds"]


class VideoPrediction(NamedTuple):
    """The decisions for a video of T seconds, on the CPU, and where the network looked."""

    prediction: Prediction
    attention: Tensor | None
    """The spatial attention of AGSCA, float32 (T, H, W), or None: not recorded, or the network has none."""


@torch.no_grad()
def predict_seconds(
    model: Localizer,
    seconds: Iterable[tuple[Tensor, Tensor]],
    *,
    window: int,
    device: torch.device | str = "cpu",
    record: bool = False,
) -> VideoPrediction:
    """Find the events in a stream of seconds.

    Args:
        model: a network in evaluation mode.
        seconds: the visual features (H, W, C) and the audio features (A,) of each second.
        window: the length in seconds of the windows into which a longer video is cut; 0: no windows.
        device: the device of the network.
        record: whether to record spatial attention. A map with a single position is left out.

    Raises:
        FloatingPointError: if the logits are not finite.
        ValueError: if there is no second, or its features do not fit the network.
    """
    starts: list[int] = []
    decisions: list[Decision] = []
    maps: list[Tensor] = []
    covered = 0
    record = record and any(isinstance(layer, AGSCA) for layer in model.modules())
    with record_attention(model) if record else nullcontext(dict[str, Tensor]()) as recorded:
        for start, held in cut_windows(seconds, window):
            video, audio = (torch.stack(features).to(device)[None] for features in zip(*held, strict=True))
            logits = model(video, audio)
            if not all(part.isfinite().all() for part in model.name_logits(logits).values()):
                raise FloatingPointError("the scores are not finite: try --precision fp32")
            starts.append(start)
            decisions.append(Decision(*(part.cpu() for part in model.decide(logits))))
            found = next((weights for path, weights in recorded.items() if path.endswith("spatial_map")), None)
            if found is not None and found[0, 0].numel() > 1:
                maps.append(found[0, covered - start :].float().cpu())  # the seconds that no earlier window had
            covered = start + len(held)
    joined = join_windows(starts, decisions, background=model.num_categories)
    (events,) = find_events(joined, background=model.num_categories)
    prediction = Prediction(joined.labels[0], joined.event_score[0].float(), events)
    return VideoPrediction(prediction, torch.cat(maps) if maps else None)
