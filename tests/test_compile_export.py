"""The layers work under compilation, export, autocast and functional transforms, and can be saved."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossmodal_attn import CMRA, RotaryTime, padding_mask
from oracles import CASES, Case

SIZES = [(2, (5, 7, 11, 13, 23)), (3, (7, 5, 2, 3, 11)), (7, (23, 11, 5, 2, 7))]
"""Batch size and lengths; those of the first differ, so that a compiler cannot take two sizes as equal."""


class Padded(nn.Module):
    """A layer with padding masks made inside from lengths, as a user would compile or export it."""

    def __init__(self, case: Case, layer: nn.Module) -> None:
        super().__init__()
        self.case, self.layer = case, layer

    def forward(self, features, lengths):
        paddings = [padding_mask(own, feature.shape[1]) for feature, own in zip(features, lengths, strict=True)]
        return self.case(self.layer, features, paddings)


class Plain(Padded):
    """A layer without masks."""

    def forward(self, features, _lengths):
        return self.case(self.layer, features)


def draw_batch(case, draw, size, dtype=torch.float64):
    """Return features and lengths; each batch has a full, a short and an empty sequence."""
    batch, candidates = size
    sizes = case.lengths(*candidates)
    lengths = [torch.tensor([(length, 1, 0)[b % 3] for b in range(batch)]) for length in sizes]
    return case.features(draw, batch, sizes, dtype), lengths


@pytest.fixture(params=[Padded, Plain])
def wrap(request):
    return request.param


LAYERS = ["cmra-4-contexts", "cmra-own-projections", "pre-norm-relation"]
LAYERS += ["relation-aware-2-contexts", "interaction", "agsca"]  # relation-aware contains both post-norm blocks


@pytest.fixture(params=LAYERS)
def slow_case(request):
    """Return a layer, in a few configurations only, since tracing takes seconds."""
    return CASES[request.param]


def count_compilations(module, case, draw, assert_close, dynamic):
    """Compare a module with itself compiled, at every size, and return the number of compiled graphs."""
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=counter)
    for size in SIZES:
        inputs = draw_batch(case, draw, size)
        assert_close(compiled(*inputs), module(*inputs))
    return counter.frame_count


def test_compiles_once_where_sizes_are_dynamic(slow_case, draw, assert_close):
    """With dynamic=True, one graph gives the same outputs at every size, also with masks."""
    module = Padded(slow_case, slow_case.make())
    assert count_compilations(module, slow_case, draw, assert_close, dynamic=True) == 1


@pytest.mark.parametrize("name", ["cmra-1-context", "agsca"])
def test_compiles_twice_where_sizes_turn_out_to_vary(draw, assert_close, name):
    """By default, there is one graph for the first size and one for all others."""
    module = Padded(CASES[name], CASES[name].make())
    assert count_compilations(module, CASES[name], draw, assert_close, dynamic=None) <= 2


@pytest.mark.parametrize("dimensions", [3, 4])
def test_attention_masks_compile_whole_and_few_times(draw, assert_close, dimensions):
    """Attention masks, weights and padding masks compile together, in few graphs."""
    layer = CASES["cmra-self"].make()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch, (length, memory, *_) in SIZES:
        inputs = draw(batch, length, 39), draw(batch, memory, 39)
        masks = {
            "query_padding_mask": padding_mask([1] * batch, length),
            "attn_mask": draw(*((batch * 3,) if dimensions == 3 else (batch, 1)), length, length + memory) > 0,
            "need_weights": True,
        }
        assert_close(compiled(*inputs, **masks), layer(*inputs, **masks))
    assert counter.frame_count == 1


def test_lacking_modality_compiles_whole(draw, assert_close):
    """None in a list of contexts is part of the graph."""
    layer = CASES["cmra-own-projections"].make()
    query, context = draw(2, 5, 39), draw(2, 7, 39)
    arguments = {"context_padding_mask": [None, padding_mask([7, 3])], "need_weights": True}
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_close(compiled(query, [None, context], **arguments), layer(query, [None, context], **arguments))
    program = torch.export.export(layer, (query, [None, context]), arguments)
    assert_close(program.module()(query, [None, context], **arguments), layer(query, [None, context], **arguments))


@pytest.mark.parametrize("name", ["cmra-1-context", "agsca"])
def test_compiled_gradients_are_the_eager_ones(draw, assert_close, name):
    """Gradients through AOT autograd equal the eager ones, with padding."""
    case = CASES[name]
    module = Padded(case, case.make())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = draw_batch(case, draw, SIZES[1])
    for run in (compiled, module):
        run(*inputs).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        module.zero_grad(set_to_none=True)
        if run is compiled:
            first = gradients
    assert_close(first, gradients)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles:UserWarning")  # of torch 2.6
def test_inductor_gives_the_eager_output(draw, assert_close, monkeypatch):
    """The default compiler gives the eager output."""
    # Otherwise Inductor first compiles a program for each kind of vector instructions, to see whether they work.
    if torch.__version__ >= "2.7":
        monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    case = CASES["cmra-1-context"]
    module = Padded(case, case.make())
    inputs = draw_batch(case, draw, SIZES[0])
    with torch.no_grad():
        assert_close(torch.compile(module, fullgraph=True)(*inputs), module(*inputs))


def test_compiles_under_autocast(draw, assert_close):
    case = CASES["interaction"]
    module = Padded(case, case.make(torch.float32))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    inputs = draw_batch(case, draw, (2, (3, 3)), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(compiled(*inputs), module(*inputs))


def test_exports_with_dynamic_sizes(slow_case, draw, assert_close):
    """A program with dynamic batch size and lengths, and masks made inside, runs at every other size."""
    case = slow_case
    module = Padded(case, case.make())
    # With a maximum, as torch 2.6 takes a size without one for a guard.
    batch = torch.export.Dim("batch", max=2**20)
    times = [torch.export.Dim(f"time{index}", max=2**20) for index in range(len(case.widths))]
    if case.aligned:
        times = [times[0]] * len(times)
    shapes = ([{0: batch, 1: time} for time in times], [{0: batch} for _ in times])
    program = torch.export.export(module, draw_batch(case, draw, SIZES[0]), dynamic_shapes=shapes)
    for size in SIZES[1:]:
        inputs = draw_batch(case, draw, size)
        assert_close(program.module()(*inputs), module(*inputs))


class Timed(nn.Module):
    """A layer with times and an attention mask, given or made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CMRA(12, 3, rotary=RotaryTime(), dtype=torch.float64)

    def forward(self, query, times=None, attn_mask=None):
        times = torch.arange(5) if times is None else times
        attn_mask = torch.ones(5, 5).triu(1) > 0 if attn_mask is None else attn_mask
        return self.layer(query, query_times=times, attn_mask=attn_mask)


