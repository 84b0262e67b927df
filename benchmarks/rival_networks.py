"""Row group "rival_networks": the rivals of CMRAN in the example against the same networks written out literally.

A pass is what a training step costs before the optimizer: forward, loss and backward, in float32, with dropout where
the network has it, supervised, at a batch of 32 videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.networks.registry import NETWORKS, Network
from benchmarks.literal_networks import LITERAL_NETWORKS, copy_weights
from benchmarks.measuring import SEED, Form, Session, compare

__all__ = ["RIVALS", "TITLE", "draw_batch", "make_call", "measure", "run"]

TITLE = "The rivals of CMRAN"
TASK = "forward, loss and backward"
OURS, LITERAL = "the example's network", "written out"
RIVALS: tuple[Network, ...] = tuple(name for name in NETWORKS if name in LITERAL_NETWORKS)
BATCH, QUICK_BATCH = 32, 2
LENGTH, GRID, VIDEO_DIM, AUDIO_DIM, CATEGORIES = 10, 7, 512, 128, 28


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every rival."""
    for name in RIVALS:
        yield measure(session, name)


def measure(session: Session, name: Network) -> dict[str, Any]:
    """Measure one rival and its literal form, with the same weights and the same batch."""
    batch = QUICK_BATCH if session.quick else BATCH
    case = {"network": name, "videos": batch, "task": TASK}
    if reason := session.late:
        return {"case": case, "skipped": reason}
    torch.manual_seed(SEED)
    network = NETWORKS[name]()
    literal = copy_weights(LITERAL_NETWORKS[name](), network)
    inputs = [tensor.to(session.device) for tensor in draw_batch(batch)]
    forms = [
        Form(form, make_call(module.to(session.device), *inputs))
        for form, module in ((LITERAL, literal), (OURS, network))
    ]
    return compare(session, case, forms, [(LITERAL, OURS)])


def draw_batch(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random maps (B, T, H, W, 512), audio (B, T, 128), and one-hot labels (B, T, 29) of one event per video."""
    video = torch.rand(batch, LENGTH, GRID, GRID, VIDEO_DIM)
    audio = torch.rand(batch, LENGTH, AUDIO_DIM)
    category = torch.randint(CATEGORIES, (batch, 1))
    labels = torch.where(torch.rand(batch, LENGTH) < 0.5, category, CATEGORIES)
    return video, audio, F.one_hot(labels, CATEGORIES + 1).float()


def make_call(network: nn.Module, video: Tensor, audio: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a function that runs forward, loss and backward in training mode, and returns the loss."""
    network.train()
    loss_of: Any = network.loss

    def call() -> object:
        loss = loss_of(network(video, audio), labels)
        loss.backward()
        for parameter in network.parameters():
            parameter.grad = None
        return loss.detach()

    return call
