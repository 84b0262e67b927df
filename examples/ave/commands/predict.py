"""Find the events in videos, from their features, with a trained CMRAN.

The features are a directory of the AVE release's HDF5 files or one that `prepare` made, of which only the features of
both senses are needed, or an .npz with the arrays `visual` (videos, seconds, height, width, channels) and `audio`
(videos, seconds, channels); of one video these may lack the first axis. An .npz may also hold `names`, text, and
`lengths`, the seconds of each video where shorter ones are padded.

Written are events.csv and events.json: of every event the video, its row in the features, the seconds it begins and
ends at, its category and its score. The score, in [0, 1], is the mean over the event's seconds of the probability that
there is one, times the probability of the category. timelines.png shows the first videos.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ave.accelerating import add_device_options, make_accelerator
from ave.commands import add_output_option, checking_input, new_output
from ave.data import SPLITS
from ave.plots import draw_timelines
from ave.prediction import Prediction, predict
from ave.pretrained import add_model_options, load_model
from ave.results import clearing, format_table, make_output, write_csv, write_json, writing
from ave.unlabelled import UnlabelledVideos, read_videos

__all__ = ["add_options", "run"]

COLUMNS = ("video", "row", "start_s", "end_s", "category", "score")
SHOWN_VIDEOS = SHOWN_CATEGORIES = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """The network, the features, and where to write."""
    add_model_options(parser)
    parser.add_argument("--features", type=Path, required=True, metavar="PATH", help="directory, or .npz; see above")
    parser.add_argument("--split", choices=SPLITS, help="only these videos of a directory (default: all)")
    add_device_options(parser)
    add_output_option(parser, "predict")


def run(options: argparse.Namespace) -> None:
    """Check everything first; then find the events, and write them."""
    with checking_input():
        model = load_model(options.checkpoint, options.official)
        accelerator = make_accelerator(options.device, options.precision)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"one process must predict alone, got {accelerator.num_processes}: start it without a launcher"
            )
        videos = read_videos(options.features, options.split)
        videos.check_fit(model)
        output = new_output(options.output, "predict")
        make_output(output)
    title = f"CMRAN, {model.setting}, on {options.features}" + (f", {options.split} split" if options.split else "")
    categories = model.categories or tuple(f"category {index}" for index in range(model.num_categories))
    with clearing(output):
        network = accelerator.prepare_model(model, evaluation_mode=True)
        predictions = predict(network, videos.batches("predicting"), model.num_categories, accelerator.device)
        events = _list_events(videos, predictions, categories)
        write_csv(output / "events.csv", events, COLUMNS)
        source = {"network": options.checkpoint or str(options.official), "features": str(options.features)}
        write_json(output / "events.json", {**source, "videos": len(videos), "events": events})
        _draw(output / "timelines.png", videos, predictions, categories, title)
    print(_table(title, predictions, categories))
    print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def _list_events(
    videos: UnlabelledVideos, predictions: Sequence[Prediction], categories: Sequence[str]
) -> list[dict[str, Any]]:
    """All events, as they are written; the row tells videos of one name apart."""
    return [
        {
            "video": videos.name(row),
            "row": row,
            "start_s": event.start,
            "end_s": event.end,
            "category": categories[event.category],
            "score": round(event.score, 4),
        }
        for row, prediction in zip(videos.rows.tolist(), predictions, strict=True)
        for event in prediction.events
    ]


def _draw(
    path: Path, videos: UnlabelledVideos, predictions: Sequence[Prediction], categories: Sequence[str], title: str
) -> None:
    """Draw the first videos."""
    shown = predictions[:SHOWN_VIDEOS]
    rows = videos.rows[:SHOWN_VIDEOS].tolist()
    figure = draw_timelines(
        [prediction.labels for prediction in shown],
        [prediction.event_score for prediction in shown],
        categories,
        title if len(shown) == len(videos) else f"{title}: the first {len(shown)} of {len(videos)} videos",
        names=[f"row {row}" if videos.names is None else f"{videos.name(row)} (row {row})" for row in rows],
    )
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _table(title: str, predictions: Sequence[Prediction], categories: Sequence[str]) -> str:
    """How much was found in all, and of the most frequent categories."""
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
