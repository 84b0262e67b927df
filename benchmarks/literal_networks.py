"""The rivals of CMRAN, written out from their descriptions: plain modules without checks, masks and settings.

They are supervised, with the widths and categories of AVE. Their parameters have the names of those of the example's
networks, so that :func:`copy_weights` can copy them.
Axes: B videos, T segments, H x W positions of a map, N = H W, D any width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LITERAL_NETWORKS", "copy_weights"]

VIDEO, AUDIO, HIDDEN, CATEGORIES = 512, 128, 128, 28
LABELS = CATEGORIES + 1
"""The categories and background, which is last."""


def _bidirectional_lstm(width: int) -> nn.LSTM:
    return nn.LSTM(width, HIDDEN, batch_first=True, bidirectional=True)


def _mean_over_space(video: Tensor) -> Tensor:
    return video.mean((2, 3))


def _two_score_loss(event_loss: Tensor, category_logits: Tensor, labels: Tensor) -> Tensor:
    """Add the cross-entropy of the video's category. A video of nothing but background counts as category 0."""
    return event_loss + F.cross_entropy(category_logits, labels[..., :-1].amax(1).argmax(-1))


class LiteralAGVA(nn.Module):
    """Audio-guided visual attention of Tian et al., 2018, as in the paper: softmax over N of w tanh(A p + B g)."""

    def __init__(self, units: int = 49) -> None:
        super().__init__()
        self.video_proj = nn.Linear(VIDEO, VIDEO)
        self.audio_proj = nn.Linear(AUDIO, VIDEO)
        self.video_units = nn.Linear(VIDEO, units, bias=False)
        self.audio_units = nn.Linear(VIDEO, units, bias=False)
        self.score = nn.Linear(units, 1, bias=False)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Sum visual maps (B, T, H, W, 512) over space, weighted by the audio (B, T, 128)."""
        cells = video.flatten(2, 3)
        seen = self.video_units(F.relu(self.video_proj(cells)))
        heard = self.audio_units(F.relu(self.audio_proj(audio))).unsqueeze(2)
        attention = torch.softmax(self.score(torch.tanh(seen + heard)), 2)
        return (attention * cells).sum(2)


class LiteralDMRN(nn.Module):
    """The block of the dual multimodal residual network (DMRN), and the average of its two outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.video_map = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.audio_map = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """Fuse two (*, D) into one."""
        mean = (self.video_map(video) + self.audio_map(audio)) / 2
        return (torch.tanh(audio + mean) + torch.tanh(video + mean)) / 2


class _SegmentNetwork(nn.Module):
    """Base of the networks that give logits (B, T, 29), a class for every segment."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, given one-hot labels (B, T, 29)."""
        return F.cross_entropy(logits.flatten(0, 1), labels.argmax(-1).flatten())


class LiteralAVEL(_SegmentNetwork):
    """The network of Tian et al., 2018, and its variants."""

    def __init__(self, *, audio: bool = True, video: bool = True, attention: bool = True, dmrn: bool = False) -> None:
        super().__init__()
        self.attention = LiteralAGVA() if attention else None
        self.audio_lstm = _bidirectional_lstm(AUDIO) if audio else None
        self.video_lstm = _bidirectional_lstm(VIDEO) if video else None
        width = 2 * HIDDEN
        self.residual = LiteralDMRN(width) if dmrn else None
        if dmrn:
            self.head = nn.Sequential(nn.Linear(width, LABELS))
        else:
            self.head = nn.Sequential(
                nn.ReLU(), nn.Linear(width * (audio + video), 64), nn.ReLU(), nn.Linear(64, LABELS)
            )

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Return logits (B, T, 29), from visual maps (B, T, H, W, 512) and audio (B, T, 128)."""
        features = []
        if self.audio_lstm is not None:
            features.append(self.audio_lstm(audio)[0])
        if self.video_lstm is not None:
            seen = _mean_over_space(video) if self.attention is None else self.attention(video, audio)
            features.append(self.video_lstm(seen)[0])
        fused = torch.cat(features, -1) if self.residual is None else self.residual(*features)
        logits: Tensor = self.head(fused)
        return logits


class LiteralSequenceToSequence(nn.Module):
    """The sequence to sequence network of Lin et al., 2019: two encoders, a fusion of their states, a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = _bidirectional_lstm(AUDIO)
        self.video_encoder = _bidirectional_lstm(VIDEO)
        self.fusion = LiteralDMRN(HIDDEN)
        self.decoder = _bidirectional_lstm(AUDIO + VIDEO)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Return features (B, T, 256), from (B, T, 512) and (B, T, 128)."""
        _, (audio_hidden, audio_cell) = self.audio_encoder(audio)
        _, (video_hidden, video_cell) = self.video_encoder(video)
        hidden = self.fusion(F.relu(audio_hidden), F.relu(video_hidden))
        cell = self.fusion(F.relu(audio_cell), F.relu(video_cell))
        return F.relu(self.decoder(torch.cat([audio, video], -1), (hidden, cell))[0])


class LiteralAVSDN(_SegmentNetwork):
    """The network of Lin et al., 2019: the mean over space, sequence to sequence, a class for every segment."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence_to_sequence = LiteralSequenceToSequence()
        self.head = nn.Linear(2 * HIDDEN, LABELS)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Return logits (B, T, 29), from visual maps (B, T, H, W, 512) and audio (B, T, 128)."""
        logits: Tensor = self.head(self.sequence_to_sequence(_mean_over_space(video), audio))
        return logits


class LiteralAVSDNTwoScores(nn.Module):
    """AVSDN as in the code of CPSP: attention in front, an event score per segment, and a category per video."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = LiteralAGVA()
        self.sequence_to_sequence = LiteralSequenceToSequence()
        self.event_head = nn.Linear(2 * HIDDEN, 1)
        self.category_head = nn.Linear(2 * HIDDEN, CATEGORIES)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return event logits (B, T) and category logits (B, 28), from (B, T, H, W, 512) and (B, T, 128)."""
        features = self.sequence_to_sequence(self.attention(video, audio), audio)
        return self.event_head(features).squeeze(-1), self.category_head(features.mean(1))

    def loss(self, logits: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Return the binary cross-entropy of the event plus the cross-entropy of the category."""
        event_logits, category_logits = logits
        event_loss = F.binary_cross_entropy_with_logits(event_logits, 1 - labels[..., -1])
        return _two_score_loss(event_loss, category_logits, labels)


