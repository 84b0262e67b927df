"""Find the events in videos from their features.

Axes: N videos, B of them in a batch, T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ave import checking_input
from ave.data.dataset import AVE_CATEGORIES, Rows, Split
from ave.data.prepared import read_features
from ave.devices import Precision, make_accelerator
from ave.networks import load_network
from ave.networks.cmran import CMRAN, Localization, localize
from ave.printing import printable
from ave.reading import check_regular, expecting
from ave.results.figures import choose_videos, draw_timelines, name_video, save_figures
from ave.results.files import check_output, clearing, new_output, write_csv, write_json
from ave.results.tables import format_table
from crossmodal_attn import padding_mask

__all__ = ["Event", "FeatureBatch", "PredictConfig", "Prediction", "UnlabeledVideos", "find_events", "main", "predict"]

ARRAYS = ("visual", "audio", "names", "lengths")
COLUMNS = ("video", "row", "start_s", "end_s", "category", "score")
SHOWN_VIDEOS = SHOWN_CATEGORIES = 12
BATCH = 16
"""Videos in memory at a time; the results do not depend on it."""
MEMORY_SHARE = 0.6
"""The share of the free memory that the arrays of an .npz may take."""


@dataclass(frozen=True)
class PredictConfig:
    """Find the events in videos, from their features, with a trained CMRAN.

    The features are a directory of the AVE release, of an own set in its form, or made by `prepare`, of which only the
    features of both senses are needed; or an .npz with the arrays `visual` (videos, seconds, height, width, channels)
    or (videos, seconds, channels), and `audio` (videos, seconds, channels); for one video the first axis may be left
    out. An .npz may also hold `names`, text, and `lengths`, the seconds of each video if shorter ones are padded.

    It writes events.csv and events.json: for every event the video, its row in the features, the seconds at which it
    begins and ends, its category and its score. The score, in [0, 1], is the mean over the event's seconds of the
    probability of an event, times the probability of the category. timelines.png shows some videos of
    different categories.
    """

    data: Path
    """directory, or .npz; see above (--features is the same)"""
    checkpoint: str | None = None
    """directory of a training, of one of its seeds, or of save_pretrained; or hf:owner/name on the Hugging Face Hub"""
    official: Path | None = None
    """checkpoint of the authors' code, .pth.tar, in place of --checkpoint"""
    split: Split | None = None
    """only these videos of a directory; without it, all"""
    device: str = "auto"
    """auto (the best there is), cpu, cuda, cuda:1, mps ..."""
    precision: Precision = "fp32"
    """mixed precision of the forward pass; fp16 needs a GPU"""
    output: Path | None = None
    """new directory for the results; without it runs/<date and time>-predict"""


def main(config: PredictConfig, *, draw: bool = True) -> list[dict[str, Any]]:
    """Find the events, write them, and return them as they are written.

    Args:
        config: the settings.
        draw: whether to draw the timelines.

    Raises:
        InputError: if a setting or a file is wrong, which is found before any work.
        FloatingPointError: if the scores are not finite.
    """
    with checking_input():
        model = load_network(config.checkpoint, config.official, AVE_CATEGORIES)
        accelerator = make_accelerator(config.device, config.precision)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"one process must predict alone, got {accelerator.num_processes}: start it without a launcher"
            )
        output = new_output(config.output, "predict")
        check_output(output)
        videos = UnlabeledVideos.read(config.data, config.split)
        videos.check_fit(model)
    split = "" if config.split is None else f", {config.split} split"
    title = f"CMRAN, {model.setting}, on {printable(config.data)}{split}"
    categories = model.categories or tuple(f"category {index}" for index in range(model.num_categories))
    with clearing(output):
        network = accelerator.prepare_model(model, evaluation_mode=True)
        predictions = predict(network, videos.batches("predicting"), model.num_categories, accelerator.device)
        events = [
            {
                "video": videos.name(row),
                "row": row,  # two videos may have one name
                "start_s": event.start,
                "end_s": event.end,
                "category": categories[event.category],
                "score": round(event.score, 4),
            }
            for row, prediction in zip(videos.rows.tolist(), predictions, strict=True)
            for event in prediction.events
        ]
        write_csv(output / "events.csv", events, COLUMNS)
        source = {"network": config.checkpoint or str(config.official), "features": str(config.data)}
        write_json(output / "events.json", {**source, "videos": len(videos), "events": events})
        if draw:
            labels = [prediction.labels for prediction in predictions]
            chosen = choose_videos(labels, model.num_categories, SHOWN_VIDEOS)
            shown = [predictions[video] for video in chosen]
            figure = draw_timelines(
                [prediction.labels for prediction in shown],
                [prediction.event_score for prediction in shown],
                categories,
                title if len(shown) == len(videos) else f"{title}: {len(shown)} of {len(videos)} videos",
                names=[name_video(videos.names, row) for row in videos.rows[chosen].tolist()],
            )
            save_figures(output, {"timelines.png": figure})
    print(_table(title, predictions, categories))
    print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return events


