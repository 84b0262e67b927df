"""
Visualize the attention of a model
==================================

:func:`~crossmodal_attn.record_attention` records the attention maps of every layer in a model. No call has to change.
In this guide, a small network learns in seconds to match sounds with objects, and the maps show how.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from crossmodal_attn import AGSCA, CMRA, record_attention, summarize_relations
from crossmodal_attn.plots import plot_relations, plot_spatial_attention

torch.manual_seed(0)

# %%
# A task that needs both modalities
# ---------------------------------
# There are eight objects, each with its own sound. In each second, one object is visible in one cell of a noisy 5 x 5
# grid, and one object is audible, loud or soft. The task for each second of video: *is the sound of the visible object
# loud?* To solve it, the network must find the cell, and then the second in which this object is audible.

OBJECTS, SECONDS, GRID, WIDTH = 8, 8, 5, 32
looks, sounds, loud = torch.randn(OBJECTS, WIDTH) * 1.5, torch.randn(OBJECTS, WIDTH), torch.randn(WIDTH)


def make_batch(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return maps, audio and answers, and also the visible objects, their cells, and the audible objects."""
    seen = torch.randint(OBJECTS, (size, SECONDS))
    heard = torch.rand(size, SECONDS).argsort(-1)  # each object once
    volume = torch.randint(2, (size, SECONDS)) * 2.0 - 1
    cell = torch.randint(GRID * GRID, (size, SECONDS))
    maps = torch.randn(size, SECONDS, GRID * GRID, WIDTH) * 0.3
    maps.scatter_add_(2, cell[..., None, None].expand(-1, -1, 1, WIDTH), looks[seen].unsqueeze(2))
    audio = sounds[heard] + volume[..., None] * loud
    answer = volume.gather(1, heard.argsort(-1).gather(1, seen))  # the volume in the matching second
    return maps.unflatten(2, (GRID, GRID)), audio, (answer + 1) / 2, seen, cell, heard


class Matching(nn.Module):
    """Find the cell with AGSCA, and the second with CMRA."""

    def __init__(self) -> None:
        super().__init__()
        self.place = AGSCA(WIDTH, WIDTH, hidden_dim=32)
        self.relation = CMRA(WIDTH, num_heads=2)
        self.head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, maps: Tensor, audio: Tensor) -> Tensor:
        """Return a logit for each second."""
        video = self.place(maps, audio)
        return self.head(self.relation(video, audio)).squeeze(-1)


# %%
# Train for a few hundred steps.

model = Matching()
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for step in range(301):
    maps, audio, answer, *_ = make_batch(64)
    logits = model(maps, audio)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, answer)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        accuracy = ((logits > 0) == answer.bool()).float().mean().item()
        print(f"step {step:3}   loss {loss.item():.3f}   accuracy {accuracy:.0%}")

# %%
# Recording
# ---------
# Inside the ``with`` block, the maps of every layer are recorded under its path in the model. The outputs do not
# change.

maps, audio, answer, seen, cell, heard = make_batch(256)
model.eval()
with torch.no_grad(), record_attention(model) as recorded:
    logits = model(maps, audio)
for path, weights in recorded.items():
    print(f"{path:24} {tuple(weights.shape)}")

# %%
# Attention over time
# -------------------
# The figure shows one video. Rows are its seconds. Columns are the memory: first audio, then video. The labels are the
# objects.

names = "ABCDEFGH"
axes = plot_relations(recorded["relation"][0], [SECONDS, SECONDS], ["audible", "visible"])  # the mean over heads
axes.set_xticks(range(2 * SECONDS), [names[item] for item in (*heard[0], *seen[0])])
axes.set_yticks(range(SECONDS), [names[item] for item in seen[0]])
axes.set(xlabel="audible or visible object", ylabel="visible object")

# %%
# The mean attention, over all videos, to the second in which the visible object is audible, compared with uniform
# attention:

matches = seen[:, :, None] == heard[:, None]
on_match = (recorded["relation"].mean(1)[..., :SECONDS] * matches).sum(-1).mean().item()
print(f"attention to the matching second: {on_match:.0%} (uniform: {1 / (2 * SECONDS):.0%})")

# %%
# :func:`~crossmodal_attn.summarize_relations` sums the attention within a modality and across modalities, and finds the
# segments with the largest weights.

summary = summarize_relations(recorded["relation"].mean(1), [SECONDS, SECONDS], k=3)
print(f"attention of video to audio: {summary.inter.mean():.0%}, to video: {summary.intra.mean():.0%}")
first = zip(summary.top_memories[0, 0], summary.top_segments[0, 0], summary.top_weights[0, 0], strict=True)
for memory, segment, weight in first:
    print(f"second 0 attends to {('audio', 'video')[memory]} of second {segment} with {weight:.0%}")

# %%
# Attention over space
# --------------------
# The figure shows the spatial map of AGSCA in each second, with the true cell outlined. The tanh of Eq. 3 limits the
# contrast of a map: no weight is more than :math:`e^2` times another one, so a cell of a 5 x 5 grid gets at most 24%.

spatial_map = recorded["place.spatial_map"][0]
figure, grid = plt.subplots(1, SECONDS, figsize=(9, 1.7), layout="constrained")
for second, axes in enumerate(grid):
    plot_spatial_attention(spatial_map[second], vmax=spatial_map.max().item(), ax=axes)
    row, column = divmod(int(cell[0, second]), GRID)
    axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="cyan", linewidth=2))
    axes.set_title(f"{second}: {names[seen[0, second]]}", fontsize="small")

on_cell = recorded["place.spatial_map"].flatten(2).gather(-1, cell[..., None]).mean().item()
print(f"attention to the true cell: {on_cell:.0%} (uniform: {1 / GRID**2:.0%})")

# %%
# Recording also works for compiled models, in ``torch.no_grad()`` and in training, and for any model that contains a
# layer of this library. To get the maps of a single layer, call it with ``need_weights=True``.
