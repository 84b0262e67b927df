"""The blocks equal the equations, and without a context they equal torch.nn.TransformerEncoderLayer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracles
from crossmodal_attn import (
    CMRA,
    AVInteraction,
    CrossModalRelation,
    InternalTemporalRelation,
    RelationAware,
    padding_mask,
    record_attention,
)
from oracles import CASES, fill_parameters


@pytest.mark.parametrize("lengths", [(), (7,), (7, 2)], ids=str)
def test_cross_modal_relation_is_the_equation(draw, assert_close, lengths):
    layer = CASES["cross-relation"].make()
    query, contexts = draw(2, 5, 39), [draw(2, length, 39) for length in lengths]
    assert_close(layer(query, contexts), oracles.cross_modal_relation(layer, query, contexts))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("include_query", [False, True])
@pytest.mark.parametrize(("context_dim", "lengths"), [(17, (7, 2)), ([17, 39], (7, 2)), ([39, 17], (7, None))], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_options_of_cross_modal_relation(draw, assert_close, norm_first, include_query, context_dim, lengths, masked):
    """Widths, missing modalities, co-attention and pre-norm follow the equations, also under a float mask."""
    options = {"norm_first": norm_first, "include_query": include_query, "context_dim": context_dim}
    layer = fill_parameters(CrossModalRelation(39, 3, 29, 0.0, **options, dtype=torch.float64))
    widths = context_dim if isinstance(context_dim, list) else [context_dim] * 2
    sizes = zip(lengths, widths, strict=True)
    query, contexts = draw(2, 5, 39), [None if length is None else draw(2, length, width) for length, width in sizes]
    memory = sum(length or 0 for length in lengths) + 5 * include_query
    mask = draw(2, 1, 5, memory).masked_fill(draw(2, 1, 5, memory) > 1, -torch.inf) if masked else None
    expected = oracles.cross_modal_relation(layer, query, contexts, mask, norm_first=norm_first)
    assert_close(layer(query, contexts, attn_mask=mask), expected)


ACTIVATIONS = {
    "gelu": ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    "function": (F.silu, lambda x: x / (1 + torch.exp(-x))),
    "module": (nn.LeakyReLU(0.25), lambda x: torch.where(x > 0, x, x / 4)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_stands_between_the_linear_maps(draw, assert_close, name):
    activation, activate = ACTIVATIONS[name]
    layer = fill_parameters(CrossModalRelation(39, 3, 29, 0.3, activation=activation, dtype=torch.float64)).eval()
    query, context = draw(2, 5, 39), draw(2, 7, 39)
    assert_close(layer(query, context), oracles.cross_modal_relation(layer, query, [context], activate=activate))
    hidden = draw(4, 7, 29)
    dropped = (layer.train().activation(hidden) == 0).double().mean()
    assert 0.2 < dropped < 0.4


@pytest.mark.parametrize("padding", [None, padding_mask([3, 0], 5)], ids=["whole", "padded"])
def test_no_blocks_are_the_identity(draw, padding):
    """Only padded steps change: they become zero, even if they were NaN."""
    layer = InternalTemporalRelation(39, 3, 0)
    features = draw(2, 5, 39).requires_grad_()
    assert not list(layer.parameters())
    filled = features if padding is None else features.masked_fill(padding.unsqueeze(-1), torch.nan)
    output = layer(filled, padding_mask=padding, attn_mask=torch.ones(5, 5, dtype=torch.bool))
    kept = torch.ones(2, 5, dtype=torch.bool) if padding is None else ~padding
    assert torch.equal(output, features * kept.unsqueeze(-1))
    (gradient,) = torch.autograd.grad(output.sum(), features)
    assert torch.equal(gradient, kept.unsqueeze(-1).expand(2, 5, 39).double())


def test_internal_temporal_relation_is_blocks_in_a_row(draw, assert_close):
    layer = CASES["internal-relation"].make()
    features = draw(2, 5, 39)
    expected = features
    for block in layer.layers:
        expected = oracles.cross_modal_relation(block, expected)
    assert len(layer.layers) == 2
    assert_close(layer(features), expected)


def test_relation_aware_is_equation_4(draw, assert_close):
    """Both modalities are projected, then the context attends to itself, and the query to context and itself."""
    layer = CASES["relation-aware"].make()
    query, context = draw(2, 5, 19), draw(2, 7, 17)
    related = layer.internal_relation(layer.context_proj(context))
    expected = oracles.cross_modal_relation(layer.cross_relation, layer.query_proj(query), [related])
    assert_close(layer(query, context), expected)


@pytest.mark.parametrize("include_query", [True, False])
@pytest.mark.parametrize("own_projections", [True, False])
@pytest.mark.parametrize("num_layers", [0, 1])
@pytest.mark.parametrize("lacking", [None, 0])
def test_relation_aware_relates_each_context_to_itself(
    draw, assert_close, include_query, own_projections, num_layers, lacking
):
    """Each context has its own projection, M_self and mask; one M_cmra, with a mask, relates the query to all."""
    options = {"include_query": include_query, "own_projections": own_projections, "dtype": torch.float64}
    layer = fill_parameters(RelationAware(19, [17, 23], 6, 2, num_layers, 5, 0.0, **options))
    query, contexts = draw(2, 5, 19), [draw(2, 7, 17), draw(2, 3, 23)]
    masks = [torch.ones(7, 7, dtype=torch.bool).triu(1), draw(2, 1, 3, 3)]
    if lacking is not None:
        contexts[lacking] = masks[lacking] = None
    memory = sum(context.shape[1] for context in contexts if context is not None) + 5 * include_query
    attn_mask = draw(2, 2, 5, memory) > 0.5
    expected = oracles.relation_aware(layer, query, contexts, attn_mask, masks)
    assert_close(layer(query, contexts, attn_mask=attn_mask, context_attn_mask=masks), expected)
    own = {name for name, _ in layer.named_parameters() if ".context_kv_projs." in name and "weight" in name}
    expected_names = {f"cross_relation.attention.context_kv_projs.{index}.weight" for index in range(2)}
    assert own == (expected_names if own_projections else set())


def test_relation_aware_takes_masks_of_one_context(draw, assert_close):
    """With causal masks in M_self and M_cmra, later segments do not change earlier outputs."""
    layer = CASES["relation-aware"].make()
    query, context = draw(2, 5, 19), draw(2, 5, 17)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    masks = {"attn_mask": causal.repeat(1, 2), "context_attn_mask": causal}
    output = layer(query, context, **masks)
    assert_close(output, oracles.relation_aware(layer, query, context, masks["attn_mask"], [causal]))
    query[:, 3:], context[:, 3:] = 7, -7
    assert torch.equal(layer(query, context, **masks)[:, :3], output[:, :3])
    assert torch.equal(
        layer(query, [context], attn_mask=masks["attn_mask"], context_attn_mask=[causal])[:, :3], output[:, :3]
    )


def test_relation_aware_gradients(draw):
    """First and second derivatives equal finite differences, for two padded contexts and all parameters."""
    layer = fill_parameters(RelationAware(2, [3, 2], 4, 2, 1, 3, 0.0, own_projections=True, dtype=torch.float64))
    parameters = dict(layer.named_parameters())
    masks = {
        "query_padding_mask": padding_mask([2, 1]),
        "context_padding_mask": [padding_mask([3, 1]), None],
        "attn_mask": draw(2, 7) > 1,
        "context_attn_mask": [None, torch.ones(2, 2, dtype=torch.bool).triu(1)],
    }

    def run(query, first, second, *values):
        own = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, own, (query, [first, second]), masks)

    features = [draw(2, *size).requires_grad_() for size in ((2, 2), (3, 3), (2, 2))]
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(run, (*features, *parameters.values()), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (*features, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("norm_first", "activation"), [(False, "relu"), (True, "relu"), (False, "gelu"), (True, "gelu")]
)
def test_block_without_context_is_a_transformer_encoder_layer(
    draw, assert_close, padded, causal, norm_first, activation
):
    """Argument order, places of dropout and weights are those of torch's layer, with post-norm and pre-norm."""
    options = {"norm_first": norm_first, "activation": activation, "dtype": torch.float64}
    theirs = oracles.fill_parameters(nn.TransformerEncoderLayer(39, 3, 29, 0.0, batch_first=True, **options))
    ours = CrossModalRelation(39, 3, 29, 0.0, **options)
    ours.load_state_dict(
        {name: value for name, value in theirs.state_dict().items() if not name.startswith("self_attn")}
        | {
            f"attention.{name}": value
            for name, value in CMRA.from_multihead_attention(theirs.self_attn).state_dict().items()
        }
    )
    features = draw(2, 5, 39)
    padding = padding_mask([5, 3]) if padded else torch.zeros(2, 5, dtype=torch.bool)
    attn_mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    valid = ~padding
    output = ours(features, query_padding_mask=padding, attn_mask=attn_mask)
    assert_close(output[valid], theirs(features, src_mask=attn_mask, src_key_padding_mask=padding)[valid])