class Event(NamedTuple):
    """One event of a video."""

    start: int
    """The second at which it begins."""
    end: int
    """The second at which it ends; it lasts ``end - start`` seconds."""
    category: int
    score: float
    """In [0, 1]: the mean over its seconds of the event's probability, times the probability of its category."""


class Prediction(NamedTuple):
    """The decisions for one video of T seconds, on the CPU."""

    labels: Tensor
    """int64 (T,), background last: the label of every second."""
    event_score: Tensor
    """float32 (T,), in [0, 1]"""
    events: list[Event]


def find_events(
    localization: Localization, *, background: int = 28, padding_mask: Tensor | None = None
) -> list[list[Event]]:
    """Return the runs of consecutive seconds that are not background; all events of a video have its best category.

    If background is the best category, as it can be in the weak setting, there is no event.

    Args:
        localization: the logits of either setting.
        background: the index of background, which is the number of categories.
        padding_mask: bool (B, T), True = padding, in which there are no events.

    Returns:
        list: for each of the B videos its events, the earliest first.

    Examples:
        >>> event_logits = torch.tensor([[-5.0, 5.0, 5.0, -5.0, 5.0]])
        >>> category_logits = torch.tensor([[0.0, 9.0, 0.0]])
        >>> events = find_events(Localization(event_logits, category_logits), background=3)
        >>> [(event.start, event.end, event.category, round(event.score, 2)) for event in events[0]]
        [(1, 3, 1, 0.99), (4, 5, 1, 0.99)]
    """
    eventful = localize(localization, background=background) != background
    if padding_mask is not None:
        eventful &= ~padding_mask
    event_score = localization.event_logits.float().sigmoid()
    probability, category = localization.category_logits.float().softmax(-1).max(-1)
    # A run begins where a second differs from the one before, and ends where it differs from the one after.
    steps = F.pad(eventful.int(), (1, 1)).diff(dim=1)
    events: list[list[Event]] = [[] for _ in range(len(eventful))]
    starts, ends = (steps == 1).nonzero().tolist(), (steps == -1).nonzero().tolist()
    for (video, start), (_, end) in zip(starts, ends, strict=True):
        score = event_score[video, start:end].mean() * probability[video]
        events[video].append(Event(start, end, int(category[video]), float(score)))
    return events


class FeatureBatch(NamedTuple):
    """Features of B videos, in float32 on the CPU."""

    visual: Tensor
    """(B, T, H, W, C)"""
    audio: Tensor
    """(B, T, A)"""
    lengths: list[int]
    """The seconds of each video."""
    padding_mask: Tensor | None
    """bool (B, T), True = padding; None if there is none."""


