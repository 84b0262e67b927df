"""
See what attends to what
========================

:func:`~crossmodal_attn.record_attention` collects the attention maps of every layer in a model, without a change to any
call. Here a small network learns from nothing in seconds to match sounds to looks, and the maps show how.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from crossmodal_attn import AGSCA, CMRA, record_attention, summarize_relations
from crossmodal_attn.plots import plot_relations, plot_spatial_attention

torch.manual_seed(0)

# %%
# A task that needs both senses
# -----------------------------
# Eight things make a sound each. In every second one is seen, in one cell of a 5 x 5 grid of clutter, and another one
# is heard, loud or soft. The question for every second of video: *is the sound of what is seen here loud?* To answer
# it, the network must find the place, and then the second in which that thing is heard.

THINGS, SECONDS, GRID, WIDTH = 8, 8, 5, 32
looks, sounds, loud = torch.randn(THINGS, WIDTH) * 1.5, torch.randn(THINGS, WIDTH), torch.randn(WIDTH)


def make_batch(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maps, audio and answers; and what is seen, where, and what is heard."""
    seen = torch.randint(THINGS, (size, SECONDS))
    heard = torch.rand(size, SECONDS).argsort(-1)  # every thing once
    volume = torch.randint(2, (size, SECONDS)) * 2.0 - 1
    cell = torch.randint(GRID * GRID, (size, SECONDS))
    maps = torch.randn(size, SECONDS, GRID * GRID, WIDTH) * 0.3
    maps.scatter_add_(2, cell[..., None, None].expand(-1, -1, 1, WIDTH), looks[seen].unsqueeze(2))
    audio = sounds[heard] + volume[..., None] * loud
    answer = volume.gather(1, heard.argsort(-1).gather(1, seen))  # the volume in the second that fits
    return maps.unflatten(2, (GRID, GRID)), audio, (answer + 1) / 2, seen, cell, heard


class Matching(nn.Module):
    """AGSCA finds the place, CMRA the seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.place = AGSCA(WIDTH, WIDTH, hidden_dim=32)
        self.relation = CMRA(WIDTH, num_heads=2)
        self.head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, maps: Tensor, audio: Tensor) -> Tensor:
        """Answer for every second."""
        video = self.place(maps, audio)
        return self.head(self.relation(video, audio)).squeeze(-1)


# %%
# Training, for a few hundred steps.

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
        print(f"step {step:3}   loss {loss.item():.3f}   right {accuracy:.0%}")

# %%
# Recording
# ---------
# Inside the context every layer leaves its maps, by its path in the model. Outputs are what they were.

maps, audio, answer, seen, cell, heard = make_batch(256)
model.eval()
with torch.no_grad(), record_attention(model) as recorded:
    logits = model(maps, audio)
for path, weights in recorded.items():
    print(f"{path:24} {tuple(weights.shape)}")

# %%
# When does it listen?
# --------------------
# One video. Rows are its seconds; columns are the memory, first audio, then video, each with the thing that is heard or
# seen there.

names = "ABCDEFGH"
axes = plot_relations(recorded["relation"][0], [SECONDS, SECONDS], ["heard", "seen"])  # the mean of the heads
axes.set_xticks(range(2 * SECONDS), [names[thing] for thing in (*heard[0], *seen[0])])
axes.set_yticks(range(SECONDS), [names[thing] for thing in seen[0]])
axes.set(xlabel="what is heard or seen", ylabel="what is seen")

# %%
# Over all videos: how much attention goes to the one second in which the very thing is heard, beside what an equal
# share would be.

matches = seen[:, :, None] == heard[:, None]
on_match = (recorded["relation"].mean(1)[..., :SECONDS] * matches).sum(-1).mean().item()
print(f"attention on the second that fits: {on_match:.0%} (equal shares: {1 / (2 * SECONDS):.0%})")

# %%
# :func:`~crossmodal_attn.summarize_relations` tells how much stays within a modality and how much crosses, and which
# segments are attended to most.

summary = summarize_relations(recorded["relation"].mean(1), [SECONDS, SECONDS], k=3)
print(f"crosses from sound to sight: {summary.inter.mean():.0%}, stays within sight: {summary.intra.mean():.0%}")
first = zip(summary.top_memories[0, 0], summary.top_segments[0, 0], summary.top_weights[0, 0], strict=True)
for memory, segment, weight in first:
    print(f"second 0 attends to {('sound', 'sight')[memory]} of second {segment} with {weight:.0%}")

# %%
# Where does it look?
# -------------------
# The spatial maps of AGSCA, second by second, with the true cell outlined. The tanh of Eq. 3 bounds how sharp a map can
# be: no cell gets more than :math:`e^2` times what another gets, so at most 24% of the attention in a 5 x 5 grid.

spatial_map = recorded["place.spatial_map"][0]
figure, grid = plt.subplots(1, SECONDS, figsize=(9, 1.7), layout="constrained")
for second, axes in enumerate(grid):
    plot_spatial_attention(spatial_map[second], vmax=spatial_map.max().item(), ax=axes)
    row, column = divmod(int(cell[0, second]), GRID)
    axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="cyan", linewidth=2))
    axes.set_title(f"{second}: {names[seen[0, second]]}", fontsize="small")

on_cell = recorded["place.spatial_map"].flatten(2).gather(-1, cell[..., None]).mean().item()
print(f"attention on the true cell: {on_cell:.0%} (equal shares: {1 / GRID**2:.0%})")

# %%
# It works on compiled models, inside ``torch.no_grad()`` or in training, and on models of others that hold a layer of
# this library somewhere. ``need_weights=True`` gives the same maps from one layer, in its own call.