def test_internal_temporal_relation_obeys_a_causal_mask(draw, assert_close):
    """The mask reaches every block: the output of the first step is the same as for this step alone."""
    layer = CASES["internal-relation"].make()
    features = draw(2, 5, 39)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert_close(layer(features, attn_mask=causal)[:, :1], layer(features[:, :1]))


def test_need_weights_adds_the_attention_weights_only(draw, assert_close):
    layer = CASES["cross-relation"].make()
    query, context = draw(2, 5, 39), draw(2, 7, 39)
    output, weights = layer(query, context, need_weights=True)
    assert torch.equal(output, layer(query, context))
    assert_close(weights, oracles.cmra(layer.attention, query, [context])[1])


@pytest.mark.parametrize("name", ["cross-relation", "internal-relation", "relation-aware", "interaction"])
def test_dropout_acts_in_training_only(draw, name):
    case = CASES[name]
    layer = case.make()
    features = case.features(draw, 2, case.lengths(5, 7))
    evaluated = case(layer, features)
    assert torch.equal(case(layer, features), evaluated)
    assert not torch.allclose(case(layer.train(), features), evaluated)


def test_dropout_has_its_three_places(draw):
    """Dropout follows attention, ReLU and feed-forward network; with probability 1 only the residual path is left."""
    layer = CASES["cross-relation"].make().train()
    widths = []
    for dropout in (layer.dropout, layer.activation):
        dropout.p = 1.0
        dropout.register_forward_hook(lambda *call: widths.append(call[-1].shape[-1]))
    query = draw(2, 5, 39)
    torch.testing.assert_close(layer(query, draw(2, 7, 39)), layer.norm2(layer.norm1(query)))
    assert widths == [39, 29, 39]


