"""Alternatives to the layers, and the paper's equations written out, as plain modules.

The alternatives to CMRA are built from a CMRA, and copy its weights if they compute the same function.
Axes: B batch, T query length, S context length, M = S + T memory length, D width, N positions of a map, C its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal_attn import CMRA, CrossModalRelation

__all__ = [
    "ATTENTION_RIVALS",
    "FLEX_ATTENTION",
    "X_TRANSFORMERS",
    "DecoderLayer",
    "FlexAttention",
    "LiteralAGSCA",
    "MultiheadAttention",
    "PlainAttention",
    "XTransformersAttention",
]


def join_memory(
    query: Tensor, context: Tensor, query_padding: Tensor | None, context_padding: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the memory [context, query] (B, M, D), and its padding mask (B, M) or None."""
    memory = torch.cat([context, query], 1)
    if query_padding is None or context_padding is None:
        return memory, None
    return memory, torch.cat([context_padding, query_padding], 1)


def _copy(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _factory(layer: CMRA) -> dict[str, Any]:
    return {"device": layer.q_proj.weight.device, "dtype": layer.q_proj.weight.dtype}


class MultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` on the joined memory. By default it also computes the weights, averaged over heads."""

    def __init__(self, layer: CMRA, need_weights: bool = True) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(layer.embed_dim, layer.num_heads, batch_first=True, **_factory(layer))
        _copy(self.attention.in_proj_weight, torch.cat([layer.q_proj.weight, layer.kv_proj.weight]))
        _copy(self.attention.in_proj_bias, torch.cat([layer.q_proj.bias, layer.kv_proj.bias]))
        _copy(self.attention.out_proj.weight, layer.out_proj.weight)
        _copy(self.attention.out_proj.bias, layer.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_padding: Tensor | None = None,
        context_padding: Tensor | None = None,
    ) -> Tensor:
        """Attend from (B, T, D) to the memory of it and (B, S, D)."""
        memory, padding = join_memory(query, context, query_padding, context_padding)
        output: Tensor = self.attention(
            query, memory, memory, key_padding_mask=padding, need_weights=self.need_weights
        )[0]
        return output


class PlainAttention(nn.Module):
    """Attention written out: four projections, and softmax(Q K^T / sqrt(width)) V."""

    def __init__(self, layer: CMRA) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        factory = _factory(layer)
        width = layer.embed_dim
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, **factory) for _ in range(4))
        key_weight, value_weight = layer.kv_proj.weight.chunk(2)
        key_bias, value_bias = layer.kv_proj.bias.chunk(2)
        for linear, weight, bias in (
            (self.query, layer.q_proj.weight, layer.q_proj.bias),
            (self.key, key_weight, key_bias),
            (self.value, value_weight, value_bias),
            (self.out, layer.out_proj.weight, layer.out_proj.bias),
        ):
            _copy(linear.weight, weight)
            _copy(linear.bias, bias)

    def project(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries (B, H, T, D / H), and the keys and values (B, H, M, D / H)."""
        queries, keys, values = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.query(query), self.key(memory), self.value(memory))
        )
        return queries, keys, values

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_padding: Tensor | None = None,
        context_padding: Tensor | None = None,
    ) -> Tensor:
        """Attend from (B, T, D) to the memory of it and (B, S, D)."""
        memory, padding = join_memory(query, context, query_padding, context_padding)
        queries, keys, values = self.project(query, memory)
        scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], -torch.inf)
        output: Tensor = self.out((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
        return output


class XTransformersAttention(nn.Module):
    """``Attention`` of x-transformers with a context and its fused kernel. It has no biases.

    Raises:
        ImportError: if x-transformers is not installed.
    """

    def __init__(self, layer: CMRA) -> None:
        super().__init__()
        from x_transformers.x_transformers import Attention

        width, heads = layer.embed_dim, layer.num_heads
        self.attention = Attention(dim=width, heads=heads, dim_head=width // heads, flash=True).to(**_factory(layer))
        key_weight, value_weight = layer.kv_proj.weight.chunk(2)
        _copy(self.attention.to_q.weight, layer.q_proj.weight)
        _copy(self.attention.to_k.weight, key_weight)
        _copy(self.attention.to_v.weight, value_weight)
        _copy(self.attention.to_out.weight, layer.out_proj.weight)

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_padding: Tensor | None = None,
        context_padding: Tensor | None = None,
    ) -> Tensor:
        """Attend from (B, T, D) to the memory of it and (B, S, D)."""
        memory, padding = join_memory(query, context, query_padding, context_padding)
        output: Tensor = self.attention(query, context=memory, context_mask=None if padding is None else ~padding)
        return output


class FlexAttention(nn.Module):
    """Four projections and torch's ``flex_attention``, compiled on a GPU. On a CPU it has no backward pass.

    The block mask of padded keys is made once per padding mask, and is not part of the measured time.
    """

    def __init__(self, layer: CMRA) -> None:
        super().__init__()
        from torch.nn.attention.flex_attention import flex_attention

        self.plain = PlainAttention(layer)
        on_gpu = layer.q_proj.weight.device.type == "cuda"
        self.attend = torch.compile(flex_attention, dynamic=False, fullgraph=True) if on_gpu else flex_attention
        self._masked: tuple[Tensor, Any] | None = None

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_padding: Tensor | None = None,
        context_padding: Tensor | None = None,
    ) -> Tensor:
        """Attend from (B, T, D) to the memory of it and (B, S, D)."""
        memory, padding = join_memory(query, context, query_padding, context_padding)
        queries, keys, values = self.plain.project(query, memory)
        block_mask = None if padding is None or query_padding is None else self._mask(query_padding, padding)
        attended = self.attend(queries, keys, values, block_mask=block_mask)
        output: Tensor = self.plain.out(attended.transpose(1, 2).flatten(2))
        return output

    def _mask(self, query_padding: Tensor, padding: Tensor) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        if self._masked is None or self._masked[0] is not query_padding:

            def is_seen(batch: Tensor, _: Tensor, __: Tensor, key: Tensor) -> Tensor:
                return ~padding[batch, key]

            sizes = (len(padding), None, query_padding.shape[1], padding.shape[1])
            self._masked = query_padding, create_block_mask(is_seen, *sizes, device=padding.device)
        return self._masked[1]


X_TRANSFORMERS, FLEX_ATTENTION = "x-transformers' Attention", "FlexAttention"
ATTENTION_RIVALS: dict[str, Callable[[CMRA], nn.Module]] = {
    "nn.MultiheadAttention": MultiheadAttention,
    "nn.MultiheadAttention(need_weights=False)": lambda layer: MultiheadAttention(layer, need_weights=False),
    X_TRANSFORMERS: XTransformersAttention,
    FLEX_ATTENTION: FlexAttention,
    "attention written out": PlainAttention,
}
"""For each form, by its name in results, a function that builds it from the CMRA that it is compared with."""


class DecoderLayer(nn.Module):
    """``nn.TransformerDecoderLayer``: self-attention, then attention to the context.

    It serves the same purpose as :class:`CrossModalRelation`, but computes another function, with one more attention.
    """

    def __init__(self, block: CrossModalRelation) -> None:
        super().__init__()
        attention = block.attention
        self.layer = nn.TransformerDecoderLayer(
            attention.embed_dim,
            attention.num_heads,
            block.linear1.out_features,
            dropout=block.dropout.p,
            batch_first=True,
            **_factory(attention),
        )

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_padding: Tensor | None = None,
        context_padding: Tensor | None = None,
    ) -> Tensor:
        """Relate (B, T, D) to itself, then to (B, S, D)."""
        output: Tensor = self.layer(
            query, context, tgt_key_padding_mask=query_padding, memory_key_padding_mask=context_padding
        )
        return output


class LiteralAGSCA(nn.Module):
    """Eq. 1-3 written out: both products of maps and the gated map are built.

    Parameters are named as in the authors' code, so that ``load_official_state_dict`` reads them; as there, the two
    guidance layers exist but are never used.
    """

    def __init__(self, video_dim: int, audio_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.affine_video_1 = nn.Linear(video_dim, video_dim)
        self.affine_audio_1 = nn.Linear(audio_dim, video_dim)
        self.affine_bottleneck = nn.Linear(video_dim, hidden_dim)
        self.affine_v_c_att = nn.Linear(hidden_dim, video_dim)
        self.affine_video_2 = nn.Linear(video_dim, hidden_dim)
        self.affine_audio_2 = nn.Linear(audio_dim, hidden_dim)
        self.affine_v_s_att = nn.Linear(hidden_dim, 1)
        self.affine_video_guided_1 = nn.Linear(video_dim, 64)
        self.affine_video_guided_2 = nn.Linear(64, 128)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Sum maps (B, T, H, W, C) over space, weighted by the audio (B, T, A), and return (B, T, C)."""
        batch, time = audio.shape[:2]
        maps = video.reshape(batch * time, -1, video.shape[-1])
        heard = audio.reshape(batch * time, 1, -1)
        product = F.relu(self.affine_audio_1(heard)) * F.relu(self.affine_video_1(maps))
        squeezed = F.relu(self.affine_bottleneck(product.mean(1)))
        channel_map = torch.sigmoid(self.affine_v_c_att(squeezed)).unsqueeze(1)
        gated = maps * (channel_map + 1)
        product = F.relu(self.affine_video_2(gated)) * F.relu(self.affine_audio_2(heard))
        spatial_map = torch.softmax(torch.tanh(self.affine_v_s_att(product)), 1)
        return torch.bmm(spatial_map.transpose(1, 2), gated).reshape(batch, time, -1)
