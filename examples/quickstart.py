r"""
Quick start
===========

The three layers, their masks, and what they attend to, in a script that runs in seconds on a CPU. Run it as it is, or
cell by cell in an editor or a notebook; it needs ``pip install "crossmodal-attn[plots]"``.
"""

# %%
# Two videos of ten seconds. Of each second there is a map of 7 x 7 cells with 512 visual channels, and a sound of 128
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
# **AGSCA** lets the sound pick channels and places of the map, and sums over the places that it picked. One vector for
# each second is left.
seen = AGSCA(video_dim=512, audio_dim=128)(video, audio)
print(tuple(seen.shape))

# %%
# **CMRA** lets every second of video attend to all seconds of both modalities: its memory is the audio followed by the
# video, so that one softmax weighs sound against sight. Without a context it is self-attention, and with a list of
# contexts it attends to any number of modalities, of any lengths.
relate = CMRA(embed_dim=512, num_heads=4, context_dim=128)
related = relate(seen, audio)
print(tuple(related.shape))

# %%
# **AVInteraction** fuses both into one sequence: their product attends to each of them.
hear = nn.Linear(128, 512)
fuse = AVInteraction(512, num_heads=4)
fused = fuse(related, hear(audio))
print(tuple(fused.shape))

# %%
# Masks
# -----
# The second video is over after seven seconds. In a padding mask, True is padding, as for
# :class:`torch.nn.MultiheadAttention`.
padding = padding_mask([10, 7])
print(padding.int())

# %%
# What stands at padding reaches no valid second, not even if it is not a number.
relate.eval()
related = relate(seen, audio, query_padding_mask=padding, context_padding_mask=padding)
spoilt = relate(
    seen.masked_fill(padding[..., None], torch.nan),
    audio.masked_fill(padding[..., None], torch.nan),
    query_padding_mask=padding,
    context_padding_mask=padding,
)
torch.testing.assert_close(spoilt[~padding], related[~padding])

# %%
# What attends to what
# --------------------
# A layer returns its weights when asked: for each video and head, a row for each second of the query, and a column for
# each second of the memory, audio first. Masked seconds get nothing, and every row sums to one.
related, weights = relate(seen, audio, query_padding_mask=padding, context_padding_mask=padding, need_weights=True)
print(tuple(weights.shape))

# %%
# ``record_attention`` collects the maps of all layers inside a model, whoever calls them.
with record_attention(nn.ModuleDict({"relate": relate, "fuse": fuse})) as maps:
    fuse(relate(seen, audio), hear(audio))
for path, recorded in maps.items():
    print(path, tuple(recorded.shape))

# %%
# A relation to be found
# ----------------------
# Untrained layers attend to everything alike. Here is a task that only attention across modalities solves. Each second
# of a video shows one of ten signs. Each sign is also heard, in some other second, together with a value; in which,
# differs from video to video. What is the value of the sign that is seen?
SECONDS, VALUE_DIM = 10, 6
seen_signs, heard_signs = torch.randn(SECONDS, 32), torch.randn(SECONDS, 16)


def draw(videos: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw what is seen, what is heard, and for each second of sight the value of its sign."""
    values = torch.randn(videos, SECONDS, VALUE_DIM)
    sounds = torch.cat([heard_signs.expand(videos, -1, -1), values], -1)
    order = torch.rand(videos, SECONDS, 1).argsort(1)
    return seen_signs.expand(videos, -1, -1), sounds.take_along_dim(order, 1), values


relate = CMRA(embed_dim=32, num_heads=2, context_dim=16 + VALUE_DIM)
read = nn.Linear(32, VALUE_DIM)
optimizer = torch.optim.Adam([*relate.parameters(), *read.parameters()], lr=5e-3)
for step in range(100):
    sight, sound, values = draw(64)
    loss = nn.functional.mse_loss(read(relate(sight, sound)), values)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 24:
        print(f"step {step + 1}: squared error {loss.item():.3f}, against {values.var().item():.3f} of a guess")

# %%
# The weights show what the layer has found: every second of the video attends to that second of the audio which
# carries its sign, and to hardly anything in the video itself.
sight, sound, values = draw(1)
with torch.no_grad():
    _, weights = relate(sight, sound, need_weights=True)
plot_relations(weights[0], [SECONDS, SECONDS], ["audio", "video"])
plt.show()

# %%
# In place of ``nn.MultiheadAttention``
# -------------------------------------
# A layer takes over the weights of a trained :class:`torch.nn.MultiheadAttention`, and computes what it computes.
attention = nn.MultiheadAttention(32, num_heads=4, batch_first=True)
query, memory = torch.randn(2, 10, 32), torch.randn(2, 20, 32)
swapped = CMRA.from_multihead_attention(attention)
torch.testing.assert_close(swapped(query, memory), attention(query, memory, memory)[0])
