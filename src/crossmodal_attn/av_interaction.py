"""Audio-video interaction: the product of two aligned modalities attends to both of them.

Axes: B batch, T time, H heads.
"""

from typing import Any

import torch
from torch import Tensor, nn

from crossmodal_attn._checks import check_features, check_mask, check_match, check_probability
from crossmodal_attn.cmra import CMRA
from crossmodal_attn.dropout import Dropout
from crossmodal_attn.masks import zero_steps
from crossmodal_attn.rotary import Clock, RotaryTime, list_times
from crossmodal_attn.windows import RelationWindow

__all__ = ["AVInteraction"]


class AVInteraction(nn.Module):
    r"""Audio-video interaction: fuse the audio and the video of the same segments into one sequence.

    .. math::
        f = a_o \odot v_o, \qquad
        O_{av} = \operatorname{LayerNorm}(f + \operatorname{CMRA}'(f, [a_o, v_o]))

    Eq. 9 of Xu et al., "Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization", ACM MM 2020. The
    memory of :math:`\operatorname{CMRA}'` is audio then video, without the query; no feed-forward network follows.

    Args:
        embed_dim: width of both modalities and of the output.
        num_heads: number of heads H; must divide ``embed_dim``.
        dropout: dropout probability, in [0, 1].
        attention_dropout: probability of dropping an attention weight, in [0, 1]. Default: ``dropout``.
        rotary: rotate queries and keys by the time of their segments, as in :class:`CMRA`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> layer = AVInteraction(256, num_heads=4)
        >>> layer(torch.randn(2, 10, 256), torch.randn(2, 10, 256)).shape
        torch.Size([2, 10, 256])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.1,
        *,
        attention_dropout: float | None = None,
        rotary: RotaryTime | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        check_probability("attention_dropout", attention_dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = CMRA(embed_dim, num_heads, attention_dropout, include_query=False, rotary=rotary, **factory)
        self.norm = nn.LayerNorm(embed_dim, **factory)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        *,
        padding_mask: Tensor | None = None,
        times: Tensor | None = None,
        attn_mask: Tensor | RelationWindow | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fuse the two modalities.

        Args:
            video: (B, T, embed_dim).
            audio: (B, T, embed_dim).
            padding_mask: bool (B, T), True = padding, for both modalities.
            times: (T,) or (B, T), the time of each segment of both modalities, for a layer with ``rotary``. A time at
                padding may be NaN. Default: 0, 1, ..., T - 1.
            attn_mask: as in :meth:`CMRA.forward`. The memory is [audio, video], so M = 2 * T.
            need_weights: whether to return the attention weights too.

        Returns:
            Tensor | tuple[Tensor, Tensor]: the output (B, T, embed_dim), finite but meaningless at padding. With
            ``need_weights`` also the weights (B, H, T, 2 * T) over [audio, video], or with a window the banded ones, as
            in :meth:`CMRA.forward`.
        """
        for name, features in (("video", video), ("audio", audio)):
            check_features(name, features, self.attention.embed_dim, "embed_dim", self, self.attention.q_proj)
        check_match("audio", audio, {0: "batch size", 1: "length"}, "video", video)
        if padding_mask is not None:
            check_mask("padding_mask", padding_mask, video.shape[:2], video)
        if times is not None:
            (times,) = list_times(self, self.attention.rotary, [Clock("times", times, video, padding_mask)])
        fused = zero_steps(video, padding_mask) * zero_steps(audio, padding_mask)
        result = self.attention(
            fused,
            [audio, video],
            context_padding_mask=[padding_mask, padding_mask],
            query_times=times,
            context_times=None if times is None else [times, times],
            attn_mask=attn_mask,
            need_weights=need_weights,
        )
        attended, weights = result if need_weights else (result, None)
        output: Tensor = self.norm(fused + self.dropout(attended))
        return output if weights is None else (output, weights)
