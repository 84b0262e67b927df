"""Find the events in videos from their features.

Axes: N videos, B of them in a batch, T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ave import checking_input
from ave.data.batches import Batch, Loader, Part, Shares, Videos
from ave.data.dataset import AVE_CATEGORIES, AVEData, Split
from ave.data.npz import read_npz
from ave.data.opening import read_features
from ave.devices import Precision, make_accelerator
from ave.networks import load_network
from ave.networks.localizer import Decision, Localizer
from ave.networks.registry import describe_network
from ave.printing import printable
from ave.results.figures import choose_videos, draw_timelines, name_video, save_figures
from ave.results.files import check_output, clearing, new_output, write_csv, write_json
from ave.results.tables import format_table

__all__ = ["Event", "PredictConfig", "Prediction", "find_events", "main", "predict", "read_batches"]

COLUMNS = ("video", "row", "start_s", "end_s", "category", "score")
SHOWN_VIDEOS = SHOWN_CATEGORIES = 12


@dataclass(frozen=True)
class PredictConfig:
    """Find the events in videos, from their features, with a trained network.

    The features are in a directory: the AVE release, your own dataset in that layout, or the output of `prepare`. Only
    the visual and audio features are needed. Or they are in an .npz file with the arrays `visual` (videos, seconds,
    height, width, channels) or (videos, seconds, channels), and `audio` (videos, seconds, channels). For a single
    video, leave out the first axis. An .npz file may also have `names`, which is text, and the lengths of padded videos
    in seconds as `lengths`.

    The command writes events.csv and events.json: for each event the video, its row in the features, the start and end
    in seconds, the category and the score. The score, in [0, 1], is the probability of an event times the probability
    of the category, averaged over the seconds of the event. timelines.png shows some videos of different categories.
    """

    data: Path
    """directory or .npz file of features, see above (--features is the same)"""
    checkpoint: str | None = None
    """directory of a run, of one seed, or of save_pretrained; or hf:owner/name from the Hugging Face Hub"""
    official: Path | None = None
    """checkpoint of the authors' code, .pth.tar, instead of --checkpoint"""
    split: Split | None = None
    """use only this split of a directory; if omitted: all videos"""
    device: str = "auto"
    """auto (the best available device), cpu, cuda, cuda:1, mps ..."""
    precision: Precision = "fp32"
    """mixed precision of the forward pass; fp16 needs a GPU"""
    output: Path | None = None
    """new directory for the results; if omitted: runs/<date and time>-predict"""


def main(config: PredictConfig, *, draw: bool = True) -> list[dict[str, Any]]:
    """Find the events, write them to files, and return them, one dict for each event.

    Args:
        config: the settings.
        draw: whether to draw the timelines.

    Raises:
        InputError: if a setting or a file is wrong. This is checked before any work.
        FloatingPointError: if the scores are not finite.
    """
    with checking_input():
        model = load_network(config.checkpoint, config.official, AVE_CATEGORIES)
        accelerator = make_accelerator(config.device, config.precision)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"predict must run in one process, got {accelerator.num_processes}: start it without a launcher"
            )
        output = new_output(config.output, "predict")
        check_output(output)
        data = read_features(config.data) if config.data.is_dir() else read_npz(config.data)
        if config.split is not None and config.split not in data.splits:
            raise ValueError(f"--split {config.split} needs {config.split}_order, got {config.data} without it")
        rows = torch.arange(len(data.audio)) if config.split is None else data.splits[config.split]
        check_features(data, rows, model)
    split = "" if config.split is None else f", {config.split} split"
    title = f"{describe_network(model)}, on {printable(config.data)}{split}"
    categories = model.categories or tuple(f"category {index}" for index in range(model.num_categories))
    with clearing(output):
        network = accelerator.prepare_model(model, evaluation_mode=True)
        batches = read_batches(data, rows, accelerator.device, "predicting")
        predictions = predict(network, batches)
        events = [
            {
                "video": str(row) if data.names is None else data.names[row],
                "row": row,  # two videos may have the same name
                "start_s": event.start,
                "end_s": event.end,
                "category": categories[event.category],
                "score": round(event.score, 4),
            }
            for row, prediction in zip(rows.tolist(), predictions, strict=True)
            for event in prediction.events
        ]
        write_csv(output / "events.csv", events, COLUMNS)
        source = {"network": config.checkpoint or str(config.official), "features": str(config.data)}
        write_json(output / "events.json", {**source, "videos": len(rows), "events": events})
        if draw:
            labels = [prediction.labels for prediction in predictions]
            chosen = choose_videos(labels, model.num_categories, SHOWN_VIDEOS)
            shown = [predictions[video] for video in chosen]
            figure = draw_timelines(
                [prediction.labels for prediction in shown],
                [prediction.event_score for prediction in shown],
                categories,
                title if len(shown) == len(rows) else f"{title}: {len(shown)} of {len(rows)} videos",
                names=[name_video(data.names, row) for row in rows[chosen].tolist()],
            )
            save_figures(output, {"timelines.png": figure})
    print(_table(title, predictions, categories))
    print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return events


class Event(NamedTuple):
    """One event of a video."""

    start: int
    """The first second of the event."""
    end: int
    """The end in seconds, exclusive: the event lasts ``end - start`` seconds."""
    category: int
    score: float
    """In [0, 1]: the probability of an event times the probability of its category, averaged over its seconds."""


class Prediction(NamedTuple):
    """The decisions for one video of T seconds, on the CPU."""

    labels: Tensor
    """int64 (T,): the label of each second; background is the last label."""
    event_score: Tensor
    """float32 (T,), in [0, 1]"""
    events: list[Event]


