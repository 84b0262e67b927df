"""The variants of CMRAN's ablation study: each equals its equations in loops, and all work like the full network."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import oracles
from ave.networks.cmran import CMRAN
from ave.networks.two_scores import supervised_loss, weak_loss
from ave.networks.variants import FeedForwardRelation, SideBySideRelation
from crossmodal_attn import padding_mask, record_attention
from oracles import affine, fill_parameters, layer_norm, make_cmran

VARIANTS = {
    "co": {"relation": "co"},
    "self": {"relation": "self"},
    "self-stacked": {"relation": "self-stacked"},
    "cmra-f": {"relation": "cmra-f"},
    "none": {"relation": "none"},
    "none-feedforward": {"relation": "none-feedforward"},
    "own-projections": {"own_projections": True},
    "agva": {"guidance": "agva"},
    "mean": {"guidance": "mean"},
    "interaction-self": {"interaction": "self"},
    "product": {"interaction": "product"},
    "0-layers": {"num_layers": 0},
    "1-layer": {"num_layers": 1},
    "3-layers": {"num_layers": 3},
    "4-layers": {"num_layers": 4},
    "none-0-layers-mean-product": {"relation": "none", "num_layers": 0, "guidance": "mean", "interaction": "product"},
}
PARAMETERS = {
    "co": 9_509_150,
    "self": 4_084_510,
    "self-stacked": 9_344_798,
    "cmra-f": 9_771_294,
    "none": 6_714_654,
    "none-feedforward": 3_558_174,
    "own-projections": 9_772_318,
    "agva": 9_131_854,
    "mean": 8_752_925,
    "interaction-self": 9_509_150,
    "product": 9_245_470,
    "0-layers": 4_248_862,
    "1-layer": 6_879_006,
    "3-layers": 12_139_294,
    "4-layers": 14_769_438,
}
LENGTHS = [5, 2, 1]


@pytest.fixture(params=VARIANTS)
def options(request):
    """Return the arguments of each variant."""
    return VARIANTS[request.param]


@pytest.fixture
def variant(options, setting):
    """Return each variant in both settings, small and in float64."""
    return make_cmran(setting, **options)


# ---- Equations in loops ----


def block(layer, query, memory):
    """Apply the block of Eq. 7-8 to a query, with only the given memory."""
    attention = layer.attention
    width = attention.embed_dim
    keys_and_values = affine(attention.kv_proj, memory)
    heads = []
    for own in torch.arange(width).split(width // attention.num_heads):
        parts = affine(attention.q_proj, query)[..., own], keys_and_values[..., own], keys_and_values[..., width + own]
        heads.append(oracles.attention(*(part[:, None] for part in parts))[0][:, 0])
    hidden = layer_norm(layer.norm1, affine(attention.out_proj, torch.cat(heads, -1)) + query)
    return layer_norm(layer.norm2, affine(layer.linear2, affine(layer.linear1, hidden).clamp(min=0)) + hidden)


def relate_internally(layer, features):
    for each in layer.internal_relation.layers:
        features = block(each, features, features)
    return features


def relate(layer, query, context, options):
    projected = affine(layer.query_proj, query)
    match options.get("relation", "cmra"):
        case "none" | "self" | "self-stacked":
            return relate_internally(layer, projected)
        case "none-feedforward":
            hidden = layer_norm(layer.norm1, projected)
            return layer_norm(layer.norm2, affine(layer.linear2, affine(layer.linear1, hidden).clamp(min=0)) + hidden)
    related = relate_internally(layer, affine(layer.context_proj, context))
    match options.get("relation", "cmra"):
        case "co":
            return block(layer.cross_relation, projected, related)
        case "cmra-f":
            return block(layer.cross_relation, projected, torch.cat([related, projected], -1))
    if options.get("own_projections"):
        return oracles.cross_modal_relation(layer.cross_relation, projected, [related])
    return block(layer.cross_relation, projected, torch.cat([related, projected], 1))


def guide(layer, video, audio, options):
    """Sum the projected map (B, T, H, W, C), segment by segment."""
    outputs = []
    for cells, heard in zip(video.flatten(0, 1).flatten(1, 2), audio.flatten(0, 1), strict=True):
        match options.get("guidance", "agsca"):
            case "mean":
                outputs.append(sum(cells) / len(cells))
            case "agsca":
                outputs.append(oracles.agsca(layer, cells[None], heard[None])[0][0])
            case "agva":
                known = affine(layer.audio_units, affine(layer.audio_proj, heard).clamp(min=0))
                scores = []
                for cell in cells:
                    seen = affine(layer.video_units, affine(layer.video_proj, cell).clamp(min=0))
                    scores.append(torch.tanh(seen + known) @ layer.score.weight[0])
                powers = torch.stack(scores).exp()
                outputs.append(sum(power / powers.sum() * cell for power, cell in zip(powers, cells, strict=True)))
    return torch.stack(outputs).unflatten(0, audio.shape[:2])


def fuse(layer, video, audio, options):
    match options.get("interaction", "av"):
        case "product":
            return audio * video
        case "self":
            return layer_norm(layer.norm, audio * video + oracles.cmra(layer.attention, audio * video)[0])
    return oracles.av_interaction(layer, video, audio)


def test_variant_is_its_equations(variant, options, draw, assert_close):
    """The whole network equals a loop over its layers, in the order of the paper."""
    video, audio = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    projected = affine(variant.video_proj, video).clamp(min=0)
    seen = guide(variant.spatial_channel_attention, projected, audio, options)
    related_video = relate(variant.video_relation, seen, audio, options)
    related_audio = relate(variant.audio_relation, audio, seen, options)
    fused = fuse(variant.interaction, related_video, related_audio, options)
    expected = affine(variant.event_head, fused).squeeze(-1), affine(variant.category_head, fused.max(1).values)
    assert_close(tuple(variant(video, audio)), expected)


def test_number_of_blocks():
    """num_layers sets the self-attention blocks of a relation-aware module, except for "self", which has one."""
    blocks = {}
    for relation in ("cmra", "co", "cmra-f", "self", "self-stacked", "none"):
        for num_layers in (0, 3):
            model = make_cmran("supervised", relation=relation, num_layers=num_layers)
            blocks[relation, num_layers] = len(model.audio_relation.internal_relation.layers)
    for num_layers in (0, 3):
        assert [blocks[relation, num_layers] for relation in ("cmra", "co", "cmra-f", "none")] == [num_layers] * 4
        assert (blocks["self", num_layers], blocks["self-stacked", num_layers]) == (1, num_layers + 1)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    """At the paper's sizes, the parameter counts are the expected ones; the weak network has one more category."""
    with torch.device("meta"):
        models = CMRAN(**VARIANTS[name]), CMRAN("weak", **VARIANTS[name])
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert counts == [PARAMETERS[name], PARAMETERS[name] + 257]


