"""
Long videos, with a time window or a causal mask
================================================

In a long video, most segments are far away from each other. In a stream, later segments are not available yet.
:func:`~crossmodal_attn.relation_mask` makes an ``attn_mask`` for both cases: time windows and causal masks, for
modalities of different rates. :func:`~crossmodal_attn.relation_window` has the same effect without a mask, at linear
cost.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from crossmodal_attn import CMRA, RelationAware, relation_mask, relation_window
from crossmodal_attn.plots import plot_relations

torch.manual_seed(0)

# %%
# Two rates
# ---------
# The video has two segments per second, the audio five. The unit of time is one query segment, here a video segment of
# half a second with 2.5 audio segments. ``window`` is the distance before the start and after the end of a segment, so
# a window of 4 means two seconds in both directions.

VIDEO_RATE, AUDIO_RATE = 2, 5
T, S = 8 * VIDEO_RATE, 8 * AUDIO_RATE
masks = {
    "causal": relation_mask(T, [S], causal=True),
    "a window of two seconds": relation_mask(T, [S], window=4),
    "causal; in audio one second back": relation_mask(T, [S], causal=True, context_windows=[2]),
}
figure, grid = plt.subplots(3, 1, figsize=(8, 8), layout="constrained")
for axes, (name, mask) in zip(grid, masks.items(), strict=True):
    plot_relations(~mask, [S, T], ["audio", "video"], ax=axes)
    axes.set_title(name, fontsize="medium")

# %%
# Rows are query segments (video), columns are memory segments, and bright cells are allowed. A causal query may attend
# only to segments that have ended: the first video segment ends at 0.5 s, so it may not attend to the third audio
# segment, which ends at 0.6 s.
#
# Later inputs do not matter
# --------------------------
# These are features of one minute. If the second half is replaced, the outputs of the first half stay the same.

layer = CMRA(128, num_heads=4, context_dim=64).eval()
T, S, HALF = 60 * VIDEO_RATE, 60 * AUDIO_RATE, 30 * VIDEO_RATE
video, audio = torch.randn(1, T, 128), torch.randn(1, S, 64)
other_video, other_audio = video.clone(), audio.clone()
other_video[:, HALF:], other_audio[:, 30 * AUDIO_RATE :] = 100.0, -100.0
causal = relation_mask(T, [S], causal=True)
with torch.no_grad():
    change = (layer(video, audio, attn_mask=causal) - layer(other_video, other_audio, attn_mask=causal)).abs()
print(f"largest change: first half {change[:, :HALF].max():.1e}, second half {change[:, HALF:].max():.1e}")
assert change[:, :HALF].max() < 1e-5

# %%
# This also holds for several layers if each is causal. Self-attention within the audio then needs a causal mask at the
# audio rate. :class:`~crossmodal_attn.RelationAware` uses ``context_attn_mask`` for the self-attention of the audio,
# and ``attn_mask`` for the attention of the video to both.

relate = RelationAware(query_dim=128, context_dim=64, embed_dim=128, dim_feedforward=256).eval()
masks = {"attn_mask": causal, "context_attn_mask": relation_mask(S, causal=True)}
with torch.no_grad():
    change = (relate(video, audio, **masks) - relate(other_video, other_audio, **masks)).abs()
print(f"largest change: first half {change[:, :HALF].max():.1e}, second half {change[:, HALF:].max():.1e}")
assert change[:, :HALF].max() < 1e-5

# %%
# How far a window reaches
# ------------------------
# An output depends on the inputs for which its gradient is not zero. The windows of several layers add up, like the
# receptive fields of convolutions.

window = relation_mask(T, [S], window=4)
above = CMRA(128, num_heads=4, context_dim=64).eval()


def reach(*layers: CMRA) -> tuple[float, float]:
    """Return the first and the last second of video on which the output at second 30 depends."""
    inputs = video.clone().requires_grad_()
    output = inputs
    for each in layers:
        output = each(output, audio, attn_mask=window)
    output[0, HALF].sum().backward()
    used = inputs.grad[0].abs().sum(-1).nonzero()
    return used[0].item() / VIDEO_RATE, (used[-1].item() + 1) / VIDEO_RATE


print("one layer: the output at 30.0 s depends on the video from, to (seconds):", reach(layer))
print("two layers:", reach(layer, above))
assert reach(layer) == (28.0, 32.5)

# %%
# The cost of a mask
# ------------------
# ``scaled_dot_product_attention`` takes a dense mask, T x M, and skips nothing: a narrow window takes about as long as
# a wide one. The mask also needs memory. Without a mask, the memory of a fused kernel grows with T + M, since it never
# stores all scores. A bool mask is converted to the dtype of the features, T x M numbers. A mask of two dimensions is
# shared by the batch and the heads. Joined with padding masks, it becomes one mask for each video.

T, S = 600 * VIDEO_RATE, 600 * AUDIO_RATE
video, audio = torch.randn(1, T, 128), torch.randn(1, S, 64)
narrow, wide = relation_mask(T, [S], window=4), relation_mask(T, [S], window=400)
for name, mask in {"narrow": narrow, "wide": wide}.items():
    print(f"ten minutes, {name} window: {(~mask).float().mean():.0%} of the mask is allowed")
hour = 6 * T * 6 * (T + S)
print(f"the mask of an hour: {hour / 1e6:.0f} MB in bool, {4 * hour / 1e6:.0f} MB in float32")

# %%
# A window in place of a mask
# ---------------------------
# :func:`~crossmodal_attn.relation_window` takes the same arguments. The layers accept its result in place of a mask.
# The queries are then divided into blocks, each with the span of the memory that its window covers. So time and memory
# grow with the length of the video, and not with its square. For a query of 8,192 steps, a memory of 40,960 and a
# window of 32 steps, forward and backward are 12 times as fast as with the mask, with a fifth of the memory (two CPU
# cores, width 256).

window = relation_window(T, [S], window=4)
with torch.no_grad():
    difference = layer(video, audio, attn_mask=window) - layer(video, audio, attn_mask=narrow)
print(f"largest difference {difference.abs().max():.1e}")
assert difference.abs().max() < 1e-5

# %%
# A window is made for fixed lengths, and serves any batch size. Make it once, outside compiled code, and move it to the
# device of the layer, ``window.to("cuda")``. To export a layer with a window, keep both in a module. If the window
# covers most of the memory, the layer computes all scores, as with a mask. Give padding masks to the layer as well. For
# code of your own with FlexAttention, ``window.block_mask()`` makes the block mask, without a dense mask.
#
# The attention weights are banded: each query has only the weights of the steps in its window. ``columns`` says which
# steps these are, and ``to_dense`` converts the weights to the shape (..., T, M) that a mask gives.

with torch.no_grad():
    _, weights = layer(video, audio, attn_mask=window, need_weights=True)
print("banded weights:", tuple(weights.shape))
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
dense = window.to_dense(weights)[0, 0]
plot_relations(torch.cat([dense[:20, :50], dense[:20, S : S + 20]], 1), [50, 20], ["audio", "video"], ax=axes)

# %%
# Time stamps, and audio that starts late
# ---------------------------------------
# Words, and frames at a variable rate, have time stamps. ``query_times`` and ``context_times`` take the start of each
# segment, or its start and its end. Windows then count in the unit of the stamps, here in seconds: each frame attends
# to the words that are spoken within half a second of it. ``context_offsets`` shifts the clock of a context, for audio
# that starts after the video. ``relation_window`` takes the same arguments. If many steps of a context are close
# together in time, only the queries near them need more time and memory.

frames = torch.tensor([0.0, 0.5, 1.0, 2.0, 2.5, 3.0])
words = torch.tensor([[0.3, 0.6], [0.6, 1.2], [1.9, 2.4], [2.4, 2.7]])
for offset in (0, 1):
    mask = relation_mask(
        6, [4], window=0.5, query_times=frames, context_times=[words], context_offsets=[offset], include_query=False
    )
    print(f"words {offset} s late: frame by frame", [(~row).nonzero().flatten().tolist() for row in mask])

# %%
# Chunks
# ------
# With a window, the video can also be processed in chunks, for example as it arrives. A chunk gets ``window`` more
# segments on each side. It then gives the same outputs as the whole video, and needs only a small mask. A stream can be
# processed with a delay of one chunk and one window. Cut where both modalities have a boundary, here at whole seconds.
# For several layers, each side needs as many segments as the sum of their windows.


def in_chunks(video: Tensor, audio: Tensor, window: int = 4, step: int = 80) -> Tensor:
    """Return the output of the layer, computed in chunks of ``step`` segments."""
    outputs = []
    for start in range(0, video.shape[1], step):
        first, last = max(0, start - window), min(video.shape[1], start + step + window)
        seen = video[:, first:last]
        heard = audio[:, first * AUDIO_RATE // VIDEO_RATE : last * AUDIO_RATE // VIDEO_RATE]
        mask = relation_mask(seen.shape[1], [heard.shape[1]], window=window)
        outputs.append(layer(seen, heard, attn_mask=mask)[:, start - first :][:, :step])
    return torch.cat(outputs, dim=1)


with torch.no_grad():
    whole, chunked = layer(video, audio, attn_mask=narrow), in_chunks(video, audio)
print(f"largest difference {(whole - chunked).abs().max():.1e}")
assert torch.allclose(whole, chunked, atol=1e-5)

# %%
# Padded batches
# --------------
# Without ``context_rates``, all modalities are assumed to cover the same time. In a padded batch, the longest video and
# the longest audio may differ, so give the rates. Give the padding masks to the layer as well.

mask = relation_mask(20, [60], window=4, context_rates=[AUDIO_RATE / VIDEO_RATE])  # 10 s and 12 s
print(tuple(mask.shape))
