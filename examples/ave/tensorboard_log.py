"""Figures of a run as logs for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes figures by name and step; what a stopped run had logged beyond where it goes on is hidden.

    Args:
        directory: made when the first figures come.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writer: Any = None

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and asked for by few

            self._writer = SummaryWriter(self.directory, purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the log."""
        if self._writer is not None:
            self._writer.close()
