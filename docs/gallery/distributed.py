"""
DDP and FSDP2
=============

The layers are ordinary modules, so :class:`~torch.nn.parallel.DistributedDataParallel` and ``fully_shard`` (FSDP2) can
train them. In this guide, two processes give the same losses and weights as one process with the whole batch.
The guide runs on a CPU, with the gloo backend. The last section lists the changes for GPUs.
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
# AGSCA attends over the map, the relation-aware module over time, and each second gets a category. There is no dropout,
# since each process would draw its own masks, and results could not be compared.


class Network(nn.Module):
    """AGSCA, then the relation-aware module, then a linear head."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.look = AGSCA(32, 16, hidden_dim=32, device=device)
        self.relate = RelationAware(32, 16, 64, num_layers=1, dim_feedforward=128, dropout=0.0, device=device)
        self.head = nn.Linear(64, CATEGORIES, device=device)

    def forward(self, maps: Tensor, audio: Tensor) -> Tensor:
        """Return the logits of each second."""
        return self.head(self.relate(self.look(maps, audio), audio))


def make_network(device: str | None = None) -> Network:
    """Return a network with the same weights in every process."""
    torch.manual_seed(0)
    return Network(device)


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return the same maps, audio and labels in every process."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(VIDEOS, SECONDS, 4, 4, 32, generator=generator)
    audio = torch.randn(VIDEOS, SECONDS, 16, generator=generator)
    return maps, audio, torch.randint(CATEGORIES, (VIDEOS, SECONDS), generator=generator)


def train(network: nn.Module, maps: Tensor, audio: Tensor, labels: Tensor) -> Tensor:
    """Train for four steps, and return the losses."""
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
    """Return the videos of this process. Each process has the same number."""
    videos = slice(distributed.get_rank(), None, distributed.get_world_size())
    return [part[videos] for part in make_batch()]


def mean_of_all(values: Tensor) -> Tensor:
    """Return the mean over all processes."""
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


# %%
# DDP
# ---
# Each process has all weights and a part of the batch. Gradients are averaged in the backward pass. Every parameter is
# used in every step, so ``find_unused_parameters`` is not needed. Save the inner network, ``.module``, since the names
# of its parameters have no prefix.


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
# With ``fully_shard``, each process stores a part of every weight, and gathers the weights of a block when it is used.
#
# - **Blocks.** The weights of a block are gathered together. So shard the blocks first, then the network. A block can
#   be a layer or one of its projections. PyTorch may warn that a block "returned a view tensor". This matters only for
#   code that changes the output in place.
# - **Weights.** Build the network on the meta device. Then only the first process initializes all weights, and
#   ``set_model_state_dict`` distributes them. The sharded weights can also be initialized in place, by
#   ``reset_parameters`` of every module. Use ``network.apply``, which visits children first, since CMRA initializes its
#   child modules again. On CPUs, use different seeds in the processes, as equal seeds give equal shards.
# - **Saving.** ``get_model_state_dict`` gathers the whole weights in the first process, with the names of the plain
#   network.


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
    network.reshard()  # the root keeps its weights gathered, but the optimizer needs the shards
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
# The program of each process
# ---------------------------
# This file is both the guide and the program of the two processes: with a folder as its argument, it runs as one of
# them. So run it as a file, not in a notebook.

if sys.argv[1:]:
    distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    for name, way in {"DDP": with_ddp, "fully_shard": with_fully_shard}.items():
        losses = way(folder)
        if distributed.get_rank() == 0:
            print(f"{name}: losses", *(f"{loss:.6f}" for loss in losses))
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # at a normal exit, threads of torch that still run sometimes abort the process

# %%
# Two processes
# -------------
# ``torchrun``, the same as ``python -m torch.distributed.run``, starts them and gives each a rank. On the command line
# this is ``torchrun --standalone --nproc-per-node 2 distributed.py FOLDER``.

folder = Path(tempfile.mkdtemp())
launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
command = [*launcher, os.path.abspath(sys.argv[0]), str(folder)]
print(subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True))

# %%
# One process, for comparison
# ---------------------------
# With the whole batch in one process, the losses are the same. After four steps of gradient descent the weights are
# also the same, so the gradients were the same.

network = make_network()
print("one process: losses", *(f"{loss:.6f}" for loss in train(network, *make_batch())))
for name in ("ddp", "fully_shard"):
    saved = torch.load(folder / f"{name}.pt", weights_only=True)
    difference = max((saved[key] - value).abs().max().item() for key, value in network.state_dict().items())
    print(f"{name}: largest difference of a weight {difference:.1e}")
    assert difference < 1e-6
    Network().load_state_dict(saved)  # a plain network, without a process group

# %%
# Equal means
# -----------
# Both methods average the gradients of all processes. In this guide, the loss of each process is a mean over the same
# number of segments, so the average is the gradient of the mean over the whole batch. If padded segments are left out
# of the loss, processes may have different numbers of valid segments. Then use this loss in each process: the sum over
# its valid segments, divided by the number of valid segments in all processes, times the number of processes.
#
# On GPUs
# -------
# The layers need no change. In the program, call ``init_process_group("nccl")`` and
# ``torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))`` first, use a mesh of ``"cuda"``, and put network and batch on
# the device. This page was not run on GPUs.
#
# ``examples/ave_cmran.py train`` supports ``torchrun`` and ``accelerate launch``, with DDP.
