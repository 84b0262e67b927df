"""
Quick start
===========

The three layers, their masks, and what they attend to, in a script that runs in seconds on a CPU. Run it as it is, or
cell by cell in an editor or a notebook. It needs the extra ``plots``.
"""

# %%
# Two videos of ten seconds. For each second there is a map of 7 x 7 cells with 512 visual channels, and a sound of 128
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
# **AGSCA** lets the sound weigh the channels and the places of the map, and sums over the places. One vector for each
# second is left.
guide = AGSCA(video_dim=512, audio_dim=128)
seen = guide(video, audio)
print(tuple(seen.shape))

# %%
# **CMRA** lets every second of the video attend to all seconds of both modalities. Its memory is the audio followed by
# the video, so one softmax weighs sound against sight. Without a context it is self-attention; with a list of contexts
# it attends to any number of modalities, of any lengths.
relate = CMRA(embed_dim=512, num_heads=4, context_dim=128)
related = relate(seen, audio)
print(tuple(related.shape))

# %%
# **AVInteraction** fuses two sequences of one width: their product attends to both of them.
heard = nn.Linear(128, 512)(audio)
fuse = AVInteraction(512, num_heads=4)
fused = fuse(related, heard)
print(tuple(fused.shape))

# %%
# Masks
# -----
# Say that the second video is over after seven seconds. In a padding mask, True is padding, as for
# :class:`torch.nn.MultiheadAttention`.
padding = padding_mask([10, 7])
print(padding.int())

# %%
# What stands at padding reaches no valid second, not even where it is not a number.
masks = {"query_padding_mask": padding, "context_padding_mask": padding}
related = relate(seen, audio, **masks)
spoilt = relate(
    seen.masked_fill(padding[..., None], torch.nan), audio.masked_fill(padding[..., None], torch.nan), **masks
)
print("largest difference:", (spoilt - related)[~padding].abs().max().item())

# %%
# What attends to what
# --------------------
# A layer returns its weights when asked. For each video and head there is a row for each second of the query and a
# column for each second of the memory, audio first. Columns at padding are zero, and every row of a valid second sums
# to one.
related, weights = relate(seen, audio, **masks, need_weights=True)
print(tuple(weights.shape))

# %%
# ``record_attention`` collects the weights of all layers inside a model, without a change to any call.
model = nn.ModuleDict({"relate": relate, "fuse": fuse})
with record_attention(model) as maps:
    model["fuse"](model["relate"](seen, audio), heard)
for path, recorded in maps.items():
    print(path, tuple(recorded.shape))

# %%
# A relation to be found
# ----------------------
# Untrained layers attend to everything about alike. Here is a task that only attention across modalities can solve.
# Each second of a video shows a sign of its own. Every sign is also heard, together with a value, but in an order that
# differs from video to video. Asked for is the value that belongs to the sign of each second.
SECONDS, VALUE_DIM = 10, 6
seen_signs, heard_signs = torch.randn(SECONDS, 32), torch.randn(SECONDS, 16)


def draw(videos: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw what is seen, what is heard, and the values that are asked for."""
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
        print(f"step {step}: squared error {loss:.3f}, where always saying 0 has {unlearned:.3f}")

# %%
# The weights of a new video show what the layer has found. Each second of the video attends to the one second of the
# audio in which its sign is heard, and to hardly anything in the video itself.
sight, sound, values = draw(1)
with torch.no_grad():
    _, weights = listen(sight, sound, need_weights=True)
ax = plot_relations(weights[0], [SECONDS, SECONDS], ["audio", "video"])
ax.set(xlabel="second of the memory", ylabel="second of the video")
plt.show()

# %%
# In place of ``nn.MultiheadAttention``
# -------------------------------------
# A layer takes over the weights of a :class:`torch.nn.MultiheadAttention`, and computes what it computes.
attention = nn.MultiheadAttention(32, num_heads=4, batch_first=True)
query, memory = torch.randn(2, 10, 32), torch.randn(2, 20, 32)
swapped = CMRA.from_multihead_attention(attention)
torch.testing.assert_close(swapped(query, memory), attention(query, memory, memory)[0])