@pytest.mark.parametrize("axis", [0, 1])
def test_exports_with_one_dynamic_size(draw, assert_close, axis):
    """Times and a mask of each video do not require that the batch size and the length differ."""
    size = torch.export.Dim("size", max=1024)
    shapes = ({axis: size}, {axis: size}, {0: size} if axis == 0 else {1: size, 2: size})
    inputs, module = (draw(2, 5, 12), draw(2, 5), draw(2, 5, 5)), Timed()
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    same = (draw(5, 5, 12), draw(5, 5), draw(5, 5, 5)) if axis == 0 else (draw(2, 2, 12), draw(2, 2), draw(2, 2, 2))
    assert_close(program.module()(*same), module(*same))


def test_compiles_with_times_and_masks_of_fixed_size(draw, assert_close):
    """Times and masks are made inside the graph, although the sizes of the features are symbolic."""
    module, query = Timed(), draw(2, 5, 12)
    assert_close(torch.compile(module, fullgraph=True, dynamic=True, backend="eager")(query), module(query))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains(case, draw, assert_close, dtype):
    """Under autocast, gradients are finite, and outputs are close to those in float32."""
    module = Padded(case, case.make(torch.float32))
    inputs = draw_batch(case, draw, (2, (2, 3, 1, 2, 3)), torch.float32)
    expected = module(*inputs)
    with torch.autocast("cpu", dtype=dtype):
        output = module(*inputs)
        halves = [feature.to(dtype) for feature in inputs[0]]
        from_halves = module(halves, inputs[1])
    assert_close(output, expected, dtype)
    assert from_halves.isfinite().all()
    output.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_layers(case, draw, assert_close, dtype):
    """A layer in half precision is close to the float64 output of the same weights."""
    layer = case.make(torch.float32).to(dtype)
    inputs = draw_batch(case, draw, (2, (2, 3, 1, 2, 3)), dtype)
    output = Padded(case, layer)(*inputs)
    assert output.dtype == dtype
    doubled = [feature.double() for feature in inputs[0]]
    expected = Padded(case, copy.deepcopy(layer).double())(doubled, inputs[1])
    assert_close(output.double(), expected, dtype)