def test_explicit_defaults_change_nothing(draw):
    """Default values that are given explicitly change neither the initial weights nor the outputs."""
    torch.manual_seed(0)
    plain = CMRAN(video_dim=11, audio_dim=7)
    torch.manual_seed(0)
    named = CMRAN(video_dim=11, audio_dim=7, relation="cmra", guidance="agsca", interaction="av", own_projections=False)
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), named.parameters(), strict=True))
    inputs = draw(2, 5, 3, 2, 11).float(), draw(2, 5, 7).float()
    torch.manual_seed(1)
    expected = plain(*inputs)
    torch.manual_seed(1)
    assert torch.equal(named(*inputs).event, expected.event)


# ---- Gradients and masks ----


def loss_of(model, logits, labels, mask):
    if model.setting == "supervised":
        return supervised_loss(logits, labels, padding_mask=mask)
    valid = torch.ones_like(labels[..., :1]) if mask is None else (~mask).unsqueeze(-1).to(labels)
    return weak_loss(logits, (labels * valid).sum(1) / valid.sum(1), padding_mask=mask)


def test_every_parameter_learns_from_a_padded_batch_as_from_videos_alone(variant, draw, assert_close):
    """With NaN at padding, logits equal those of each video alone, and every gradient is finite and not zero."""
    mask = padding_mask(LENGTHS)
    video, audio = draw(3, 5, 3, 2, 11), draw(3, 5, 7)
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 5, 5], [4] * 5, [5] * 5]), 6).double()
    filled = [part.masked_fill(mask.reshape(3, 5, *[1] * (part.dim() - 2)), torch.nan) for part in (video, audio)]
    inputs = [part.requires_grad_() for part in filled]
    logits = variant(*inputs, padding_mask=mask)
    for row, length in enumerate(LENGTHS):
        alone = variant(video[row : row + 1, :length], audio[row : row + 1, :length])
        assert_close(logits.event[row : row + 1, :length], alone.event)
        assert_close(logits.category[row : row + 1], alone.category)
    loss_of(variant, logits, labels, mask).backward()
    for name, parameter in variant.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    for part in inputs:
        assert part.grad.isfinite().all()
        assert not part.grad[mask].any()
        assert part.grad[~mask].any()


