"""Under FSDP2, layers give the same output, and initialize their sharded weights."""

import pytest
import torch
from torch import distributed

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

pytestmark = [
    # It says so of every module that ends in nn.Linear, too.
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning"),
    # Equal seeds draw equal parts in all processes there; here is one process.
    pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support on cpu:UserWarning"),
]


@pytest.fixture
def mesh(request):
    """Return a mesh of one process, or of one that acts as the first of two."""
    backend, store, size = request.param
    distributed.init_process_group(backend, store=store(), rank=0, world_size=size)
    yield init_device_mesh("cpu", (size,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("mesh", [("gloo", distributed.HashStore, 1)], indirect=True, ids=["whole"])
def test_sharded_layer_computes_as_before(case, draw, mesh, assert_close):
    """Output and weight gradients are those of the plain layer."""
    layer, features = case.make(), case.features(draw, 3, case.lengths(5, 7, 2, 3, 11))
    expected = case(layer, features)
    expected.sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    fully_shard(layer, mesh=mesh)
    output = case(layer, features)
    output.sum().backward()
    assert_close(output, expected)
    assert_close({name: parameter.grad.full_tensor() for name, parameter in layer.named_parameters()}, gradients)


@pytest.mark.parametrize("mesh", [("fake", FakeStore, 2)], indirect=True, ids=["half"])
def test_sharded_weights_are_drawn_where_they_lie(case, mesh):
    """After meta and to_empty, all numbers of this process are initialized in the range of the whole weight."""
    expected = case.build(dtype=torch.float64)
    layer = case.build(dtype=torch.float64, device="meta")
    fully_shard(layer, mesh=mesh)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.to_local().fill_(torch.nan)
    layer.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    for name, parameter in layer.named_parameters():
        drawn, usual = parameter.to_local(), expected.get_parameter(name)
        assert drawn.isfinite().all(), name
        if drawn.numel() > 500:
            torch.testing.assert_close(drawn.abs().max(), usual.abs().max(), rtol=0.02, atol=0)
