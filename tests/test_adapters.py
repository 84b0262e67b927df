"""LoRA and quantised weights on the projections, put there by peft and torchao as their users do it."""

import copy

import pytest
import torch
from torch import nn

from crossmodal_attn import CMRA, padding_mask, record_attention
from oracles import CASES, Case, make_cmran

# Earlier torch lacks what torchao 0.18 imports, and peft imports torchao where it is installed.
pytestmark = pytest.mark.skipif(torch.__version__ < "2.11", reason="torchao 0.18 is for torch 2.11 and later")

RANK, SCALE = 2, 3.0


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


@pytest.fixture(scope="module")
def quantization():
    return pytest.importorskip("torchao.quantization")


def projections(layer: nn.Module) -> set[str]:
    """Paths of the projections of every CMRA in ``layer``."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in layer.named_modules()
        if isinstance(module, CMRA)
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    }


def draw_batch(case: Case, draw, dtype=torch.float64):
    """Features and padding masks of three sequences: a full, a short and an empty one."""
    lengths = case.lengths(5, 7, 2, 3, 11)
    features = case.features(draw, 3, lengths, dtype)
    return features, [padding_mask([length, 1, 0], length) for length in lengths]


def adapt(peft, layer: nn.Module, targets) -> nn.Module:
    """Put LoRA on the projections of these names in a copy of ``layer``."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=sorted(targets))
    return peft.get_peft_model(copy.deepcopy(layer), config).eval()


def adapt_attention(peft, layer: nn.Module) -> nn.Module:
    """Put LoRA on the projections of every CMRA in a copy of ``layer``."""
    return adapt(peft, layer, projections(layer))


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """The projections that LoRA wraps, by their paths in the layer."""
    return {path: module for path, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


def train_adapters(model: nn.Module, draw) -> None:
    """Give the adapters weights as training would: until then they add nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(draw(*parameter.shape) * 0.3)


def test_lora_starts_as_the_layer_itself(peft, masked_case, draw):
    """It wraps the projections and nothing else, freezes all that was there, and adds nothing yet."""
    layer = masked_case.make()
    inputs = draw_batch(masked_case, draw)
    model = adapt_attention(peft, layer)
    wrapped = set(adapters(model))
    assert wrapped == projections(layer)
    assert {"q_proj", "out_proj"} <= {path.rpartition(".")[2] for path in wrapped}
    trainable = {name for name, parameter in model.get_base_model().named_parameters() if parameter.requires_grad}
    assert trainable == {f"{path}.lora_{side}.default.weight" for path in wrapped for side in "AB"}
    assert torch.equal(masked_case(model, *inputs), masked_case(layer, *inputs))


def test_lora_trains_the_adapters_alone(peft, masked_case, draw):
    """Steps of gradient descent reach every adapter, through padding too, and change no other weight by a bit."""
    layer = masked_case.make()
    inputs = draw_batch(masked_case, draw)
    model = adapt_attention(peft, layer)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # at first the gradient of A is zero, since B is
        optimizer.zero_grad()
        masked_case(model, *inputs).square().sum().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is not ("lora_" in name), name
    assert all((parameter.grad is not None) is parameter.requires_grad for parameter in model.parameters())
    with model.disable_adapter():
        assert torch.equal(masked_case(model, *inputs), masked_case(layer, *inputs))


def test_each_adapter_has_its_say_and_merges(peft, masked_case, draw, assert_close):
    """Every single adapter changes the output; merged they leave the layer with weights W + s B A, that computes it."""
    layer = masked_case.make()
    inputs = draw_batch(masked_case, draw)
    model = adapt_attention(peft, layer)
    train_adapters(model, draw)
    output = masked_case(model, *inputs)
    assert output.isfinite().all()
    expected = layer.state_dict()
    for path, adapter in adapters(model).items():
        down, up = adapter.lora_A["default"].weight.detach(), adapter.lora_B["default"].weight.detach()
        expected[f"{path}.weight"] = expected[f"{path}.weight"] + SCALE * up @ down
        kept = up.clone()
        up.zero_()
        assert not torch.allclose(masked_case(model, *inputs), output), path
        up.copy_(kept)

    merged = model.merge_and_unload()
    assert type(merged) is type(layer)
    assert [type(module) for module in merged.modules()] == [type(module) for module in layer.modules()]
    assert_close(dict(merged.state_dict()), dict(expected))
    assert_close(masked_case(merged, *inputs), output)


def test_targets_are_names_of_projections(peft):
    """The target kv_proj leaves context_kv_proj alone, which contexts of another width have beside it."""
    names = {"q_proj", "kv_proj", "out_proj"}
    assert set(adapters(adapt(peft, CMRA(39, 3, context_dim=17), names))) == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["channel_video_proj", "spatial_video_proj"])
def test_lora_on_what_agsca_computes_in_tiles(peft, draw, assert_close, name, dtype):
    """The adapter is called, not just the weight that it wraps: outputs and gradients are the merged weight's."""
    layer = CASES["agsca"].make(dtype)
    inputs = CASES["agsca"].features(draw, 2, [5, 5], dtype)
    model = adapt(peft, layer, [name])
    assert_close(model(*inputs), layer(*inputs))
    train_adapters(model, draw)
    outputs = model(*inputs, need_weights=True)
    assert not torch.allclose(outputs[0], layer(*inputs))
    down, up = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(outputs[0].square().sum(), [down, up])

    merged = model.merge_and_unload()
    assert_close(merged(*inputs, need_weights=True), outputs)
    weight = getattr(merged, name).weight.requires_grad_()
    (whole,) = torch.autograd.grad(merged(*inputs).square().sum(), [weight])
    assert_close(gradients, (SCALE * up.T @ whole, SCALE * whole @ down.T))


def test_lora_through_the_whole_network(peft, draw, assert_close):
    """On every projection of attention in CMRAN, whose own calls reach the adapters; their maps are recorded too."""
    layer = make_cmran("supervised").eval()
    inputs = draw(3, 5, 3, 2, 11), draw(3, 5, 7)
    mask = padding_mask([5, 2, 0], 5)
    expected = layer(*inputs, padding_mask=mask)
    model = adapt_attention(peft, layer)
    assert torch.equal(model(*inputs, padding_mask=mask).event, expected.event)
    train_adapters(model, draw)
    with record_attention(layer) as before, record_attention(model) as after:
        layer(*inputs, padding_mask=mask)
        output = model(*inputs, padding_mask=mask)
    assert len(before) == 9  # two maps of AGSCA, three blocks in each of two modules, the interaction
    assert {f"base_model.model.{path}" for path in before} == set(after)
    path = "video_relation.cross_relation.attention"
    assert not torch.allclose(after[f"base_model.model.{path}"], before[path])
    assert_close(model.merge_and_unload()(*inputs, padding_mask=mask), output)


def test_adapters_are_saved_and_loaded(peft, draw, tmp_path):
    """As files that hold the adapters alone, onto another copy of the layer."""
    case = CASES["relation-aware"]
    layer = case.make()
    inputs = draw_batch(case, draw)
    model = adapt_attention(peft, layer)
    train_adapters(model, draw)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(layer), tmp_path)
    assert torch.equal(case(loaded, *inputs), case(model, *inputs))


