"""Models with replaced layers compute and learn the same as with torch.nn.MultiheadAttention."""

import copy
import functools
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune

from crossmodal_attn import CMRA, padding_mask, record_attention, relation_window, replace_multihead_attention
from oracles import fill_parameters

mismatch = pytest.mark.filterwarnings("ignore:Support for mismatched")
"""torch deprecates a bool mask beside a floating-point one."""
prototype = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Holder(nn.Module):
    """A model of one layer, which passes its call on."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(39, 3, **{"dtype": torch.float64, **options})

    def forward(self, *args, **kwargs):
        return self.attention(*args, **kwargs)


def replace(model):
    """Return a copy of ``model`` whose attention is all replaced, and the report."""
    replaced = copy.deepcopy(model)
    report = replace_multihead_attention(replaced)
    assert not report.skipped
    assert not any(isinstance(module, nn.MultiheadAttention) for module in replaced.modules())
    return replaced, report


def make_mask(draw, shape, kind):
    """Return a mask, bool or with finite numbers too, that leaves the first column open, or None."""
    if kind is None:
        return None
    numbers = draw(*shape)
    closed = numbers > 0.7
    closed[..., 0] = False
    return closed if kind == "bool" else numbers.masked_fill(closed, -torch.inf)


def run(model, inputs, **options):
    """Return the outputs, and the gradients of a random sum of the first output, by torch's names."""
    inputs = [feature.clone().requires_grad_() for feature in inputs]
    # A memory is one tensor, key and value at once.
    outputs = model(*inputs, *inputs[1:], **options) if isinstance(model, Holder) else model(*inputs, **options)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    seed = torch.randn(first.shape, generator=torch.Generator().manual_seed(1), dtype=first.dtype)
    (first * seed).sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        place, _, part = name.rpartition(".")
        layer, projection = (model.get_submodule(there) for there in (place.rpartition(".")[0], place))
        if not isinstance(layer, CMRA) or projection is layer.out_proj:
            gradients[name] = parameter.grad
        elif projection is layer.q_proj:
            packed = torch.cat([parameter.grad, getattr(layer.kv_proj, part).grad], 0) if part == "bias" else None
            if packed is None and layer.kv_proj.in_features == layer.embed_dim:
                packed = torch.cat([parameter.grad, layer.kv_proj.weight.grad])
            prefix = place.removesuffix("q_proj")
            if packed is not None:
                gradients[f"{prefix}in_proj_{part}"] = packed
            else:
                split = (parameter.grad, *layer.kv_proj.weight.grad.chunk(2))
                gradients |= {f"{prefix}{x}_proj_weight": own for x, own in zip("qkv", split, strict=True)}
    return outputs, [feature.grad for feature in inputs], gradients


def assert_same(assert_close, replaced, model, inputs, **options):
    ours, theirs = run(replaced, inputs, **options), run(model, inputs, **options)
    assert ours[2].keys() == theirs[2].keys()
    assert_close(ours, theirs)


@mismatch
@pytest.mark.parametrize("layout", ["batch first", "time first", "no batch"])
@pytest.mark.parametrize("mask", [None, "bool-2d", "bool-3d", "float-2d", "float-3d"])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
def test_call_is_that_of_multihead_attention(draw, assert_close, layout, mask, padding):
    """Outputs, weights and gradients are equal for every layout, mask and request of weights."""
    query, memory = draw(2, 5, 39), draw(2, 7, 17)
    if layout == "time first":
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    if layout == "no batch":
        query, memory = query[0], memory[0]
    heads = 3 if layout == "no batch" else 6
    masks = {
        "attn_mask": mask and make_mask(draw, (5, 7) if mask.endswith("2d") else (heads, 5, 7), mask[:-3]),
        "key_padding_mask": make_mask(draw, (7,) if layout == "no batch" else (2, 7), padding),
    }
    model = fill_parameters(Holder(kdim=17, vdim=17, batch_first=layout == "batch first", bias=mask != "bool-2d"))
    replaced, _ = replace(model)
    assert replaced(query, memory, memory)[0].is_contiguous()
    for weights in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        assert_same(assert_close, replaced, model, [query, memory], **masks, **weights)


