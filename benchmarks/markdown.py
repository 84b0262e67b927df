"""Format Markdown tables for the reports of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that ends with a newline.

    Examples:
        >>> print(markdown_table(["layer", "ms"], [["CMRA", "3.4"]]), end="")
        | layer | ms |
        | --- | --- |
        | CMRA | 3.4 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
