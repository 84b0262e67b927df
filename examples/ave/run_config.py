"""The settings of a training run: as given, as kept in its config.json, and both together where it goes on."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ave.data import AVEData
from ave.model import Setting
from ave.storage import Rows

__all__ = ["PROCEDURAL_EPOCHS", "RELEASE_EPOCHS", "digest_data", "read_config", "settle"]

PROCEDURAL_EPOCHS, RELEASE_EPOCHS = 11, 200
DIGESTED_VIDEOS = 8
DEFAULTS: dict[str, Any] = {
    "setting": "supervised",
    "data": None,
    "senses": "both",
    "epochs": None,
    "batch_size": 32,
    "lr": 5e-4,
    "seeds": [0],
    "device": "auto",
    "precision": "fp32",
    "compile": False,
    "cache": "auto",
    "workers": 2,
    "keep": 2,
    "log": None,
}
FREE_ON_RESUME = ("data", "device", "compile", "cache", "workers", "keep", "log")
"""What does not decide what is learnt, so that another machine may go on with a run."""


def settle(options: argparse.Namespace, saved: dict[str, Any] | None) -> dict[str, Any]:
    """All settings of the run: what was given, what the run has that goes on, and the defaults."""
    if options.seeds is not None and len(set(options.seeds)) < len(options.seeds):
        raise ValueError(f"--seeds must differ from one another, got {options.seeds}")
    given = {name: getattr(options, name) for name in DEFAULTS if getattr(options, name) is not None}
    if "data" in given:
        given["data"] = str(Path(given["data"]).absolute())  # a run may go on from elsewhere
    if saved is None:
        settings = {**DEFAULTS, **given}
        settings["epochs"] = settings["epochs"] or (RELEASE_EPOCHS if settings["data"] else PROCEDURAL_EPOCHS)
        return settings
    settings = saved["settings"]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name == "epochs" and value < settings["epochs"]:
            raise ValueError(f"{option} must be at least {settings['epochs']}, what {options.resume} has, got {value}")
        if name == "seeds" and value[: len(settings["seeds"])] == settings["seeds"]:
            continue
        if name != "epochs" and name not in FREE_ON_RESUME and value != settings[name]:
            raise ValueError(f"{option} must be {settings[name]}, what {options.resume} has, got {value}: leave it out")
    return {**settings, **given}


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a run."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"--resume must name the directory of a run, with its config.json, got {directory}")
    try:
        config = json.loads(path.read_text())
        settings = {**DEFAULTS, **config["settings"]}
        return {"settings": settings, "data_digest": config["data_digest"], "processes": config["processes"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be the config.json of a training run, got: {error!r}") from error


def digest_data(data: AVEData, setting: Setting) -> str:
    """What tells one set from another: all labels and splits, and the features of a few videos.

    A release and what was prepared of it in float32 are the same; what was prepared in float16 is another.
    """
    tensors: list[Tensor] = [data.labels, *data.splits.values()]
    arrays: list[Rows] = [data.visual, data.audio]
    if setting == "weak":
        tensors += [part for part in (data.video_labels, data.background_labels) if part is not None]
        arrays += [part for part in (data.background_visual, data.background_audio) if part is not None]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    for array in arrays:
        rows = sorted({place * (len(array) - 1) // (DIGESTED_VIDEOS - 1) for place in range(DIGESTED_VIDEOS)})
        digest.update(repr(tuple(array.shape)).encode() + array[rows].float().numpy().tobytes())
    return digest.hexdigest()
