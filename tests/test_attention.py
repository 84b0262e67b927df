"""Relation attention equals its equation in loops, for every mask, dtype and kernel."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracles
from crossmodal_attn import relation_attention, relation_weights

MASK_SHAPES = [(11,), (5, 11), (3, 5, 11), (2, 1, 1, 11), (2, 1, 5, 11), (2, 3, 5, 11), (2, 3, 5, 1), (1, 3, 1, 11)]


def make_mask(draw, shape, kind):
    """Return a mask in which one row of each map may attend to nothing, if it has rows."""
    mask = draw(*shape) > 0.3
    if len(shape) > 1 and shape[-2] > 1:
        mask[..., 1, :] = True
    if kind == "bool":
        return mask
    return draw(*shape).masked_fill(mask, -torch.inf)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [None, *MASK_SHAPES], ids=str)
def test_relation_attention_is_the_equation_in_loops(draw, assert_close, shape, kind):
    """Outputs and weights are right for every mask shape that broadcasts, also where a row may attend to nothing."""
    query, key, value = draw(2, 3, 5, 13), draw(2, 3, 11, 13), draw(2, 3, 11, 13)
    mask = None if shape is None else make_mask(draw, shape, kind)
    output, weights = oracles.attention(query, key, value, mask)
    assert_close(relation_attention(query, key, value, attn_mask=mask), output)
    assert_close(relation_weights(query, key, attn_mask=mask), weights)
    assert_close(relation_weights(query, key, attn_mask=mask) @ value, output)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [None, "bool", "float"])
def test_sdpa_backends_agree(draw, assert_close, dtype, kind):
    """The math and the flash kernel agree, also where a row may attend to nothing."""
    query, key, value = (draw(2, 3, length, 13, dtype=dtype) for length in (5, 7, 7))
    mask = None if kind is None else make_mask(draw, (2, 3, 5, 7), kind)
    results = []
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            results.append(relation_attention(query, key, value, attn_mask=mask))
    assert results[0].dtype == dtype
    assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [None, "bool", "float"])
@pytest.mark.parametrize("autocast", [False, True])
def test_weights_are_rounded_once(draw, dtype, kind, autocast):
    """Weights are computed in float32, and then rounded once to the dtype of the query."""
    query, key = 4 * draw(2, 3, 5, 13, dtype=dtype), draw(2, 3, 7, 13, dtype=dtype)
    mask = None if kind is None else make_mask(draw, (2, 3, 5, 7), kind).to(torch.bool if kind == "bool" else dtype)
    if autocast and kind == "float":
        mask = mask.to(torch.bfloat16)
    expected = relation_weights(query.double(), key.double(), attn_mask=mask)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        weights = relation_weights(query, key, attn_mask=mask)
    assert weights.dtype == dtype
    # Below one, neighboring numbers are half of eps apart.
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-6 + torch.finfo(dtype).eps / 4)


def test_autocast_empties_the_same_rows_of_output_and_weights(draw):
    """A mask value that becomes -inf only in autocast's dtype gives zero attention, not NaN, on every backend."""
    query, memory = draw(2, 3, 5, 13, dtype=torch.float32), draw(2, 3, 7, 13, dtype=torch.float32)
    mask = torch.zeros(5, 7)
    mask[1] = torch.finfo(torch.float32).min
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        assert not relation_attention(query, memory, memory, attn_mask=mask)[:, :, 1].any()
        assert not relation_weights(query, memory, attn_mask=mask)[:, :, 1].any()


@pytest.mark.parametrize("kind", [None, "bool", "float"])
def test_relation_attention_gradients(draw, kind):
    """First and second derivatives equal finite differences, for query, key, value and a float mask with empty rows."""
    inputs = [draw(2, 3, length, 2).requires_grad_() for length in (2, 3, 3)]
    closed = make_mask(draw, (2, 1, 2, 3), "bool")
    if kind == "float":
        inputs.append(draw(2, 1, 2, 3).requires_grad_())

    def attend(query, key, value, added=None):
        mask = {None: None, "bool": closed}[kind] if added is None else added.masked_fill(closed, -torch.inf)
        return relation_attention(query, key, value, attn_mask=mask)

    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(attend, inputs)
        assert torch.autograd.gradgradcheck(attend, inputs)
    if kind != "float":
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            assert torch.autograd.gradcheck(attend, inputs)


def test_relation_attention_drops_weights(draw):
    """With dropout_p=1 the output is zero; with 0.5 the mean over many draws is the output without dropout."""
    query, key, value = draw(2, 3, 5, 13), draw(2, 3, 11, 13), draw(2, 3, 11, 13)
    assert not relation_attention(query, key, value, dropout_p=1.0).any()
    query, key, value = query[:1, :1, :1].expand(1, 1, 20000, 13), key[:1, :1], value[:1, :1]
    mean = relation_attention(query, key, value, dropout_p=0.5).mean(2)
    torch.testing.assert_close(mean, relation_attention(query, key, value)[:, :, 0], rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_least_number_as_a_mask(draw, dtype, mask_dtype):
    """A mask of `finfo.min`, which may become -inf in another dtype, gives no NaN, and zero rows in both or neither."""
    query = 30 * draw(2, 3, 5, 13, dtype=dtype)
    mask = torch.zeros(5, 5, dtype=mask_dtype)
    mask[1] = torch.finfo(mask_dtype).min
    mask[2, :3] = torch.finfo(mask_dtype).min
    weights = relation_weights(query, query, attn_mask=mask)
    output = relation_attention(query, query, query, attn_mask=mask)
    assert weights.dtype == dtype
    assert weights.isfinite().all()
    assert output.isfinite().all()
    assert not weights[:, :, 2, :3].any()
    others = weights[:, :, [0, 2, 3, 4]].double().sum(-1)
    torch.testing.assert_close(others, torch.ones_like(others), rtol=0, atol=0.02)
    assert ((weights[:, :, 1] == 0).all() == (output[:, :, 1] == 0).all()).item()
