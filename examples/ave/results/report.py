"""Report the results of one network, or of several with different seeds: files, figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ave.data.dataset import AVEData, Split
from ave.results.baselines import warn
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
    """Write the metrics and the figures, and print the tables, and a warning if simple rivals are as good.

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
    write_scores(output, runs, summary, data.categories)
    if figures is not None:
        shown = f"{title}, seed {runs[0]['seed']}" if "seed" in runs[0] else title
        confusion = draw_confusion(summary["confusion"], data.categories, title)
        drawn = draw_examples(examples, data, split, shown)
        save_figures(output, {**drawn, "confusion.png": confusion, **figures})
    print(category_table(summary))
    print(results_table(title, runs, summary))
    if (warning := warn(summary)) is not None:
        print(warning)