BLOCKS = {
    "cross-relation": lambda **options: CrossModalRelation(39, 3, 29, **options),
    "internal-relation": lambda **options: InternalTemporalRelation(39, 3, 2, 29, **options),
    "relation-aware": lambda **options: RelationAware(19, 17, 39, 3, 1, 29, **options),
    "interaction": lambda **options: AVInteraction(39, 3, **options),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_attention_has_a_dropout_of_its_own(name):
    """attention_dropout defaults to dropout; if it is given, the other dropout does not change."""

    def probabilities(**options):
        layer = BLOCKS[name](**options)
        others = {module.p for module in layer.modules() if isinstance(module, nn.Dropout)}
        return {module.dropout for module in layer.modules() if isinstance(module, CMRA)}, others

    assert probabilities() == ({0.1}, {0.1})
    assert probabilities(dropout=0.25) == ({0.25}, {0.25})
    assert probabilities(dropout=0.25, attention_dropout=0.0) == ({0.0}, {0.25})
    assert probabilities(dropout=0.0, attention_dropout=0.5) == ({0.5}, {0.0})


def test_relation_aware_attends_over_context_then_query(draw):
    """The sizes of the maps show that the context attends to itself, and the query to context and itself."""
    layer = CASES["relation-aware"].make()
    with record_attention(layer) as maps:
        layer(draw(2, 5, 19), draw(2, 7, 17))
    assert {path: tuple(weights.shape) for path, weights in maps.items()} == {
        "internal_relation.layers.0.attention": (2, 3, 7, 7),
        "cross_relation.attention": (2, 3, 5, 12),
    }