@given(
    batch=st.integers(1, 7),
    length=st.integers(1, 7),
    memory_length=st.integers(1, 7),
    batch_first=st.booleans(),
    bias=st.booleans(),
    mask=st.sampled_from([None, "bool", "float"]),
    padding=st.sampled_from([None, "bool", "float"]),
    need_weights=st.booleans(),
)
@mismatch
def test_any_shape(assert_close, batch, length, memory_length, batch_first, bias, mask, padding, need_weights):
    """Results are equal at sizes of 1 and at equal sizes, where a mask could be taken for another kind."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = [(batch, length, 39), (batch, memory_length, 39)]
    inputs = [draw(*shape) if batch_first else draw(*shape).transpose(0, 1) for shape in shapes]
    model = fill_parameters(Holder(batch_first=batch_first, bias=bias))
    options = {
        "attn_mask": make_mask(draw, (batch * 3, length, memory_length), mask),
        "key_padding_mask": make_mask(draw, (batch, memory_length), padding),
        "need_weights": need_weights,
    }
    assert_same(assert_close, replace(model)[0], model, inputs, **options)


def make_transformer(kind, layers=2, **options):
    """Return a model of torch in float64, with weights that differ in every layer."""
    options = {"dim_feedforward": 29, "dropout": 0.0, "dtype": torch.float64, **options}
    if kind == "transformer":
        model = nn.Transformer(26, 2, layers, layers, **options)
    elif kind == "encoder":
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(26, 2, **options), layers)
    else:
        model = nn.TransformerDecoder(nn.TransformerDecoderLayer(26, 2, **options), layers)
    return fill_parameters(model)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
PADDING = padding_mask([7, 4, 2])
ADDED = torch.zeros(3, 7, dtype=torch.float64).masked_fill(PADDING, -torch.inf)
MASKS = {
    "no mask": {},
    "padding": {"src_key_padding_mask": PADDING},
    "added padding": {"src_key_padding_mask": ADDED},
    "causal": {"mask": CAUSAL},
    "causal by name": {"mask": CAUSAL, "is_causal": True},
    "causal, padding": {"mask": CAUSAL < 0, "src_key_padding_mask": PADDING},
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", [{"batch_first": True}, {"norm_first": True}, {"bias": False}], ids=str)
def test_transformer_encoder_is_the_same(draw, assert_close, training, masks, options):
    model = make_transformer("encoder", **options).train(training)
    source = draw(3, 7, 26) if options.get("batch_first") else draw(7, 3, 26)
    assert_same(assert_close, replace(model)[0], model, [source], **masks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_decoder_is_the_same(draw, assert_close, training, batch_first):
    """Each of its two attentions gets its own masks, of different lengths."""
    model = make_transformer("decoder", batch_first=batch_first).train(training)
    replaced, report = replace(model)
    names = ["self_attn", "multihead_attn"]
    assert report.replaced == [f"layers.{index}.{name}" for index in range(2) for name in names]
    inputs = [draw(3, 7, 26), draw(3, 5, 26)]
    masks = {
        "tgt_mask": CAUSAL < 0,
        "memory_mask": make_mask(draw, (7, 5), "bool"),
        "tgt_key_padding_mask": PADDING,
        "memory_key_padding_mask": padding_mask([5, 1, 3]),
    }
    if not batch_first:
        inputs = [features.transpose(0, 1) for features in inputs]
    for given_masks in ({}, masks, {"tgt_mask": CAUSAL, "tgt_is_causal": True}):
        assert_same(assert_close, replaced, model, inputs, **given_masks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_transformer_is_the_same(draw, assert_close, training, batched):
    model = make_transformer("transformer", batch_first=True).train(training)
    inputs = [draw(3, 5, 26), draw(3, 7, 26)] if batched else [draw(5, 26), draw(7, 26)]
    masks = {"tgt_mask": CAUSAL}
    if batched:
        masks |= {"src_key_padding_mask": padding_mask([5, 1, 3]), "memory_key_padding_mask": padding_mask([5, 1, 3])}
    assert_same(assert_close, replace(model)[0], model, inputs, **masks)


@pytest.mark.parametrize("training", [True, False])
def test_siglip_vision_model_is_the_same(draw, assert_close, training):
    """The pooling head of transformers' model attends from a learned probe to the patches."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=26, intermediate_size=29, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7
    )

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fill_parameters(transformers.SiglipVisionModel(config).double().train(training))

        def forward(self, images):
            return self.inner(images).pooler_output

    model = Pooled()
    replaced, report = replace(model)
    (path,) = report.replaced
    assert path.endswith("head.attention")
    assert_same(assert_close, replaced, model, [draw(3, 3, 14, 14)])


