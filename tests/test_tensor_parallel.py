"""Under tensor parallelism, two processes give the result of one, or a wrong plan raises an error."""

import pytest
import torch
from torch import distributed, nn

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from crossmodal_attn import CMRA, CrossModalRelation, padding_mask
from oracles import fill_parameters


def split_heads(attention, prefix=""):
    """Return the plan of docs/concepts/running.md: weights are split, and outputs are gathered."""
    names = [name for name, child in attention.named_modules() if isinstance(child, nn.Linear)]
    gathered = {name: ColwiseParallel(output_layouts=Replicate()) for name in names}
    plan = {**gathered, "out_proj": RowwiseParallel(input_layouts=Replicate())}
    return {prefix + name: style for name, style in plan.items()}


def split_block(block):
    """Return the plan of a block, whose feed-forward network needs no gathering between its layers."""
    plan = {"linear1": ColwiseParallel(), "linear2": RowwiseParallel()}
    return {**split_heads(block.attention, "attention."), **plan}


LAYERS = {
    "cmra": (lambda: CMRA(12, 2, context_dim=10, dtype=torch.float64), split_heads),
    "cmra-without-query": (
        lambda: CMRA(12, 2, context_dim=10, include_query=False, bias=False, dtype=torch.float64),
        split_heads,
    ),
    "cmra-own-projections": (lambda: CMRA(12, 2, context_dim=[10], dtype=torch.float64), split_heads),
    "cross-relation": (lambda: CrossModalRelation(12, 2, 14, 0.0, dtype=torch.float64), split_block),
}


def run(name, layer):
    """Return the output of a padded batch, and accumulate the gradients."""
    generator = torch.Generator().manual_seed(0)
    width = 12 if name == "cross-relation" else 10
    query, context = (torch.randn(2, *size, generator=generator, dtype=torch.float64) for size in ((5, 12), (7, width)))
    masks = {"query_padding_mask": padding_mask([5, 3]), "context_padding_mask": padding_mask([2, 7])}
    output = layer(query, context, **masks)
    output.square().sum().backward()
    return output.detach().clone()  # a sum over processes may still be under way


def work(rank, folder):
    """Split each layer, and save its results to a file. This runs in a separate process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        found = {}
        for name, (build, split) in LAYERS.items():
            layer = fill_parameters(build())
            parallelize_module(layer, mesh, split(layer))
            kept = {name: len(parameter.to_local()) for name, parameter in layer.named_parameters() if "kv" in name}
            output = run(name, layer)
            gradients = {
                name: parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
                for name, parameter in layer.named_parameters()
            }
            found[name] = (output, gradients, kept)

        # The usual plan, whose parts stay where they are; with and without the usual change of the number of heads.
        refusals = []
        for heads in (2, 1):
            layer = fill_parameters(CMRA(12, 2, dtype=torch.float64))
            layer.num_heads = heads
            plan = {name: ColwiseParallel() for name in ("q_proj", "kv_proj")}
            parallelize_module(layer, mesh, {**plan, "out_proj": RowwiseParallel()})
            try:
                layer(torch.ones(2, 5, 12, dtype=torch.float64))
            except ValueError as error:
                refusals.append(str(error))
        torch.save((found, refusals), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, processes):
    """Return the results of both processes."""
    folder = tmp_path_factory.mktemp("tensor-parallel")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method=processes.get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_compute_what_one_does(name, found, assert_close):
    """Outputs and all gradients are equal, with the weights of keys and values in two parts."""
    layer = fill_parameters(LAYERS[name][0]())
    output = run(name, layer)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    for layers, _ in found:
        split_output, split_gradients, kept = layers[name]
        assert_close(split_output, output)
        assert_close(split_gradients, gradients)
        assert set(kept.values()) == {12}


def test_halves_of_keys_and_values_are_refused(found):
    """A plan that gives one process all keys and the other all values raises an error."""
    for _, refusals in found:
        assert len(refusals) == 2
        for message in refusals:
            assert message.startswith("kv_proj gave 12 channels, but this CMRA needs all 24 of them: if tensor")
