"""Audio-guided spatial-channel attention (AGSCA): audio determines the weights of a visual map.

The products of the audio and the visual map in Eq. 1-3 are never materialized. The audio is multiplied after pooling,
the channel map after the spatial sum, and the spatial logits are computed in one contraction.
Axes: * any (batch, time), N positions, C channels, D hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from crossmodal_attn._checks import check_device, check_dtype, check_features, check_size, check_tensor
from crossmodal_attn._recorders import record_maps
from crossmodal_attn._tiles import attend_map

__all__ = ["AGSCA", "channel_attention", "spatial_attention"]


def channel_attention(
    video: Tensor, audio: Tensor, squeeze: Callable[[Tensor], Tensor], excite: Callable[[Tensor], Tensor]
) -> Tensor:
    r"""Return the channel map, the weight that the audio gives to each channel, from projected features.

    .. math::
        M_c = \sigma\left(W_1 \operatorname{ReLU}\left(U_1\,
            \operatorname{ReLU}(a) \odot \operatorname{avgpool}_N \operatorname{ReLU}(v)\right)\right)

    Eq. 1-2 of Xu et al., ACM MM 2020, where :math:`a` and :math:`v` stand for the projected :math:`U_a a` and
    :math:`U_v v`. The paper pools the product of both. The audio is the same at every position, so it can be multiplied
    after pooling. The result is equal, and the product with N positions is never materialized.

    Args:
        video: the projected visual map, (*, N, C).
        audio: the projected audio, (*, C).
        squeeze: U_1, which maps (*, C) to (*, D).
        excite: W_1, which maps (*, D) to (*, C').

    Returns:
        Tensor: the channel map (*, C'), in (0, 1). The paper then adds one, a residual connection; this does not.

    Examples:
        >>> squeeze, excite = torch.nn.Linear(512, 256), torch.nn.Linear(256, 512)
        >>> channel_attention(torch.randn(2, 10, 49, 512), torch.randn(2, 10, 512), squeeze, excite).shape
        torch.Size([2, 10, 512])
    """
    _check_fit(video, audio)
    for name, function in (("squeeze", squeeze), ("excite", excite)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, such as a torch.nn.Linear, got {type(function).__name__}")
    return _excite(F.relu(video).mean(-2), audio, squeeze, excite)


def _excite(
    pooled: Tensor, audio: Tensor, squeeze: Callable[[Tensor], Tensor], excite: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the channel map of the pooled map (*, C) and the projected audio (*, C)."""
    return excite(F.relu(squeeze(F.relu(audio) * pooled))).sigmoid()


def spatial_attention(video: Tensor, audio: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Return the spatial map, the weight that the audio gives to each position, from projected features.

    .. math::
        M_s = \operatorname{softmax}_N\left(\tanh\left(
            (W_2 \odot \operatorname{ReLU}(a)) \cdot \operatorname{ReLU}(v)\right)\right)

    Eq. 3 of Xu et al., ACM MM 2020, where :math:`a` and :math:`v` stand for the projected :math:`U_a' a` and
    :math:`U_v' v_c`, and :math:`W_2` maps their product to one logit. The weight is multiplied with the audio first, so
    that the product of audio and video is never materialized.

    Args:
        video: the projected visual map, (*, N, D).
        audio: the projected audio, (*, D).
        weight: W_2, (D,).
        bias: the bias of W_2, (1,).

    Returns:
        Tensor: the spatial map (*, N), which sums to one over N.

    Examples:
        >>> attention = spatial_attention(torch.randn(2, 10, 49, 256), torch.randn(2, 10, 256), torch.randn(256))
        >>> attention.shape, torch.allclose(attention.sum(-1), torch.ones(2, 10))
        (torch.Size([2, 10, 49]), True)
    """
    _check_fit(video, audio)
    given = [("weight", weight, video.shape[-1:]), *([] if bias is None else [("bias", bias, (1,))])]
    for name, parameter, shape in given:
        check_tensor(name, parameter)
        check_dtype(name, parameter, "video has", video.dtype)
        if tuple(parameter.shape) != tuple(shape):
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(parameter.shape)}")
        check_device(name, parameter, "video", video)
    logits = einsum(F.relu(video), weight * F.relu(audio), "... position hidden, ... hidden -> ... position")
    return (logits if bias is None else logits + bias).tanh().softmax(-1)


def _check_fit(video: Tensor, audio: Tensor) -> None:
    check_tensor("video", video)
    check_tensor("audio", audio)
    expected = (*audio.shape[:-1], *video.shape[-2:-1], *audio.shape[-1:])
    if audio.dim() == 0 or tuple(video.shape) != expected or video.shape[-2] == 0:
        raise ValueError(
            "video must have the shape (*, N, channels) for audio of shape (*, channels), with N at least 1, "
            f"got video {tuple(video.shape)} and audio {tuple(audio.shape)}"
        )
    check_dtype("audio", audio, "audio has", audio.dtype)
    check_dtype("video", video, "audio has", audio.dtype)
    check_device("video", video, "audio", audio)


class AGSCA(nn.Module):
    r"""Audio-guided spatial-channel attention: sum a visual map over space, weighted by the audio.

    .. math::
        M_c &= \sigma(W_1 \operatorname{ReLU}(U_1 \operatorname{avgpool}_N(
            \operatorname{ReLU}(U_a a) \odot \operatorname{ReLU}(U_v v)))), & v_c &= (M_c + 1) \odot v \\
        M_s &= \operatorname{softmax}_N(\tanh(W_2 (\operatorname{ReLU}(U_a' a) \odot \operatorname{ReLU}(U_v' v_c)))),
            & v_{cs} &= \textstyle\sum_N M_s v_c

    Eq. 1-3 of Xu et al., "Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization", ACM MM 2020.
    Segments do not affect each other, so padded segments need no mask. But NaN or Inf in padding would reach the
    gradients of the weights: if padding may contain them, set it to zero with :func:`zero_padding`.

    Args:
        video_dim: C, the channels of the visual map.
        audio_dim: A, the width of the audio features.
        hidden_dim: D, the hidden width of both attentions.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> layer = AGSCA(video_dim=512, audio_dim=128)
        >>> video, audio = torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)
        >>> layer(video, audio).shape
        torch.Size([2, 10, 512])
        >>> output, channel_map, spatial_map = layer(video, audio, need_weights=True)
        >>> channel_map.shape, spatial_map.shape
        (torch.Size([2, 10, 512]), torch.Size([2, 10, 7, 7]))
    """

    def __init__(
        self,
        video_dim: int,
        audio_dim: int,
        hidden_dim: int = 256,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("video_dim", video_dim)
        check_size("audio_dim", audio_dim)
        check_size("hidden_dim", hidden_dim)
        self.video_dim = video_dim
        self.audio_dim = audio_dim
        self.hidden_dim = hidden_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channel_video_proj = nn.Linear(video_dim, video_dim, **factory)
        self.channel_audio_proj = nn.Linear(audio_dim, video_dim, **factory)
        self.squeeze = nn.Linear(video_dim, hidden_dim, **factory)
        self.excite = nn.Linear(hidden_dim, video_dim, **factory)
        self.spatial_video_proj = nn.Linear(video_dim, hidden_dim, **factory)
        self.spatial_audio_proj = nn.Linear(audio_dim, hidden_dim, **factory)
        # W_2 is multiplied with the audio first, so it is a vector. A linear module would need the product of both.
        self.spatial_weight = nn.Parameter(torch.empty(hidden_dim, **factory))
        self.spatial_bias = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as :class:`torch.nn.Linear` does; W_2 is a linear map from ``hidden_dim`` to 1."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        bound = self.hidden_dim**-0.5
        nn.init.uniform_(self.spatial_weight, -bound, bound)
        nn.init.uniform_(self.spatial_bias, -bound, bound)

    def forward(
        self, video: Tensor, audio: Tensor, *, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Sum the visual map over space, weighted by the audio.

        Args:
            video: the visual map (*, *spatial, C), channels last, with one or more spatial dimensions, such as 49,
                7 x 7 or 4 x 7 x 7.
            audio: (*, A). Its leading dimensions, such as (B, T), are those of ``video``.
            need_weights: whether to return the channel map and the spatial map too.

        Returns:
            Tensor | tuple[Tensor, Tensor, Tensor]: the attended features (*, C). With ``need_weights`` also the channel
            map M_c (*, C), in (0, 1), and the spatial map M_s (*, *spatial), which sums to one over space.
        """
        check_features("audio", audio, self.audio_dim, "audio_dim", self, self.channel_audio_proj, sequence=False)
        check_features("video", video, self.video_dim, "video_dim", self, self.channel_video_proj, sequence=False)
        leading = audio.shape[:-1]
        spatial = video.shape[len(leading) : -1]
        if video.shape[: len(leading)] != leading or not spatial or 0 in spatial:
            raise ValueError(
                f"video must have the leading dimensions of audio, {tuple(leading)}, then one or more non-empty "
                f"spatial dimensions, then {self.video_dim} channels, got {tuple(video.shape)}"
            )
        check_device("video", video, "audio", audio)
        video = video.flatten(len(leading), -2)
        heard = self.channel_audio_proj(audio)
        output, channel_map, spatial_map = attend_map(
            video,
            self.channel_video_proj,
            lambda pooled: _excite(pooled, heard, self.squeeze, self.excite),
            self.spatial_video_proj,
            self.spatial_weight * F.relu(self.spatial_audio_proj(audio)),
            self.spatial_bias,
        )
        record_maps(
            self,
            lambda: {"channel_map": channel_map.clone(), "spatial_map": spatial_map.unflatten(-1, spatial).clone()},
        )
        return (output, channel_map, spatial_map.unflatten(-1, spatial)) if need_weights else output

    def extra_repr(self) -> str:
        """Return the options that ``repr`` shows."""
        return f"video_dim={self.video_dim}, audio_dim={self.audio_dim}, hidden_dim={self.hidden_dim}"
