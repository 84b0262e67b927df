"""LoRA by peft and int8 weights by torchao work on the projections."""

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
    """Return the paths of the projections of every CMRA in ``layer``."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in layer.named_modules()
        if isinstance(module, CMRA)
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    }


def draw_batch(case: Case, draw, dtype=torch.float64):
    """Return features and padding masks of a full, a short and an empty sequence."""
    lengths = case.lengths(5, 7, 2, 3, 11)
    features = case.features(draw, 3, lengths, dtype)
    return features, [padding_mask([length, 1, 0], length) for length in lengths]


def adapt(peft, layer: nn.Module, targets) -> nn.Module:
    """Add LoRA to the named projections in a copy of ``layer``."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=sorted(targets))
    return peft.get_peft_model(copy.deepcopy(layer), config).eval()


def adapt_attention(peft, layer: nn.Module) -> nn.Module:
    """Add LoRA to the projections of every CMRA in a copy of ``layer``."""
    return adapt(peft, layer, projections(layer))


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """Return the projections that LoRA wraps, by their paths in the layer."""
    return {path: module for path, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


def train_adapters(model: nn.Module, draw) -> None:
    """Give the adapters nonzero weights, as training does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(draw(*parameter.shape) * 0.3)


def test_lora_starts_as_the_layer_itself(peft, masked_case, draw):
    """LoRA wraps only the projections, freezes all weights, and does not change the output at first."""
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
    """Training changes every adapter, also with padding, and no other weight."""
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
    """Every adapter changes the output, and merging gives a layer with weights W + s B A and the same output."""
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
    """The target kv_proj does not match context_kv_proj."""
    names = {"q_proj", "kv_proj", "out_proj"}
    assert set(adapters(adapt(peft, CMRA(39, 3, context_dim=17), names))) == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["channel_video_proj", "spatial_video_proj"])
def test_lora_on_what_agsca_computes_in_tiles(peft, draw, assert_close, name, dtype):
    """AGSCA calls the adapter: outputs and gradients equal those of the merged weight."""
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
    """LoRA works on all attention projections of CMRAN, and the maps can be recorded."""
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
    """Saved adapters can be loaded onto another copy of the layer."""
    case = CASES["relation-aware"]
    layer = case.make()
    inputs = draw_batch(case, draw)
    model = adapt_attention(peft, layer)
    train_adapters(model, draw)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(layer), tmp_path)
    assert torch.equal(case(loaded, *inputs), case(model, *inputs))


def quantize(quantization, layer: nn.Module, paths: set[str]) -> nn.Module:
    """Store the weights of some projections in a copy of ``layer`` as int8, with one scale per output."""
    quantized = copy.deepcopy(layer)
    config = quantization.Int8WeightOnlyConfig(version=2)
    quantization.quantize_(quantized, config, filter_fn=lambda _, path: path in paths)
    return quantized


def check_quantized(layer: nn.Module, quantized: nn.Module, paths: set[str]) -> nn.Module:
    """Check that only the weights at ``paths`` are int8, and return a layer with the rounded weights."""
    rounded = copy.deepcopy(layer)
    with torch.no_grad():
        for path in paths:
            stored, weight = quantized.get_submodule(path).weight, layer.get_submodule(path).weight
            assert stored.qdata.dtype == torch.int8
            assert stored.qdata.shape == weight.shape
            assert stored.qdata.int().abs().amax() >= 120  # the whole range is used; bfloat16 rounds its end
            step = weight.abs().amax(1, keepdim=True) / 127
            error = (stored.dequantize() - weight).abs()
            # Half a step of rounding, and what the weight's own dtype rounds in the product.
            assert (error <= 0.5 * step + 127 * step * torch.finfo(weight.dtype).eps).all()
            rounded.get_submodule(path).weight.copy_(stored.dequantize())
    changed = {f"{path}.weight" for path in paths}
    for name, value in quantized.state_dict().items():
        assert name in changed or torch.equal(value, layer.state_dict()[name]), name
    return rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_weights(quantization, masked_case, draw, assert_close, dtype):
    """With int8 attention projections, the output is that of the rounded weights, and close to the original."""
    layer = masked_case.make(torch.float32).to(dtype)
    features, paddings = draw_batch(masked_case, draw, dtype)
    paths = projections(layer)
    quantized = quantize(quantization, layer, paths)
    rounded = check_quantized(layer, quantized, paths)
    output, expected = masked_case(quantized, features, paddings), masked_case(layer, features, paddings)
    assert output.dtype == dtype
    assert_close(output, masked_case(rounded, features, paddings), dtype)
    assert not torch.equal(output, expected)
    assert_close(output, expected, torch.bfloat16)


def test_int8_weights_of_what_agsca_computes_in_tiles(quantization, draw, assert_close):
    """The output and maps of AGSCA with int8 weights are those of the rounded weights."""
    layer = CASES["agsca"].make(torch.float32)
    inputs = CASES["agsca"].features(draw, 2, [5, 5], torch.float32)
    paths = {path for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    quantized = quantize(quantization, layer, paths)
    rounded = check_quantized(layer, quantized, paths)
    outputs = quantized(*inputs, need_weights=True)
    assert_close(outputs, rounded(*inputs, need_weights=True))
    assert_close(outputs, layer(*inputs, need_weights=True), torch.bfloat16)


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_int8_network(quantization, draw, assert_close, setting):
    """CMRAN works with all linear layers quantized, the default of ``quantize_``."""
    layer = make_cmran(setting).float().eval()
    inputs = draw(3, 5, 3, 2, 11, dtype=torch.float32), draw(3, 5, 7, dtype=torch.float32)
    mask = padding_mask([5, 2, 0], 5)
    quantized = copy.deepcopy(layer)
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig(version=2))
    paths = {path for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    rounded = check_quantized(layer, quantized, paths)
    outputs = tuple(quantized(*inputs, padding_mask=mask))
    assert_close(outputs, tuple(rounded(*inputs, padding_mask=mask)))
    assert_close(outputs, tuple(layer(*inputs, padding_mask=mask)), torch.bfloat16)


def test_int8_layers_still_name_a_wrong_dtype(quantization):
    layer = quantize(quantization, CASES["cmra-self"].make(torch.float32), {"q_proj", "kv_proj", "out_proj"})
    with pytest.raises(TypeError, match=r"query has dtype torch\.float64, but the weights of this CMRA"):
        layer(torch.zeros(2, 5, 39, dtype=torch.float64))
