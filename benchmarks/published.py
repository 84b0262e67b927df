"""CMRAN as published: the structure of the authors' network, written from the paper and from facts about their code.

Tensors are time first, and ``nn.MultiheadAttention`` returns its weights. All products and concatenations are built,
and some parameters are never used. Parameters have the names and shapes of the authors' code, so that
``load_official_state_dict`` can copy them into the network of the example.
Axes: B videos, T segments, C visual channels, A audio channels, D = 256.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.networks.two_scores import Logits
from benchmarks.rivals import LiteralAGSCA

__all__ = ["PublishedCMRAN"]

WIDTH, HEADS, FEEDFORWARD, LAYERS = 256, 4, 2048, 2


class _Block(nn.Module):
    """Base of both layers: the feed-forward network after an attention, with residual connections and layer norms."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(WIDTH, FEEDFORWARD)
        self.linear2 = nn.Linear(FEEDFORWARD, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def finish(self, features: Tensor, attended: Tensor) -> Tensor:
        hidden: Tensor = self.norm1(features + self.dropout1(attended))
        feedforward = self.linear2(self.dropout(F.relu(self.linear1(hidden))))
        output: Tensor = self.norm2(hidden + self.dropout2(feedforward))
        return output


class _EncoderLayer(_Block):
    """Self-attention of (T, B, D)."""

    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.finish(features, self.self_attn(features, features, features)[0])


class _DecoderLayer(_Block):
    """Attention of (T, B, D) to the memory and itself. Its self-attention is never used."""

    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, dropout)
        self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS, dropout)

    def forward(self, features: Tensor, memory: Tensor) -> Tensor:
        joined = torch.cat([memory, features], 0)
        return self.finish(features, self.multihead_attn(features, joined, joined)[0])


class _Stack(nn.Module):
    """Copies of a template."""

    def __init__(self, template: nn.Module, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(template) for _ in range(count))


class _Encoder(nn.Module):
    """M_self: a projection, then two layers of self-attention. The template layer is never used."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.affine_matrix = nn.Linear(width, WIDTH)
        self.encoder_layer = _EncoderLayer(dropout)
        self.encoder = _Stack(self.encoder_layer, LAYERS)

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.affine_matrix(features)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return hidden


class _Decoder(nn.Module):
    """M_cmra: a projection of the query, then one layer of attention. The template layer is never used."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.affine_matrix = nn.Linear(width, WIDTH)
        self.decoder_layer = _DecoderLayer(dropout)
        self.decoder = _Stack(self.decoder_layer, 1)

    def forward(self, features: Tensor, memory: Tensor) -> Tensor:
        hidden: Tensor = self.affine_matrix(features)
        for layer in self.decoder.layers:
            hidden = layer(hidden, memory)
        return hidden


class _Interaction(nn.Module):
    """Eq. 9, time first."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.video_multihead = nn.MultiheadAttention(WIDTH, HEADS, dropout)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        product = video * audio
        memory = torch.cat([audio, video], 0)
        attended = self.video_multihead(product, memory, memory)[0]
        output: Tensor = self.norm1(product + self.dropout(attended))
        return output


class _Localization(nn.Module):
    """Eq. 10-11, supervised."""

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(WIDTH, 1)
        self.event_classifier = nn.Linear(WIDTH, num_categories)

    def forward(self, fused: Tensor) -> Logits:
        event_logits = self.classifier(fused).squeeze(-1).transpose(0, 1)
        return Logits(event_logits, self.event_classifier(fused.max(0).values))


class PublishedCMRAN(nn.Module):
    """CMRAN for the supervised setting. The authors trained it in float64: call ``double()`` for that.

    Args:
        video_dim: C.
        audio_dim: A.
        num_categories: the number of categories, without background.
        dropout: dropout probability in attention, blocks and interaction.
        input_dropout: dropout probability after the projection of the visual map.
    """

    def __init__(
        self,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int = 28,
        *,
        dropout: float = 0.1,
        input_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.v_fc = nn.Linear(video_dim, video_dim)
        self.input_dropout = nn.Dropout(input_dropout)
        self.spatial_channel_att = LiteralAGSCA(video_dim, audio_dim)
        self.video_encoder = _Encoder(video_dim, dropout)
        self.video_decoder = _Decoder(video_dim, dropout)
        self.audio_encoder = _Encoder(audio_dim, dropout)
        self.audio_decoder = _Decoder(audio_dim, dropout)
        self.AVInter = _Interaction(dropout)
        self.localize_module = _Localization(num_categories)

    def forward(self, video: Tensor, audio: Tensor) -> Logits:
        """Return the logits of each video, from visual maps (B, T, H, W, C) and audio (B, T, A)."""
        projected = self.input_dropout(F.relu(self.v_fc(video)))
        seen = self.spatial_channel_att(projected, audio).transpose(0, 1).contiguous()
        heard = audio.transpose(0, 1).contiguous()
        related_video = self.video_decoder(seen, self.audio_encoder(heard))
        related_audio = self.audio_decoder(heard, self.video_encoder(seen))
        logits: Logits = self.localize_module(self.AVInter(related_video, related_audio))
        return logits
