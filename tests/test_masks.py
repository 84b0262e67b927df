"""Masked values never affect valid steps, in any layer, forward or backward; padding_mask and zero_padding."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from crossmodal_attn import CMRA, padding_mask, zero_padding
from crossmodal_attn.masks import join_masks
from oracles import CASES, Case

FILLS = [pytest.param(fill, id=str(fill)) for fill in (0.5, torch.nan, torch.inf, 1e30)]


def backward(module, output, features):
    """Return the gradients of a fixed random projection of ``output``, by features and by named parameters."""
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad((output * probe).sum(), [*features, *parameters.values()])
    return gradients[: len(features)], dict(zip(parameters, gradients[len(features) :], strict=True))


def pad(sequences, length, fill):
    """Stack sequences (T, *) to a batch that is padded with ``fill``."""
    batch = sequences[0].new_full((len(sequences), length, *sequences[0].shape[1:]), fill)
    for row, sequence in zip(batch, sequences, strict=True):
        row[: len(sequence)] = sequence
    return batch.requires_grad_()


@pytest.mark.parametrize("fill", FILLS)
def test_padded_batch_equals_videos_one_by_one(masked_case: Case, draw, assert_close, fill):
    """Outputs, input gradients and parameter gradients are equal, for all values at padding."""
    layer = masked_case.make()
    lengths = [masked_case.lengths(*row) for row in ((5, 7, 2, 3, 11), (2, 3, 7, 1, 5), (1, 1, 1, 1, 1))]
    widest = [max(column) for column in zip(*lengths, strict=True)]
    videos = [masked_case.features(draw, 1, row) for row in lengths]
    batch = [pad([video[i][0] for video in videos], widest[i], fill) for i in range(len(widest))]
    paddings = [padding_mask([row[i] for row in lengths], widest[i]) for i in range(len(widest))]
    output = masked_case(layer, batch, paddings)
    assert output.isfinite().all()

    for video in videos:
        for features in video:
            features.requires_grad_()
    alone = [masked_case(layer, video)[0] for video in videos]
    valid = torch.cat([row[: len(one)] for row, one in zip(output, alone, strict=True)])
    assert_close(valid, torch.cat(alone))

    input_gradients, gradients = backward(layer, valid, batch)
    flat = [features for video in videos for features in video]
    alone_inputs, alone_gradients = backward(layer, torch.cat(alone), flat)
    assert_close(gradients, alone_gradients)
    expected = iter(alone_inputs)
    for b, row in enumerate(lengths):
        for i, length in enumerate(row):
            assert_close(input_gradients[i][b, :length], next(expected)[0])
            assert not input_gradients[i][b, length:].any()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("which", ["query", "context", "both"])
def test_fully_padded_video_is_finite_and_harmless(masked_case: Case, draw, assert_close, fill, which):
    """A video that is all padding gives finite outputs and gradients, and does not affect other videos."""
    layer = masked_case.make()
    lengths = masked_case.lengths(5, 7, 2, 3, 11)
    features = masked_case.features(draw, 2, lengths)
    paddings = [torch.zeros(2, length, dtype=torch.bool) for length in lengths]
    for i, (feature, padding) in enumerate(zip(features, paddings, strict=True)):
        if which == "both" or masked_case.aligned or which == ("query" if i == 0 else "context"):
            padding[1] = True
            feature[1] = fill
    features = [feature.requires_grad_() for feature in features]
    output = masked_case(layer, features, paddings)
    assert output.isfinite().all()
    assert_close(output[:1], masked_case(layer, [feature[:1] for feature in features]))
    input_gradients, gradients = backward(layer, output, features)
    for gradient, padding in zip(input_gradients, paddings, strict=True):
        assert gradient.isfinite().all()
        assert not gradient[padding].any()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_padding_leaves_no_trace_bitwise(masked_case: Case, draw):
    """Outputs and parameter gradients are bitwise the same for NaN and for zeros at padding."""
    layer = masked_case.make(torch.float32)
    lengths = masked_case.lengths(5, 7, 2, 3, 11)
    features = masked_case.features(draw, 3, lengths, torch.float32)
    paddings = [padding_mask([length, 1, 0], length) for length in lengths]

    def run(fill):
        filled = [f.masked_fill(p.unsqueeze(-1), fill) for f, p in zip(features, paddings, strict=True)]
        output = masked_case(layer, filled, paddings)
        return output, backward(layer, output, [])[1]

    (zeros, zeros_gradients), (nans, nans_gradients) = run(0.0), run(torch.nan)
    assert torch.equal(zeros, nans)
    assert all(torch.equal(zeros_gradients[name], nans_gradients[name]) for name in zeros_gradients)


def test_all_false_mask_equals_no_mask(masked_case: Case, draw, assert_close):
    layer = masked_case.make()
    lengths = masked_case.lengths(5, 7, 2, 3, 11)
    features = masked_case.features(draw, 2, lengths)
    nothing = [torch.zeros(2, length, dtype=torch.bool) for length in lengths]
    assert_close(masked_case(layer, features, nothing), masked_case(layer, features))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 1), (1, 1)])
def test_batch_of_none_and_time_of_one(case: Case, draw, batch, length, masked):
    """Empty batches and videos of one step give outputs of the right shape, and gradients."""
    layer = case.make()
    lengths = case.lengths(*[length] * 5)
    features = case.features(draw, batch, lengths)
    paddings = [torch.zeros(batch, length, dtype=torch.bool) if masked else None for _ in lengths]
    output = case(layer, features, paddings)
    width = case.widths[0] if case.spatial else 39
    assert output.shape == (batch, length, width)
    assert all(gradient.isfinite().all() for gradient in backward(layer, output, [])[1].values())


def test_context_without_steps_is_as_if_absent(draw, assert_close):
    """A context of length zero does not change the output."""
    layer = CASES["cmra-self"].make()
    query, empty = draw(2, 5, 39), draw(2, 0, 39)
    mask = torch.zeros(2, 0, dtype=torch.bool)
    assert_close(layer(query, [empty, empty], context_padding_mask=[mask, None]), layer(query))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (6, 5, 12)], ids=["T,M", "B,T,M", "BH,T,M"])
def test_query_that_may_attend_to_nothing(draw, kind, shape):
    """Its attention is zero, so the output is the bias of the output projection, and gradients are finite."""
    layer = CASES["cmra-self"].make()
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., 3, :] = True
    if kind == "float":
        mask = torch.zeros(shape, dtype=torch.float64).masked_fill(mask, -torch.inf)
    features = [draw(2, 5, 39).requires_grad_(), draw(2, 7, 39).requires_grad_()]
    output, weights = layer(*features, attn_mask=mask, need_weights=True)
    assert not weights[:, :, 3].any()
    assert torch.equal(output[:, 3], layer.out_proj.bias.expand(2, 39))
    torch.testing.assert_close(weights[:, :, [0, 1, 2, 4]].sum(-1), weights.new_ones(2, 3, 4))
    assert weights.isfinite().all()
    input_gradients, gradients = backward(layer, output, features)
    assert all(gradient.isfinite().all() for gradient in (*input_gradients, *gradients.values()))


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (6, 5, 12)], ids=["T,M", "B,T,M", "BH,T,M"])
@pytest.mark.parametrize("padded", [False, True])
def test_bool_and_float_attention_masks_agree(draw, assert_close, shape, padded):
    """They also agree together with a padding mask."""
    layer = CASES["cmra-self"].make()
    mask = draw(*shape) > 0.5
    added = torch.zeros(shape, dtype=torch.float64).masked_fill(mask, -torch.inf)
    paddings = {}
    if padded:
        paddings = {"query_padding_mask": padding_mask([3, 5]), "context_padding_mask": padding_mask([7, 2])}
    features = draw(2, 5, 39), draw(2, 7, 39)
    expected = layer(*features, attn_mask=mask, need_weights=True, **paddings)
    assert_close(layer(*features, attn_mask=added, need_weights=True, **paddings), expected)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 12), (2, 1, 12), (6, 1, 12), (2, 3, 5, 12), (2, 1, 5, 12), (1, 3, 5, 12), (1, 1, 1, 12), (2, 1, 5, 1)],
    ids=str,
)
def test_attention_masks_broadcast(draw, assert_close, shape, padded, kind):
    """A mask that broadcasts equals the expanded mask; three dimensions begin with B or B * H."""
    layer = CASES["cmra-self"].make()
    mask = draw(*shape)
    mask = mask > 0.5 if kind == "bool" else mask.masked_fill(mask > 1, -torch.inf)
    whole = mask
    if mask.dim() == 3:
        whole = mask.unflatten(0, (2, 3)) if shape[0] == 6 else mask.unsqueeze(1)
    whole = whole.expand(2, 3, 5, 12).flatten(0, 1)
    paddings = {}
    if padded:
        paddings = {"query_padding_mask": padding_mask([3, 5]), "context_padding_mask": padding_mask([7, 2])}
    features = draw(2, 5, 39), draw(2, 7, 39)
    expected = layer(*features, attn_mask=whole, need_weights=True, **paddings)
    assert_close(layer(*features, attn_mask=mask, need_weights=True, **paddings), expected)


def test_attention_mask_of_three_dimensions_with_one_head(draw):
    """With one head B and B * H are equal, and a mask (B, T, M) has one map per video."""
    layer = CMRA(39, 1, dtype=torch.float64)
    features, mask = draw(2, 5, 39), draw(2, 5, 5) > 0.5
    alone = [layer(features[b : b + 1], attn_mask=mask[b])[0] for b in range(2)]
    torch.testing.assert_close(layer(features, attn_mask=mask), torch.stack(alone))


def test_causal_mask_hides_the_future(draw):
    """Under a causal mask, the output of a step does not depend on later steps."""
    layer = CASES["cmra-self"].make()
    features = draw(2, 5, 39)
    changed = features.clone()
    changed[:, 3:] = draw(2, 2, 39)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    output, after = layer(features, attn_mask=causal), layer(changed, attn_mask=causal)
    torch.testing.assert_close(output[:, :3], after[:, :3])
    assert (output[:, 3:] - after[:, 3:]).abs().amin() > 0
    float_causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    torch.testing.assert_close(layer(features, attn_mask=float_causal), output)


def test_join_masks_broadcasts_to_heads_and_memory():
    """Each kind of attention mask, joined with padding masks of which one is None, equals a mask built in loops."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, length, lengths = 2, 3, 5, [7, 4]
    padding = torch.rand(batch, 7, generator=generator) > 0.5
    for shape in ((length, 11), (batch, length, 11), (batch * heads, length, 11)):
        attn_mask = torch.rand(shape, generator=generator) > 0.5
        joined = join_masks(attn_mask, [padding, None], lengths, batch, heads).expand(batch, heads, length, 11)
        for b in range(batch):
            for h in range(heads):
                own = attn_mask if len(shape) == 2 else attn_mask[b if shape[0] == batch else b * heads + h]
                expected = own | torch.cat([padding[b], torch.zeros(4, dtype=torch.bool)])
                assert torch.equal(joined[b, h], expected)
    assert join_masks(None, [None, None], lengths, batch, heads) is None