@prototype
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_torch_fast_path_is_not_taken(draw, assert_close, whole, mode):
    """The encoder and its layers call the replaced attention, even if only the layers were given to replace."""
    model = make_transformer("encoder", batch_first=True).eval()
    replaced = copy.deepcopy(model)
    for part in [replaced] if whole else replaced.layers:
        replace_multihead_attention(part)
    source = draw(3, 7, 26)
    for masks in ({}, {"src_key_padding_mask": PADDING}, {"mask": CAUSAL}):
        with mode(), record_attention(replaced) as maps:
            ours, theirs = replaced(source, **masks), model(source, **masks)
        assert list(maps) == ["layers.0.self_attn", "layers.1.self_attn"]
        if "src_key_padding_mask" in masks:
            assert not theirs[PADDING].any()  # torch did take it
            assert ours[PADDING].any()
            ours, theirs = ours[~PADDING], theirs[~PADDING]
        assert_close(ours, theirs)


def test_encoder_can_be_built_from_a_replaced_layer(draw, assert_close):
    layer = fill_parameters(nn.TransformerEncoderLayer(26, 2, 29, 0.0, batch_first=True, dtype=torch.float64)).eval()
    model = nn.TransformerEncoder(copy.deepcopy(layer), 2)
    replace_multihead_attention(layer)
    with pytest.warns(UserWarning, match="_qkv_same_embed_dim was not True"):
        nn.TransformerEncoder(layer, 2)
    replaced = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert_same(assert_close, replaced, model, [draw(3, 7, 26)], src_key_padding_mask=PADDING)


@pytest.mark.parametrize(
    "read",
    [nn.init.xavier_uniform_, lambda weight: nn.functional.linear(torch.ones(39), weight), lambda weight: weight.shape],
)
def test_packed_weights_are_said_to_be_elsewhere(read):
    replaced, _ = replace(Holder())
    for weight in (replaced.attention.in_proj_weight, replaced.attention.in_proj_bias):
        with pytest.raises((AttributeError, TypeError), match="use q_proj and kv_proj"):
            read(weight)


def test_nan_in_padding_reaches_no_other_step(draw, assert_close):
    """This holds for bool masks and for the added masks of torch's layers; fully masked queries get zero."""
    replaced, _ = replace(fill_parameters(Holder(batch_first=True)))
    query, memory = draw(3, 5, 39), draw(3, 7, 39)
    expected = replaced(query, memory, memory, PADDING)
    spoiled = memory.masked_fill(PADDING[..., None], torch.nan).requires_grad_()
    for padding in (PADDING, ADDED):
        output, weights = replaced(query, spoiled, spoiled, padding)
        assert_close((output, weights), expected)
        (gradient,) = torch.autograd.grad(output.sum(), spoiled)
        assert gradient.isfinite().all()
        output, weights = replaced(
            query, memory, memory, torch.full_like(padding, True if padding is PADDING else -torch.inf)
        )
        assert not weights.any()
        assert_close(output, replaced.attention.out_proj.bias.expand_as(output))


def test_dropout_is_that_of_the_layer(draw):
    """Dropout is active in training, and the returned weights are those before dropout."""
    replaced, _ = replace(fill_parameters(Holder(dropout=0.5, batch_first=True)))
    query, memory = draw(3, 5, 39), draw(3, 7, 39)
    output, weights = replaced(query, memory, memory)
    still, same = replaced.eval()(query, memory, memory)
    assert torch.equal(weights, same)
    assert not torch.allclose(output, still)


