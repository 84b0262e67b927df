"""Audio-guided visual attention (AGVA): the audio weights the cells of the visual map.

Axes: * any (batch, time), N cells, C visual channels, A audio channels, D hidden units.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AGVA"]


class AGVA(nn.Module):
    r"""Audio-guided visual attention of Tian et al., ECCV 2018: the sum of a visual map, weighted by the audio.

    .. math::
        p_i = \operatorname{ReLU}(U_v v_i), \quad g = \operatorname{ReLU}(U_a a), \quad
        \alpha = \operatorname{softmax}_i\left(w \cdot \tanh(A p_i + B g)\right), \quad
        \textstyle\sum_i \alpha_i v_i

    From "Audio-Visual Event Localization in Unconstrained Videos". The paper adds the vector :math:`B g` to the hidden
    units of every cell. The authors' code instead adds element i of that vector to all hidden units of cell i, which
    works only for maps of D cells; ``form="code"`` does the same. A, B and w have no bias. Weights are initialized as
    in the code, Xavier uniform.

    Segments do not affect one another, so there is no padding mask. Set padding to zero if it may hold NaN.

    Our interpretation: the projections have width C, as in the code, where C is always 512.

    Args:
        video_dim: C, channels of the visual map.
        audio_dim: A, width of the audio.
        hidden_dim: D; 49 in the code.
        form: "paper", for maps of any size, or "code", for maps of ``hidden_dim`` cells.

    Examples:
        >>> import torch
        >>> layer = AGVA(512, 128)
        >>> attended, attention = layer(torch.rand(2, 10, 5, 3, 512), torch.rand(2, 10, 128), need_weights=True)
        >>> attended.shape, attention.shape
        (torch.Size([2, 10, 512]), torch.Size([2, 10, 5, 3]))
    """

    def __init__(
        self, video_dim: int, audio_dim: int, hidden_dim: int = 49, *, form: Literal["paper", "code"] = "paper"
    ) -> None:
        super().__init__()
        if form not in ("paper", "code"):
            raise ValueError(f'form must be "paper" or "code", got {form!r}')
        self.form = form
        self.video_proj = nn.Linear(video_dim, video_dim)
        self.audio_proj = nn.Linear(audio_dim, video_dim)
        self.video_units = nn.Linear(video_dim, hidden_dim, bias=False)
        self.audio_units = nn.Linear(video_dim, hidden_dim, bias=False)
        self.score = nn.Linear(hidden_dim, 1, bias=False)
        for layer in (self.video_proj, self.audio_proj, self.video_units, self.audio_units, self.score):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, video: Tensor, audio: Tensor, *, need_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Sum the visual map over its cells, weighted by the audio.

        Args:
            video: the visual map (*, *spatial, C), channels last.
            audio: (*, A).
            need_weights: whether to return the attention too.

        Returns:
            Tensor | tuple[Tensor, Tensor]: the attended features (*, C); with ``need_weights`` also the attention
            (*, *spatial), which sums to one over space.

        Raises:
            ValueError: if the shapes do not fit, or ``form`` is "code" and the map does not have ``hidden_dim`` cells.
        """
        leading, spatial = audio.shape[:-1], video.shape[audio.dim() - 1 : -1]
        if video.shape[: len(leading)] != leading or not spatial:
            raise ValueError(
                f"video must have the leading dimensions of audio, {tuple(leading)}, then space and channels, "
                f"got {tuple(video.shape)}"
            )
        cells = video.flatten(len(leading), -2)
        seen = self.video_units(F.relu(self.video_proj(cells)))
        heard = self.audio_units(F.relu(self.audio_proj(audio)))
        if self.form == "code":
            if cells.shape[-2] != heard.shape[-1]:
                raise ValueError(
                    f'video must have {heard.shape[-1]} cells with form="code", which adds a different number to each, '
                    f'got {cells.shape[-2]}: use form="paper" for maps of other sizes'
                )
            heard = heard.unsqueeze(-1)
        else:
            heard = heard.unsqueeze(-2)
        attention = self.score((seen + heard).tanh()).squeeze(-1).softmax(-1)
        attended = (attention.unsqueeze(-2) @ cells).squeeze(-2)
        return (attended, attention.unflatten(-1, spatial)) if need_weights else attended
