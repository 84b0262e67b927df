"""Audio-visual event localization with CMRAN: what ``ave_cmran.py`` is assembled from.

- subcommands: ``train`` (the training loop), ``evaluate``, ``predict``, ``prepare`` (which checks, too)
- ``data``: the dataset and its files, the procedural set, batches
- ``networks``: CMRAN and its rivals, their losses and decisions; saved and loaded networks
- ``results``: metrics, tables, figures, files
- ``checkpoints`` of a run; ``devices``: the device, its memory, and the time spent on it
- ``stopping``: what ends a run early; ``reading`` files and ``printing`` names that may be hostile
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

__all__ = ["InputError", "Setting", "checking_input"]

Setting = Literal["supervised", "weak"]
"""Train on a label for every second, or on one label for the whole video."""


class InputError(Exception):
    """Something wrong with the options or files that were given. The command prints it and exits with code 2."""


@contextmanager
def checking_input() -> Iterator[None]:
    """Turn errors about values and files into :class:`InputError`; it stands around checks before any work."""
    try:
        yield
    except BrokenPipeError:  # of what it prints
        raise
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
