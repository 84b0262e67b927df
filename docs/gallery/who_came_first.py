"""
Who came first? Positions in time
=================================

Attention alone does not know when a segment is: shuffle the segments of a memory, and the output stays the same. With
``rotary=RotaryTime(...)``, queries and keys of a layer are rotated by their time, so that a score also depends on the
difference of two times. Each modality has its own clock, in seconds.

Here a flash is in the video and a bang in the audio, and the question is which came first.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal_attn import CrossModalRelation, RotaryTime

torch.manual_seed(0)

# %%
# Two clocks
# ----------
# A video has 20 frames, two per second. The audio has four frames per second and starts at another time in each sample,
# up to a second before or after the video. So the order of the events follows from the times of the frames, but
# not from their indices. The events are at least half a second apart.

WIDTH = 32
flash, bang = torch.randn(2, WIDTH)


def draw_batch(size: int, audio_rate: float = 4.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return video, audio, the times of both in seconds, and by how many seconds the flash came later."""
    video_times = torch.arange(20).double() / 2
    audio_times = torch.arange(10 * audio_rate).double() / audio_rate + torch.empty(size, 1).uniform_(-1, 1)
    video, audio = torch.randn(size, 20, WIDTH), torch.randn(size, audio_times.shape[1], WIDTH)
    samples = torch.arange(size)
    at_flash = torch.randint(20, (size,))
    far = (audio_times - video_times[at_flash].unsqueeze(1)).abs() >= 0.5
    at_bang = far.float().multinomial(1).squeeze(1)
    video[samples, at_flash] += 2 * flash
    audio[samples, at_bang] += 2 * bang
    return video, audio, video_times, audio_times, video_times[at_flash] - audio_times[samples, at_bang]


# %%
# One layer, with and without positions
# -------------------------------------
# Periods are in the unit of the times. The shortest should be about four times the smallest difference that matters,
# here half a second. The longest should be at least twice the longest difference, here eleven seconds, so that the
# slowest pair of channels distinguishes before from after.


class WhoCameFirst(nn.Module):
    """A block of cross-modal attention, then the mean over time."""

    def __init__(self, rotary: RotaryTime | None) -> None:
        super().__init__()
        self.relation = CrossModalRelation(WIDTH, num_heads=4, dim_feedforward=64, dropout=0.0, rotary=rotary)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, video: Tensor, audio: Tensor, **times: Tensor) -> Tensor:
        """Return the logit of the bang being first."""
        return self.head(self.relation(video, audio, **times).mean(1)).squeeze(-1)


models = {
    "without positions": WhoCameFirst(None),
    "with RotaryTime": WhoCameFirst(RotaryTime(min_period=2, max_period=40)),
}


def predict(model: WhoCameFirst, batch: tuple[Tensor, ...], shift: float = 0.0) -> Tensor:
    """Return the logits of a batch, with the times if the model takes them."""
    video, audio, video_times, audio_times, _ = batch
    if model.relation.attention.rotary is None:
        return model(video, audio)
    return model(video, audio, query_times=video_times + shift, context_times=audio_times + shift)


def measure(model: WhoCameFirst, batch: tuple[Tensor, ...], shift: float = 0.0) -> float:
    """Return the accuracy on a batch."""
    with torch.no_grad():
        return ((predict(model, batch, shift) > 0) == (batch[-1] > 0)).float().mean().item()


for model in models.values():
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        batch = draw_batch(64)
        loss = F.binary_cross_entropy_with_logits(predict(model, batch), (batch[-1] > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

test = draw_batch(2000)
bang_first = (test[-1] > 0).float().mean().item()
print(f"accuracy of always giving the same answer: {max(bang_first, 1 - bang_first):.1%}")
accuracies = {name: measure(model, test) for name, model in models.items()}
for name, accuracy in accuracies.items():
    print(f"accuracy {name}: {accuracy:.1%}")
assert accuracies["without positions"] < 0.6
assert accuracies["with RotaryTime"] > 0.9

# %%
# Without positions the layer cannot be better than chance, however long it is trained. The figure shows the probability
# that each model gives to "the bang came first", against the delay of the flash after the bang.

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, model in models.items():
    with torch.no_grad():
        axes.plot(test[-1], predict(model, test).sigmoid(), ".", markersize=3, label=f"{name}: {accuracies[name]:.0%}")
axes.axvline(0, color="gray", linewidth=0.8)
axes.set(xlabel="flash after bang (seconds)", ylabel='probability of "bang first"', ylim=(-0.03, 1.03))
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, markerscale=4)

# %%
# Clocks may shift, and rates may change
# --------------------------------------
# Only differences of times matter. If all clocks shift by a day, the outputs stay the same.

model = models["with RotaryTime"]
with torch.no_grad():
    change = (predict(model, test) - predict(model, test, shift=24 * 3600.0)).abs().max().item()
print(f"largest change of a logit: {change:.1e}")
assert change < 1e-3

# %%
# The times here are float64, since float32 has steps of 0.008 s after a day. The features may have any dtype. Integers
# are exact too, such as milliseconds since 1970, with the periods in milliseconds.
#
# In training, all audio had four frames per second. The layer also works at another rate, since it gets the time of
# each frame.

for rate in (3.0, 6.0):
    print(f"accuracy with {rate:.0f} frames of audio per second: {measure(model, draw_batch(2000, rate)):.1%}")

# %%
# Without times
# -------------
# If no times are given, the query's segments are at 0, 1, 2, ..., and a context covers the same span: its segment j of
# S is at j * T / S. The unit of the periods is then one query segment. This suits modalities that start and end
# together, as in AVE.

layer = CrossModalRelation(WIDTH, num_heads=4, rotary=RotaryTime()).eval()
video, audio = torch.randn(2, 10, WIDTH), torch.randn(2, 40, WIDTH)
same = layer(video, audio, query_times=torch.arange(10), context_times=torch.arange(40) / 4)
assert torch.allclose(layer(video, audio), same, atol=1e-5)

# %%
# :class:`~crossmodal_attn.RelationAware` and :class:`~crossmodal_attn.AVInteraction` have the option too. Times can be
# combined with padding masks and attention masks. The time of a padded segment may be NaN.
