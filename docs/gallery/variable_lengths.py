"""
Variable lengths
================

The videos of a batch rarely have the same length. Pad them, and give the layers a mask. Padded values, even NaN, then
affect neither the outputs at valid steps nor the gradients.
"""

# sphinx_gallery_thumbnail_path = "images/guides/variable_lengths.svg"
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from crossmodal_attn import CMRA, RelationAware, padding_mask

torch.manual_seed(0)

# %%
# From a list of videos to a batch
# --------------------------------
# These are three videos with their audio, which has another rate.

videos = [torch.randn(length, 512) for length in (10, 6, 3)]
audios = [torch.randn(length, 128) for length in (25, 15, 8)]
video, audio = pad_sequence(videos, batch_first=True), pad_sequence(audios, batch_first=True)
video_padding = padding_mask([len(features) for features in videos])
audio_padding = padding_mask([len(features) for features in audios])
print(video.shape, audio.shape)
print(video_padding.int())

# %%
# Give the masks to the layer
# ---------------------------

layer = RelationAware(query_dim=512, context_dim=128, embed_dim=64).eval()
output = layer(video, audio, query_padding_mask=video_padding, context_padding_mask=audio_padding)
print(tuple(output.shape))

# %%
# The batch gives the same outputs as the videos one by one.

for index, (own_video, own_audio) in enumerate(zip(videos, audios, strict=True)):
    alone = layer(own_video[None], own_audio[None])
    difference = (output[index, : len(own_video)] - alone[0]).abs().max().item()
    print(f"video {index}: largest difference {difference:.1e}")
    assert difference < 1e-5

# %%
# NaN at padding
# --------------
# Features in a preallocated buffer may contain any values after their end. Here these are NaN in the video and infinity
# in the audio. Outputs and gradients do not change.

dirty_video = video.masked_fill(video_padding[..., None], torch.nan)
dirty_audio = audio.masked_fill(audio_padding[..., None], torch.inf)
dirty = layer(dirty_video, dirty_audio, query_padding_mask=video_padding, context_padding_mask=audio_padding)
print("same output:", torch.equal(dirty[~video_padding], output[~video_padding]))
dirty[~video_padding].square().sum().backward()
print("finite gradients:", all(parameter.grad.isfinite().all() for parameter in layer.parameters()))
assert torch.equal(dirty[~video_padding], output[~video_padding])

# %%
# Pooling and losses
# ------------------
# The output at padding is finite but has no meaning. Compute means, maxima and losses only over the valid segments.

valid = ~video_padding
mean = output.masked_fill(video_padding[..., None], 0).sum(1) / valid.sum(1, keepdim=True)
maximum = output.masked_fill(video_padding[..., None], -torch.inf).amax(1)
head, labels = nn.Linear(64, 5), torch.randint(5, (3, 10))
loss = nn.functional.cross_entropy(head(output)[valid], labels[valid])
print(mean.shape, maximum.shape, f"loss {loss.item():.3f}")

# %%
# A causal mask in a padded batch
# -------------------------------
# An attention mask covers the whole memory, ``[context, query]``. Here the audio has two and a half frames per second
# of video. Second ``t`` may attend to audio frames that start before the end of second ``t``, and to video seconds up
# to ``t``.

attention = CMRA(512, num_heads=4, context_dim=128).eval()
second, frame = torch.arange(10)[:, None], torch.arange(25)
not_yet_heard = frame >= 2.5 * (second + 1)
not_yet_seen = torch.arange(10) > second
causal, weights = attention(
    video,
    audio,
    query_padding_mask=video_padding,
    context_padding_mask=audio_padding,
    attn_mask=torch.cat([not_yet_heard, not_yet_seen], dim=1),
    need_weights=True,
)
heard = (weights[0, 0, :, :25] > 0).sum(-1)
print("audio frames that each second attends to:", heard.tolist())
assert heard.tolist() == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
