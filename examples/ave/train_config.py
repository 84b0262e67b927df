"""Settings of a training run: the options of `train`, and `config.json`, from which a run is continued."""

from __future__ import annotations

import dataclasses
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ave.data.batches import Cache
from ave.data.dataset import Setting
from ave.devices import Precision
from ave.networks.cmran import Senses
from ave.networks.registry import PUBLISHED, VARIANT, Network
from ave.networks.variants import Guidance, Interaction, Relation
from ave.reading import read_json
from ave.results.files import write_json
from crossmodal_attn import __version__

__all__ = ["VERSIONS", "SavedRun", "TrainConfig"]

VERSIONS = {
    "crossmodal_attn": __version__,
    "torch": str(torch.__version__),
    "python": platform.python_version(),
}
MAY_CHANGE = {
    "data",
    "labels",
    "epochs",
    "seeds",
    "device",
    "compile",
    "cache",
    "workers",
    "keep",
    "log",
    "output",
    "resume",
}
"""The settings that a resumed run may change: it may get more epochs and seeds, and find the same data elsewhere."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a network for one or several seeds, and report its accuracy on the test split.

    Without --data, it trains on an embedded procedural set in the shape of AVE (never AVE itself), which takes
    minutes on two CPU cores. A checkpoint is saved after every epoch, and --resume continues from the last one. The
    command also runs under `accelerate launch` and `torchrun`; all processes must see the same files.
    """

    setting: Setting = "supervised"
    """supervised: train on a label for every second; weak: train on one label for the whole video"""
    network: Network = "cmran"
    """CMRAN, or a rival from Tables 1 and 2 of the CMRAN paper"""
    as_published: bool = False
    """train a rival as its public code does, including its faults; only for rivals with public code"""
    data: Path | None = None
    """directory of AVE, of your own dataset, or written by `prepare`; if omitted: the procedural set"""
    labels: Path | None = None
    """labels of --data as text: a CSV file with the columns video, start, end, category and, if you like, split"""
    split: str | None = None
    """percentages of train, val and test, by video, if --labels has no column split; if omitted: 70/15/15"""
    split_seed: int | None = None
    """seed of this division of the videos; if omitted: 0"""
    background_videos: bool = True
    """weak setting: also train on the extra background videos; required for AVE, optional for other datasets"""
    senses: Senses = "both"
    """the features that CMRAN gets; the other modality is set to zero in training and testing"""
    relation: Relation = "cmra"
    """CMRAN's cross-modal relation, as in Table 3; self-stacked and none-feedforward are variants of self and none"""
    guidance: Guidance = "agsca"
    """CMRAN's audio-guided spatial attention, as in the first part of Table 4"""
    interaction: Interaction = "av"
    """CMRAN's audio-video interaction, as in the second part of Table 4"""
    num_layers: int = 2
    """number of blocks in each internal temporal relation of CMRAN, as in Table 5; at least 0"""
    own_projections: bool = False
    """give each modality in the memory of CMRAN's relation its own key and value projection"""
    epochs: int | None = None
    """number of epochs; if omitted: as published, or 11 for the procedural set; a resumed run may have more"""
    batch_size: int | None = None
    """batch size in videos, over all processes; if omitted: as published, 32 for CMRAN"""
    lr: float | None = None
    """initial learning rate; if omitted: as published, 5e-4 for CMRAN"""
    milestones: tuple[int, ...] | None = None
    """epochs after which the learning rate decays; if omitted: as published, for CMRAN 10 20 30, weak 5 20 40"""
    lr_decay: float | None = None
    """factor of the learning rate at each milestone, in (0, 1]; if omitted: as published, 0.5 for CMRAN"""
    weight_decay: float = 0.0
    """weight decay of the optimizer: this number times a weight is added to the gradient of the weight"""
    seeds: tuple[int, ...] = (0,)
    """train once for each seed, and report mean and standard deviation; a resumed run may have more"""
    device: str = "auto"
    """device: auto (the best available), cpu, cuda, cuda:1, mps or another device of torch"""
    precision: Precision = "fp32"
    """mixed precision of the forward pass; fp16 needs a GPU"""
    compile: bool = False
    """compile the network with torch.compile"""
    cache: Cache = "auto"
    """where the features are kept during training; auto: the first of device, memory, disk with enough space"""
    workers: int = 2
    """data-loading threads (only with --cache disk)"""
    keep: int = 2
    """number of checkpoints to keep, the newest ones"""
    log: Literal["tensorboard"] | None = None
    """write logs for TensorBoard to OUTPUT/tensorboard"""
    output: Path | None = None
    """new directory for the results; if omitted: runs/<date and time>-<setting>"""
    resume: Path | None = None
    """continue the run in this directory from its last checkpoint, with the same options"""

    def check(self) -> None:
        """Check that each value is in its range, and that the options are compatible."""
        milestones, seeds, own = self.milestones or (), self.seeds, self.own_projections
        split_seed = self.split_seed
        published, publishable = " or ".join(PUBLISHED), self.network in PUBLISHED
        cmran, only = self.network == "cmran", sorted(self.variant().keys() - {"as_published"})
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in only)
        for option, value, valid, expected in (
            ("--epochs", self.epochs, self.epochs is None or self.epochs >= 1, "at least 1"),
            ("--network", self.network, cmran or not only, f"cmran with {shown}"),
            ("--network", self.network, publishable or not self.as_published, f"{published} with --as-published"),
            ("--relation", self.relation, self.relation == "cmra" or not own, "cmra with --own-projections"),
            ("--num-layers", self.num_layers, self.num_layers >= 0, "at least 0"),
            ("--batch-size", self.batch_size, self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("--keep", self.keep, self.keep >= 1, "at least 1"),
            ("--workers", self.workers, self.workers >= 0, "at least 0"),
            ("--lr", self.lr, self.lr is None or 0 < self.lr < math.inf, "a number above 0"),
            ("--lr-decay", self.lr_decay, self.lr_decay is None or 0 < self.lr_decay <= 1, "above 0, at most 1"),
            ("--weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number of at least 0"),
            ("--milestones", milestones, all(epoch > 0 for epoch in milestones), "epochs of at least 1"),
            ("--milestones", milestones, len(set(milestones)) == len(milestones), "all different"),
            ("--seeds", seeds, all(0 <= seed < 2**32 for seed in seeds), f"from 0 to {2**32 - 1}"),
            ("--seeds", seeds, len(seeds) > 0, "at least one"),
            ("--seeds", seeds, len(set(seeds)) == len(seeds), "all different"),
            ("--output", self.output, self.output is None or self.resume is None, "left out with --resume"),
            ("--labels", self.labels, self.labels is None or self.data is not None, "given with --data"),
            ("--split", self.split, self.split is None or self.labels is not None, "given with --labels"),
            ("--split-seed", split_seed, split_seed is None or self.labels is not None, "given with --labels"),
            ("--split-seed", split_seed, split_seed is None or split_seed >= 0, "at least 0"),
        ):
            if not valid:
                raise ValueError(f"{option} must be {expected}, got {_show(value)}")

    def variant(self) -> dict[str, Any]:
        """Return the arguments of the network that differ from its defaults."""
        values = {name: getattr(self, name) for name in VARIANT}
        return {name: value for name, value in values.items() if value != getattr(TrainConfig, name)}

    def check_resumes(self, saved: TrainConfig) -> None:
        """Check that no setting that affects the weights differs from the saved run."""
        for name in [field.name for field in dataclasses.fields(self) if field.name not in MAY_CHANGE]:
            if (value := getattr(self, name)) != (expected := getattr(saved, name)):
                option = f"--{name.replace('_', '-')}"
                came = f"as in {self.resume}, got {_show(value)}: leave it out"
                raise ValueError(f"{option} must be {_show(expected)}, {came}")
        if self.epochs is not None and saved.epochs is not None and self.epochs < saved.epochs:
            raise ValueError(f"--epochs must be at least {saved.epochs}, as in {self.resume}, got {self.epochs}")
        if self.seeds[: len(saved.seeds)] != saved.seeds:
            expected = f"--seeds must begin with {_show(saved.seeds)}, as in {self.resume}"
            raise ValueError(f"{expected}, got {_show(self.seeds)}")


def _show(value: object) -> object:
    """Format a value as on the command line."""
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else value


@dataclass(frozen=True)
class SavedRun:
    """The content of ``config.json``, which describes a run."""

    settings: TrainConfig
    data_digest: str
    processes: int
    versions: dict[str, str]
    """The versions of this library, torch and Python, for people who want to repeat the run."""

    @classmethod
    def read(cls, directory: Path) -> SavedRun:
        """Read ``config.json`` from the directory of a run."""
        path = directory / "config.json"
        if not path.is_file():
            raise ValueError(f"--resume must name the directory of a run, with its config.json, got {directory}")
        return read_json(path, cls)

    def write(self, directory: Path) -> None:
        """Write ``config.json`` to the directory of a run."""
        write_json(directory / "config.json", dataclasses.asdict(self))
