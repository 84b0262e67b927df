"""The layers on a GPU: every precision, every kernel of SDPA, CUDA graphs and the compiler, against float64."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossmodal_attn import CMRA, padding_mask
from crossmodal_attn.dropout import Dropout
from oracles import CASES, fill_parameters

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

BATCH, LENGTHS = 2, (5, 7, 11, 13, 23)


def make_inputs(case, draw, dtype):
    """Features, and masks in which the first video has one padded step and the second is all padding."""
    lengths = case.lengths(*LENGTHS)
    features = [value.cuda() for value in case.features(draw, BATCH, lengths, dtype)]
    if not case.masked:
        return features, [None] * len(features)
    return features, [padding_mask(torch.tensor([length - 1, 0]).cuda(), length) for length in lengths]


def run(case, layer, features, paddings):
    """The output, and the gradients of a sum of its squares by features and parameters."""
    leaves = [*(value.detach().requires_grad_() for value in features), *layer.parameters()]
    output = case(layer, leaves[: len(features)], paddings)
    return output, torch.autograd.grad(output.double().square().sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_precision(case, draw, assert_close, dtype):
    """On the GPU as in float64 on the CPU, with the weights of that precision; gradients are finite, in full near."""
    layer = case.make(torch.float32).to(dtype).cuda()
    features, paddings = make_inputs(case, draw, dtype)
    output, gradients = run(case, layer, features, paddings)
    assert output.dtype == dtype
    doubled = copy.deepcopy(layer).double().cpu()
    masks = [None if padding is None else padding.cpu() for padding in paddings]
    expected, expected_gradients = run(case, doubled, [value.double().cpu() for value in features], masks)
    assert_close(output.double().cpu(), expected, dtype)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    if dtype in (torch.float64, torch.float32):
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            if gradient is not None:
                torch.testing.assert_close(gradient.double().cpu(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_every_backend(draw, assert_close, backend, padded):
    """Forced to one kernel, CMRA computes the same, or torch says that the kernel does not do it."""
    layer = fill_parameters(CMRA(64, 4)).half().cuda()
    query, context = draw(3, 17, 64, dtype=torch.float16).cuda(), draw(3, 29, 64, dtype=torch.float16).cuda()
    masks = {}
    if padded:
        masks = {"query_padding_mask": padding_mask([11, 17, 0], 17).cuda()}
        masks["context_padding_mask"] = padding_mask([29, 7, 0], 29).cuda()
    doubled = copy.deepcopy(layer).double()
    expected = doubled(query.double(), context.double(), **masks)
    try:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            output = layer(query, context, **masks)
    except RuntimeError as error:
        assert "No available kernel" in str(error)  # noqa: PT017 - what else it raises is a failure
        pytest.skip(f"{backend} does not compute this here")
    assert_close(output.double(), expected, torch.float16)


def test_autocast(case, draw, assert_close):
    for dtype in (torch.float16, torch.bfloat16):
        layer = case.make(torch.float32).cuda()
        features, paddings = make_inputs(case, draw, torch.float32)
        expected = case(layer, features, paddings)
        with torch.autocast("cuda", dtype):
            output = case(layer, features, paddings)
        assert_close(output.float(), expected, dtype)


def test_cuda_graph_replays(case, draw, assert_close):
    """Recorded once, masks included, a graph gives the output of new features: nothing is read back from the GPU."""
    layer = case.make(torch.float32).cuda()
    features, paddings = make_inputs(case, draw, torch.float32)
    fresh = [value + 1 for value in features]
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            case(layer, features, paddings)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = case(layer, features, paddings)
        for value, other in zip(features, fresh, strict=True):
            value.copy_(other)
        graph.replay()
        assert_close(output, case(layer, fresh, paddings))


@pytest.mark.parametrize("name", ["cmra-1-context", "relation-aware", "interaction", "agsca"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles(draw, assert_close, name, mode):
    """In one graph, forward and backward; "reduce-overhead" records CUDA graphs."""
    case = CASES[name]
    layer = case.make(torch.float32).cuda()
    features, paddings = make_inputs(case, draw, torch.float32)
    expected = run(case, layer, features, paddings)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(3):  # the third time the recorded graph is replayed
        torch.compiler.cudagraph_mark_step_begin()
        leaves = [*(value.detach().requires_grad_() for value in features), *layer.parameters()]
        output = case(compiled, leaves[: len(features)], paddings)
        gradients = torch.autograd.grad(output.double().square().sum(), leaves, allow_unused=True)
        torch.testing.assert_close((output, gradients), expected, rtol=1e-3, atol=1e-3)


def test_dropout_is_torchs():
    features = torch.ones(97, device="cuda")
    torch.manual_seed(1)
    dropped = Dropout(0.5)(features)
    torch.manual_seed(1)
    assert torch.equal(dropped, torch.nn.functional.dropout(features, 0.5))
