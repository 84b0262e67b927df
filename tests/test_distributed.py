"""CMRAN trains under DistributedDataParallel in two processes, without find_unused_parameters."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ave.networks.two_scores import supervised_loss, weak_loss
from crossmodal_attn import CMRA, padding_mask
from oracles import fill_parameters, make_cmran


def make_batch():
    """Return four padded videos; both halves have the same number of valid segments, so that means are equal."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(4, 5, 3, 2, 11, generator=generator, dtype=torch.float64)
    audio = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.randint(0, 6, (4, 5), generator=generator), 6).double()
    return video, audio, labels, padding_mask([5, 2, 4, 3])


def loss_of(model, setting, video, audio, labels, mask):
    logits = model(video, audio, padding_mask=mask)
    if setting == "supervised":
        return supervised_loss(logits, labels, padding_mask=mask)
    return weak_loss(logits, labels.mean(1), padding_mask=mask)


LACKING = ("none", "no-steps")


def make_layer():
    """Build a layer with a projection for each of two contexts."""
    return fill_parameters(CMRA(6, 2, context_dim=[3, 2], dtype=torch.float64))


def lack_on_second(layer, rank, kind):
    """Run forward and backward on one half of a batch. The second half lacks the first modality."""
    generator = torch.Generator().manual_seed(rank)
    query, first, second = (
        torch.randn(2, *size, generator=generator, dtype=torch.float64) for size in ((5, 6), (7, 3), (4, 2))
    )
    if rank == 1:
        first = None if kind == "none" else first[:, :0]
    layer(query, [first, second]).square().sum().backward()


def work(rank, folder):
    """Take a step on one half of the batch, and save the gradients to a file. This runs in a separate process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for setting in ("supervised", "weak"):
            model = DistributedDataParallel(make_cmran(setting), find_unused_parameters=False)
            half = [part[2 * rank : 2 * rank + 2] for part in make_batch()]
            # A parameter unused in the first pass would make the second one raise.
            for _ in range(2):
                model.zero_grad(set_to_none=True)
                loss_of(model, setting, *half).backward()
            gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
            torch.save(gradients, Path(folder) / f"{setting}-{rank}.pt")
        for kind in LACKING:
            layer = DistributedDataParallel(make_layer(), find_unused_parameters=kind == "none")
            for _ in range(2):
                layer.zero_grad(set_to_none=True)
                lack_on_second(layer, rank, kind)
            gradients = {name: parameter.grad for name, parameter in layer.module.named_parameters()}
            torch.save(gradients, Path(folder) / f"lacking-{kind}-{rank}.pt")
    finally:
        model = layer = None  # torch may hang if the group ends before what DistributedDataParallel wraps
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processes):
    """Return the directory with the gradients of both processes, for both settings."""
    path = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.start_processes(work, (str(path),), nprocs=2, start_method=processes.get_start_method())
    return path


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_give_the_gradients_of_the_joint_batch(setting, folder, assert_close):
    """Gradients of every parameter equal those of one process, in both processes."""
    model = make_cmran(setting)
    loss_of(model, setting, *make_batch()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for rank in range(2):
        gradients = torch.load(folder / f"{setting}-{rank}.pt", weights_only=True)
        assert all(gradient is not None for gradient in gradients.values())
        assert_close(gradients, expected)


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("kind", LACKING)
def test_one_process_lacks_a_modality(kind, folder, assert_close):
    """The modality is None, with find_unused_parameters, or has no steps, without it; gradients are averaged."""
    layer = make_layer()
    for rank in range(2):
        lack_on_second(layer, rank, kind)
    expected = {name: parameter.grad / 2 for name, parameter in layer.named_parameters()}
    for rank in range(2):
        assert_close(torch.load(folder / f"lacking-{kind}-{rank}.pt", weights_only=True), expected)
