"""
Quick start
===========

This script runs the three layers, with padding masks and attention weights, in seconds on a CPU. Run it as a whole, or
cell by cell in an editor or a notebook. It needs the extra ``plots``.
"""

# %%
# Two videos of ten seconds. Each second has a visual map of 7 x 7 cells with 512 channels, and an audio vector of 128
# numbers. Any features will do; these are random.
import matplotlib.pyplot as plt
import torch
from torch import nn

from crossmodal_attn import AGSCA, CMRA, AVInteraction, padding_mask, record_attention
from crossmodal_attn.plots import plot_relations

torch.manual_seed(0)
video, audio = torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)

# %%
# The three layers
# ----------------
# **AGSCA** uses the audio to weight the channels and the cells of the map, and sums over the cells. The result is one
# vector for each second.
guide = AGSCA(video_dim=512, audio_dim=128)
seen = guide(video, audio)
print(tuple(seen.shape))

# %%
# **CMRA** lets each second of the video attend to all seconds of both modalities. Its memory is the audio followed by
# the video, so one softmax compares audio and video. Without a context, it is self-attention. With a list of contexts,
# it attends to any number of modalities of any lengths.
relate = CMRA(embed_dim=512, num_heads=4, context_dim=128)
related = relate(seen, audio)
print(tuple(related.shape))

# %%
# **AVInteraction** fuses two sequences of the same width: their product attends to both of them.
heard = nn.Linear(128, 512)(audio)
fuse = AVInteraction(512, num_heads=4)
fused = fuse(related, heard)
print(tuple(fused.shape))

# %%
# Masks
# -----
# Suppose that the second video ends after seven seconds. In a padding mask, True means padding, as for
# :class:`torch.nn.MultiheadAttention`.
padding = padding_mask([10, 7])
print(padding.int())

# %%
# Padded values, even NaN, never affect valid seconds.
masks = {"query_padding_mask": padding, "context_padding_mask": padding}
related = relate(seen, audio, **masks)
changed = relate(
    seen.masked_fill(padding[..., None], torch.nan), audio.masked_fill(padding[..., None], torch.nan), **masks
)
print("largest difference:", (changed - related)[~padding].abs().max().item())

# %%
# Attention weights
# -----------------
# With ``need_weights=True``, a layer also returns its weights. For each video and head, they have a row for each second
# of the query and a column for each second of the memory, audio first. Columns at padding are zero, and the row of each
# valid second sums to one.
related, weights = relate(seen, audio, **masks, need_weights=True)
print(tuple(weights.shape))

# %%
# ``record_attention`` collects the weights of all layers in a model, without changes to any call.
model = nn.ModuleDict({"relate": relate, "fuse": fuse})
with record_attention(model) as maps:
    model["fuse"](model["relate"](seen, audio), heard)
for path, recorded in maps.items():
    print(path, tuple(recorded.shape))

# %%
# Learning a relation
# -------------------
# Untrained layers attend to everything almost equally. Here is a task that needs attention across modalities. Each
# second of a video shows a different sign. The audio has each sign too, together with a value, but in a random order
# that differs between videos. The task is to predict the value of the sign in each second.
SECONDS, VALUE_DIM = 10, 6
seen_signs, heard_signs = torch.randn(SECONDS, 32), torch.randn(SECONDS, 16)


def draw(videos: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw random videos: the signs seen, the signs and values heard, and the values to predict."""
    values = torch.randn(videos, SECONDS, VALUE_DIM)
    sound = torch.cat([heard_signs.expand(videos, -1, -1), values], -1)
    order = torch.rand(videos, SECONDS, 1).argsort(1)
    return seen_signs.expand(videos, -1, -1), sound.take_along_dim(order, 1), values


listen = CMRA(embed_dim=32, num_heads=2, context_dim=16 + VALUE_DIM)
answer = nn.Linear(32, VALUE_DIM)
optimizer = torch.optim.Adam([*listen.parameters(), *answer.parameters()], lr=5e-3)
for step in range(1, 101):
    sight, sound, values = draw(64)
    loss = nn.functional.mse_loss(answer(listen(sight, sound)), values)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        unlearned = values.square().mean()
        print(f"step {step}: squared error {loss:.3f}, or {unlearned:.3f} for predicting 0")

# %%
# The weights for a new video show what the layer has learned. Each second of the video attends to the second of the
# audio that has the same sign, and hardly to the video itself.
sight, sound, values = draw(1)
with torch.no_grad():
    _, weights = listen(sight, sound, need_weights=True)
ax = plot_relations(weights[0], [SECONDS, SECONDS], ["audio", "video"])
ax.set(xlabel="second of the memory", ylabel="second of the video")
plt.show()

# %%
# Replacing ``nn.MultiheadAttention``
# -----------------------------------
# ``CMRA`` can copy the weights of a :class:`torch.nn.MultiheadAttention`, and then gives the same outputs.
attention = nn.MultiheadAttention(32, num_heads=4, batch_first=True)
query, memory = torch.randn(2, 10, 32), torch.randn(2, 20, 32)
swapped = CMRA.from_multihead_attention(attention)
torch.testing.assert_close(swapped(query, memory), attention(query, memory, memory)[0])