def test_vmap_is_a_loop(case, draw, assert_close, wrap):
    """vmap over an additional first dimension equals a loop."""
    module = wrap(case, case.make())
    batches = [draw_batch(case, draw, SIZES[0]) for _ in range(3)]
    stacked = torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *batches)
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(torch.func.vmap(module)(*stacked), torch.stack([module(*batch) for batch in batches]))


def test_per_sample_gradients(draw, assert_close):
    """vmap over grad gives one gradient per video; their sum is the gradient of the batch."""
    layer = CASES["cmra-1-context"].make()
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    query, context = draw(2, 5, 39), draw(2, 7, 39)

    def loss(parameters, query, context):
        return torch.func.functional_call(layer, parameters, (query, context)).square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        one = torch.func.grad(lambda parameters, query, context: loss(parameters, query[None], context[None]))
        samples = torch.func.vmap(one, (None, 0, 0))(parameters, query, context)
        whole = torch.func.grad(loss)(parameters, query, context)
    assert_close({name: gradient.sum(0) for name, gradient in samples.items()}, whole)


def test_functional_call_uses_the_given_parameters(case, draw, assert_close):
    """Changing any one parameter in functional_call gives the output of a layer with this parameter."""
    layer = case.make()
    features, _ = draw_batch(case, draw, SIZES[0])
    expected = case(layer, features)
    module, other = Plain(case, layer), copy.deepcopy(layer)
    for name, parameter in layer.named_parameters():
        value = draw(*parameter.shape)
        with torch.no_grad():
            other.get_parameter(name).copy_(value)
        output = torch.func.functional_call(module, {f"layer.{name}": value}, (features, []))
        assert_close(output, case(other, features))
        assert not torch.allclose(output, expected), name
        other.load_state_dict(layer.state_dict())


def test_every_parameter_has_a_gradient(case, draw, wrap):
    """No parameter is unused, with and without masks, as DDP requires."""
    module = wrap(case, case.make())
    module(*draw_batch(case, draw, SIZES[0])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_every_projection_is_called_as_a_module(case, draw):
    """Hooks on every nn.Linear run, so LoRA, quantization and FSDP can wrap it."""
    layer = case.make()
    called = set()
    linears = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    for name in linears:
        layer.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
    case(layer, draw_batch(case, draw, SIZES[0])[0])
    assert linears
    assert called == linears


def test_wrapped_projections_work(case, draw, assert_close):
    """A layer works if each nn.Linear is inside a module without a weight of its own, such as an adapter."""
    layer = case.make()
    features, _ = draw_batch(case, draw, SIZES[0])
    expected = case(layer, features)
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            layer.set_submodule(name, nn.Sequential(module))
    assert_close(case(layer, features), expected)


def test_meta_device(case, draw, wrap):
    """Layers can be built and run on the meta device."""
    inputs = torch.utils._pytree.tree_map(lambda leaf: leaf.to("meta"), draw_batch(case, draw, SIZES[0]))
    output = wrap(case, case.make(device="meta"))(*inputs)
    assert output.is_meta
    assert output.shape == wrap(case, case.make())(*draw_batch(case, draw, SIZES[0])).shape
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in case.build().parameters())


@pytest.mark.parametrize(
    "name", ["cmra-1-context", "cmra-other-width", "cmra-own-projections", "cmra-without-bias", "agsca"]
)
def test_reset_parameters_covers_the_whole_layer(name):
    """reset_parameters of the layer initializes all parameters, also those of its projections."""
    layer = CASES[name].build()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    layer.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


def test_reset_parameters_fills_what_meta_left_empty(case):
    """After to_empty, every parameter is initialized in the range of the constructor."""
    drawn = case.build(dtype=torch.float64)
    empty = case.build(dtype=torch.float64, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(torch.nan)
    # Children first: a layer draws its own projections in its own way.
    for module in reversed(list(empty.modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in empty.named_parameters():
        original = drawn.get_parameter(name)
        assert parameter.isfinite().all(), name
        if parameter.numel() > 500:
            torch.testing.assert_close(parameter.abs().max(), original.abs().max(), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
def test_copies_are_equal_and_independent(case, draw, assert_close, duplicate):
    layer = case.make()
    features, _ = draw_batch(case, draw, SIZES[0])
    expected = case(layer, features)
    copied = duplicate(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert_close(case(copied, features), expected)
    assert repr(copied) == repr(layer)


def test_state_dict_round_trip(case, draw, assert_close):
    """A layer that loads the saved state dict gives the same output."""
    layer, other = case.make(), case.build(dtype=torch.float64).eval()
    features, _ = draw_batch(case, draw, SIZES[0])
    expected = case(layer, features)
    assert not torch.allclose(case(other, features), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_close(case(other, features), expected)
