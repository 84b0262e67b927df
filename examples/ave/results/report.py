"""Report the results of one network, or of several with different seeds: files, figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ave.data.dataset import AVEData, Split
from ave.results.baselines import warn
from ave.results.figures import draw_confusion, draw_examples, save_figures
from ave.results.files import write_csv, write_json, writing
from ave.results.metrics import Outcomes
from ave.results.tables import category_table, results_table

__all__ = ["note_few_videos", "report", "write_predictions"]

FEW_VIDEOS = 20
"""A result on fewer videos than this gets a note. The standard error of an accuracy on 20 videos may be 11 points."""


def report(
    output: Path,
    title: str,
    runs: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    examples: Outcomes,
    data: AVEData,
    split: Split,
    *,
    figures: Mapping[str, Figure] | None,
) -> None:
    """Write the metrics and the figures. Print the tables, and what to know about them on your own dataset.

    Args:
        output: the directory of the results.
        title: names the network and the dataset.
        runs: the metrics of each network.
        summary: mean and standard deviation of the metrics, from :func:`ave.results.metrics.summarize`.
        examples: the outcomes of the first network, from which example videos are drawn.
        data: the dataset.
        split: the split of ``examples``.
        figures: additional figures by file name. None draws no figures at all.
    """
    _write_scores(output, runs, summary, data.categories)
    if figures is not None:
        shown = f"{title}, seed {runs[0]['seed']}" if "seed" in runs[0] else title
        confusion = draw_confusion(summary["confusion"], data.categories, title)
        drawn = draw_examples(examples, data, split, shown)
        save_figures(output, {**drawn, "confusion.png": confusion, **figures})
    print(category_table(summary))
    print(results_table(title, runs, summary))
    if (warning := warn(summary)) is not None:
        print(warning)
    for note in note_few_videos(data, ("val", split) if "history" in runs[0] and "val" in data.splits else (split,)):
        print(note)


def note_few_videos(data: AVEData, splits: Sequence[Split]) -> list[str]:
    """Return a note on each of the splits of your own dataset that has fewer than 20 videos.

    An accuracy on n videos has a standard error of at most 0.5 / sqrt(n), which it reaches if each video is all right
    or all wrong.

    Args:
        data: the dataset. There are no notes on AVE and the procedural set.
        splits: "val" if it has chosen the epoch, and the split that was evaluated.
    """
    if data.is_ave or data.object_cells is not None:
        return []
    notes = []
    for split in splits:
        rows = data.splits[split].tolist()
        count = len(set(rows if data.names is None else (data.names[row] for row in rows)))
        if count < FEW_VIDEOS:
            size = f"{split} has only {count} video{'s' * (count != 1)}"
            error = f"an accuracy on so few has a standard error of up to {50 / count**0.5:.0f} points"
            chance = "; the epoch chosen on them is largely chance" if split == "val" else ""
            notes.append(f"note: {size}: {error}{chance}")
    return notes


def _write_scores(
    output: Path, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], categories: Sequence[str]
) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``categories.csv`` and ``confusion.csv``.

    Args:
        output: the directory of the results.
        runs: the metrics of each network.
        summary: mean and standard deviation of the metrics.
        categories: the names of the categories, without background.
    """
    write_json(output / "metrics.json", {"summary": summary, "runs": list(runs)})
    scalars = [{key: value for key, value in run.items() if not isinstance(value, (list, dict))} for run in runs]
    write_csv(output / "metrics.csv", scalars)
    shares = [{"category": name, **spread} for name, spread in summary["category_accuracy"].items()]
    write_csv(output / "categories.csv", shares)
    names = [*categories, "background"]
    confusion = [dict(zip(names, row, strict=True)) for row in summary["confusion"]]
    write_csv(output / "confusion.csv", [{"true": name, **row} for name, row in zip(names, confusion, strict=True)])


def write_predictions(output: Path, outcomes: Outcomes, data: AVEData, split: Split) -> None:
    """Write ``predictions.npz``: labels, predictions and logits for each video of a split, for error analysis.

    The arrays are ``names`` (B,), the YouTube ids or else the rows of the dataset; ``rows`` (B,); ``labels`` and
    ``predictions`` (B, T); the logits by their names in :attr:`~ave.results.metrics.Outcomes.logits`; and
    ``categories`` (K,). Label K is background, -1 is no label.
    """
    rows = data.splits[split].tolist()
    arrays: dict[str, Any] = {
        "names": np.array([str(row) if data.names is None else data.names[row] for row in rows]),
        "rows": np.array(rows),
        "labels": outcomes.truth.numpy(),
        "predictions": outcomes.prediction.numpy(),
        **{name: logits.numpy() for name, logits in outcomes.logits.items()},
        "categories": np.array(data.categories),
    }
    with writing(output / "predictions.npz") as temporary:
        np.savez(temporary, **arrays)
