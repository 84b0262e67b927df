"""
DDP and FSDP2
=============

The layers are plain modules, so they train under :class:`~torch.nn.parallel.DistributedDataParallel` and under
``fully_shard`` (FSDP2) as any others do. Here two processes give the losses and the weights that one process gives with
the whole batch. All of it ran on a CPU, with the backend gloo; what changes on GPUs stands at the end.
"""

# sphinx_gallery_thumbnail_path = "images/guides/distributed.svg"
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from crossmodal_attn import AGSCA, RelationAware

torch.set_num_threads(1)
VIDEOS, SECONDS, CATEGORIES = 8, 10, 5

# %%
# A network, a batch, a few steps
# -------------------------------
# The sound picks places of the map, video relates to audio, and every second gets a category. Dropout is off: with it
# each process would draw masks of its own, and nothing could be compared.


class Network(nn.Module):
    """AGSCA, then the relation-aware module, whose heart is CMRA."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.look = AGSCA(32, 16, hidden_dim=32, device=device)
        self.relate = RelationAware(32, 16, 64, num_layers=1, dim_feedforward=128, dropout=0.0, device=device)
        self.head = nn.Linear(64, CATEGORIES, device=device)

    def forward(self, maps: Tensor, audio: Tensor) -> Tensor:
        """Logits of every second."""
        return self.head(self.relate(self.look(maps, audio), audio))


def make_network(device: str | None = None) -> Network:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Network(device)


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """The same maps, audio and labels in every process."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(VIDEOS, SECONDS, 4, 4, 32, generator=generator)
    audio = torch.randn(VIDEOS, SECONDS, 16, generator=generator)
    return maps, audio, torch.randint(CATEGORIES, (VIDEOS, SECONDS), generator=generator)


def train(network: nn.Module, maps: Tensor, audio: Tensor, labels: Tensor) -> Tensor:
    """Take four steps; the losses."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(maps, audio).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def own_share() -> list[Tensor]:
    """The videos of this process, as many as every other one has."""
    videos = slice(distributed.get_rank(), None, distributed.get_world_size())
    return [part[videos] for part in make_batch()]


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over the processes."""
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


# %%
# DDP
# ---
# Every process has all weights and a part of the batch; gradients are averaged in the backward pass. Every parameter
# takes part in every step, so ``find_unused_parameters`` stays off. The network inside, ``.module``, is the one to
# save: its names have no prefix.


def with_ddp(folder: Path) -> Tensor:
    """Train, and let the first process save the network."""
    network = DistributedDataParallel(make_network())
    losses = train(network, *own_share())
    if distributed.get_rank() == 0:
        torch.save(network.module.state_dict(), folder / "ddp.pt")
    return mean_of_all(losses)


# %%
# FSDP2
# -----
# ``fully_shard`` leaves each process a part of every weight, and gathers the weights of a block when its turn comes.
#
# - **Blocks.** What is sharded together is gathered together, so shard the blocks first, then the network. A block may
#   be a layer, or one of its projections, since all of them are modules that are called. PyTorch may warn that a block
#   "returned a view tensor": that matters only to code that changes the output in place.
# - **Weights.** Build the network on the meta device, so that no process ever holds all of it but the first, which
#   draws the weights; ``set_model_state_dict`` hands them out. Weights may also be drawn in their parts, by every
#   module's ``reset_parameters``; ``network.apply`` visits children first, which matters, since CMRA draws those of its
#   children anew. On CPUs equal seeds then draw equal parts in all processes.
# - **Saving.** ``get_model_state_dict`` gathers the whole weights in the first process, under the names that they have
#   in the plain network.


def with_fully_shard(folder: Path) -> Tensor:
    """Train, and let the first process save the network."""
    first = distributed.get_rank() == 0
    network = make_network("meta")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in (network.look, network.relate, network):
        fully_shard(block, mesh=mesh)
    network.to_empty(device="cpu")
    whole = make_network().state_dict() if first else {}
    set_model_state_dict(network, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))

    kept = sum(parameter.to_local().numel() for parameter in network.parameters())
    maps, audio, labels = own_share()
    with torch.no_grad():
        difference = (network(maps, audio) - make_network()(maps, audio)).abs().max().item()
    network.reshard()  # the network itself has kept its own weights whole, and an optimizer must be given the parts
    if first:
        print(f"fully_shard: {kept:,} of {sum(p.numel() for p in network.parameters()):,} weights in this process")
        print(f"fully_shard: largest difference of the output from the plain network's {difference:.1e}")
    assert difference < 1e-5

    losses = train(network, maps, audio, labels)
    whole = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if first:
        torch.save(whole, folder / "fully_shard.pt")
    return mean_of_all(losses)


# %%
# What each process does
# ----------------------
# This file is both the guide and the program that the processes run: with a folder as argument it is one of them. So
# it has to be run as a file, not in a notebook.

if sys.argv[1:]:
    distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    for name, way in {"DDP": with_ddp, "fully_shard": with_fully_shard}.items():
        losses = way(folder)
        if distributed.get_rank() == 0:
            print(f"{name}: losses", *(f"{loss:.6f}" for loss in losses))
    distributed.destroy_process_group()
    sys.exit()

# %%
# Two processes
# -------------
# ``torchrun``, which is ``python -m torch.distributed.run``, starts them and tells each its number. On the command line
# this is ``torchrun --standalone --nproc-per-node 2 distributed.py FOLDER``.

folder = Path(tempfile.mkdtemp())
launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
command = [*launcher, os.path.abspath(sys.argv[0]), str(folder)]
print(subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True))  # noqa: S603

# %%
# One process, for comparison
# ---------------------------
# The whole batch in one process: the same losses and, after four steps of gradient descent, the same weights. So the
# gradients were the same, too.

network = make_network()
print("one process: losses", *(f"{loss:.6f}" for loss in train(network, *make_batch())))
for name in ("ddp", "fully_shard"):
    saved = torch.load(folder / f"{name}.pt", weights_only=True)
    difference = max((saved[key] - value).abs().max().item() for key, value in network.state_dict().items())
    print(f"{name}: largest difference of a weight {difference:.1e}")
    assert difference < 1e-6
    Network().load_state_dict(saved)  # a plain network: no process group, nothing sharded

# %%
# Equal means
# -----------
# Both average over processes, so the mean over the batch is theirs only if every process has as many terms. Where
# padded segments are left out of a loss, give it the sum over valid segments, times the number of processes, divided by
# the number of valid segments in all of them.
#
# On GPUs
# -------
# The layers need no change. In the program, ``init_process_group("nccl")`` and
# ``torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))`` come first, the mesh is of ``"cuda"``, and network and batch
# are made on, or moved to, the device. None of this was run on GPUs for this page.
#
# ``examples/ave_cmran.py train`` runs under ``torchrun`` and ``accelerate launch`` as it is, with DDP.