def test_video_of_nothing_but_padding_is_finite(variant, draw, assert_close):
    video, audio = draw(2, 5, 3, 2, 11), draw(2, 5, 7)
    expected = variant(video[:1], audio[:1])
    video[1], audio[1] = torch.nan, torch.nan
    logits = variant(video, audio, padding_mask=padding_mask([5, 0]))
    assert all(part.isfinite().all() for part in logits)
    assert_close((logits.event[:1], logits.category[:1]), tuple(expected))


@pytest.mark.parametrize("name", ["self", "none"])
def test_self_and_none_ignore_the_other_modality(name, draw):
    """Without AGSCA, the relations of "self" and "none" do not depend on the other modality."""
    model = make_cmran("supervised", **VARIANTS[name], guidance="mean")
    video, audio = draw(2, 5, 11), draw(2, 5, 7)
    assert torch.equal(model.video_relation(video, audio), model.video_relation(video, audio * torch.nan))


def test_relation_of_unequal_lengths_is_refused(draw):
    layer = SideBySideRelation(3, 2, 4, 2, 1, 5, 0.0).double()
    with pytest.raises(ValueError, match=r"context must have the batch and time of query, \(2, 5\), got \(2, 7, 2\)"):
        layer(draw(2, 5, 3), draw(2, 7, 2))


def test_padding_of_either_modality_is_padding_of_both_side_by_side(draw, assert_close):
    layer = fill_parameters(SideBySideRelation(3, 2, 4, 2, 1, 5, 0.0).double())
    query, context = draw(2, 5, 3), draw(2, 5, 2)
    masks = {"query_padding_mask": padding_mask([4, 5]), "context_padding_mask": padding_mask([5, 3])}
    query[0, 4], context[1, 3:] = torch.nan, torch.nan
    output = layer(query, context, **masks)
    assert output.isfinite().all()
    memory = padding_mask([4, 3], 5)
    query, context = query.nan_to_num(0.0), context.nan_to_num(0.0)
    related = layer.internal_relation(layer.context_proj(context), padding_mask=masks["context_padding_mask"])
    joined = torch.cat([related, layer.query_proj(query)], -1)
    expected = layer.cross_relation(layer.query_proj(query), joined, context_padding_mask=memory)
    assert_close(output[:, :4], expected[:, :4])


def test_dropout_of_the_block_without_attention(draw):
    layer = FeedForwardRelation(3, 4, 5, 0.5).double()
    query = draw(2, 5, 3)
    assert not torch.equal(layer(query, query), layer(query, query))
    assert torch.equal(layer.eval()(query, query), layer(query, query))


# ---- What PyTorch and the rest of the example do with them ----

COMBINED = {
    "co-agva-self": {"relation": "co", "guidance": "agva", "interaction": "self"},
    "self-stacked-mean-product": {"relation": "self-stacked", "guidance": "mean", "interaction": "product"},
    "cmra-f": {"relation": "cmra-f"},
    "none-feedforward": {"relation": "none-feedforward"},
}
"""Every part of the variants in few networks, as tracing takes seconds. "self" and "none" have those of the second, in
which each relation is one block of M_self. Own projections are compiled and exported in test_compile_export.py."""


