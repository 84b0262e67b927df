"""
Long videos, with a window in time or a causal mask
===================================================

Most of what a segment of a long video could attend to is far away, and in a stream what comes next is not known yet.
:func:`~crossmodal_attn.relation_mask` makes the ``attn_mask`` that says who may look how far, in modalities of
different rates.
"""

import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from crossmodal_attn import CMRA, RelationAware, relation_mask
from crossmodal_attn.plots import plot_relations

torch.manual_seed(0)

# %%
# Two rates
# ---------
# Video has two segments a second, audio five. Time is counted in segments of the query, here the video: one is half a
# second long and has 2.5 segments of audio. A ``window`` says how far to look before the start and beyond the end of a
# segment, so a window of 4 is two seconds either way.

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
# Rows are the segments of video that ask, columns the memory; what is bright is open. To a causal query all that is not
# over yet is closed: the first segment of video ends at 0.5 s, so it may not attend to the third of audio, which ends
# at 0.6 s.
#
# The future changes nothing
# --------------------------
# A minute of features. When all that comes after half of it is replaced, the outputs before stay as they are.

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
# That holds for layers on top of one another if each of them is causal, in the audio at its own rate. In
# :class:`~crossmodal_attn.RelationAware` audio relates to itself under ``context_attn_mask``, then video to both under
# ``attn_mask``.

relate = RelationAware(query_dim=128, context_dim=64, embed_dim=128, dim_feedforward=256).eval()
masks = {"attn_mask": causal, "context_attn_mask": relation_mask(S, causal=True)}
with torch.no_grad():
    change = (relate(video, audio, **masks) - relate(other_video, other_audio, **masks)).abs()
print(f"largest change: first half {change[:, :HALF].max():.1e}, second half {change[:, HALF:].max():.1e}")
assert change[:, :HALF].max() < 1e-5

# %%
# How far a window reaches
# ------------------------
# An output depends on those inputs for which its gradient is not zero. Windows of layers add up, as the receptive
# fields of convolutions do.

window = relation_mask(T, [S], window=4)
above = CMRA(128, num_heads=4, context_dim=64).eval()


def reach(*layers: CMRA) -> tuple[float, float]:
    """From which second to which the output at second 30 depends on the video."""
    inputs = video.clone().requires_grad_()
    output = inputs
    for each in layers:
        output = each(output, audio, attn_mask=window)
    output[0, HALF].sum().backward()
    used = inputs.grad[0].abs().sum(-1).nonzero()
    return used[0].item() / VIDEO_RATE, (used[-1].item() + 1) / VIDEO_RATE


print("the half second from 30.0 on, through one layer, depends on seconds", reach(layer))
print("through two layers", reach(layer, above))
assert reach(layer) == (28.0, 32.5)

# %%
# What a mask costs
# -----------------
# ``scaled_dot_product_attention`` takes a dense mask, T x M, and skips nothing: a narrow window takes about as long as
# a wide one. It also costs memory. Without a mask, the memory that a fused kernel needs grows with T + M, since it
# never holds all scores at once. A bool mask is turned into numbers of the features' dtype on its way, T x M of them. A
# mask of two dimensions is shared by batch and heads; joined with padding it becomes one for each video.


def measure(**runs: Callable[[], object]) -> dict[str, float]:
    """The shortest of ten times of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(10):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in times.items()}


T, S = 600 * VIDEO_RATE, 600 * AUDIO_RATE
video, audio = torch.randn(1, T, 128), torch.randn(1, S, 64)
narrow, wide = relation_mask(T, [S], window=4), relation_mask(T, [S], window=400)
with torch.no_grad():
    taken = measure(
        without=lambda: layer(video, audio),
        narrow=lambda: layer(video, audio, attn_mask=narrow),
        wide=lambda: layer(video, audio, attn_mask=wide),
    )
for name, mask in {"narrow": narrow, "wide": wide}.items():
    open_share, ratio = (~mask).float().mean(), taken[name] / taken["without"]
    print(f"ten minutes, {name} window: {open_share:.0%} open, {ratio:.1f} times as long as without a mask")
hour = 6 * T * 6 * (T + S)
print(f"the mask of an hour: {hour / 1e6:.0f} MB in bool, {4 * hour / 1e6:.0f} MB in float32")

# %%
# In chunks
# ---------
# What a window does allow is to cut the video. A chunk, with as much before and after it as the window is wide, gives
# the outputs of the whole, and needs a mask of its own size only. So time and memory of attention grow with the length
# of the video, not with its square, and a stream can be followed with a delay of a chunk and a window. Cut where both
# modalities have a border, here at whole seconds. Through several layers each side needs the sum of their windows.


def in_chunks(video: Tensor, audio: Tensor, window: int = 4, step: int = 80) -> Tensor:
    """What the layer gives for the whole, ``step`` segments at a time."""
    outputs = []
    for start in range(0, video.shape[1], step):
        first, last = max(0, start - window), min(video.shape[1], start + step + window)
        seen = video[:, first:last]
        heard = audio[:, first * AUDIO_RATE // VIDEO_RATE : last * AUDIO_RATE // VIDEO_RATE]
        mask = relation_mask(seen.shape[1], [heard.shape[1]], window=window)
        outputs.append(layer(seen, heard, attn_mask=mask)[:, start - first :][:, :step])
    return torch.cat(outputs, dim=1)


with torch.no_grad():
    whole, cut = layer(video, audio, attn_mask=narrow), in_chunks(video, audio)
    taken = measure(whole=lambda: layer(video, audio, attn_mask=narrow), cut=lambda: in_chunks(video, audio))
print(f"largest difference {(whole - cut).abs().max():.1e}, {taken['whole'] / taken['cut']:.1f} times as fast")
assert torch.allclose(whole, cut, atol=1e-5)

# %%
# In a padded batch
# -----------------
# Without ``context_rates`` all modalities are taken to cover the same span. In a padded batch the longest video and the
# longest audio may not: give the rates there. Padding masks go in beside the mask.

mask = relation_mask(20, [60], window=4, context_rates=[AUDIO_RATE / VIDEO_RATE])  # of 10 s and 12 s
print(tuple(mask.shape))
