"""The blocks equal the equations, and torch.nn.TransformerEncoderLayer where there is no context."""

import pytest
import torch
from torch import nn

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
from oracles import CASES


@pytest.mark.parametrize("lengths", [(), (7,), (7, 2)], ids=str)
def test_cross_modal_relation_is_the_equation(draw, assert_close, lengths):
    layer = CASES["cross-relation"].make()
    query, contexts = draw(2, 5, 39), [draw(2, length, 39) for length in lengths]
    assert_close(layer(query, contexts), oracles.cross_modal_relation(layer, query, contexts))


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


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_block_without_context_is_a_transformer_encoder_layer(draw, assert_close, padded, causal):
    """Post-norm, argument order, places of dropout and weights are those of torch's layer."""
    theirs = oracles.fill_parameters(nn.TransformerEncoderLayer(39, 3, 29, 0.0, batch_first=True, dtype=torch.float64))
    ours = CrossModalRelation(39, 3, 29, 0.0, dtype=torch.float64)
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
    """The attention mask reaches every block: under a causal mask, the first step gives what it gives alone."""
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
