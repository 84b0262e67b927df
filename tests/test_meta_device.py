"""After the meta device, weights are initialized as by the constructor."""

import pytest
import torch


def draw_children_first(model):
    """Initialize the weights of a model in the order of ``Module.apply``."""
    model.to_empty(device="cpu")
    model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)


def draw_parents_first(model):
    """Initialize the weights in the order of FSDP1, with the function of docs/concepts/running.md."""

    def draw_weights(module):
        if hasattr(module, "reset_parameters") and any(parameter.is_meta for parameter in module.parameters()):
            module.to_empty(device="cpu")
            module.reset_parameters()

    for module in model.modules():
        draw_weights(module)


@pytest.mark.parametrize("draw_all", [draw_children_first, draw_parents_first])
def test_weights_are_drawn_as_by_the_constructor(case, draw_all):
    """Every parameter has the range of the constructor; biases and norms are zeros and ones."""
    expected, layer = case.build(), case.build(device="meta")
    draw_all(layer)
    for name, drawn in layer.named_parameters():
        usual = expected.get_parameter(name)
        if usual.numel() > 1 and usual.unique().numel() == 1:
            assert torch.equal(drawn, usual), name
        else:
            assert drawn.unique().numel() > 0.9 * drawn.numel(), name
        if drawn.numel() > 500:
            torch.testing.assert_close(drawn.abs().max(), usual.abs().max(), rtol=0.02, atol=0)
