"""
Live event localization on a stream
===================================

A stream of video and audio arrives segment by segment, and each segment needs its score at once. With causal masks, the
scores are the same as for the whole stream, and the past need not be computed again: a
:class:`~crossmodal_attn.Memory` keeps the keys and values of the past, and grows by one segment at a time.
"""

import time
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal_attn import Memory, RelationAware, padding_mask, relation_mask

torch.manual_seed(0)

# %%
# A stream with events
# --------------------
# In each stream, one of three kinds of object is seen, and one of three kinds of sound is heard. They change at
# different times. There is an event while the object and the sound are of the same kind. A single segment is so noisy
# that the segments before it help.

VIDEO_DIM, AUDIO_DIM, KINDS = 24, 16, 3
VIDEO_KINDS, AUDIO_KINDS = torch.randn(KINDS, VIDEO_DIM), torch.randn(KINDS, AUDIO_DIM)


def draw_streams(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return video (B, T, 24), audio (B, T, 16), and whether there is an event in each segment, bool (B, T)."""
    seen, heard = torch.randint(KINDS, (2, batch, length // 12)).repeat_interleave(12, -1)
    heard = heard.roll(4, -1)  # it changes at other times
    video = VIDEO_KINDS[seen] + 1.5 * torch.randn(batch, length, VIDEO_DIM)
    audio = AUDIO_KINDS[heard] + 1.5 * torch.randn(batch, length, AUDIO_DIM)
    return video, audio, seen == heard


# %%
# The whole stream at once
# ------------------------
# :class:`~crossmodal_attn.RelationAware` relates the audio to itself in two blocks, and then the video to the audio and
# to itself. Both are causal.


class Localizer(nn.Module):
    """Score each segment of video and audio: is there an event?"""

    def __init__(self) -> None:
        super().__init__()
        self.relate = RelationAware(VIDEO_DIM, AUDIO_DIM, embed_dim=48, dim_feedforward=96, dropout=0.0)
        self.classify = nn.Linear(48, 1)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        length = video.shape[1]
        masks = {
            "attn_mask": relation_mask(length, [length], causal=True),
            "context_attn_mask": relation_mask(length, causal=True),
        }
        return self.classify(self.relate(video, audio, **masks)).squeeze(-1)


model = Localizer()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(120):
    video, audio, event = draw_streams(16, 48)
    loss = F.binary_cross_entropy_with_logits(model(video, audio), event.float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
video, audio, event = draw_streams(64, 48)
with torch.no_grad():
    accuracy = ((model(video, audio) > 0) == event).float().mean()
print(f"accuracy per segment: {accuracy:.0%}; always the more frequent answer: {1 - event.float().mean():.0%}")

# %%
# Segment by segment
# ------------------
# Every block has a memory of its own, since the input of the second block is the output of the first. ``remember(...,
# own=True)`` computes the keys and values of the block's own input. If this memory is given as a context, the new
# segment attends to [past, segment]. This is what a causal mask over the whole stream would allow, so the segment needs
# no mask.
#
# The last block has two memories. The memory of the audio is made without ``own``, and includes the new segment, since
# the video may attend to the audio of the same time. The memory of the video is its own past. The order is [audio,
# video], as for the whole stream.


def remember(relate: RelationAware, features: Tensor) -> list[Memory]:
    """Return memories of features (B, S, D): one for each block of M_self, then the audio and the video of M_cmra."""
    last = relate.cross_relation
    own = [block.remember(features, own=True) for block in relate.internal_relation.layers]
    return [*own, last.remember(features), last.remember(features, own=True)]


def step(
    relate: RelationAware, video: Tensor, audio: Tensor, memories: list[Memory], limit: int | None = None
) -> tuple[Tensor, list[Memory]]:
    """Return the output (B, 1, D) of a new segment, which attends to ``limit`` earlier ones, and the new memories."""
    *own, heard, seen = memories
    features, kept = relate.context_proj(audio), []
    for block, past in zip(relate.internal_relation.layers, own, strict=True):
        kept.append(past.append(block.remember(features, own=True), max_length=limit))
        features = block(features, past)
    last, query = relate.cross_relation, relate.query_proj(video)
    heard = heard.append(last.remember(features), max_length=None if limit is None else limit + 1)
    output = last(query, [heard, seen])
    return output, [*kept, heard, seen.append(last.remember(query, own=True), max_length=limit)]


# %%
# The scores are the same:

video, audio, event = draw_streams(1, 96)
empty = torch.zeros(1, 0, 48)
memories, scores = remember(model.relate, empty), []
with torch.no_grad():
    whole = model(video, audio).sigmoid()
    for now in range(video.shape[1]):
        output, memories = step(model.relate, video[:, now : now + 1], audio[:, now : now + 1], memories)
        scores.append(model.classify(output).sigmoid().squeeze(-1))
live = torch.cat(scores, 1)
print(f"largest difference: {(live - whole).abs().max():.0e}")
print("lengths of the memories:", [memory.length for memory in memories])
assert torch.allclose(live, whole, atol=1e-5)

# %%
# A limit
# -------
# Without a limit, memories and time grow with the stream. ``max_length`` drops the oldest segments. With a limit of 12,
# each block attends to the last 12 segments and to the new one. The outputs equal those of the whole stream with a
# window of 12 segments back in every block.

with torch.no_grad():
    windows = [relation_mask(96, lengths, causal=True, window=12) for lengths in ([96], [])]
    windowed = model.relate(video, audio, attn_mask=windows[0], context_attn_mask=windows[1])
    memories, outputs = remember(model.relate, empty), []
    for now in range(video.shape[1]):
        cut = slice(now, now + 1)
        output, memories = step(model.relate, video[:, cut], audio[:, cut], memories, limit=12)
        outputs.append(output)
print(f"largest difference: {(torch.cat(outputs, 1) - windowed).abs().max():.0e}")
print("lengths of the memories:", [memory.length for memory in memories])
assert torch.allclose(torch.cat(outputs, 1), windowed, atol=1e-5)

# %%
# The time of a segment
# ---------------------
# Without memories, the whole stream is processed again for each new segment, and the time of its attention grows with
# the square of its length. With memories, the time of a new segment grows with the length. With memories of limited
# length, it does not grow. The widths are those of the paper.

relate = RelationAware(query_dim=512, context_dim=128).eval()
LENGTHS, LIMIT = (100, 200, 400, 800, 1600), 100
seconds: dict[str, list[float]] = {"whole stream again": [], "with memories": [], f"memories of at most {LIMIT}": []}


def measure(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few calls."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def follow(new: tuple[Tensor, Tensor], memories: list[Memory], limit: int | None = None) -> Callable[[], None]:
    """Return a function that takes the next step of a stream."""

    def call() -> None:
        nonlocal memories
        _, memories = step(relate, *new, memories, limit)

    return call


with torch.no_grad():
    for length in LENGTHS:
        videos, audios = torch.randn(1, length, 512), torch.randn(1, length, 128)
        masks = {
            "attn_mask": relation_mask(length, [length], causal=True),
            "context_attn_mask": relation_mask(length, causal=True),
        }
        new = videos[:, -1:], audios[:, -1:]
        # The time of a step depends on the length of the memories, and not on what they hold.
        calls = (
            partial(relate, videos, audios, **masks),
            follow(new, remember(relate, torch.randn(1, length - 1, 256))),
            follow(new, remember(relate, torch.randn(1, LIMIT, 256)), LIMIT),
        )
        for name, call in zip(seconds, calls, strict=True):
            seconds[name].append(measure(call))
again, with_memories, _ = seconds.values()
for length, one, other in zip(LENGTHS, again, with_memories, strict=True):
    print(f"the whole stream again, {length} segments, takes {one / other:.0f} times as long as a step with memories")

# %%
# Above: the scores segment by segment, drawn over those of the whole stream. Events are shaded. Below: the time of a
# new segment.

figure, (above, below) = plt.subplots(2, figsize=(6.5, 5.4), layout="constrained")
above.fill_between(range(96), event[0].float(), step="mid", color="#e69f00", alpha=0.35, linewidth=0, label="event")
above.plot(whole[0], color="#0072b2", linewidth=4, alpha=0.4, label="score, whole stream at once")
above.plot(live[0], "o", color="#0072b2", markersize=3, label="score, segment by segment")
above.set(xlabel="segment", ylabel="score", ylim=(-0.02, 1.02), xlim=(0, 95))
above.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize="small")
for (name, values), marker in zip(seconds.items(), "osD", strict=True):
    below.plot(LENGTHS, [1e3 * value for value in values], marker=marker, label=name)
below.set(xlabel="segments of the stream", ylabel="ms for a new segment", xscale="log", yscale="log")
below.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
below.minorticks_off()
below.legend(frameon=False, fontsize="small")

# %%
# Several segments at a time, and batches
# ---------------------------------------
# If several new segments come at a time, give a causal mask: no new segment may attend to a later one. The mask has a
# column for each step of the memories, then for each new segment. In a batch, pad the streams that end early. Each
# memory holds the padding mask of its steps.

several, past = 5, model.relate.cross_relation.remember(torch.randn(2, 7, 48), own=True)
ended = padding_mask([5, 2])
causal = torch.ones(several, past.length + several, dtype=torch.bool).triu(past.length + 1)
query = torch.randn(2, several, 48)
output = model.relate.cross_relation(query, past, query_padding_mask=ended, attn_mask=causal)
past = past.append(model.relate.cross_relation.remember(query, context_padding_mask=ended, own=True))
print(tuple(output.shape), past.length, past.padding_mask.sum(1).tolist())

# %%
# Training on a stream
# --------------------
# Gradients flow through a memory to the features that it was made from. ``append(..., detach=True)`` stops them at the
# memory, so that each step of a long stream can be trained by itself. The older keys and values then still come from
# the weights before the update, as in Transformer-XL.
#
# What a step costs
# -----------------
# On a CPU and without gradients, a step reads the memories once and does not copy them: ``append`` leaves room for more
# segments after a memory, and the new segment is written there. So keep the memory that ``append`` returns, and go on
# with it. With gradients, or on a GPU, ``append`` copies the memories. ``max_length`` bounds the cost of both.
