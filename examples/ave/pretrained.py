"""A trained CMRAN from wherever it is: a checkpoint of ours, a finished training, the Hub, a file of the authors'."""

from __future__ import annotations

import argparse
from pathlib import Path

from ave.model import CMRAN
from ave.official import read_official

__all__ = ["add_model_options", "load_model"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint`` and ``--official``, of which one must be given."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--checkpoint",
        metavar="DIR|ID",
        help="directory of a finished training, of one of its seeds, or that save_pretrained wrote; where there is no "
        "such directory, owner/name on the Hugging Face Hub",
    )
    either.add_argument("--official", type=Path, metavar="FILE", help="checkpoint of the authors' code, .pth.tar")


def load_model(checkpoint: str | None = None, official: Path | None = None) -> CMRAN:
    """Load a network in evaluation mode, on the CPU.

    Args:
        checkpoint: a directory that ``CMRAN.save_pretrained`` wrote; the directory of a training, or of one of its
            seeds, which holds such a one; or, where no such path exists, "owner/name" on the Hugging Face Hub.
        official: a checkpoint of the authors' code, ``.pth.tar``.

    Raises:
        OSError: if there is no such thing.
        ValueError: if not exactly one of both is given, a training left several networks, or a file is damaged.
    """
    if official is not None and checkpoint is None:
        source, model = str(official), read_official(official)
    elif checkpoint is not None and official is None:
        source, model = checkpoint, CMRAN.from_pretrained(_find(checkpoint))
    else:
        raise ValueError(f"one of --checkpoint and --official must be given, got {checkpoint} and {official}")
    if names := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{source} must hold finite weights, got others in {len(names)} of them, the first {names[0]}")
    return model.eval()


def _find(checkpoint: str) -> str:
    """The directory of the one network that a training left, or what was given."""
    path = Path(checkpoint)
    if path.is_file():
        raise ValueError(f"--checkpoint must be a directory, got the file {path}; --official reads the authors' files")
    found = sorted(map(str, [*path.glob("model"), *path.glob("seed-*/model")]))
    if len(found) > 1:
        raise ValueError(
            f"--checkpoint must be one network, got {path}, which holds several: name one of {', '.join(found)}"
        )
    return found[0] if found else checkpoint
