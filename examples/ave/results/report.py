"""Report the results of one network, or of several that differ in their seed: files, figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ave.data.dataset import AVEData, Split
from ave.results.figures import draw_confusion, draw_examples, save_figures
from ave.results.files import write_scores
from ave.results.metrics import Outcomes
from ave.results.tables import category_table, results_table

__all__ = ["report"]


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
    """Write the metrics and the figures, and print the tables.

    Args:
        output: the directory.
        title: what was evaluated, and on what.
        runs: the metrics of each network.
        summary: their mean and standard deviation.
        examples: the outcomes of the first network, some of which are drawn.
        data: the dataset.
        split: the split of ``examples``.
        figures: further figures by file name; with None nothing is drawn.
    """
    write_scores(output, runs, summary, data.categories)
    if figures is not None:
        shown = f"{title}, seed {runs[0]['seed']}" if "seed" in runs[0] else title
        confusion = draw_confusion(summary["confusion"], data.categories, title)
        drawn = draw_examples(examples, data, split, shown)
        save_figures(output, {**drawn, "confusion.png": confusion, **figures})
    print(category_table(summary))
    print(results_table(title, runs, summary))
