"""Find the events in videos, from their features or from the video files.

Axes: N videos, B of them in a batch, T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ave import checking_input
from ave.data.batches import Batch, Loader, Part, Shares, Videos
from ave.data.dataset import AVE_CATEGORIES, AVEData, Split
from ave.data.npz import read_npz
from ave.data.opening import read_features
from ave.devices import Precision, make_accelerator
from ave.events import Prediction, find_events
from ave.networks import load_network
from ave.networks.localizer import Decision, Localizer
from ave.networks.registry import describe_network
from ave.printing import printable
from ave.results.figures import choose_videos, draw_timelines, name_video, save_figures
from ave.results.files import check_output, clearing, new_output, write_csv, write_json
from ave.results.tables import format_table
from ave.videos.prediction import compare_features, open_videos

__all__ = ["PredictConfig", "main", "predict", "read_batches"]

COLUMNS = ("video", "row", "start_s", "end_s", "category", "score")
SHOWN_VIDEOS = SHOWN_CATEGORIES = 12
LONGEST_PLACE = 60


@dataclass(frozen=True)
class PredictConfig:
    """Find the events in videos with a trained network, from the video files or from their features.

    With `--videos`, the features are extracted as for the training of the network, second by second, with frames chosen
    by time. Videos longer than `--window` are cut into windows that overlap by half. Besides the files below, the
    command writes the events of each video to `videos/`, as subtitles (SRT and WebVTT) and as a label track for
    Audacity. This needs the extra `video`.

    With `--data`, the features are in a directory: the AVE release, your own dataset in that layout, or the output of
    `prepare` or `extract`. Only the visual and audio features are needed. Instead, the features can be in an .npz file
    with the arrays `visual` (videos, seconds, height, width, channels) or (videos, seconds, channels), and `audio`
    (videos, seconds, channels). For a single video, leave out the first axis. An .npz file may also have `names`, which
    is text, and the lengths of padded videos in seconds as `lengths`.

    The command writes events.csv and events.json: for each event the video, its row, the start and end in seconds, the
    category and the score. The score, in [0, 1], is the probability of an event times the probability of the category,
    averaged over the seconds of the event. timelines.png shows some videos of different categories.
    """

    data: Path | None = None
    """directory or .npz file of features, see above (--features is the same)"""
    videos: tuple[Path, ...] = ()
    """video files, or directories of them, instead of --data"""
    checkpoint: str | None = None
    """directory of a run, of one seed, or of save_pretrained; or hf:owner/name from the Hugging Face Hub"""
    official: Path | None = None
    """checkpoint of the authors' code, .pth.tar, instead of --checkpoint"""
    split: Split | None = None
    """use only this split of a directory; if omitted: all videos"""
    visual: str | None = None
    """network for the frames of --videos, as for `extract`; if omitted: that of the training"""
    visual_weights: Path | None = None
    """file with the weights of the network for the frames, if it needs one"""
    audio: str | None = None
    """network for the sound of --videos, as for `extract`; if omitted: that of the training"""
    audio_weights: Path | None = None
    """file with the weights of the network for the sound, if it needs one"""
    frames_per_second: int | None = None
    """frames of --videos to average in each second; if omitted: as in the training"""
    window: int | None = None
    """length of the windows in seconds, 0 for whole videos; if omitted: the longest video of the training, or 10"""
    annotate: bool = False
    """also write each of the --videos with heat map, timeline and sound as mp4, and a contact sheet as PNG"""
    device: str = "auto"
    """device: auto (the best available), cpu, cuda, cuda:1, mps or another device of torch"""
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
        KeyboardInterrupt: if a signal stops the command. The results of finished --videos are written first.
        OSError: if a file cannot be written, or some of the videos failed. The results of the others are written first.
    """
    with checking_input():
        check_options(config)
        model = load_network(config.checkpoint, config.official, AVE_CATEGORIES)
        accelerator = make_accelerator(config.device, config.precision)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"predict must run in one process, got {accelerator.num_processes}: start it without a launcher"
            )
        output = new_output(config.output, "predict")
        check_output(output)
        source = {"network": config.checkpoint or str(config.official)}
        if config.data is not None:
            data, rows = open_features(config.data, config.split, model)
            names, place, files = data.names, printable(config.data), None
            source["features"] = str(config.data)
        else:
            files = open_videos(
                config.videos,
                model,
                accelerator,
                visual=config.visual,
                visual_weights=config.visual_weights,
                audio=config.audio,
                audio_weights=config.audio_weights,
                frames_per_second=config.frames_per_second,
                window=config.window,
                annotate=config.annotate,
            )
            names, place = tuple(files.paths), printable(config.videos[0], LONGEST_PLACE)
            place += f" and {len(config.videos) - 1} more" if len(config.videos) > 1 else ""
            source |= files.facts
    split = "" if config.split is None else f", {config.split} split"
    title = f"{describe_network(model)}, on {place}{split}"
    categories = model.categories or tuple(f"category {index}" for index in range(model.num_categories))
    with clearing(output):
        network = accelerator.prepare_model(model, evaluation_mode=True)
        if files is None:
            predictions = predict(network, read_batches(data, rows, accelerator.device, "predicting"))
        else:
            found = files.predict(network, categories, output)
            rows, predictions = torch.tensor(list(found), dtype=torch.int64), list(found.values())
        events = [
            {
                "video": str(row) if names is None else names[row],
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
        notes = {} if files is None else {"failed": files.failed, "remarks": files.remarks}
        write_json(output / "events.json", {**source, "videos": len(rows), **notes, "events": events})
        if draw and (files is None or files.stopped is None):
            labels = [prediction.labels for prediction in predictions]
            chosen = choose_videos(labels, model.num_categories, SHOWN_VIDEOS)
            shown = [predictions[video] for video in chosen]
            figure = draw_timelines(
                [prediction.labels for prediction in shown],
                [prediction.event_score for prediction in shown],
                categories,
                title if len(shown) == len(rows) else f"{title}: {len(shown)} of {len(rows)} videos",
                names=[name_video(names, row) for row in rows[chosen].tolist()],
            )
            save_figures(output, {"timelines.png": figure})
    print(_table(title, predictions, categories))
    print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if files is not None and files.stopped is not None:
        kept = f"{output} has the events of {len(rows)} of {len(files.paths)} videos"
        raise type(files.stopped)(f"stopped; {kept}") from files.stopped
    if files is not None and files.failed:
        raise OSError(f"{len(files.failed)} of {len(files.paths)} videos failed: see above")
    return events


def check_options(config: PredictConfig) -> None:
    """Reject options that exclude each other.

    Raises:
        ValueError: if not exactly one of --data and --videos is given, or an option does not belong to the one that is
            given.
    """
    if (config.data is None) == (not config.videos):
        given = ", ".join(map(str, config.videos)) or None
        raise ValueError(f"one of --data and --videos must be given, got {config.data} and {given}")
    if config.data is None:
        if config.split is not None:
            raise ValueError(f"--split must be given with --data, got {config.split} with --videos")
        return
    for name in ("visual", "visual_weights", "audio", "audio_weights", "frames_per_second", "window", "annotate"):
        if (value := getattr(config, name)) is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')} must be given with --videos, got {value} with --data")


def open_features(path: Path, split: Split | None, model: Localizer) -> tuple[AVEData, Tensor]:
    """Open a directory or an .npz file of features for a network, and return them with the rows to predict.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if the features are damaged, or do not fit the network, or there is no such split.
    """
    data = read_features(path) if path.is_dir() else read_npz(path)
    if split is not None and split not in data.splits:
        raise ValueError(f"--split {split} needs {split}_order, got {path} without it")
    rows = torch.arange(len(data.audio)) if split is None else data.splits[split]
    check_features(data, rows, model)
    return data, rows


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
        ValueError: if other networks made the features, the number of channels differs from the network's, or a value
            is not finite.
    """
    if data.extraction and (difference := compare_features(model, data.extraction)):
        raise ValueError(f"--data must have features like those of the training, got {difference}")
    for name, array, width in (("visual", data.visual, model.video_dim), ("audio", data.audio, model.audio_dim)):
        if array.shape[-1] != width:
            came = f"got {array.shape[-1]}"
            if array.shape[2] == width:
                came += f", shape {tuple(array.shape)}: move the channels to the last axis"
            raise ValueError(f"{name} features must have {width} channels, like those of the training, {came}")
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
    videos = "1 video" if len(predictions) == 1 else f"{len(predictions)} videos"
    whole = f"{title}; {videos} of {length} s in total, {silent} without an event"
    return format_table(whole, [tuple(map(str, row)) for row in rows], ("category", "events", "seconds"))
