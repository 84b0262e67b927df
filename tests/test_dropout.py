"""Dropout and ReLUDropout do what torch does, with other random numbers."""

import pytest
import torch
from torch import nn

from crossmodal_attn.dropout import LEVELS, Dropout, ReLUDropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1 / 3])
def test_probability_scale_and_mean(p):
    """The share of dropped elements is p within five standard deviations, and kept elements have the right scale."""
    torch.manual_seed(0)
    size = 1_000_003  # not a multiple of the four elements that one number serves
    kept = Dropout(p)(torch.ones(size, dtype=torch.float64))
    values = kept.unique()
    assert len(values) == 2
    assert values[0] == 0
    keep = 1 / values[1].item()
    assert abs(keep - (1 - p)) <= 0.5 / LEVELS
    assert abs((kept > 0).double().mean().item() - keep) < 5 * (p * (1 - p) / size) ** 0.5


def test_elements_are_independent():
    """Neighbors, even those that share a random number, are dropped independently."""
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).double()
    for step in range(1, 6):
        together = (dropped[:-step] * dropped[step:]).mean().item()
        assert together == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5), (7,), (), (0, 3)], ids=str)
def test_shape_and_dtype_stay(shape, dtype):
    result = Dropout(0.3)(torch.ones(shape, dtype=dtype))
    assert (result.shape, result.dtype) == (torch.Size(shape), dtype)


def test_seed_decides():
    dropout, features = Dropout(0.5), torch.ones(97)
    torch.manual_seed(3)
    first, second = dropout(features), dropout(features)
    torch.manual_seed(3)
    assert torch.equal(dropout(features), first)
    assert not torch.equal(first, second)


def test_gradient_is_the_mask(draw, assert_close):
    features = draw(5, 7).requires_grad_()
    output = Dropout(0.5)(features)
    output.sum().backward()
    assert_close(features.grad * features, output)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0), (1e-7, 1.0)])
def test_extremes(p, expected):
    """With p=0 nothing is dropped, with p=1 everything, and a p that rounds to 0 drops nothing."""
    assert torch.allclose(Dropout(p)(torch.ones(1009)), torch.full((1009,), expected))


def test_evaluation_and_compiled_code_leave_it_to_torch():
    features = torch.ones(11)
    assert Dropout(0.5).eval()(features) is features
    torch.manual_seed(5)
    compiled = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)(features)
    torch.manual_seed(5)
    assert torch.equal(compiled, nn.functional.dropout(features, 0.5))


def maps_views_of_other_bits() -> bool:
    """Return whether torch.vmap supports Tensor.view(dtype), which torch 2.6 and 2.9 do not."""
    try:
        torch.vmap(lambda bits: bits.view(torch.int16))(torch.zeros(2, 3, dtype=torch.int64))
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not maps_views_of_other_bits(), reason="this torch cannot map a view of other bits")
def test_vmap_follows_its_randomness():
    dropout, features = Dropout(0.5), torch.ones(3, 1009)
    same = torch.vmap(dropout, randomness="same")(features)
    assert torch.equal(same[0], same[1])
    different = torch.vmap(dropout, randomness="different")(features)
    assert not torch.equal(different[0], different[1])


def test_it_is_a_dropout_of_torch():
    """Code that finds dropout layers by their class, and sets their probability, works."""
    dropout = Dropout(0.25)
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    assert torch.equal(dropout(torch.ones(7)), torch.ones(7))
    with pytest.raises(ValueError, match="probability"):
        Dropout(1.5)


RECTIFIED = {
    "forward": lambda layer, features: layer(features),
    "backward": lambda layer, features: torch.autograd.grad(layer(features).sin().sum(), features),
    "second derivative": lambda layer, features: torch.autograd.grad(
        torch.autograd.grad(layer(features).sin().sum(), features, create_graph=True)[0].square().sum(), features
    ),
    "batched gradients": lambda layer, features: torch.autograd.grad(
        layer(features), features, torch.stack([torch.ones(5, 7), torch.eye(5, 7)]).double(), is_grads_batched=True
    ),
    "forward mode": lambda layer, features: torch.func.jvp(layer, (features,), (features.cos(),)),
    "vmap": lambda layer, features: torch.vmap(layer, randomness="same")(features),
    "gradients of each": lambda layer, features: torch.vmap(
        torch.func.grad(lambda one: layer(one).sin().sum()), randomness="same"
    )(features),
}


@pytest.mark.parametrize("transform", RECTIFIED.values(), ids=RECTIFIED)
def test_rectified_is_the_dropout_of_a_relu(draw, assert_close, transform):
    """With the same seed, values and derivatives are equal under every transform of torch."""
    features = draw(5, 7).requires_grad_()
    dropout = Dropout(0.4)
    results = []
    for layer in (ReLUDropout(0.4), lambda values: dropout(values.relu())):
        torch.manual_seed(11)
        results.append(transform(layer, features))
    assert_close(*results)


def test_rectified_in_evaluation_and_where_nothing_is_kept(draw):
    features = draw(5, 7)
    assert torch.equal(ReLUDropout(0.5).eval()(features), features.relu())
    assert torch.equal(ReLUDropout(0.0)(features), features.relu())
    assert not ReLUDropout(1.0)(features).any()
