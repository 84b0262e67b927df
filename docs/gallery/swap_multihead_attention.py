"""
Replace nn.MultiheadAttention by CMRA
=====================================

If :class:`~crossmodal_attn.CMRA` replaces :class:`torch.nn.MultiheadAttention` in a model, weights and outputs stay the
same. The model gains several contexts, a memory that includes the query, zero attention for fully masked queries,
padding that never affects valid steps, and projections that hooks and adapters can wrap. One line replaces the layers
of a whole model, without a change to its code.
"""

# sphinx_gallery_thumbnail_path = "images/guides/swap_multihead_attention.svg"
import torch
from torch import Tensor, nn

from crossmodal_attn import CMRA, padding_mask, record_attention, replace_multihead_attention

torch.manual_seed(0)

# %%
# One line for a whole model
# --------------------------
# :func:`~crossmodal_attn.replace_multihead_attention` replaces every layer by one that is called in the same way. So
# the code of the model does not change.

transformer = nn.Transformer(64, 4, num_encoder_layers=2, num_decoder_layers=2, batch_first=True).eval()
source, target = torch.randn(2, 12, 64), torch.randn(2, 10, 64)
original = transformer(source, target)
report = replace_multihead_attention(transformer)
print(report)
with record_attention(transformer) as maps:
    exchanged = transformer(source, target)
print("largest difference:", (exchanged - original).abs().max().item())
print({path: tuple(weights.shape) for path, weights in maps.items()})
assert torch.allclose(exchanged, original, atol=1e-5)

# %%
# In evaluation without gradients, torch's encoder has a fast path that never calls its attention layers. The new layers
# disable it. ``report.skipped`` lists the layers that CMRA cannot replace, each with the reason. A call whose key and
# value are different tensors raises an error. ``report.restore()`` puts the original layers back, with the weights
# that were learned since.

report.restore()
print(type(transformer.encoder.layers[0].self_attn))

# %%
# Replace one layer by hand
# -------------------------
# The following block is a common one: video attends to audio.


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
# ``from_multihead_attention`` copies the weights, dropout, device, dtype and mode. The copy has
# ``include_query=False``, so its memory is only the context.

layer = CMRA.from_multihead_attention(model.attention)
print(layer)

# %%
# The call becomes shorter: keys and values come from one memory, and there is one output unless you request the
# weights. Masks keep their meaning, True at padding. Only the name of the argument changes.


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
# Equivalent calls and arguments
# ------------------------------
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
# ``kdim != vdim``, ``add_bias_kv`` and ``add_zero_attn`` have no equivalent and raise an error.

try:
    CMRA.from_multihead_attention(nn.MultiheadAttention(64, 4, add_zero_attn=True))
except ValueError as error:
    print(error)

# %%
# Add the query to the memory
# ---------------------------
# So far, the layer computes the same as before. In the CMRA of the paper, the query is also part of the memory. For
# this, build the layer with ``include_query=True``, the default, and load the same weights.

related = CMRA(64, num_heads=4, dropout=0.1)
related.load_state_dict(layer.state_dict())
related.eval()
output, weights = related(video, audio, need_weights=True)
to_audio, to_video = (part.sum(-1).mean().item() for part in weights.split([12, 10], dim=-1))
print(f"weight on audio {to_audio:.2f}, on video itself {to_video:.2f}")

# %%
# Fully masked queries
# --------------------
# If all audio of a video is padding, every memory position is masked. ``nn.MultiheadAttention`` then returns NaN if it
# also returns the weights, which is the default. CMRA gives zero attention, so the block's output depends only on the
# video.

silent = padding_mask([12, 0], max_length=12)
theirs, _ = model.attention(video, audio, audio, key_padding_mask=silent)
ours, weights = layer(video, audio, context_padding_mask=silent, need_weights=True)
print("nn.MultiheadAttention: NaN in the second video:", theirs[1].isnan().any().item())
print("CMRA: NaN in the second video:                 ", ours[1].isnan().any().item())
assert theirs[1].isnan().all()
assert ours.isfinite().all()
assert (weights[1] == 0).all()