def find_events(decision: Decision, *, background: int = 28, padding_mask: Tensor | None = None) -> list[list[Event]]:
    """Return the runs of consecutive seconds that have the same category.

    Args:
        decision: the decision for B videos.
        background: the label of background, which is the number of categories.
        padding_mask: bool (B, T), True = padding. There are no events in padding.

    Returns:
        list: for each of the B videos, its events in the order of time.

    Examples:
        >>> score = torch.tensor([[0.2, 0.9, 0.7, 0.1, 0.8]])
        >>> decision = Decision(torch.tensor([[3, 1, 1, 3, 1]]), score, torch.full((1, 5), 0.5))
        >>> for event in find_events(decision, background=3)[0]:
        ...     print(event.start, event.end, event.category, round(event.score, 2))
        1 3 1 0.4
        4 5 1 0.4
    """
    labels = decision.labels if padding_mask is None else decision.labels.masked_fill(padding_mask, background)
    score = decision.event_score * decision.category_score
    # A run begins where the label differs from the previous one, and ends where it differs from the next one.
    differs = F.pad(labels, (1, 1), value=background).diff(dim=1) != 0
    starts = (differs[:, :-1] & (labels != background)).nonzero().tolist()
    ends = (differs[:, 1:] & (labels != background)).nonzero().tolist()
    events: list[list[Event]] = [[] for _ in range(len(labels))]
    for (video, start), (_, last) in zip(starts, ends, strict=True):
        category = int(labels[video, start])
        events[video].append(Event(start, last + 1, category, float(score[video, start : last + 1].mean())))
    return events


@torch.no_grad()
def predict(model: Localizer, batches: Iterable[Batch]) -> list[Prediction]:
    """Run a network over videos, and return their predictions in order.

    Args:
        model: a network in evaluation mode.
        batches: the videos, on the device of the network.

    Raises:
        FloatingPointError: if the logits are not finite.
    """
    predictions: list[Prediction] = []
    for batch in batches:
        logits = model(batch.video, batch.audio, padding_mask=batch.padding_mask)
        if not all(part.isfinite().all() for part in model.name_logits(logits).values()):
            raise FloatingPointError("the scores are not finite: try --precision fp32")
        decision = Decision(*(part.cpu() for part in model.decide(logits)))
        mask = None if batch.padding_mask is None else batch.padding_mask.cpu()
        events = find_events(decision, background=model.num_categories, padding_mask=mask)
        lengths = [batch.audio.shape[1]] * len(events) if mask is None else (~mask).sum(1).tolist()
        for labels, scores, found, length in zip(decision.labels, decision.event_score, events, lengths, strict=True):
            predictions.append(Prediction(labels[:length], scores[:length], found))
    return predictions


def read_batches(data: AVEData, rows: Tensor, device: torch.device, description: str) -> Iterator[Batch]:
    """Yield batches of the given rows of a dataset, in order. A progress bar is shown on a terminal."""
    videos = Videos(Part(data.visual, data.audio, data.labels, rows, data.lengths))
    batches = Loader(videos, Shares(len(videos)), device)
    with tqdm(total=len(rows), desc=description, unit="video", disable=None, leave=False, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.audio))


def check_features(data: AVEData, rows: Tensor, model: Localizer) -> None:
    """Reject features that do not fit a network, or are not finite, before any prediction. Reads all of them once.

    Raises:
        ValueError: if the number of channels differs from the network's, or a value is not finite.
    """
    for name, array, width in (("visual", data.visual, model.video_dim), ("audio", data.audio, model.audio_dim)):
        if array.shape[-1] != width:
            came = f"got {array.shape[-1]}"
            if array.shape[2] == width:
                came += f", shape {tuple(array.shape)}: move the channels to the last axis"
            raise ValueError(f"{name} features must have {width} channels, as what the network was trained on, {came}")
    done = 0
    for batch in read_batches(data, rows, torch.device("cpu"), "checking"):
        for name, features in (("visual", batch.video), ("audio", batch.audio)):
            wrong = ~features.flatten(2).isfinite().all(2)
            if batch.padding_mask is not None:
                wrong &= ~batch.padding_mask
            if wrong.any():
                video, second = wrong.nonzero()[0].tolist()
                row = int(rows[done + video])
                raise ValueError(f"{name} features must be finite, got NaN or Inf in row {row}, second {second}")
        done += len(batch.audio)


def _table(title: str, predictions: Sequence[Prediction], categories: Sequence[str]) -> str:
    """Format a table: the number of events and their seconds, for all and for the most frequent categories."""
    found = [event for prediction in predictions for event in prediction.events]
    events, seconds = Counter(event.category for event in found), Counter[int]()
    for event in found:
        seconds[event.category] += event.end - event.start
    ranked = events.most_common()
    rows = [("all", len(found), seconds.total())]
    rows += [(categories[index], count, seconds[index]) for index, count in ranked[:SHOWN_CATEGORIES]]
    if rest := ranked[SHOWN_CATEGORIES:]:
        rows.append((f"{len(rest)} others", sum(count for _, count in rest), sum(seconds[index] for index, _ in rest)))
    silent = sum(not prediction.events for prediction in predictions)
    length = sum(len(prediction.labels) for prediction in predictions)
    whole = f"{title}; {len(predictions)} videos of {length} s in total, {silent} without an event"
    return format_table(whole, [tuple(map(str, row)) for row in rows], ("category", "events", "seconds"))
