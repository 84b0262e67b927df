"""Relation attention and CMRA equal the equations in loops, and torch.nn.MultiheadAttention."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracles
from crossmodal_attn import CMRA, padding_mask, relation_attention, relation_weights
from oracles import CASES, fill_parameters

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


@pytest.mark.parametrize("masked", [False, True])
def test_autocast_leaves_the_weights_in_the_dtype_of_the_projections(draw, masked):
    layer = CMRA(39, 3)
    padding = padding_mask([5, 2]) if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        output, weights = layer(draw(2, 5, 39).float(), query_padding_mask=padding, need_weights=True)
    assert output.dtype == weights.dtype == torch.bfloat16


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("lengths", "include_query", "context_dim"),
    [
        ((), True, None),
        *itertools.product([(7,), (7, 2), (7, 2, 3), (7, 2, 3, 1)], [True, False], [None, 17]),
    ],
    ids=str,
)
def test_cmra_is_the_equation_in_loops(draw, assert_close, lengths, include_query, context_dim, bias):
    """This holds for up to four padded contexts of different lengths, whose width is that of the query or another."""
    layer = fill_parameters(
        CMRA(39, 3, bias=bias, context_dim=context_dim, include_query=include_query, dtype=torch.float64)
    )
    query, contexts = draw(2, 5, 39), [draw(2, length, context_dim or 39) for length in lengths]
    paddings = [padding_mask([max(0, length - 2), length]) for length in lengths]
    query_padding = padding_mask([3, 5])
    joined = torch.cat([*paddings, query_padding] if include_query else paddings, 1)
    # The oracle knows no padding of queries: their outputs and maps at padding are of the zeroed query.
    expected = oracles.cmra(layer, query.masked_fill(query_padding.unsqueeze(-1), 0), contexts, joined[:, None, None])
    actual = layer(
        query,
        contexts or None,
        query_padding_mask=query_padding,
        context_padding_mask=paddings or None,
        need_weights=True,
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("include_query", [True, False])
@pytest.mark.parametrize(("context_dim", "lacking"), [([39], None), *itertools.product([[17, 39, 17]], [None, 0, 2])])
def test_cmra_with_a_projection_for_each_context(draw, assert_close, context_dim, include_query, lacking):
    """Each context has a projection, even for equal widths; a missing context has no part in the memory."""
    layer = fill_parameters(CMRA(39, 3, context_dim=context_dim, include_query=include_query, dtype=torch.float64))
    query, lengths = draw(2, 5, 39), [7, 2, 3][: len(context_dim)]
    contexts = [draw(2, *size) for size in zip(lengths, context_dim, strict=True)]
    paddings = [padding_mask([max(0, length - 2), length]) for length in lengths]
    if lacking is not None:
        contexts[lacking] = paddings[lacking] = None
    whole = [torch.zeros(2, 5, dtype=torch.bool)] if include_query else []
    mask = torch.cat([padding for padding in paddings if padding is not None] + whole, 1)
    expected = oracles.cmra(layer, query, contexts, mask[:, None, None])
    assert_close(layer(query, contexts, context_padding_mask=paddings, need_weights=True), expected)
    projections = {name for name, _ in layer.named_parameters() if "kv_proj" in name and "weight" in name}
    assert projections == {f"context_kv_projs.{index}.weight" for index in range(len(context_dim))} | (
        {"kv_proj.weight"} if include_query else set()
    )


@pytest.mark.parametrize("name", ["cmra-4-contexts", "cmra-other-width", "cmra-own-projections"])
def test_lacking_modality_is_as_one_without_steps(draw, name):
    """Outputs and weights are equal; only with None, the separate projection of the context gets no gradient."""
    case = CASES[name]
    layer = case.make()
    query, *contexts = case.features(draw, 2, case.lengths(5, 7, 2, 3, 11))
    gradients = []
    for lack in (None, contexts[0][:, :0]):
        output, weights = layer(query, [lack, *contexts[1:]], need_weights=True)
        output.square().sum().backward()
        gradients.append([output, weights, *(parameter.grad for parameter in layer.parameters())])
        layer.zero_grad(set_to_none=True)
    assert (gradients[0].count(None), gradients[1].count(None)) == (2 if name == "cmra-own-projections" else 0, 0)
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(second, torch.zeros_like(second) if first is None else first)
    # Where nothing is left, a projection of the contexts has no gradient either.
    expected = layer(query, [context[:, :0] for context in contexts])
    assert torch.equal(layer(query, [None] * len(contexts)), expected)


def test_cmra_weights_follow_the_memory(draw):
    """The memory order is [contexts..., query]: a float mask that selects one step makes its weight one."""
    layer = CASES["cmra-self"].make()
    query, contexts = draw(2, 5, 39), [draw(2, 7, 39), draw(2, 2, 39)]
    pointing = torch.zeros(5, 14, dtype=torch.float64)
    pointing[:, 8] = 1e4
    output, weights = layer(query, contexts, attn_mask=pointing, need_weights=True)
    torch.testing.assert_close(weights[..., 8], torch.ones(2, 3, 5, dtype=torch.float64))
    value = layer.kv_proj(contexts[1][:, 1])[:, 39:]
    torch.testing.assert_close(output, layer.out_proj(value).unsqueeze(1).expand(2, 5, 39))


@pytest.mark.parametrize("contexts", [None, [], ()], ids=str)
def test_cmra_without_context_is_self_attention(draw, assert_close, contexts):
    layer = CASES["cmra-self"].make()
    query = draw(2, 5, 39)
    co_attention = CMRA(39, 3, include_query=False, dtype=torch.float64)
    co_attention.load_state_dict(layer.state_dict())
    assert_close(layer(query, contexts), co_attention(query, query))


def test_cmra_takes_one_context_bare_or_in_a_sequence(draw):
    layer = CASES["cmra-self"].make()
    query, context, mask = draw(2, 5, 39), draw(2, 7, 39), padding_mask([7, 2])
    bare = layer(query, context, context_padding_mask=mask)
    for sequence in (list, tuple):
        assert torch.equal(layer(query, sequence([context]), context_padding_mask=sequence([mask])), bare)


def make_multihead(batch_first=True, bias=True, kdim=None, dtype=torch.float64, **options):
    options = {"embed_dim": 39, "num_heads": 3, "vdim": kdim, **options}
    return fill_parameters(nn.MultiheadAttention(bias=bias, batch_first=batch_first, kdim=kdim, dtype=dtype, **options))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 17])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mask", [None, "bool-2d", "bool-3d", "float-2d", "float-3d"])
def test_cmra_equals_multihead_attention(draw, assert_close, batch_first, bias, kdim, padded, mask):
    """With the same weights, outputs and per-head attention weights are equal under every mask that both support."""
    attention = make_multihead(batch_first, bias, kdim)
    layer = CMRA.from_multihead_attention(attention)
    query, memory = draw(2, 5, 39), draw(2, 7, kdim or 39)
    padding = padding_mask([7, 4]) if padded else None
    attn_mask = None
    if mask:
        attn_mask = draw(*(() if mask.endswith("2d") else (6,)), 5, 7)
        closed = attn_mask > 1
        closed[..., 0] = False
        attn_mask = closed if mask.startswith("bool") else attn_mask.masked_fill(closed, -torch.inf)
    there = (lambda features: features) if batch_first else (lambda features: features.transpose(0, 1))
    # nn.MultiheadAttention wants both masks of one kind.
    key_padding = padding
    if padded and mask and mask.startswith("float"):
        key_padding = torch.zeros(2, 7, dtype=torch.float64).masked_fill(padding, -torch.inf)
    expected, expected_weights = attention(
        there(query),
        there(memory),
        there(memory),
        key_padding_mask=key_padding,
        attn_mask=attn_mask,
        average_attn_weights=False,
    )
    output, weights = layer(query, memory, context_padding_mask=padding, attn_mask=attn_mask, need_weights=True)
    assert_close(output, there(expected))
    assert_close(weights, expected_weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_from_multihead_attention_keeps_mode_dtype_and_dropout(dtype, training):
    layer = CMRA.from_multihead_attention(make_multihead(dtype=dtype, dropout=0.25).train(training))
    assert all(module.training is training for module in layer.modules())
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert (layer.embed_dim, layer.num_heads, layer.dropout, layer.include_query) == (39, 3, 0.25, False)


def test_from_multihead_attention_copies():
    """Changing the weights of one layer does not change the other."""
    attention = make_multihead()
    layer = CMRA.from_multihead_attention(attention)
    storages = {parameter.untyped_storage().data_ptr() for parameter in attention.parameters()}
    assert not storages & {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in layer.parameters())


def test_from_multihead_attention_keeps_what_is_frozen():
    """Frozen parameters stay frozen, and the random state does not change."""
    attention = nn.MultiheadAttention(39, 3)
    attention.in_proj_weight.requires_grad_(False)
    before = torch.get_rng_state()
    layer = CMRA.from_multihead_attention(attention)
    assert torch.equal(torch.get_rng_state(), before)
    frozen = {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}
    assert frozen == {"q_proj.weight", "kv_proj.weight"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 17])
@pytest.mark.parametrize("made_inside", [False, True])
def test_from_multihead_attention_can_be_trained_whatever_the_mode(draw, mode, bias, kdim, made_inside):
    """A copy that is made under no_grad or inference_mode has ordinary parameters that get gradients."""
    attention = make_multihead(bias=bias, kdim=kdim)
    with mode():
        if made_inside:
            attention = make_multihead(bias=bias, kdim=kdim)
        attention.out_proj.weight.requires_grad_(False)
        layer = CMRA.from_multihead_attention(attention)
    parameters = dict(layer.named_parameters())
    assert not any(parameter.is_inference() for parameter in parameters.values())
    assert {name for name, parameter in parameters.items() if not parameter.requires_grad} == {"out_proj.weight"}
    layer(draw(2, 5, 39), draw(2, 7, kdim or 39)).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values() if parameter.requires_grad)


def test_from_multihead_attention_refuses_another_forward():
    """A subclass may compute something else, so it must be refused."""

    class Other(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(TypeError, match=r"attention must be a torch.nn.MultiheadAttention, got Other"):
        CMRA.from_multihead_attention(Other(39, 3))


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


def test_from_multihead_attention_makes_the_class_it_is_called_on():
    class Own(CMRA):
        pass

    assert type(Own.from_multihead_attention(make_multihead())) is Own


@pytest.mark.parametrize("kdim", [None, 401])
def test_initialization_is_that_of_multihead_attention(kdim):
    """The extremes and the variance of every projection are those of the same uniform distribution."""
    attention = nn.MultiheadAttention(399, 3, kdim=kdim, vdim=kdim)
    theirs = CMRA.from_multihead_attention(attention).state_dict()
    ours = CMRA(399, 3, context_dim=kdim, include_query=kdim is None).state_dict()
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.std(), theirs[name].std(), rtol=0.02, atol=0)
        torch.testing.assert_close(parameter.abs().max(), theirs[name].abs().max(), rtol=1e-3, atol=0)
        if name.endswith("bias"):
            assert not parameter.any()


@pytest.mark.parametrize(("context_dim", "kdim"), [([399], None), ([399, 401], 401)], ids=str)
def test_projections_for_each_context_are_drawn_as_without(context_dim, kdim):
    """The initial weights have the same range as those that nn.MultiheadAttention draws for these widths."""
    attention = nn.MultiheadAttention(399, 3, kdim=kdim, vdim=kdim)
    theirs = CMRA.from_multihead_attention(attention).kv_proj.weight
    layer = CMRA(399, 3, context_dim=context_dim)
    own = layer.context_kv_projs[-1]
    torch.testing.assert_close(own.weight.abs().max(), theirs.abs().max(), rtol=1e-3, atol=0)
    assert not own.bias.any()


def test_need_weights_changes_nothing(draw):
    """The output is bitwise the same with and without the weights, under the same dropout seed."""
    layer = CASES["cmra-other-width"].make().train()
    layer.dropout = 0.3
    query, contexts = draw(2, 5, 39), [draw(2, 7, 17), draw(2, 3, 17)]
    torch.manual_seed(1)
    output = layer(query, contexts)
    torch.manual_seed(1)
    with_weights, weights = layer(query, contexts, need_weights=True)
    assert torch.equal(with_weights, output)
    torch.testing.assert_close(weights.sum(-1), weights.new_ones(2, 3, 5))


def test_weights_give_the_output(draw, assert_close):
    """The output is the projection of weights @ values."""
    layer = CASES["cmra-1-context"].make()
    query, context = draw(2, 5, 39), draw(2, 7, 39)
    output, weights = layer(query, context, query_padding_mask=padding_mask([5, 2]), need_weights=True)
    values = layer.kv_proj(torch.cat([context, zeroed(query)], 1))[..., 39:].unflatten(-1, (3, 13)).transpose(1, 2)
    assert_close(layer.out_proj((weights @ values).transpose(1, 2).flatten(2)), output)


def zeroed(query):
    return query.masked_fill(padding_mask([5, 2]).unsqueeze(-1), 0)


def test_dropout_acts_in_training_only(draw):
    layer = CASES["cmra-self"].make()
    layer.dropout = 0.5
    query = draw(2, 5, 39)
    evaluated = layer(query)
    assert torch.equal(layer(query), evaluated)
    layer.train()
    assert not torch.allclose(layer(query), evaluated)
    assert not torch.allclose(layer(query), layer(query))


@pytest.mark.parametrize("context_dim", [3, [3, 4]], ids=str)
def test_cmra_gradients(draw, context_dim):
    """First and second derivatives equal finite differences, for all features and parameters, with padding."""
    layer = fill_parameters(CMRA(4, 2, context_dim=context_dim, dtype=torch.float64))
    parameters = dict(layer.named_parameters())
    widths = context_dim if isinstance(context_dim, list) else [context_dim]
    masks = {
        "query_padding_mask": padding_mask([2, 1]),
        "context_padding_mask": [padding_mask([3, 0]) for _ in widths],
    }

    def run(query, *values):
        contexts, values = list(values[: len(widths)]), values[len(widths) :]
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (query, contexts), masks)

    contexts = [draw(2, 3, width).requires_grad_() for width in widths]
    inputs = (draw(2, 2, 4).requires_grad_(), *contexts, *parameters.values())
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
