"""Audio-guided spatial-channel attention (AGSCA): the sound picks the channels and the places of the visual map.

The published products of maps are never built: gating by audio commutes with pooling, the channel map with the
spatial sum, and the spatial logits are one contraction. Axes: * any (batch, time), N positions, C channels, D hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal_attn._checks import check_device, check_dtype, check_features, check_size, check_tensor
from crossmodal_attn._recorders import tell_maps
from crossmodal_attn._tiles import attend_map

__all__ = ["AGSCA", "channel_attention", "spatial_attention"]


def channel_attention(
    video: Tensor, audio: Tensor, squeeze: Callable[[Tensor], Tensor], excite: Callable[[Tensor], Tensor]
) -> Tensor:
    r"""Which channels the sound asks for, from projected features.

    .. math::
        M_c = \sigma\left(W_1 \operatorname{ReLU}\left(U_1\,
            \operatorname{ReLU}(a) \odot \operatorname{avgpool}_N \operatorname{ReLU}(v)\right)\right)

    Eq. 1-2 of Xu et al., ACM MM 2020, where :math:`a` and :math:`v` stand for the projected :math:`U_a a` and
    :math:`U_v v`. The paper pools the product; audio is the same at every position, so the product of the pooled is
    equal and N times smaller.

    Args:
        video: the projected visual map, (*, N, C).
        audio: the projected audio, (*, C).
        squeeze: U_1, maps (*, C) to (*, D).
        excite: W_1, maps (*, D) to (*, C').

    Returns:
        Tensor: the channel map (*, C'), in (0, 1). The residual of the paper (one is added) is left to the caller.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if ``video`` and ``audio`` do not fit each other.

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
    """The channel map of the pooled map (*, C) and the projected audio (*, C)."""
    return excite(F.relu(squeeze(F.relu(audio) * pooled))).sigmoid()


def spatial_attention(video: Tensor, audio: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Where the sound comes from, from projected features.

    .. math::
        M_s = \operatorname{softmax}_N\left(\tanh\left(
            (W_2 \odot \operatorname{ReLU}(a)) \cdot \operatorname{ReLU}(v)\right)\right)

    Eq. 3 of Xu et al., ACM MM 2020, where :math:`a` and :math:`v` stand for the projected :math:`U_a' a` and
    :math:`U_v' v_c`, and :math:`W_2` maps their product to one logit. The weight joins the audio first, so that the
    product of the maps is never built.

    Args:
        video: the projected visual map, (*, N, D).
        audio: the projected audio, (*, D).
        weight: W_2, (D,).
        bias: its bias, (1,).

    Returns:
        Tensor: the spatial map (*, N), which sums to one over N.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if the arguments do not fit one another.

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
    logits = (F.relu(video) @ (weight * F.relu(audio)).unsqueeze(-1)).squeeze(-1)
    return (logits if bias is None else logits + bias).tanh().softmax(-1)


def _check_fit(video: Tensor, audio: Tensor) -> None:
    check_tensor("video", video)
    check_tensor("audio", audio)
    expected = (*audio.shape[:-1], *video.shape[-2:-1], *audio.shape[-1:])
    if audio.dim() == 0 or tuple(video.shape) != expected or video.shape[-2] == 0:
        raise ValueError(
            "video must have the shape of audio with one or more positions before the channels, (*, N, channels), "
            f"got video {tuple(video.shape)} and audio {tuple(audio.shape)}"
        )
    check_dtype("audio", audio, "audio has", audio.dtype)
    check_dtype("video", video, "audio has", audio.dtype)
    check_device("video", video, "audio", audio)


class AGSCA(nn.Module):
    r"""Audio-guided spatial-channel attention: sums a visual map over space, weighted by what is heard.

    .. math::
        M_c &= \sigma(W_1 \operatorname{ReLU}(U_1 \operatorname{avgpool}_N(
            \operatorname{ReLU}(U_a a) \odot \operatorname{ReLU}(U_v v)))), & v_c &= (M_c + 1) \odot v \\
        M_s &= \operatorname{softmax}_N(\tanh(W_2 (\operatorname{ReLU}(U_a' a) \odot \operatorname{ReLU}(U_v' v_c)))),
            & v_{cs} &= \textstyle\sum_N M_s v_c

    Eq. 1-3 of Xu et al., "Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization", ACM MM 2020.
    Each segment is on its own: nothing passes from one to another, so padded segments need no mask; but NaN or Inf in
    them would reach the gradients of the weights, so zero what may hold any.

    Args:
        video_dim: C, channels of the visual map.
        audio_dim: A, width of the audio.
        hidden_dim: D, width of the bottleneck and of the spatial comparison.
        device: where the parameters are made.
        dtype: the parameters' dtype.

    Raises:
        TypeError: if an option has the wrong type.
        ValueError: if an option is out of range.

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
        # W_2 is a vector that joins the audio before it meets the map, so it is no module to call on the product.
        self.spatial_weight = nn.Parameter(torch.empty(hidden_dim, **factory))
        self.spatial_bias = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as :class:`torch.nn.Linear` does, W_2 like a linear map from ``hidden_dim`` to 1."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        bound = self.hidden_dim**-0.5
        nn.init.uniform_(self.spatial_weight, -bound, bound)
        nn.init.uniform_(self.spatial_bias, -bound, bound)

    def forward(
        self, video: Tensor, audio: Tensor, *, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Sum the visual map over space, weighted by what is heard.

        Args:
            video: the visual map (*, *spatial, C), channels last; one or more spatial dimensions: 49, 7 x 7, 4 x 7 x 7.
            audio: (*, A), whose leading dimensions, say (B, T), are those of ``video``.
            need_weights: whether to return the two maps too.

        Returns:
            Tensor | tuple[Tensor, Tensor, Tensor]: the attended features (*, C); with ``need_weights`` also the
            channel map M_c (*, C), in (0, 1), and the spatial map M_s (*, *spatial), which sums to one over space.

        Raises:
            TypeError: if an argument has the wrong type or dtype.
            ValueError: if an argument has the wrong shape.
        """
        check_features("audio", audio, self.audio_dim, "audio_dim", self, self.channel_audio_proj, sequence=False)
        check_features("video", video, self.video_dim, "video_dim", self, self.channel_video_proj, sequence=False)
        leading = audio.shape[:-1]
        spatial = video.shape[len(leading) : -1]
        if video.shape[: len(leading)] != leading or not spatial or 0 in spatial:
            raise ValueError(
                f"video must have the leading dimensions of audio, {tuple(leading)}, then one or more non-empty "
                f"dimensions of space, then {self.video_dim} channels, got {tuple(video.shape)}"
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
        tell_maps(
            self,
            lambda: {"channel_map": channel_map.clone(), "spatial_map": spatial_map.unflatten(-1, spatial).clone()},
        )
        return (output, channel_map, spatial_map.unflatten(-1, spatial)) if need_weights else output

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"video_dim={self.video_dim}, audio_dim={self.audio_dim}, hidden_dim={self.hidden_dim}"
