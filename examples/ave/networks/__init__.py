"""Networks that localize events: layers, losses and decisions, and how networks are saved and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ave.networks.authors_weights import read_official
from ave.networks.localizer import Localizer
from ave.networks.pretrained import find_saved, read_config
from ave.networks.registry import CLASSES

__all__ = ["load_network"]


def load_network(
    checkpoint: str | None, official: Path | None = None, official_categories: Sequence[str] | None = None
) -> Localizer:
    """Load a trained network in evaluation mode, on the CPU.

    Args:
        checkpoint: the network to load, as for :func:`ave.networks.pretrained.find_saved`.
        official: a checkpoint of the authors' code, ``.pth.tar``.
        official_categories: the names of the categories of ``official``.

    Raises:
        OSError: if the network is not found.
        ValueError: if not exactly one of ``checkpoint`` and ``official`` is given, or the network is damaged.
    """
    model: Localizer
    if official is not None and checkpoint is None:
        source, model = str(official), read_official(official, official_categories)
    elif checkpoint is not None and official is None:
        source, directory = find_saved(checkpoint)
        kind = read_config(source, directory).get("network", "CMRAN")
        if not isinstance(kind, str) or kind not in CLASSES:
            raise ValueError(f"{source} must be one of {', '.join(CLASSES)}, got {kind!r:.60}")
        model = CLASSES[kind].read(source, directory)
    else:
        raise ValueError(f"one of --checkpoint and --official must be given, got {checkpoint} and {official}")
    if names := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{source} must have finite weights, got NaN or Inf in {len(names)}, the first is {names[0]}")
    return model