EXPECTED = torch.tensor([[False] * 3, [False, True, True], [True] * 3])


@pytest.mark.parametrize(
    "lengths",
    [
        [3, 1, 0],
        (3, 1, 0),
        np.array([3, 1, 0]),
        np.array([3, 1, 0], dtype=np.uint16),
        [torch.tensor(3), torch.tensor(1), torch.tensor(0)],
        torch.tensor([3, 1, 0]),
        torch.tensor([3, 1, 0], dtype=torch.uint8),
        torch.tensor([3, 1, 0], dtype=torch.uint16),
        torch.tensor([3, 1, 0], dtype=torch.int32),
    ],
    ids=lambda lengths: f"{type(lengths).__name__}-{getattr(lengths, 'dtype', '')}",
)
def test_padding_mask_of_every_kind_of_lengths(lengths):
    assert torch.equal(padding_mask(lengths), EXPECTED)
    longer = padding_mask(lengths, max_length=5)
    assert torch.equal(longer, torch.cat([EXPECTED, torch.ones(3, 2, dtype=torch.bool)], 1))
    assert padding_mask(lengths, 3).dtype == torch.bool


def test_padding_mask_of_a_read_only_array():
    """A read-only array, as from a file, gives no warning."""
    lengths = np.array([3, 1, 0])
    lengths.setflags(write=False)
    assert torch.equal(padding_mask(lengths), EXPECTED)


