"""What is written of trained networks: figures as JSON and CSV, and pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from ave.charts import draw_confusion
from ave.data import AVEData
from ave.evaluation import Outcomes, background_accuracy, object_attention
from ave.metrics import score, seen_in_training
from ave.plots import draw_attention, draw_timelines
from ave.results import write_csv, write_json, writing

__all__ = ["draw_examples", "measure", "peak_memory", "write_figures", "write_scores"]

SHOWN_VIDEOS = 6


def measure(outcomes: Outcomes, data: AVEData, split: str) -> dict[str, Any]:
    """All figures of a network on a split; accuracies and shares are in [0, 1]."""
    seen = seen_in_training(data, split) if split != "train" else None
    metrics = score(outcomes.truth, outcomes.prediction, data.categories, seen)
    metrics["background_accuracy"] = background_accuracy(data, split)
    event = outcomes.truth != len(data.categories)
    if data.object_cells is not None and event.any():
        cells = data.object_cells[data.splits[split]]
        metrics["object_attention"], metrics["object_attention_if_uniform"] = object_attention(
            outcomes.spatial_map, cells, event
        )
    return metrics


def peak_memory(accelerator: Accelerator) -> dict[str, float]:
    """The most memory that this process has held, in GB: of the host, and of the GPU where there is one."""
    if sys.platform == "win32":
        host = psutil.Process().memory_info().peak_wset
    else:
        import resource  # which Windows has not

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"host_gb": host / 1e9}
    if accelerator.device.type == "cuda":
        peak["device_gb"] = torch.cuda.max_memory_allocated(accelerator.device) / 1e9
    return peak


def write_scores(
    output: Path, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], categories: Sequence[str], title: str
) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``categories.csv``, ``confusion.csv`` and ``confusion.png``.

    Args:
        output: the directory.
        runs: the figures of each network.
        summary: mean and standard deviation of these.
        categories: the names; background follows them.
        title: of the picture.
    """
    write_json(output / "metrics.json", {"summary": summary, "runs": list(runs)})
    flat = [{key: value for key, value in run.items() if not isinstance(value, (list, dict))} for run in runs]
    write_csv(output / "metrics.csv", flat)
    write_csv(
        output / "categories.csv",
        [{"category": name, **spread} for name, spread in summary["category_accuracy"].items()],
    )
    names = [*categories, "background"]
    write_csv(
        output / "confusion.csv",
        [
            {"true": name, **dict(zip(names, row, strict=True))}
            for name, row in zip(names, summary["confusion"], strict=True)
        ],
    )
    write_figures(output, {"confusion.png": draw_confusion(summary["confusion"], categories, title)})


def draw_examples(outcomes: Outcomes, data: AVEData, split: str, title: str) -> dict[str, Figure]:
    """Timelines and attention by file name: of the first videos whose event begins or ends inside the video."""
    event = outcomes.truth != len(data.categories)
    partial = (event.any(1) & ~event.all(1)).nonzero().flatten().tolist() or list(range(len(event)))
    shown, first = partial[:SHOWN_VIDEOS], partial[0]
    cells = None if data.object_cells is None else data.object_cells[data.splits[split]][first]
    return {
        "timelines.png": draw_timelines(
            outcomes.prediction[shown],
            outcomes.event_score[shown],
            data.categories,
            title,
            truth=outcomes.truth[shown],
        ),
        "attention.png": draw_attention(outcomes, first, data.categories, f"Attention of {title}", cells),
    }


def write_figures(output: Path, figures: Mapping[str, Figure]) -> None:
    """Write pictures by file name."""
    for name, figure in figures.items():
        with writing(output / name) as path:
            figure.savefig(path, dpi=120)