@torch.no_grad()
def predict(
    model: Callable[..., Localization], batches: Iterable[FeatureBatch], background: int, device: torch.device
) -> list[Prediction]:
    """Run a network over videos, and return their predictions in order.

    Args:
        model: a CMRAN in evaluation mode, on ``device``.
        batches: of the videos.
        background: the index of background, which is the number of categories.
        device: where to compute.

    Raises:
        FloatingPointError: if the logits are not finite.
    """
    predictions: list[Prediction] = []
    for batch in batches:
        mask = None if batch.padding_mask is None else batch.padding_mask.to(device)
        localization = model(batch.visual.to(device), batch.audio.to(device), padding_mask=mask)
        localization = Localization(*(logits.float().cpu() for logits in localization))
        if not all(logits.isfinite().all() for logits in localization):
            raise FloatingPointError("the scores are not finite: try --precision fp32")
        labels = localize(localization, background=background)
        scores = localization.event_logits.sigmoid()
        events = find_events(localization, background=background, padding_mask=batch.padding_mask)
        for video, length in enumerate(batch.lengths):
            predictions.append(Prediction(labels[video, :length], scores[video, :length], events[video]))
    return predictions


@dataclass(frozen=True)
class UnlabeledVideos:
    """Features of videos, some rows of which are wanted."""

    visual: Rows
    """(N, T, H, W, C)"""
    audio: Rows
    """(N, T, A)"""
    rows: Tensor
    """int64, which of the N videos."""
    names: tuple[str, ...] | None = None
    """Of all N, if they are known; two videos may have the same."""
    lengths: Tensor | None = None
    """int64 (N,), the seconds of every video, if what follows is padding."""

    def __post_init__(self) -> None:
        visual, audio = tuple(self.visual.shape), tuple(self.audio.shape)
        for name, shape, axes in (
            ("visual", visual, "(videos, seconds, height, width, channels)"),
            ("audio", audio, "(videos, seconds, channels)"),
        ):
            if len(shape) != axes.count(",") + 1 or 0 in shape:
                raise ValueError(f"{name} features must have shape {axes}, none of them empty, got {shape}")
        if visual[:2] != audio[:2]:
            raise ValueError(
                f"visual and audio features must be of the same videos and seconds, got shapes {visual} and {audio}"
            )
        videos, seconds = audio[:2]
        if self.names is not None and len(self.names) != videos:
            raise ValueError(f"names must be as many as the {videos} videos, got {len(self.names)}")
        if self.lengths is not None and (
            self.lengths.shape != (videos,) or self.lengths.min() < 1 or self.lengths.max() > seconds
        ):
            raise ValueError(f"lengths must be {videos} numbers from 1 to {seconds}, got {self.lengths.tolist()}")

    @classmethod
    def read(cls, path: Path, split: Split | None = None) -> UnlabeledVideos:
        """Open the features of a directory, which stay in their files, or read an .npz.

        Args:
            path: as :class:`PredictConfig` describes it.
            split: only these videos of a directory.

        Raises:
            ValueError: if a file is damaged, or lacks what is needed.
            OSError: if a file cannot be read.
        """
        if not path.is_dir():
            if split is not None:
                raise ValueError(f"--split must be left out for what is not a directory, got {split} and {path}")
            return _read_npz(path)
        found = read_features(path)
        visual, audio = found.arrays["visual_feature"], found.arrays["audio_feature"]
        rows = torch.arange(len(audio))
        if split is not None:
            if split not in found.splits():
                raise ValueError(f"--split {split} needs the order files of the release, got {path} without them")
            rows = found.splits()[split]
        return cls(visual, audio, rows, found.names, found.tensors.get("lengths"))

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Return the name of a video, or its row if it has none."""
        return str(row) if self.names is None else self.names[row]

    def batches(self, description: str) -> Iterator[FeatureBatch]:
        """Yield the videos in order, with a progress bar on a terminal."""
        with tqdm(
            total=len(self), desc=description, unit="video", disable=None, leave=False, dynamic_ncols=True
        ) as progress:
            for rows in self.rows.split(BATCH):
                visual, audio = (array[rows.tolist()].float() for array in (self.visual, self.audio))
                lengths = torch.full((len(rows),), audio.shape[1]) if self.lengths is None else self.lengths[rows]
                mask = None if self.lengths is None else padding_mask(lengths, audio.shape[1])
                yield FeatureBatch(visual, audio, lengths.tolist(), mask)
                progress.update(len(rows))

    def check_fit(self, model: CMRAN) -> None:
        """Refuse features that the network cannot take, before anything is computed; this reads them all once.

        Raises:
            ValueError: if their widths differ from the network's, or one is not finite.
        """
        for name, array, width in (("visual", self.visual, model.video_dim), ("audio", self.audio, model.audio_dim)):
            if array.shape[-1] != width:
                first = array.shape[2] == width
                hint = f", shape {tuple(array.shape)}: move channels from the first axis of maps to the last"
                raise ValueError(
                    f"{name} features must have {width} channels, as what the network was trained on, "
                    f"got {array.shape[-1]}{hint if first else ''}"
                )
        done = 0
        for batch in self.batches("checking"):
            for name, features in (("visual", batch.visual), ("audio", batch.audio)):
                fit = features.flatten(2).isfinite().all(2)
                if batch.padding_mask is not None:
                    fit |= batch.padding_mask
                if not fit.all():
                    video, second = (~fit).nonzero()[0].tolist()
                    row = int(self.rows[done + video])
                    raise ValueError(f"{name} features must be finite, got others in row {row}, second {second}")
            done += len(batch.lengths)


def _read_npz(path: Path) -> UnlabeledVideos:
    if not path.exists():
        raise FileNotFoundError(f"--data must be a directory or an .npz, got {path}, which is not there")
    check_regular(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--data must be a directory or an .npz, got {path}, which is neither, or is cut off")
    with expecting(f"{path} must be an undamaged .npz without Python objects"):
        needed = sum(_array_bytes(path, name) for name in ARRAYS)
    if needed > (free := MEMORY_SHARE * psutil.virtual_memory().available):
        came = (
            f"{needed / 1e9:.1f} GB, of which {free / 1e9:.1f} GB may be used: give a directory, which is read by rows"
        )
        raise ValueError(f"{path} must fit into memory, got {came}")
    with expecting(f"{path} must be an undamaged .npz without Python objects"), np.load(path) as file:
        arrays = {name: np.asarray(file[name]) for name in ARRAYS if name in file}
    for name in ("visual", "audio"):
        if name not in arrays or arrays[name].dtype.kind not in "fiu":
            came = f"{arrays[name].dtype}" if name in arrays else "none"
            raise ValueError(f"{path} must hold an array of numbers called {name}, got {came}")
    with np.errstate(over="ignore"):  # an overflow is found when all values are checked
        visual, audio = (torch.from_numpy(arrays[name].astype(np.float32, copy=False)) for name in ("visual", "audio"))
    if visual.dim() in (2, 4) and audio.dim() == 2:
        visual, audio = visual[None], audio[None]
    if visual.dim() == 3 and audio.dim() == 3:
        visual = visual[:, :, None, None]
    names, lengths = arrays.get("names"), arrays.get("lengths")
    if names is not None and names.dtype.kind != "U":
        raise ValueError(f"{path} must hold text in names, got {names.dtype}")
    if lengths is not None and lengths.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold integers in lengths, got {lengths.dtype}")
    return UnlabeledVideos(
        visual,
        audio,
        torch.arange(visual.shape[0] if visual.dim() else 0),
        None if names is None else tuple(map(str, names.reshape(-1))),
        None if lengths is None else torch.from_numpy(lengths.reshape(-1).astype(np.int64)),
    )


def _array_bytes(path: Path, name: str) -> int:
    """Return the bytes that an array of an .npz declares, which its member of the archive must have."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return 0
        with archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
            declared, there = prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size - stream.tell()
    if dtype.hasobject:  # refused when it is read
        return 0
    if declared > there or min(shape, default=0) < 0:
        raise ValueError(f"{name} of shape {shape} and dtype {dtype}, in {there} bytes")
    return declared


def _table(title: str, predictions: Sequence[Prediction], categories: Sequence[str]) -> str:
    """Count events and their seconds, in all and of the most frequent categories."""
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
    whole = f"{title}; {len(predictions)} videos of {length} s in all, {silent} without an event"
    return format_table(whole, [tuple(map(str, row)) for row in rows], ("category", "events", "seconds"))