@pytest.mark.parametrize("lengths", [[], torch.tensor([], dtype=torch.long), np.array([], dtype=np.int64)])
def test_padding_mask_of_no_sequences(lengths):
    assert padding_mask(lengths).shape == (0, 0)
    assert padding_mask(lengths, max_length=7).shape == (0, 7)


def test_padding_mask_of_a_tensor_is_not_read_back():
    """With max_length, a tensor of lengths is not read back: this works on the meta device."""
    assert padding_mask(torch.empty(3, dtype=torch.long, device="meta"), max_length=7).shape == (3, 7)


@pytest.mark.parametrize("lengths", [[3, 1, 0], (3, 1, 0), [np.int64(3), np.uint8(1), 0]], ids=str)
@pytest.mark.parametrize("max_length", [None, 3])
def test_padding_mask_of_a_list_reads_no_tensor(lengths, max_length):
    """A list of lengths works on the meta device, with fake tensors and in a graph, where no tensor can be read."""
    with torch.device("meta"):
        assert padding_mask(lengths, max_length).is_meta
    with FakeTensorMode():
        assert padding_mask(lengths, max_length).shape == (3, 3)
    with pytest.raises(ValueError, match="lengths must be at most max_length=2, got 3"), torch.device("meta"):
        padding_mask(lengths, 2)


