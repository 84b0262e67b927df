"""
Swap nn.MultiheadAttention for CMRA
===================================

A model that has :class:`torch.nn.MultiheadAttention` in it keeps its weights and its outputs when
:class:`~crossmodal_attn.CMRA` takes its place. What it gains: several contexts, a memory that includes the query, rows
that may attend to nothing, padding that cannot leak, and projections that hooks and adapters can wrap.
"""

# sphinx_gallery_thumbnail_path = "images/guides/swap_multihead_attention.svg"
import torch
from torch import Tensor, nn

from crossmodal_attn import CMRA, padding_mask

torch.manual_seed(0)

# %%
# A model to begin with
# ---------------------
# Video that looks at audio, as it is often written.


class Fusion(nn.Module):
    """One block of cross-attention."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, video: Tensor, audio: Tensor, audio_padding: Tensor | None = None) -> Tensor:
        """Attend from video to audio."""
        attended, _ = self.attention(video, audio, audio, key_padding_mask=audio_padding, need_weights=False)
        return self.norm(video + attended)


model = Fusion().eval()
video, audio = torch.randn(2, 10, 64), torch.randn(2, 12, 64)
audio_padding = padding_mask([12, 7])
before = model(video, audio, audio_padding)

# %%
# The same weights in a CMRA
# --------------------------
# ``from_multihead_attention`` copies them, with dropout, device, dtype and mode. The copy has ``include_query=False``:
# its memory is the context alone.

layer = CMRA.from_multihead_attention(model.attention)
print(layer)

# %%
# The call becomes shorter: keys and values come from one memory, and there is one output unless you ask for weights.
# Masks keep their meaning, True at padding; only the argument's name changes.


class RelationFusion(Fusion):
    """The same block on CMRA."""

    def forward(self, video: Tensor, audio: Tensor, audio_padding: Tensor | None = None) -> Tensor:
        """Attend from video to audio."""
        return self.norm(video + self.attention(video, audio, context_padding_mask=audio_padding))


swapped = RelationFusion()
swapped.norm.load_state_dict(model.norm.state_dict())
swapped.attention = layer
swapped.eval()
after = swapped(video, audio, audio_padding)
print("largest difference:", (after - before).abs().max().item())
assert torch.allclose(after, before, atol=1e-5)

# %%
# What goes where
# ---------------
#
# ============================================  =====================================================
# ``nn.MultiheadAttention``                     ``CMRA``
# ============================================  =====================================================
# ``attention(x, y, y)[0]``                     ``CMRA(d, h, include_query=False)(x, y)``
# ``attention(x, x, x)[0]``                     ``CMRA(d, h)(x)``
# ``y`` and ``x`` joined, as key and value      ``CMRA(d, h)(x, y)``
# ``key_padding_mask``                          ``context_padding_mask``, ``query_padding_mask``
# ``attn_mask``                                 the same
# ``need_weights``, ``True`` by default         ``need_weights``, ``False`` by default
# weights averaged over heads                   weights of every head, (B, heads, T, M)
# ``kdim`` = ``vdim``                           ``context_dim``
# ``batch_first=False`` by default              batch first
# ============================================  =====================================================
#
# ``kdim != vdim``, ``add_bias_kv`` and ``add_zero_attn`` have no equivalent and are refused.

try:
    CMRA.from_multihead_attention(nn.MultiheadAttention(64, 4, add_zero_attn=True))
except ValueError as error:
    print(error)

# %%
# Let the query into the memory
# -----------------------------
# The swap alone computes what it did before. To make it the CMRA of the paper, in which a segment weighs what it hears
# against what it sees in other segments, build the layer with ``include_query=True`` and load the same weights.

related = CMRA(64, num_heads=4, dropout=0.1)
related.load_state_dict(layer.state_dict())
related.eval()
output, weights = related(video, audio, need_weights=True)
to_audio, to_video = (part.sum(-1).mean().item() for part in weights.split([12, 10], dim=-1))
print(f"weight on audio {to_audio:.2f}, on video itself {to_video:.2f}")

# %%
# A query that may attend to nothing
# ----------------------------------
# With all audio of a video padded, ``nn.MultiheadAttention`` gives NaN where it returns weights, as it does by default,
# and NaN spreads. CMRA gives zero attention, with weights and without, so that the block passes its input on.

silent = padding_mask([12, 0], max_length=12)
theirs, _ = model.attention(video, audio, audio, key_padding_mask=silent)
ours, weights = layer(video, audio, context_padding_mask=silent, need_weights=True)
print("nn.MultiheadAttention: NaN in the second video:", theirs[1].isnan().any().item())
print("CMRA: NaN in the second video:                 ", ours[1].isnan().any().item())
assert theirs[1].isnan().all()
assert ours.isfinite().all()
assert (weights[1] == 0).all()