@pytest.mark.parametrize(
    "change",
    [torch.clone, torch.detach, lambda memory: memory.view_as(memory), lambda memory: nn.Parameter(memory.detach())],
    ids=["copy", "detached", "view", "leaf"],
)
@pytest.mark.parametrize("leaf", [True, False])
def test_key_that_is_not_the_value_is_an_error(draw, change, leaf):
    """Even a value with the same numbers or memory is an error, since its gradients would be wrong."""
    model = nn.ModuleDict({"fusion": nn.Sequential(Holder(batch_first=True))})
    replace_multihead_attention(model)
    memory = draw(2, 7, 39).requires_grad_()
    memory = memory if leaf else memory * 1
    call = model["fusion"][0]
    with pytest.raises(
        ValueError, match=r"value must be the same tensor as key in fusion\.0\.attention, .*restore\(\)"
    ):
        call(draw(2, 5, 39), memory, change(memory))
    call(draw(2, 5, 39), memory, memory)


def test_hooks_stay(draw, assert_close):
    """Hooks around calls still run, backward hooks too, and their handles remove them before and after restore()."""
    model, calls = fill_parameters(Holder(batch_first=True)), []
    handles = [
        model.attention.register_forward_pre_hook(lambda *_: calls.append("before")),
        model.attention.register_forward_hook(lambda *_, **__: calls.append("after"), with_kwargs=True),
        model.attention.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    bare = copy.deepcopy(model)
    report = replace_multihead_attention(model)
    inputs = [draw(2, 5, 39), draw(2, 7, 39)]
    assert_same(assert_close, model, bare, inputs)
    assert calls == ["before", "after", "backward"] * 2
    handles[1].remove()
    report.restore()
    handles[0].remove()
    calls.clear()
    run(model, inputs)
    assert calls == ["backward"]


def test_hooks_of_a_replacement_stay_after_restore(draw):
    """This includes full backward hooks, which a module marks by a flag."""
    model, calls = fill_parameters(Holder(batch_first=True)), []
    report = replace_multihead_attention(model)
    model.attention.register_full_backward_hook(lambda _, inputs, __: calls.append(len(inputs)))
    report.restore()
    run(model, [draw(2, 5, 39), draw(2, 7, 39)])
    assert calls == [3]


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def other_forward():
    class Other(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    return Other(39, 3)


def wrapped_forward():
    attention = nn.MultiheadAttention(39, 3)
    attention.forward = functools.partial(attention.forward, need_weights=False)
    return attention


def parametrized():
    attention = nn.MultiheadAttention(39, 3)
    parametrize.register_parametrization(attention, "in_proj_weight", Scaled())
    return attention


def adapted():
    attention = nn.MultiheadAttention(39, 3)
    attention.out_proj = nn.Sequential(attention.out_proj)
    return attention


SKIPPED = {
    "bias": (lambda: nn.MultiheadAttention(39, 3, add_bias_kv=True), "add_bias_kv=False"),
    "zero": (lambda: nn.MultiheadAttention(39, 3, add_zero_attn=True), "add_zero_attn=False"),
    "widths": (lambda: nn.MultiheadAttention(39, 3, kdim=5, vdim=7), "kdim equal to vdim"),
    "forward": (other_forward, "forward must be that of nn.MultiheadAttention, but this Other has another"),
    "wrapped forward": (wrapped_forward, "but this MultiheadAttention has another"),
    "parametrized": (parametrized, "in_proj_weight must be a parameter"),
    "pruned": (
        lambda: prune.random_unstructured(nn.MultiheadAttention(39, 3), "in_proj_weight", 0.5),
        "in_proj_weight",
    ),
    "adapted": (adapted, "out_proj must be a plain linear layer, got Sequential"),
}


@pytest.mark.parametrize(("make", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_what_cmra_cannot_be_is_skipped_with_a_reason(make, reason):
    """The layer does not change, while another layer of the model is replaced."""
    kept = make()
    model = nn.ModuleDict({"kept": kept, "other": nn.Sequential(nn.MultiheadAttention(39, 3))})
    report = replace_multihead_attention(model)
    assert report.replaced == ["other.0"]
    assert report.skipped.keys() == {"kept"}
    assert reason in report.skipped["kept"]
    assert model["kept"] is kept
    assert "_places" not in repr(report)


@pytest.mark.parametrize("tie", ["in_proj_weight", "out_proj.bias", "out_proj"])
def test_tied_weights_are_skipped(tie):
    """A layer with tied weights is not replaced, since copies would not stay tied."""
    model = nn.ModuleList([nn.MultiheadAttention(39, 3), nn.MultiheadAttention(39, 3)])
    place, _, name = tie.rpartition(".")
    setattr(model[1].get_submodule(place), name, getattr(model[0].get_submodule(place), name))
    report = replace_multihead_attention(model)
    assert report.replaced == []
    assert list(report.skipped) == ["0", "1"]
    assert all(re.match(r"out_proj|in_proj_weight", reason) and "2" in reason for reason in report.skipped.values())


def test_a_layer_in_two_places_stays_one():
    attention = nn.MultiheadAttention(39, 3)
    model = nn.ModuleDict({"first": attention, "second": nn.Sequential(attention)})
    report = replace_multihead_attention(model)
    assert report.replaced == ["first", "second.0"]
    assert model["first"] is model["second"][0]
    assert isinstance(model["first"], CMRA)
    report.restore()
    assert model["first"] is model["second"][0] is attention


def test_nothing_to_replace():
    model = nn.Sequential(nn.Linear(3, 5))
    report = replace_multihead_attention(model)
    assert (report.replaced, report.skipped) == ([], {})
    report.restore()
    model = nn.Sequential(nn.MultiheadAttention(39, 3))
    replace_multihead_attention(model)
    assert replace_multihead_attention(model).replaced == []


@pytest.mark.parametrize("options", [{}, {"kdim": 17, "vdim": 17}, {"bias": False}], ids=str)
@pytest.mark.parametrize("freeze", ["_weight", "out_proj.weight"])
def test_restore_keeps_what_was_learned(draw, assert_close, options, freeze):
    """The original module and parameters are back, with the weights, mode and dtype that the replacement had."""
    model = fill_parameters(Holder(batch_first=True, **options))
    attention, before = model.attention, dict(model.named_parameters())
    report = replace_multihead_attention(model)
    model.float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            not name.endswith(("q_proj.weight", "kv_proj.weight") if freeze == "_weight" else freeze)
        )
    query, memory = draw(2, 5, 39).float(), draw(2, 7, options.get("kdim", 39)).float()
    expected = model(query, memory, memory)
    with torch.no_grad():
        report.restore()
    assert model.attention is attention
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter and parameter.dtype == torch.float32 for name, parameter in before.items())
    frozen = {name for name, parameter in after.items() if not parameter.requires_grad}
    assert frozen == {name for name in after if name.endswith(freeze)}
    assert not attention.training
    assert not attention.out_proj.training
    assert_close(model(query, memory, memory), expected)
    report.restore()
    assert model.attention is attention


def test_restore_is_refused_whole():
    """If one of the layers cannot be restored, none is."""
    model = nn.Sequential(*(nn.MultiheadAttention(39, 3) for _ in range(2)))
    report = replace_multihead_attention(model)
    layers = list(model)

    class Adapted(nn.Linear):
        """Stand for a layer with more weights than restore() knows of."""

    plain, layers[1].q_proj = layers[1].q_proj, Adapted(39, 39)
    with pytest.raises(ValueError, match=r"1\.q_proj must be a plain torch.nn.Linear .*got Adapted"):
        report.restore()
    layers[1].q_proj = nn.Linear(39, 39, bias=False)
    with pytest.raises(ValueError, match=r"1\.q_proj must have a bias to be restored"):
        report.restore()
    model[1] = nn.Identity()
    with pytest.raises(ValueError, match=r"1 must still be the layer .*got Identity"):
        report.restore()
    assert model[0] is layers[0]
    layers[1].q_proj = plain
    model[1] = layers[1]
    report.restore()
    assert all(type(layer) is nn.MultiheadAttention for layer in model)


@pytest.mark.parametrize("save", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])  # noqa: S301
def test_replaced_models_can_be_copied_and_saved(draw, save):
    """A copied report restores only the copied model; state dicts of replaced models can be exchanged."""
    model = fill_parameters(Holder(batch_first=False))
    report = replace_multihead_attention(model)
    query, memory = draw(5, 2, 39), draw(7, 2, 39)
    expected = model(query, memory, memory)
    other, other_report = save((model, report))
    assert torch.equal(other(query, memory, memory)[0], expected[0])
    other_report.restore()
    assert type(other.attention) is nn.MultiheadAttention
    assert isinstance(model.attention, CMRA)
    fresh, _ = replace(Holder(batch_first=False))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(query, memory, memory)[0], expected[0])


