"""The layers and the network on a GPU: every precision, every kernel of SDPA, CUDA graphs and the compiler, against
float64; masks, recording and dropout as on a CPU. All tests that need a GPU stand here: ``make gpu`` runs this file.
"""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from ave.networks.two_scores import supervised_loss, weak_loss
from crossmodal_attn import (
    CMRA,
    CrossModalRelation,
    padding_mask,
    record_attention,
    relation_attention,
    relation_window,
)
from crossmodal_attn.dropout import Dropout, ReLUDropout
from oracles import CASES, fill_parameters, make_cmran

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

BATCH, LENGTHS = 2, (5, 7, 11, 13, 23)


def make_inputs(case, draw, dtype):
    """Return features, and masks: the first video has one padded step, the second is all padding."""
    lengths = case.lengths(*LENGTHS)
    features = [value.cuda() for value in case.features(draw, BATCH, lengths, dtype)]
    if not case.masked:
        return features, [None] * len(features)
    return features, [padding_mask(torch.tensor([length - 1, 0]).cuda(), length) for length in lengths]


def run(case, layer, features, paddings):
    """Return the output, and the gradients of the sum of its squares by features and parameters."""
    leaves = [*(value.detach().requires_grad_() for value in features), *layer.parameters()]
    output = case(layer, leaves[: len(features)], paddings)
    return output, torch.autograd.grad(output.double().square().sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_precision(case, draw, assert_close, dtype):
    """Outputs are close to those in float64 on the CPU with the same weights; gradients are finite."""
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


@pytest.mark.filterwarnings("ignore")  # by which torch says why a kernel does not do it
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_every_backend(draw, assert_close, backend, padded):
    """CMRA gives the same output with every kernel that torch allows for it."""
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
    """A CUDA graph with masks gives the output of new features, so nothing is read back from the GPU."""
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


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_window_is_its_mask(draw):
    """Outputs and gradients are equal with a window on the CPU or on the GPU, for which the host never waits."""
    layer, window = CMRA(64, 4).cuda(), relation_window(301, [602], window=8)
    leaves = [draw(2, length, 64, dtype=torch.float32).cuda().requires_grad_() for length in (301, 602)]

    def attend(mask):
        output = layer(*leaves, attn_mask=mask)
        return output, torch.autograd.grad(output.square().sum(), [*leaves, *layer.parameters()])

    expected, there = attend(window.mask(device="cuda")), window.to("cuda")
    torch.testing.assert_close(attend(window), expected, rtol=1e-3, atol=1e-3)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = attend(there)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # in which the compiler advises other settings
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_window_in_flex_attention(draw, padded):
    """Compiled FlexAttention with the block mask of a window gives the output and the gradients of its mask."""
    window = relation_window(301, [602], window=8)
    heads = [draw(2, 4, length, 32, dtype=torch.float32).cuda().requires_grad_() for length in (301, 903, 903)]
    padding = padding_mask([903, 700], 903).cuda() if padded else None
    mask = window.mask(device="cuda")
    mask = mask if padding is None else mask | padding[:, None, None]
    block_mask = window.block_mask(padding, device="cuda")
    outputs = [
        torch.compile(flex_attention, fullgraph=True)(*heads, block_mask=block_mask),
        relation_attention(*heads, attn_mask=mask),
    ]
    found = [(output, torch.autograd.grad(output.square().sum(), heads)) for output in outputs]
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def test_dropout_is_torchs():
    features = torch.ones(97, device="cuda")
    torch.manual_seed(1)
    dropped = Dropout(0.5)(features)
    torch.manual_seed(1)
    assert torch.equal(dropped, torch.nn.functional.dropout(features, 0.5))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_the_host_never_waits(case, draw, train):
    """Forward and backward with masks read nothing back from the GPU."""
    layer = case.make(torch.float32).cuda().train(train)
    features, paddings = make_inputs(case, draw, torch.float32)
    leaves = [value.requires_grad_() for value in features]
    case(layer, leaves, paddings).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case(layer, leaves, paddings).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_nan_at_padding_stays_there(masked_case, draw, assert_close, dtype):
    """NaN at padding never affects valid steps, with masks made on the GPU, forward and backward."""
    layer = masked_case.make(torch.float32).to(dtype).cuda()
    features, paddings = make_inputs(masked_case, draw, dtype)
    results = []
    for filling in (0.0, torch.nan, torch.inf):
        filled = [
            value.masked_fill(padding.unsqueeze(-1), filling) for value, padding in zip(features, paddings, strict=True)
        ]
        leaves = [*(value.requires_grad_() for value in filled), *layer.parameters()]
        output = masked_case(layer, leaves[: len(filled)], paddings)
        seen = output.masked_fill(paddings[0].unsqueeze(-1), 0)
        gradients = torch.autograd.grad(seen.float().square().sum(), leaves, allow_unused=True)
        results.append((seen, gradients))
    expected = results[0]
    assert all(gradient is None or gradient.isfinite().all() for gradient in expected[1])
    for result in results[1:]:
        assert_close(result, expected, dtype)


def test_frozen_video_changes_no_other_gradient(draw):
    """If the video needs no gradient, the other gradients of AGSCA do not change."""
    layer = CASES["agsca"].make(torch.float32).cuda()
    video, audio = draw(2, 5, 3, 4, 19, dtype=torch.float32).cuda(), draw(2, 5, 17, dtype=torch.float32).cuda()
    results = []
    for learned in (True, False):
        layer.zero_grad()
        leaf = video.clone().requires_grad_(learned)
        layer(leaf, audio).square().sum().backward()
        assert (leaf.grad is not None) == learned
        results.append([parameter.grad for parameter in layer.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_network_is_that_of_the_cpu(setting, draw, assert_close):
    """Losses and gradients of CMRAN with padding equal those of the CPU, in float64 and in float32."""
    model = make_cmran(setting)
    video, audio = draw(3, 5, 2, 2, 11), draw(3, 5, 7)
    padding = padding_mask([5, 3, 1], 5)
    labels = torch.nn.functional.one_hot(torch.tensor([[0, 5, 1, 1, 5], [2, 2, 3, 5, 5], [4, 5, 5, 5, 5]]), 6).double()

    def learn(model, *tensors):
        video, audio, labels, padding = tensors
        model.zero_grad()
        logits = model(video, audio, padding_mask=padding)
        if setting == "supervised":
            loss = supervised_loss(logits, labels, padding_mask=padding)
        else:
            loss = weak_loss(logits, labels.mean(1), padding_mask=padding)
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    expected = learn(model, video, audio, labels, padding)
    for dtype in (torch.float64, torch.float32):
        tensors = (tensor.to("cuda", dtype) for tensor in (video, audio, labels))
        loss, gradients = learn(copy.deepcopy(model).to("cuda", dtype), *tensors, padding.cuda())
        tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
        actual = loss.double().cpu(), [gradient.double().cpu() for gradient in gradients]
        torch.testing.assert_close(actual, expected, **tolerance)


def test_float16_learns_with_a_scaled_loss(draw):
    """Steps in float16 autocast leave finite weights, and move them."""
    model = make_cmran("supervised").float().cuda()
    video, audio = draw(3, 5, 2, 2, 11, dtype=torch.float32).cuda(), draw(3, 5, 7, dtype=torch.float32).cuda()
    labels = torch.nn.functional.one_hot(torch.tensor([[0], [2], [5]], device="cuda").expand(3, 5), 6).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(3):
        with torch.autocast("cuda", torch.float16):
            loss = supervised_loss(model(video, audio), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_large_scores_stay_finite_in_float16(draw):
    """Attention with scores near the largest float16 number gives finite output."""
    layer = fill_parameters(CMRA(64, 4)).half().cuda()
    query = (40 * draw(3, 17, 64, dtype=torch.float16)).cuda().requires_grad_()
    output, weights = layer(query, need_weights=True)
    output.float().sum().backward()
    assert output.isfinite().all()
    assert query.grad.isfinite().all()
    torch.testing.assert_close(
        weights.float().sum(-1), torch.ones(weights.shape[:-1], device="cuda"), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_recording_changes_no_bit_of_the_output(case, draw, assert_close, dtype):
    """Recording keeps every bit of the output in each precision; maps are on the GPU, and weights sum to one."""
    layer = case.make(torch.float32).to(dtype).cuda()
    features, paddings = make_inputs(case, draw, dtype)
    for narrow in {False, dtype == torch.float32}:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=narrow):
            expected = case(layer, features, paddings)
            with record_attention(layer) as maps:
                output = case(layer, features, paddings)
        assert torch.equal(output, expected)
        assert maps
        for name, recorded in maps.items():
            assert recorded.device.type == "cuda"
            assert recorded.isfinite().all()
            if "channel" not in name:
                axes = (-2, -1) if "spatial" in name else -1
                sums = recorded.double().sum(axes)
                assert (((sums - 1).abs() < 2e-2) | (sums == 0)).all()  # zero where nothing may be attended to


def test_dropout_has_its_mean_and_its_gradient():
    """ReLUDropout scales kept elements, and its gradient is their mask."""
    features = torch.rand(31, 4099, device="cuda").add(0.5).neg_()
    features[:, ::2].neg_()
    features.requires_grad_()
    dropped = ReLUDropout(0.25)(features)
    dropped.sum().backward()
    kept = dropped != 0
    assert abs(kept[:, ::2].double().mean().item() - 0.75) < 0.02
    assert not kept[:, 1::2].any()
    torch.testing.assert_close(features.grad, kept / 0.75)
    torch.testing.assert_close(dropped.detach(), features.detach().relu() * kept / 0.75)


def test_blocks_draw_new_dropout_in_every_replay():
    """Each replay of a recorded training step draws new random numbers."""
    block = CrossModalRelation(64, 4, 128, dropout=0.5).cuda()
    query, context = torch.ones(3, 5, 64, device="cuda"), torch.ones(3, 7, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        block(query, context)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = block(query, context)
    outputs = []
    for _ in range(2):
        graph.replay()
        outputs.append(output.clone())
    assert not torch.equal(*outputs)


@pytest.mark.filterwarnings("ignore")  # in which the compiler advises other settings
@pytest.mark.parametrize("name", ["cmra-1-context", "relation-aware", "interaction", "agsca"])
def test_compiles(draw, assert_close, name):
    """Layers compile to one graph, forward and backward, with CUDA graphs."""
    case = CASES[name]
    layer = case.make(torch.float32).cuda()
    features, paddings = make_inputs(case, draw, torch.float32)
    expected = run(case, layer, features, paddings)
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):  # the third time the recorded graph is replayed
        torch.compiler.cudagraph_mark_step_begin()
        leaves = [*(value.detach().requires_grad_() for value in features), *layer.parameters()]
        output = case(compiled, leaves[: len(features)], paddings)
        gradients = torch.autograd.grad(output.double().square().sum(), leaves, allow_unused=True)
        torch.testing.assert_close((output, gradients), expected, rtol=1e-3, atol=1e-3)