def quantise(quantization, layer: nn.Module, paths: set[str]) -> nn.Module:
    """Store the weights of these projections in a copy of ``layer`` as int8, one scale for each output."""
    quantised = copy.deepcopy(layer)
    config = quantization.Int8WeightOnlyConfig(version=2)
    quantization.quantize_(quantised, config, filter_fn=lambda _, path: path in paths)
    return quantised


def check_quantised(layer: nn.Module, quantised: nn.Module, paths: set[str]) -> nn.Module:
    """See that the weights at ``paths`` are int8 and near, all else the same; give the layer of the rounded weights."""
    rounded = copy.deepcopy(layer)
    with torch.no_grad():
        for path in paths:
            stored, weight = quantised.get_submodule(path).weight, layer.get_submodule(path).weight
            assert stored.qdata.dtype == torch.int8
            assert stored.qdata.shape == weight.shape
            assert stored.qdata.int().abs().amax() >= 120  # the whole range is used; bfloat16 rounds its end
            step = weight.abs().amax(1, keepdim=True) / 127
            error = (stored.dequantize() - weight).abs()
            # Half a step of rounding, and what the weight's own dtype rounds in the product.
            assert (error <= 0.5 * step + 127 * step * torch.finfo(weight.dtype).eps).all()
            rounded.get_submodule(path).weight.copy_(stored.dequantize())
    changed = {f"{path}.weight" for path in paths}
    for name, value in quantised.state_dict().items():
        assert name in changed or torch.equal(value, layer.state_dict()[name]), name
    return rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_weights(quantization, masked_case, draw, assert_close, dtype):
    """Projections of attention: the layer computes with the weights as rounded, which is near what it computed."""
    layer = masked_case.make(torch.float32).to(dtype)
    features, paddings = draw_batch(masked_case, draw, dtype)
    paths = projections(layer)
    quantised = quantise(quantization, layer, paths)
    rounded = check_quantised(layer, quantised, paths)
    output, expected = masked_case(quantised, features, paddings), masked_case(layer, features, paddings)
    assert output.dtype == dtype
    assert_close(output, masked_case(rounded, features, paddings), dtype)
    assert not torch.equal(output, expected)
    assert_close(output, expected, torch.bfloat16)


def test_int8_weights_of_what_agsca_computes_in_tiles(quantization, draw, assert_close):
    """All six projections; the maps too."""
    layer = CASES["agsca"].make(torch.float32)
    inputs = CASES["agsca"].features(draw, 2, [5, 5], torch.float32)
    paths = {path for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    quantised = quantise(quantization, layer, paths)
    rounded = check_quantised(layer, quantised, paths)
    outputs = quantised(*inputs, need_weights=True)
    assert_close(outputs, rounded(*inputs, need_weights=True))
    assert_close(outputs, layer(*inputs, need_weights=True), torch.bfloat16)


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_int8_network(quantization, draw, assert_close, setting):
    """Every linear map of CMRAN, as ``quantize_`` does where it is given no choice."""
    layer = make_cmran(setting).float().eval()
    inputs = draw(3, 5, 3, 2, 11, dtype=torch.float32), draw(3, 5, 7, dtype=torch.float32)
    mask = padding_mask([5, 2, 0], 5)
    quantised = copy.deepcopy(layer)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig(version=2))
    paths = {path for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    rounded = check_quantised(layer, quantised, paths)
    outputs = tuple(quantised(*inputs, padding_mask=mask))
    assert_close(outputs, tuple(rounded(*inputs, padding_mask=mask)))
    assert_close(outputs, tuple(layer(*inputs, padding_mask=mask)), torch.bfloat16)


def test_int8_layers_still_name_a_wrong_dtype(quantization):
    layer = quantise(quantization, CASES["cmra-self"].make(torch.float32), {"q_proj", "kv_proj", "out_proj"})
    with pytest.raises(TypeError, match=r"query has dtype torch\.float64, but the weights of this CMRA"):
        layer(torch.zeros(2, 5, 39, dtype=torch.float64))