class LiteralSelfAttention(nn.Module):
    """Self-attention of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Relate the segments of (B, T, D)."""
        query, key, value = self.q_proj(features), self.k_proj(features), self.v_proj(features)
        attention = torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, -1)
        output: Tensor = self.out_proj(attention @ value)
        return output


class LiteralDAM(nn.Module):
    """Dual attention matching of Wu et al., 2019: each modality as a whole against every segment of the other."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.attention = LiteralAGVA()
        self.video_proj = nn.Linear(VIDEO, width)
        self.audio_proj = nn.Linear(AUDIO, width)
        self.video_self_attention = LiteralSelfAttention(width)
        self.audio_self_attention = LiteralSelfAttention(width)
        self.category_head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, CATEGORIES))

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return event probabilities (B, T) and category logits (B, 28), from (B, T, H, W, 512) and (B, T, 128)."""
        local_video = self.video_proj(self.attention(video, audio))
        local_audio = self.audio_proj(audio)
        global_video = self.video_self_attention(local_video).mean(1)
        global_audio = self.audio_self_attention(local_audio).mean(1)
        scale = local_video.shape[-1] ** 0.5
        heard = torch.sigmoid((global_video.unsqueeze(1) * local_audio).sum(-1) / scale)
        seen = torch.sigmoid((global_audio.unsqueeze(1) * local_video).sum(-1) / scale)
        return (heard + seen) / 2, self.category_head(torch.cat([global_audio, global_video], -1))

    def loss(self, scores: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Return half the binary cross-entropy of the event plus half the cross-entropy of the category."""
        probabilities, category_logits = scores
        event_loss = F.binary_cross_entropy(probabilities.clamp(1e-7, 1 - 1e-7), 1 - labels[..., -1])
        return _two_score_loss(event_loss, category_logits, labels) / 2


class LiteralEDTCN(_SegmentNetwork):
    """The encoder-decoder temporal convolutional network of Lea et al., 2017, on the mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([_convolution(VIDEO, 64), _convolution(64, 96)])
        self.decoder = nn.ModuleList([_convolution(96, 96), _convolution(96, 64)])
        self.head = nn.Linear(64, LABELS)
        self.dropout = nn.Dropout1d(0.3)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:  # noqa: ARG002  not used
        """Return logits (B, T, 29), from visual maps (B, T, H, W, 512). The time becomes a multiple of four."""
        features = _mean_over_space(video).transpose(1, 2)
        time = features.shape[-1]
        features = F.pad(features, (0, -time % 4), value=-1)
        for convolution in self.encoder:
            features = F.max_pool1d(self._normalize(convolution(features)), 2)
        for convolution in self.decoder:
            features = self._normalize(convolution(features.repeat_interleave(2, -1)))
        logits: Tensor = self.head(features[..., :time].transpose(1, 2))
        return logits

    def _normalize(self, features: Tensor) -> Tensor:
        """Drop channels of (B, D, T), apply a ReLU, and divide each segment by its largest channel."""
        features = F.relu(self.dropout(features))
        return features / (features.abs().amax(1, keepdim=True) + 1e-5)


def _convolution(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 5, padding="same")


LITERAL_NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ed-tcn": LiteralEDTCN,
    "avel-a": partial(LiteralAVEL, video=False, attention=False),
    "avel-v": partial(LiteralAVEL, audio=False, attention=False),
    "avel-v-att": partial(LiteralAVEL, audio=False),
    "avel-av": partial(LiteralAVEL, attention=False),
    "avel-av-att": LiteralAVEL,
    "avel-dmrn": partial(LiteralAVEL, dmrn=True),
    "avsdn": LiteralAVSDN,
    "avsdn-cpsp": LiteralAVSDNTwoScores,
    "dam": LiteralDAM,
}
"""Each network by its name in the example."""


def copy_weights(literal: nn.Module, network: nn.Module) -> nn.Module:
    """Copy the weights of the example's network into its literal form, and return that.

    Args:
        literal: one of ``LITERAL_NETWORKS``.
        network: the network of the same name.
    """
    state = {}
    for name, weight in network.state_dict().items():
        if ".kv_proj." in name:  # CMRA projects keys and values by one weight
            for letter, part in zip("kv", weight.chunk(2), strict=True):
                state[name.replace("kv_proj", f"{letter}_proj")] = part
        else:
            state[name] = weight
    literal.load_state_dict(state)
    return literal