@pytest.mark.parametrize("max_length", [None, 3])
def test_padding_mask_of_a_list_compiles(max_length):
    torch.compiler.reset()
    compiled = torch.compile(lambda steps: steps & padding_mask([3, 1, 0], max_length), fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3, 3, dtype=torch.bool)), EXPECTED)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 fixes sizes in the graph that are to stay open")
@pytest.mark.parametrize("strict", [False, True])
def test_padding_mask_of_sizes_is_exported(strict):
    """A length may be a dynamic size of the exported graph."""

    class Sizes(nn.Module):
        def forward(self, features):
            return padding_mask([features.shape[1], 1], features.shape[1])

    sizes = ({1: torch.export.Dim("time", min=2)},)
    program = torch.export.export(Sizes(), (torch.zeros(2, 5),), dynamic_shapes=sizes, strict=strict)
    assert torch.equal(program.module()(torch.zeros(2, 7)), padding_mask([7, 1], 7))


def test_padding_mask_of_a_list_of_tensors_is_not_read_back():
    lengths = [torch.empty((), dtype=torch.long, device="meta") for _ in range(3)]
    assert padding_mask(lengths, max_length=7).shape == (3, 7)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 5, 3, 2, 7)], ids=str)
def test_zero_padding_zeroes_what_is_padding(draw, dtype, shape):
    """Padded steps become zero, in every dtype and number of dimensions; valid steps keep their bits."""
    features = draw(*shape).to(dtype)
    padding = padding_mask([3, 0], 5)
    if features.is_floating_point():
        features[0, 3], features[0, 4], features[1] = torch.nan, torch.inf, -torch.inf
    zeroed = zero_padding(features, padding)
    assert zeroed.dtype == dtype
    assert torch.equal(zeroed[~padding], features[~padding])
    assert not zeroed[padding].any()
    assert zero_padding(features, None) is features


@pytest.mark.parametrize("length", [*range(1, 10), 31, 64])
def test_zero_padding_at_every_width_of_a_vector(length):
    """NaN is removed both by the vectorized part of a kernel and by its remainder."""
    features = torch.full((2, 3, length), torch.nan)
    assert not zero_padding(features, padding_mask([0, 0], 3)).any()
    assert zero_padding(features, padding_mask([3, 2], 3)).isnan().sum() == 5 * length


@pytest.mark.filterwarnings("ignore:Please use .torch.vmap.:FutureWarning")  # of torch 2.6, in its own code
def test_zero_padding_has_derivatives(draw):
    """First and second derivatives are right, forward and backward, and under vmap."""
    padding = padding_mask([3, 1])
    features = draw(2, 3, 2).requires_grad_()

    def zero(features):
        return zero_padding(features, padding)

    assert torch.autograd.gradcheck(zero, features, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(zero, features)
    many = draw(4, 2, 3, 2)
    assert torch.equal(torch.vmap(zero)(many), torch.stack([zero(one) for one in many]))
    gradient = torch.autograd.grad(zero(features).sum(), features)[0]
    assert torch.equal(gradient, (~padding).double().unsqueeze(-1).expand(2, 3, 2))


def test_zero_padding_keeps_a_layer_in_front_trainable(draw):
    """Without zero_padding, NaN at padding makes the gradients of a linear layer before CMRA NaN."""
    project, layer = nn.Linear(7, 39, dtype=torch.float64), CASES["cmra-self"].make()
    query, words, padding = draw(2, 5, 39), draw(2, 3, 7), padding_mask([3, 1])
    words[padding] = torch.nan

    def gradient(words):
        project.zero_grad()
        layer(query, project(words), context_padding_mask=padding).sum().backward()
        return project.weight.grad

    assert gradient(words).isnan().any()
    assert torch.equal(gradient(zero_padding(words, padding)), gradient(words.nan_to_num(0.0)))


def test_padding_mask_counts_valid_steps():
    lengths = torch.randint(0, 12, (23,), generator=torch.Generator().manual_seed(0))
    assert torch.equal((~padding_mask(lengths)).sum(1), lengths)