def test_frozen_weights_device_and_mode_are_kept():
    """On the meta device, and without drawing random numbers."""
    model = Holder(device="meta").eval()
    model.attention.in_proj_weight.requires_grad_(False)
    before = torch.get_rng_state()
    replaced, _ = replace(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in replaced.modules())
    assert {parameter.device.type for parameter in replaced.parameters()} == {"meta"}
    frozen = {name for name, parameter in replaced.named_parameters() if not parameter.requires_grad}
    assert frozen == {"attention.q_proj.weight", "attention.kv_proj.weight"}
    assert replaced(*[torch.empty(5, 2, 39, device="meta", dtype=torch.float64)] * 3)[0].shape == (5, 2, 39)


@pytest.mark.parametrize("gradients", [True, False])
def test_compile_without_graph_breaks(draw, assert_close, gradients):
    """One graph serves all batch sizes and lengths of an encoder, also where torch's fast path would be compiled."""
    replaced, _ = replace(make_transformer("encoder", layers=1, batch_first=True).eval())
    replaced.mask_check = False
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(replaced, backend=counter, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(gradients):
        for batch, length in ((3, 7), (2, 11)):
            source, padding = draw(batch, length, 26), padding_mask([length, 1, 4][:batch], length)
            outputs = [each(source, src_key_padding_mask=padding) for each in (compiled, replaced)]
            assert_close(*outputs)
    assert counter.frame_count == 1


def test_compiled_error_names_the_layer(draw):
    compiled = torch.compile(replace(Holder())[0], backend="eager")
    with pytest.raises(ValueError, match="value must be the same tensor as key in attention"):
        compiled(*draw(3, 5, 2, 39))


class Cross(nn.Module):
    """A replaced layer with a padding mask, and query and memory alone as inputs, for exporters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, _ = replace(fill_parameters(Holder(batch_first=True)))

    def forward(self, query, memory, padding):
        return self.inner(query, memory, memory, key_padding_mask=padding)


DYNAMIC = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},) * 3


def test_export(draw, assert_close):
    """An exported layer has dynamic batch and lengths, and returns the weights."""
    model = Cross()
    inputs = (draw(3, 5, 39), draw(3, 7, 39), PADDING)
    program = torch.export.export(model, inputs, dynamic_shapes=DYNAMIC)
    others = (draw(2, 11, 39), draw(2, 13, 39), padding_mask([13, 1]))
    assert_close(program.module()(*others), model(*others))


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 fixes sizes in the graph that are to stay open")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
def test_onnx(draw, assert_close, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Cross().float().eval()
    inputs = (draw(3, 5, 39).float(), draw(3, 7, 39).float(), PADDING)
    torch.onnx.export(model, inputs, tmp_path / "layer.onnx", dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = runtime.InferenceSession(tmp_path / "layer.onnx")
    others = (draw(2, 11, 39).float(), draw(2, 13, 39).float(), padding_mask([13, 1]))
    feed = {there.name: each.numpy() for there, each in zip(session.get_inputs(), others, strict=True)}
    outputs = tuple(torch.from_numpy(output) for output in session.run(None, feed))
    with torch.no_grad():
        assert_close(outputs, model(*others))


def test_vmap(draw, assert_close):
    replaced, _ = replace(fill_parameters(Holder(batch_first=True)))
    query, memory = draw(2, 3, 5, 39), draw(2, 3, 7, 39)

    def call(query, memory):
        return replaced(query, memory, memory, key_padding_mask=PADDING)

    expected = [torch.stack(parts) for parts in zip(*map(call, query, memory), strict=True)]
    with sdpa_kernel(SDPBackend.MATH):  # vmap warns that it has no rule for the others
        assert_close(list(torch.vmap(call)(query, memory)), expected)


def test_autocast(draw, assert_close):
    """An encoder works under autocast, although torch makes its masks in float32."""
    model = make_transformer("encoder", batch_first=True).float()
    source = draw(3, 7, 26).float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (each(source, src_key_padding_mask=PADDING) for each in (replace(model)[0], model))
    assert ours.dtype == theirs.dtype
    assert_close(ours, theirs, torch.bfloat16)


def call(*shapes, dtype=torch.float32, **options):
    """Return a call of a replaced layer with zeros."""
    query, memory = (torch.zeros(shape, dtype=dtype) for shape in shapes)
    return lambda: replace(Holder(dtype=torch.float32, batch_first=True))[0](query, memory, memory, **options)


GOOD = (2, 5, 39), (2, 7, 39)
ERRORS = {
    "model": (lambda: replace_multihead_attention(3), TypeError, "model must be a torch.nn.Module, got int"),
    "root": (
        lambda: replace_multihead_attention(nn.MultiheadAttention(4, 2)),
        ValueError,
        "model must hold the layers",
    ),
    "query": (call((39,), (7, 39)), ValueError, r"query must have two dimensions, .*got \(39,\)"),
    "key": (call((5, 39), (2, 7, 39)), ValueError, r"key must have as many dimensions as query, 2, got \(2, 7, 39\)"),
    "width": (call((2, 5, 17), (2, 7, 39)), ValueError, "query has 17 channels .* embed_dim=39"),
    "kdim": (call((2, 5, 39), (2, 7, 17)), ValueError, "key has 17 channels .* kdim=39"),
    "batch": (call((2, 5, 39), (3, 7, 39)), ValueError, "key must have the batch size of query, 2, got 3"),
    "dtype": (call(*GOOD, dtype=torch.float64), TypeError, "query has dtype torch.float64"),
    "no tensor": (lambda: replace(Holder())[0](1, 2, 2), TypeError, "query must be a torch.Tensor, got int"),
    "padding": (
        call(*GOOD, key_padding_mask=torch.zeros(2, 5)),
        ValueError,
        r"key_padding_mask must have shape \(2, 7\), got \(2, 5\)",
    ),
    "padding's dtype": (
        call(*GOOD, key_padding_mask=torch.zeros(2, 7, dtype=torch.long)),
        TypeError,
        "key_padding_mask must be bool",
    ),
    "padding without batch": (
        call((5, 39), (7, 39), key_padding_mask=torch.zeros(2, 7)),
        ValueError,
        "key_padding_mask must have shape",
    ),
    "padding's type": (
        call(*GOOD, key_padding_mask=[0]),
        TypeError,
        "key_padding_mask must be a torch.Tensor, got list",
    ),
    "mask": (call(*GOOD, attn_mask=torch.zeros(5, 5)), ValueError, r"attn_mask must have shape \(5, 7\)"),
    "mask beside padding": (
        call(*GOOD, attn_mask=torch.zeros(5, 5), key_padding_mask=torch.zeros(2, 7)),
        ValueError,
        r"attn_mask must have shape \(5, 7\)",
    ),
    "window beside padding": (
        call(*GOOD, attn_mask=relation_window(5, [7], include_query=False), key_padding_mask=torch.zeros(2, 7)),
        TypeError,
        "key_padding_mask must be bool .* where attn_mask is a RelationWindow, got torch.float32",
    ),
    "causal": (call(*GOOD, is_causal=True), ValueError, "attn_mask must be given with is_causal=True"),
}


@pytest.mark.parametrize(("use", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(use, kind, message):
    with pytest.raises(kind, match=message):
        use()


@prototype
def test_nested_tensors_are_an_error(draw):
    nested = torch.nested.nested_tensor([draw(5, 39), draw(7, 39)])
    with pytest.raises(TypeError, match="query must not be a nested tensor in attention: pad it"):
        replace(Holder(batch_first=True))[0](nested, nested, nested)
