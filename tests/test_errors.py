"""Every wrong call raises an error of this library, which names the argument, what was expected and what was given."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import crossmodal_attn
from crossmodal_attn import (
    AGSCA,
    CMRA,
    AVInteraction,
    CrossModalRelation,
    InternalTemporalRelation,
    RelationAware,
    channel_attention,
    padding_mask,
    record_attention,
    relation_attention,
    relation_weights,
    spatial_attention,
    zero_padding,
)

PACKAGE = Path(crossmodal_attn.__file__).parent


def check_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert Path(last.filename).parent == PACKAGE, f"raised in {last.filename}"


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def mask(*shape, dtype=torch.bool):
    return torch.zeros(shape, dtype=dtype)


T, V = TypeError, ValueError

CONSTRUCTORS = {
    "heads do not divide": (lambda: CMRA(256, 3), V, r"embed_dim must be divisible by num_heads, got .*=256 .*=3"),
    "no heads": (lambda: CMRA(256, 0), V, "num_heads must be at least 1, got 0"),
    "negative width": (lambda: CMRA(-4, 2), V, "embed_dim must be at least 1, got -4"),
    "fractional width": (lambda: CMRA(256.0, 4), T, "embed_dim must be an int, got float"),
    "width of text": (lambda: CMRA("256", 4), T, "embed_dim must be an int, got str"),
    "bool heads": (lambda: CMRA(256, True), T, "num_heads must be an int, got bool"),
    "negative dropout": (lambda: CMRA(8, 2, -0.1), V, "dropout must be a probability between 0 and 1, got -0.1"),
    "dropout in percent": (lambda: CMRA(8, 2, 10), V, "dropout must be a probability between 0 and 1, got 10"),
    "dropout NaN": (lambda: CMRA(8, 2, float("nan")), V, "dropout must be a probability between 0 and 1, got nan"),
    "dropout None": (lambda: CMRA(8, 2, None), T, "dropout must be a float, got NoneType"),
    "context_dim zero": (lambda: CMRA(8, 2, context_dim=0), V, "context_dim must be at least 1, got 0"),
    "context_dim text": (
        lambda: CMRA(8, 2, context_dim="8"),
        T,
        "context_dim must be an int, or a list or tuple of them, got str",
    ),
    "context_dim empty": (lambda: CMRA(8, 2, context_dim=[]), V, r"context_dim must hold at least one width, got \[\]"),
    "context_dim with zero": (lambda: CMRA(8, 2, context_dim=[8, 0]), V, r"context_dim\[1\] must be at least 1, got 0"),
    "context_dim with None": (
        lambda: CrossModalRelation(8, 2, context_dim=(None, 8)),
        T,
        r"context_dim\[0\] must be an int, got NoneType",
    ),
    "activation": (
        lambda: CrossModalRelation(8, 2, activation="swish"),
        V,
        'activation must be "relu", "gelu" or a function of a tensor, got \'swish\'',
    ),
    "activation None": (
        lambda: CrossModalRelation(8, 2, activation=None),
        T,
        'activation must be "relu", "gelu" or a function of a tensor, got NoneType',
    ),
    "AGSCA without channels": (lambda: AGSCA(0, 128), V, "video_dim must be at least 1, got 0"),
    "AGSCA audio None": (lambda: AGSCA(512, None), T, "audio_dim must be an int, got NoneType"),
    "AGSCA hidden": (lambda: AGSCA(512, 128, 0.5), T, "hidden_dim must be an int, got float"),
    "interaction heads": (lambda: AVInteraction(9, 2), V, "divisible by num_heads, got embed_dim=9 and num_heads=2"),
    "interaction dropout": (lambda: AVInteraction(8, 2, "0.1"), T, "dropout must be a float, got str"),
    "feedforward": (lambda: CrossModalRelation(8, 2, 0), V, "dim_feedforward must be at least 1, got 0"),
    "block dropout": (lambda: CrossModalRelation(8, 2, 16, 2.0), V, "dropout must be a probability .* got 2.0"),
    "block attention dropout": (
        lambda: CrossModalRelation(8, 2, 16, attention_dropout=2.0),
        V,
        "attention_dropout must be a probability .* got 2.0",
    ),
    "interaction attention dropout": (
        lambda: AVInteraction(8, 2, attention_dropout="0"),
        T,
        "attention_dropout must be a float, got str",
    ),
    "fewer than no layers": (lambda: InternalTemporalRelation(8, 2, -1), V, "num_layers must be at least 0, got -1"),
    "no layers' heads": (lambda: InternalTemporalRelation(9, 2, 0), V, "divisible by num_heads, got embed_dim=9"),
    "layers of text": (lambda: InternalTemporalRelation(8, 2, "two"), T, "num_layers must be an int, got str"),
    "query_dim": (lambda: RelationAware(None, 8), T, "query_dim must be an int, got NoneType"),
    "relation-aware context_dim": (lambda: RelationAware(8, -1), V, "context_dim must be at least 1, got -1"),
    "relation-aware widths": (lambda: RelationAware(8, [8, "8"]), T, r"context_dim\[1\] must be an int, got str"),
    "relation-aware heads": (lambda: RelationAware(8, 8, 9, 2), V, "divisible by num_heads, got embed_dim=9"),
    "from a linear layer": (
        lambda: CMRA.from_multihead_attention(nn.Linear(8, 8)),
        T,
        "attention must be a torch.nn.MultiheadAttention, got Linear",
    ),
    "from add_bias_kv": (
        lambda: CMRA.from_multihead_attention(nn.MultiheadAttention(8, 2, add_bias_kv=True)),
        V,
        "attention must have add_bias_kv=False.*got True",
    ),
    "from add_zero_attn": (
        lambda: CMRA.from_multihead_attention(nn.MultiheadAttention(8, 2, add_zero_attn=True)),
        V,
        "attention must have add_zero_attn=False.*got True",
    ),
    "from kdim other than vdim": (
        lambda: CMRA.from_multihead_attention(nn.MultiheadAttention(8, 2, kdim=3, vdim=5)),
        V,
        "attention must have kdim equal to vdim.*got kdim=3 and vdim=5",
    ),
}

SELF, CO = CMRA(8, 2), CMRA(8, 2, include_query=False)
OTHER = CMRA(8, 2, context_dim=6)
OWN, OWN_CO = (CMRA(8, 2, context_dim=[8, 6], include_query=include_query) for include_query in (True, False))
X, Y = ones(3, 5, 8), ones(3, 7, 8)

CMRA_CALLS = {
    "unbatched query": (
        lambda: SELF(ones(5, 8)),
        V,
        r"query must have shape \(batch, time, 8\), got \(5, 8\).*unsqueeze",
    ),
    "query of four dimensions": (lambda: SELF(ones(3, 5, 1, 8)), V, r"query must have .* got \(3, 5, 1, 8\)"),
    "query of another width": (
        lambda: SELF(ones(3, 5, 9)),
        V,
        "query has 9 channels in its last dimension, but this CMRA was built with embed_dim=8",
    ),
    "query an array": (lambda: SELF(np.ones((3, 5, 8))), T, "query must be a torch.Tensor, got ndarray"),
    "query None": (lambda: SELF(None), T, "query must be a torch.Tensor, got NoneType"),
    "query of integers": (lambda: SELF(ones(3, 5, 8, dtype=torch.long)), T, "query .*floating-point.*got torch.int64"),
    "query of float64": (
        lambda: SELF(X.double()),
        T,
        "query has dtype torch.float64, but the weights .* torch.float32",
    ),
    "query of bfloat16": (lambda: SELF(X.bfloat16()), T, "query has dtype torch.bfloat16.* run under torch.autocast"),
    "query on another device": (
        lambda: SELF(X, Y.to("meta")),
        V,
        "context must be on the device of query, cpu, got meta",
    ),
    "float64 on meta": (
        lambda: CMRA(8, 2, device="meta")(X.double().to("meta")),
        T,
        "query has dtype torch.float64, but the weights of this CMRA have torch.float32",
    ),
    "context an array": (lambda: SELF(X, np.ones((3, 7, 8))), T, "context must be a torch.Tensor, .* got ndarray"),
    "context a dict": (lambda: SELF(X, {"audio": Y}), T, "context must be a torch.Tensor, .* got dict"),
    "context with an array": (lambda: SELF(X, [Y, np.ones(3)]), T, r"context\[1\] must be a torch.Tensor, got ndarray"),
    "a number among contexts": (lambda: SELF(X, [None, 3]), T, r"context\[1\] must be a torch.Tensor, got int"),
    "context of another width": (lambda: SELF(X, ones(3, 7, 6)), V, "context has 6 channels.*built with context_dim=8"),
    "second context of another width": (lambda: OTHER(X, [ones(3, 7, 6), Y]), V, r"context\[1\] has 8 .*context_dim=6"),
    "context of another batch": (
        lambda: SELF(X, ones(2, 7, 8)),
        V,
        "context must have the batch size of query, 3, got 2",
    ),
    "unbatched context": (lambda: SELF(X, ones(7, 8)), V, r"context must have shape \(batch, time, 8\), got \(7, 8\)"),
    "context of float64": (lambda: SELF(X, Y.double()), T, "context has dtype torch.float64, but the weights"),
    "context of integers": (lambda: SELF(X, Y.int()), T, "context must have a floating-point dtype, got torch.int32"),
    "no context for co-attention": (lambda: CO(X), V, "context must be given.*include_query=False, got None"),
    "empty context for co-attention": (lambda: CO(X, []), V, r"context must be given.*include_query=False, got \[\]"),
    "no context of another width": (
        lambda: OTHER(X),
        V,
        r"context must be given.*context_dim=6, got None: pass \[None\] if the modality is missing from this",
    ),
    "no modality for co-attention": (
        lambda: CO(X, [None, None]),
        V,
        r"include_query=False, got \[None, None\]: a list may .* but needs at least one tensor",
    ),
    "no modality of the widths for co-attention": (
        lambda: OWN_CO(X, [None, None]),
        V,
        r"context must be given.*include_query=False, got \[None, None\]",
    ),
    "no contexts of the widths": (
        lambda: OWN(X),
        V,
        r"context must have 2 entries, one for each width in context_dim=\[8, 6\] of this CMRA, got 0: use None for a "
        "missing modality",
    ),
    "one context of two widths": (lambda: OWN(X, Y), V, r"context must have 2 entries, .* got 1"),
    "contexts in another order than their widths": (
        lambda: OWN(X, [ones(3, 7, 6), Y]),
        V,
        r"context\[0\] has 6 channels in its last dimension, but this CMRA was built with context_dim\[0\]=8",
    ),
    "a mask without its modality": (
        lambda: SELF(X, [None, Y], context_padding_mask=[mask(3, 7), None]),
        V,
        r"context_padding_mask\[0\] must be None where context\[0\] is None, got Tensor",
    ),
    "columns of a lacking modality": (
        lambda: SELF(X, [None, Y], attn_mask=mask(5, 19)),
        V,
        r"attn_mask must have shape \(5, 12\) .* got \(5, 19\)",
    ),
    "mask without context": (
        lambda: SELF(X, context_padding_mask=mask(3, 7)),
        V,
        "context_padding_mask must be None where no context is given, got Tensor",
    ),
    "a mask for a list": (
        lambda: SELF(X, [Y], context_padding_mask=mask(3, 7)),
        T,
        "context_padding_mask must be a list with a mask or None for each context, 1 in all, got Tensor",
    ),
    "a list of masks for one context": (
        lambda: SELF(X, Y, context_padding_mask=[mask(3, 7)]),
        T,
        "context_padding_mask must be a torch.Tensor, got list",
    ),
    "too few masks": (
        lambda: SELF(X, [Y, Y], context_padding_mask=[None]),
        V,
        "context_padding_mask must be a list .* for each context, 2 in all, got 1",
    ),
    "mask of the wrong length in a list": (
        lambda: SELF(X, [Y, X], context_padding_mask=[None, mask(3, 7)]),
        V,
        r"context_padding_mask\[1\] must have shape \(3, 5\), got \(3, 7\)",
    ),
    "context mask transposed": (
        lambda: SELF(X, Y, context_padding_mask=mask(7, 3)),
        V,
        r"context_padding_mask must have shape \(3, 7\), got \(7, 3\)",
    ),
    "query mask of integers": (
        lambda: SELF(X, query_padding_mask=mask(3, 5, dtype=torch.long)),
        T,
        r"query_padding_mask must be bool \(True = padding\), got torch.int64: use mask.bool\(\) if 1 marks padding; "
        r"mask == 0 if 1 marks valid steps \(Hugging Face's attention_mask\)$",
    ),
    "query mask of floats": (
        lambda: SELF(X, query_padding_mask=mask(3, 5, dtype=torch.float32)),
        T,
        r"query_padding_mask must be bool \(True = padding\), got torch.float32: use .*mask.bool\(\) .*mask == 0 .*; "
        r"or mask < 0 for an additive mask of 0 and -inf$",
    ),
    "query mask of the context": (
        lambda: SELF(X, Y, query_padding_mask=mask(3, 7)),
        V,
        r"query_padding_mask must have shape \(3, 5\), got \(3, 7\)",
    ),
    "query mask an array": (
        lambda: SELF(X, query_padding_mask=np.zeros((3, 5), dtype=bool)),
        T,
        "query_padding_mask must be a torch.Tensor, got ndarray",
    ),
    "query mask a list of lengths": (
        lambda: SELF(X, query_padding_mask=[5, 3, 2]),
        T,
        "query_padding_mask must be a torch.Tensor, got list",
    ),
    "query mask on another device": (
        lambda: SELF(X, query_padding_mask=mask(3, 5).to("meta")),
        V,
        "query_padding_mask must be on the device of its features, cpu, got meta",
    ),
    "attention mask without the query's columns": (
        lambda: SELF(X, Y, attn_mask=mask(5, 7)),
        V,
        r"attn_mask must have shape \(5, 12\) or \(3, 5, 12\) or \(6, 5, 12\), or four dimensions that broadcast to "
        r"\(3, 2, 5, 12\), got \(5, 7\)",
    ),
    "attention mask of one dimension": (lambda: SELF(X, attn_mask=mask(5)), V, r"attn_mask must have .* got \(5,\)"),
    "attention mask of another batch": (lambda: SELF(X, attn_mask=mask(2, 5, 5)), V, r"attn_mask .* got \(2, 5, 5\)"),
    "attention mask of integers": (
        lambda: SELF(X, attn_mask=mask(5, 5, dtype=torch.uint8)),
        T,
        r"attn_mask must be bool \(True = may not attend\) or floating point \(added\), got torch.uint8: "
        r"use mask.bool\(\) if 1 means may not attend; mask == 0 if 1 means may attend \(Hugging Face's",
    ),
    "attention mask of the heads alone": (
        lambda: SELF(X, attn_mask=mask(2, 5, 5)),
        V,
        r"attn_mask must have shape \(5, 5\) or \(3, 5, 5\) or \(6, 5, 5\), or four .* got \(2, 5, 5\)",
    ),
    "attention mask of one column": (
        lambda: SELF(X, attn_mask=mask(3, 5, 1)),
        V,
        r"attn_mask must have shape .* got \(3, 5, 1\)",
    ),
    "attention mask of other heads": (
        lambda: SELF(X, attn_mask=mask(3, 3, 5, 5)),
        V,
        r"attn_mask must broadcast to shape \(3, 2, 5, 5\), got \(3, 3, 5, 5\)",
    ),
    "attention mask of five dimensions": (
        lambda: SELF(X, attn_mask=mask(1, 3, 2, 5, 5)),
        V,
        r"attn_mask must have shape .* got \(1, 3, 2, 5, 5\)",
    ),
    "attention mask an array": (lambda: SELF(X, attn_mask=np.zeros((5, 5))), T, "attn_mask must be a torch.Tensor"),
}

GUIDED, FUSION = AGSCA(16, 4, 8), AVInteraction(8, 2)
BLOCK, INTERNAL = CrossModalRelation(8, 2, 16), InternalTemporalRelation(8, 2, 2, 16)
AWARE = RelationAware(16, 4, 8, 2, 1, 16)
AWARE_OF_TWO = RelationAware(16, [4, 6], 8, 2, 1, 16)
FIRST, IDENTITY_RELATION = CrossModalRelation(8, 2, 16, norm_first=True), InternalTemporalRelation(8, 2, 0)
MAP, SOUND = ones(3, 5, 7, 7, 16), ones(3, 5, 4)

LAYER_CALLS = {
    "channels first": (
        lambda: GUIDED(MAP.movedim(-1, 2), SOUND),
        V,
        "video has 7 channels in its last dimension, but this AGSCA was built with video_dim=16",
    ),
    "no space": (lambda: GUIDED(ones(3, 5, 16), SOUND), V, r"video must have the leading .* got \(3, 5, 16\)"),
    "empty space": (lambda: GUIDED(ones(3, 5, 0, 16), SOUND), V, r"one or more non-empty spatial dimensions.*0, 16"),
    "other batch": (
        lambda: GUIDED(MAP[:2], SOUND),
        V,
        r"leading dimensions of audio, \(3, 5\), .* got \(2, 5, 7, 7, 16",
    ),
    "other length": (lambda: GUIDED(MAP, SOUND[:, :4]), V, r"leading dimensions of audio, \(3, 4\)"),
    "arguments swapped": (lambda: GUIDED(SOUND, MAP), V, "audio has 16 channels.*built with audio_dim=4"),
    "video an array": (lambda: GUIDED(MAP.numpy(), SOUND), T, "video must be a torch.Tensor, got ndarray"),
    "video of bytes": (lambda: GUIDED(MAP.byte(), SOUND), T, "video must have a floating-point dtype, got torch.uint8"),
    "video of float64": (lambda: GUIDED(MAP.double(), SOUND), T, "video has dtype torch.float64, but .* this AGSCA"),
    "audio of float16": (lambda: GUIDED(MAP, SOUND.half()), T, "audio has dtype torch.float16, but .* this AGSCA"),
    "scalar audio": (lambda: GUIDED(MAP, torch.tensor(1.0)), V, "audio has no dimensions.*built with audio_dim=4"),
    "audio on another device": (lambda: GUIDED(MAP, SOUND.to("meta")), V, "video must be on the device of audio, meta"),
    "interaction lengths": (lambda: FUSION(X, Y), V, "audio must have the length of video, 5, got 7"),
    "interaction batches": (lambda: FUSION(X, X[:2]), V, "audio must have the batch size of video, 3, got 2"),
    "interaction width": (
        lambda: FUSION(ones(3, 5, 9), X),
        V,
        "video has 9 .* AVInteraction was built with embed_dim=8",
    ),
    "interaction audio": (lambda: FUSION(X, X.long()), T, "audio must have a floating-point dtype, got torch.int64"),
    "interaction mask": (
        lambda: FUSION(X, X, padding_mask=mask(3, 10)),
        V,
        r"padding_mask must have shape \(3, 5\), got \(3, 10\)",
    ),
    "interaction lengths for a mask": (
        lambda: FUSION(X, X, padding_mask=torch.tensor([5, 3, 2])),
        T,
        r"padding_mask must be bool \(True = padding\), got torch.int64",
    ),
    "block query": (lambda: BLOCK(ones(5, 8)), V, r"query must have shape \(batch, time, 8\), got \(5, 8\)"),
    "block context": (lambda: BLOCK(X, "audio"), T, "context must be a torch.Tensor, .* got str"),
    "block mask": (lambda: BLOCK(X, query_padding_mask=mask(3)), V, r"query_padding_mask must have shape \(3, 5\)"),
    "internal features": (
        lambda: INTERNAL(ones(3, 5, 4)),
        V,
        "features has 4 .* InternalTemporalRelation .* embed_dim=8",
    ),
    "internal mask": (lambda: INTERNAL(X, padding_mask=mask(5, 3)), V, r"padding_mask must have shape \(3, 5\)"),
    "internal attention mask": (lambda: INTERNAL(X, attn_mask=mask(4, 4)), V, r"attn_mask must have .* got \(4, 4\)"),
    "internal dtype": (lambda: INTERNAL(X.double()), T, "features has dtype torch.float64"),
    "relation-aware swapped": (
        lambda: AWARE(ones(3, 5, 4), ones(3, 5, 16)),
        V,
        "query has 4 channels in its last dimension, but this RelationAware was built with query_dim=16",
    ),
    "relation-aware context": (lambda: AWARE(ones(3, 5, 16), ones(3, 5, 8)), V, "context has 8 .*with context_dim=4"),
    "relation-aware batch": (lambda: AWARE(ones(3, 5, 16), ones(1, 5, 4)), V, "context must have the batch size .* 3"),
    "relation-aware two": (
        lambda: AWARE(ones(3, 5, 16), [SOUND, SOUND]),
        V,
        "context must have 1 entry, of the width context_dim=4 of this RelationAware, got 2: use None for a missing",
    ),
    "relation-aware one of two": (lambda: AWARE_OF_TWO(ones(3, 5, 16), SOUND), V, r"context must have 2 .* got 1"),
    "relation-aware none": (
        lambda: AWARE(ones(3, 5, 16), None),
        V,
        "of this RelationAware, got 0: use None for a missing",
    ),
    "relation-aware dict": (lambda: AWARE(ones(3, 5, 16), {}), T, "context must be a torch.Tensor, .* got dict"),
    "relation-aware second": (
        lambda: AWARE_OF_TWO(ones(3, 5, 16), [None, SOUND]),
        V,
        r"context\[1\] has 4 channels .* RelationAware was built with context_dim\[1\]=6",
    ),
    "relation-aware context attention mask": (
        lambda: AWARE(ones(3, 5, 16), SOUND, context_attn_mask=mask(4, 4)),
        V,
        r"context_attn_mask must have shape \(5, 5\) .* got \(4, 4\)",
    ),
    "relation-aware second context's attention mask": (
        lambda: AWARE_OF_TWO(ones(3, 5, 16), [SOUND, ones(3, 7, 6)], context_attn_mask=[None, mask(5, 5)]),
        V,
        r"context_attn_mask\[1\] must have shape \(7, 7\) .* got \(5, 5\)",
    ),
    "relation-aware one attention mask for two": (
        lambda: AWARE_OF_TWO(ones(3, 5, 16), [SOUND, ones(3, 7, 6)], context_attn_mask=mask(5, 5)),
        T,
        "context_attn_mask must be a list with a mask or None for each context, 2 in all, got Tensor",
    ),
    "relation-aware attention mask": (
        lambda: AWARE(ones(3, 5, 16), SOUND, attn_mask=mask(5, 5)),
        V,
        r"attn_mask must have shape \(5, 10\) .* got \(5, 5\)",
    ),
    "pre-norm query": (lambda: FIRST(ones(3, 5, 9)), V, "query has 9 .* CrossModalRelation was built with embed_dim=8"),
    "pre-norm mask": (
        lambda: FIRST(X, query_padding_mask=mask(3)),
        V,
        r"query_padding_mask must have shape \(3, 5\), got \(3,\)",
    ),
    "no blocks' width": (lambda: IDENTITY_RELATION(ones(3, 5, 9)), V, "features has 9 .* with embed_dim=8"),
    "no blocks' mask": (
        lambda: IDENTITY_RELATION(X, attn_mask=mask(4, 4)),
        V,
        r"attn_mask must have shape \(5, 5\) .* got \(4, 4\)",
    ),
    "interaction attention mask": (
        lambda: FUSION(X, X, attn_mask=mask(5, 5)),
        V,
        r"attn_mask must have shape \(5, 10\) .* got \(5, 5\)",
    ),
    "relation-aware query mask": (
        lambda: AWARE(ones(3, 5, 16), SOUND, query_padding_mask=mask(3, 7)),
        V,
        r"query_padding_mask must have shape \(3, 5\), got \(3, 7\)",
    ),
    "relation-aware context mask": (
        lambda: AWARE(ones(3, 5, 16), SOUND, context_padding_mask=[mask(3, 5)]),
        T,
        "context_padding_mask must be a torch.Tensor, got list",
    ),
}

HEADS, MEMORY = ones(3, 2, 5, 4), ones(3, 2, 7, 4)
PLACES, HEARD = ones(3, 7, 8), ones(3, 8)
IDENTITY = nn.Identity()

FUNCTION_CALLS = {
    "three dimensions": (
        lambda: relation_attention(X, X, X),
        V,
        r"query must have shape \(batch, heads, time, width\), got \(3, 5, 8\)",
    ),
    "an array": (
        lambda: relation_attention(HEADS, MEMORY.numpy(), MEMORY),
        T,
        "key must be a torch.Tensor, got ndarray",
    ),
    "key of other heads": (
        lambda: relation_attention(HEADS, MEMORY[:, :1], MEMORY[:, :1]),
        V,
        "key must have the number of heads of query, 2, got 1",
    ),
    "key of another width": (
        lambda: relation_weights(HEADS, MEMORY[..., :3]),
        V,
        "key must have the width of query, 4",
    ),
    "value of another length": (
        lambda: relation_attention(HEADS, MEMORY, MEMORY[:, :, :6]),
        V,
        "value must have the length of key, 7, got 6",
    ),
    "mixed dtypes": (
        lambda: relation_attention(HEADS, MEMORY.double(), MEMORY),
        T,
        "key has dtype torch.float64, but query has torch.float32",
    ),
    "heads of integers": (
        lambda: relation_attention(HEADS.int(), MEMORY, MEMORY),
        T,
        "query must have a floating-point",
    ),
    "mask of another length": (
        lambda: relation_attention(HEADS, MEMORY, MEMORY, attn_mask=mask(5, 5)),
        V,
        r"attn_mask must broadcast to shape \(3, 2, 5, 7\), got \(5, 5\)",
    ),
    "mask of the batch alone": (
        lambda: relation_weights(HEADS, MEMORY, attn_mask=mask(3, 7)),
        V,
        r"attn_mask must broadcast to shape \(3, 2, 5, 7\), got \(3, 7\)",
    ),
    "mask of five dimensions": (
        lambda: relation_attention(HEADS, MEMORY, MEMORY, attn_mask=mask(1, 3, 2, 5, 7)),
        V,
        "attn_mask must broadcast to shape",
    ),
    "mask of integers": (
        lambda: relation_attention(HEADS, MEMORY, MEMORY, attn_mask=mask(5, 7, dtype=torch.int32)),
        T,
        "attn_mask must be bool .* or floating point .* got torch.int32",
    ),
    "mask a list": (
        lambda: relation_weights(HEADS, MEMORY, attn_mask=[0]),
        T,
        "attn_mask must be a torch.Tensor, got list",
    ),
    "dropout_p": (
        lambda: relation_attention(HEADS, MEMORY, MEMORY, dropout_p=1.5),
        V,
        "dropout_p must be a probability between 0 and 1, got 1.5",
    ),
    "channel shapes": (
        lambda: channel_attention(PLACES, HEARD[:2], IDENTITY, IDENTITY),
        V,
        r"video must have the shape \(\*, N, channels\) for audio of .* got video \(3, 7, 8\) and audio \(2, 8\)",
    ),
    "channel array": (
        lambda: channel_attention(PLACES, HEARD.numpy(), IDENTITY, IDENTITY),
        T,
        "audio must be a torch.Tensor, got ndarray",
    ),
    "channel dtypes": (
        lambda: channel_attention(PLACES.double(), HEARD, IDENTITY, IDENTITY),
        T,
        "video has dtype torch.float64, but audio has torch.float32",
    ),
    "channel weight for a map": (
        lambda: channel_attention(PLACES, HEARD, ones(8, 8), IDENTITY),
        T,
        "squeeze must be callable, such as a torch.nn.Linear, got Tensor",
    ),
    "channel without positions": (
        lambda: channel_attention(ones(3, 0, 8), HEARD, IDENTITY, IDENTITY),
        V,
        r"with N at least 1, got video \(3, 0, 8\)",
    ),
    "channel of a number": (
        lambda: channel_attention(ones(8), torch.tensor(1.0), IDENTITY, IDENTITY),
        V,
        r"got video \(8,\) and audio \(\)",
    ),
    "heads of no width": (
        lambda: relation_attention(ones(2, 3, 5, 0), ones(2, 3, 7, 0), ones(2, 3, 7, 2)),
        V,
        r"query must have a width of at least 1, got \(2, 3, 5, 0\)",
    ),
    "lengths on meta": (
        lambda: padding_mask(torch.tensor([3], device="meta")),
        V,
        "max_length must be given if lengths are on the meta device, got None",
    ),
    "spatial width": (
        lambda: spatial_attention(PLACES, HEARD[:, :5], ones(5)),
        V,
        r"got video \(3, 7, 8\) and audio \(3, 5\)",
    ),
    "spatial weight as of nn.Linear": (
        lambda: spatial_attention(PLACES, HEARD, ones(1, 8)),
        V,
        r"weight must have shape \(8,\), got \(1, 8\)",
    ),
    "spatial bias without a dimension": (
        lambda: spatial_attention(PLACES, HEARD, ones(8), ones()),
        V,
        r"bias must have shape \(1,\), got \(\)",
    ),
    "spatial weight None": (
        lambda: spatial_attention(PLACES, HEARD, None),
        T,
        "weight must be a torch.Tensor, got None",
    ),
    "spatial weight dtype": (
        lambda: spatial_attention(PLACES, HEARD, ones(8).double()),
        T,
        "weight has dtype torch.float64, but video has torch.float32",
    ),
    "spatial integers": (
        lambda: spatial_attention(PLACES.int(), HEARD.int(), ones(8)),
        T,
        "floating-point .* torch.int32",
    ),
    "spatial device": (
        lambda: spatial_attention(PLACES, HEARD, ones(8).to("meta")),
        V,
        "weight must be on the device of video, cpu, got meta",
    ),
    "lengths beyond": (lambda: padding_mask([3, 9], 7), V, "lengths must be at most max_length=7, got 9"),
    "negative lengths": (lambda: padding_mask(torch.tensor([3, -1])), V, "lengths must be at least 0, got -1"),
    "fractional lengths": (lambda: padding_mask([3, 1.0]), T, r"lengths\[1\] must be an int, got float"),
    "bool lengths": (lambda: padding_mask([True, 3]), T, r"lengths\[0\] must be an int, got bool"),
    "array of fractions": (lambda: padding_mask(np.ones(3)), T, r"lengths\[0\] must be an int, got float"),
    "array of bools": (lambda: padding_mask(np.ones(3, dtype=bool)), T, r"lengths\[0\] must be an int, got bool"),
    "negative length in a list": (lambda: padding_mask([3, -1], 7), V, r"lengths\[1\] must be at least 0, got -1"),
    "set of lengths": (
        lambda: padding_mask({3, 1}),
        T,
        "lengths must be a tensor or a sequence of integers, got {1, 3}",
    ),
    "float tensor of lengths": (lambda: padding_mask(ones(3)), T, "lengths must be integers, got torch.float32"),
    "a mask for lengths": (lambda: padding_mask(mask(3)), T, "lengths must be integers, got torch.bool"),
    "lengths of two dimensions": (
        lambda: padding_mask(torch.tensor([[3, 1]])),
        V,
        r"lengths must have one dimension .*\(1, 2\)",
    ),
    "nested lengths": (lambda: padding_mask([[3], [1, 2]]), T, r"lengths\[0\] must be an int, got list"),
    "one length": (lambda: padding_mask(3), T, "lengths must be a tensor or a sequence of integers, got 3"),
    "lengths of text": (lambda: padding_mask("31"), T, "lengths must be a tensor or a sequence of integers, got '31'"),
    "lengths None": (lambda: padding_mask(None), T, "lengths must be a tensor or a sequence of integers, got None"),
    "lengths with None": (lambda: padding_mask([3, None]), T, r"lengths\[1\] must be an int, got NoneType"),
    "max_length of a float": (lambda: padding_mask([3], 7.0), T, "max_length must be an int, got float"),
    "negative max_length": (lambda: padding_mask([3], -1), V, "max_length must be at least 0, got -1"),
    "features an array": (
        lambda: zero_padding(np.ones((3, 5)), None),
        T,
        "features must be a torch.Tensor, got ndarray",
    ),
    "features without time": (
        lambda: zero_padding(ones(3), None),
        V,
        r"features must have shape \(batch, time, \.\.\.\), got \(3,\)",
    ),
    "features of another length": (
        lambda: zero_padding(X, mask(3, 7)),
        V,
        r"padding_mask must have shape \(3, 5\), got \(3, 7\)",
    ),
    "mask of lengths": (
        lambda: zero_padding(X, torch.tensor([5, 3, 2])),
        T,
        r"padding_mask must be bool \(True = padding\), got torch.int64",
    ),
}


def record(model):
    with record_attention(model):
        pytest.fail("entered")


RECORDINGS = {
    "no module": (lambda: record(lambda features: features), T, "model must be a torch.nn.Module, got function"),
    "a class": (lambda: record(CMRA), T, "model must be a torch.nn.Module, got type"),
    "nothing inside": (
        lambda: record(nn.Linear(3, 3)),
        V,
        r"model must contain a layer of crossmodal_attn \(CMRA, AGSCA or a block of them\), got Linear without one",
    ),
    "torch's attention": (lambda: record(nn.MultiheadAttention(8, 2)), V, "model must contain .*MultiheadAttention"),
}

TABLES = {
    "constructor": CONSTRUCTORS,
    "cmra": CMRA_CALLS,
    "layer": LAYER_CALLS,
    "function": FUNCTION_CALLS,
    "recording": RECORDINGS,
}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*row, id=f"{table}: {name}") for table, rows in TABLES.items() for name, row in rows.items()],
)
def test_wrong_call_is_refused(call, error, message):
    """The error has the right type and message, and is raised by this library, not inside torch."""
    check_refused(call, error, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: SELF(X.double()), "query has dtype torch.float64", id="cmra"),
        pytest.param(lambda: GUIDED(MAP, SOUND.double()), "audio has dtype torch.float64", id="agsca"),
        pytest.param(lambda: relation_attention(HEADS, MEMORY, MEMORY.double()), "value has dtype", id="function"),
    ],
)
def test_autocast_does_not_excuse_float64(call, message):
    """Autocast does not convert float64, so a mixture must raise an error here, and not inside torch."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_refused(call, TypeError, message)
