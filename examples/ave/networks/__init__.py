"""Networks that localize events: their layers, losses and decisions, and how they are saved and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ave.networks.authors_weights import read_official
from ave.networks.cmran import CMRAN

__all__ = ["load_network"]


def load_network(checkpoint: str | None, official: Path | None, official_categories: Sequence[str]) -> CMRAN:
    """Load a trained network in evaluation mode, on the CPU.

    Args:
        checkpoint: as :meth:`ave.networks.pretrained.Pretrained.load` takes it.
        official: a checkpoint of the authors' code, ``.pth.tar``.
        official_categories: the names of its categories.

    Raises:
        OSError: if there is no such network.
        ValueError: if not exactly one of both is given, or the network is damaged.
    """
    if official is not None and checkpoint is None:
        source, model = str(official), read_official(official, official_categories)
    elif checkpoint is not None and official is None:
        source, model = checkpoint, CMRAN.load(checkpoint)
    else:
        raise ValueError(f"one of --checkpoint and --official must be given, got {checkpoint} and {official}")
    if names := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{source} must hold finite weights, got others in {len(names)} of them, the first {names[0]}")
    return model
