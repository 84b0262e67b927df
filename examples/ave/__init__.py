"""Audio-visual event localization with CMRAN: the modules of ``ave_cmran.py``.

- subcommands: ``train`` (the training loop), ``evaluate``, ``predict``, ``prepare`` (also ``check``), ``extract``,
  ``paper_tables``
- ``data``: datasets and their files, the procedural set, batches
- ``networks``: CMRAN and its rivals, their losses and decisions, and how they are saved and loaded
- ``results``: metrics, tables, figures, files
- ``events``: events in the decisions of a network, and windows of long videos
- ``checkpoints``: the checkpoints of a run; ``devices``: the device, and measuring its time and memory
- ``stopping``: signals and failures that end a run early
- ``videos``: video files, from decoding to features and events, and the networks for frames and sound
- ``reading``, ``tensor_files``, ``printing``: files and names that may be damaged or malicious
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

__all__ = ["InputError", "Setting", "checking_input"]

Setting = Literal["supervised", "weak"]
"""Whether a network is trained on a label for every second, or on one label for the whole video."""


class InputError(Exception):
    """An error in an option or an input file. The command prints it in one line, and exits with code 2."""


@contextmanager
def checking_input() -> Iterator[None]:
    """Turn errors about values and files into :class:`InputError`. Use it around the checks before any work."""
    try:
        yield
    except (ValueError, OSError) as error:
        # Not wrong input: standard output is a closed pipe, or a disk is full.
        if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(str(error)) from error