@pytest.fixture(params=COMBINED)
def combined(request):
    """Build a few networks that together have every part of the variants."""
    return make_cmran("supervised", **COMBINED[request.param], num_layers=0).eval()


def test_compiles_whole_and_once(combined, draw, assert_close):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(combined, fullgraph=True, dynamic=True, backend=counter)
    for batch, time in ((5, 13), (3, 19)):  # no two sizes of the first are one, lest the compiler take them for one
        inputs = draw(batch, time, 3, 2, 11), draw(batch, time, 7)
        mask = padding_mask([2] * batch, time)
        assert_close(compiled(*inputs, padding_mask=mask), combined(*inputs, padding_mask=mask))
    assert counter.frame_count == 1


def test_exports_with_dynamic_sizes(combined, draw, assert_close):
    """An exported network runs at other sizes."""

    def inputs(batch, time, height):
        return draw(batch, time, height, 2, 11), draw(batch, time, 7), padding_mask([time, *[1] * (batch - 1)], time)

    batch, time, height = (torch.export.Dim(name, min=2, max=2**16) for name in ("batch", "time", "height"))
    shapes = {
        "video": {0: batch, 1: time, 2: height},
        "audio": {0: batch, 1: time},
        "padding_mask": {0: batch, 1: time},
    }
    video, audio, mask = inputs(3, 5, 7)
    program = torch.export.export(combined, (video, audio), {"padding_mask": mask}, dynamic_shapes=shapes)
    video, audio, mask = inputs(2, 13, 3)
    assert_close(program.module()(video, audio, padding_mask=mask), combined(video, audio, padding_mask=mask))


def test_saved_and_loaded(options, draw, tmp_path):
    """A saved network is loaded with its variant."""
    sizes = {"video_dim": 11, "audio_dim": 7, "num_categories": 3, "embed_dim": 12, "dim_feedforward": 5}
    model = fill_parameters(CMRAN(**sizes, **options)).eval()
    model.save_pretrained(tmp_path)
    loaded = CMRAN.from_pretrained(tmp_path)
    assert loaded.variant == model.variant
    inputs = draw(2, 5, 3, 2, 11).float(), draw(2, 5, 7).float()
    assert torch.equal(loaded(*inputs).category, model(*inputs).category)


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_variant_records_its_attention_maps(name, draw):
    """Spatial maps and relations, which figures show, are recorded for variants that have them."""
    options = VARIANTS[name]
    model = make_cmran("supervised", **options)
    with record_attention(model) as maps:
        model(draw(2, 5, 3, 2, 11), draw(2, 5, 7))
    assert ("spatial_channel_attention.spatial_map" in maps) == ("guidance" not in options)
    relation = options.get("relation", "cmra")
    lengths = {"cmra": 10, "co": 5, "cmra-f": 5}
    found = maps.get("video_relation.cross_relation.attention")
    assert (None if found is None else found.shape[-1]) == lengths.get(relation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"relation": "all"},
            "relation must be one of cmra, self, co, cmra-f, none, self-stacked, none-feedforward, got",
        ),
        ({"guidance": None}, "guidance must be one of agsca, agva, mean, got None"),
        ({"interaction": "cmra"}, "interaction must be one of av, self, product, got 'cmra'"),
        ({"relation": "co", "own_projections": True}, "own_projections=True needs relation=\"cmra\", got 'co'"),
        ({"num_layers": -1}, "num_layers must be at least 0, got -1"),
    ],
)
def test_unknown_variants_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CMRAN(video_dim=11, audio_dim=7, **options)


@pytest.mark.parametrize("guidance", ["agsca", "agva", "mean"])
def test_wrong_audio_is_named_by_the_network(guidance, draw):
    model = make_cmran("supervised", guidance=guidance)
    with pytest.raises(ValueError, match=r"audio must have shape \(batch, time, 7\), .* got \(2, 5, 8\)"):
        model(draw(2, 5, 3, 2, 11), draw(2, 5, 8))
    with pytest.raises(TypeError, match=r"audio must have the dtype of the weights, torch\.float64, got torch\.flo"):
        model(draw(2, 5, 3, 2, 11), draw(2, 5, 7).float())
