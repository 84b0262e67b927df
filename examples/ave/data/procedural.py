"""Make a synthetic dataset from a seed, with the shapes and statistics of the AVE release. It is never AVE.

A category is a look together with a sound. The 28 categories form a ring: each shares its look with one neighbor and
its sound with the other, so a single modality cannot identify a category. A video has an object with the look of its
category, which moves over the grid, and the sound of its category. In the event, both are present. Before and after the
event, only the object, only the sound or neither is present. Most videos also have a distractor look or a distractor
sound, which follow the same rules, but match neither the category nor each other. So only a look and a sound that match
and are present together make an event.

Axes: N videos, T seconds, H x W positions, C visual channels, A audio channels; 2 = the category's own object or
sound, then the distractor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ave.data.dataset import AVEData

__all__ = ["CATEGORIES", "LOOK_OF", "SOUND_OF", "Script", "draw_script", "make_procedural_set"]

SECONDS, GRID, VIDEO_DIM, AUDIO_DIM = 10, 7, 512, 128
NUM_CATEGORIES, NUM_LOOKS, NUM_SOUNDS = 28, 14, 14
LOOK_OF = torch.arange(NUM_CATEGORIES) // 2
"""int64 (28,): the look of each category."""
SOUND_OF = (torch.arange(NUM_CATEGORIES) + 1) // 2 % NUM_SOUNDS
"""int64 (28,): the sound of each category."""
CATEGORIES = tuple(
    f"look {chr(65 + look)}, sound {sound + 1}" for look, sound in zip(LOOK_OF.tolist(), SOUND_OF.tolist(), strict=True)
)

# Number of videos with an event of 0 ... 10 seconds, as in AVE. Only the number for 0 is larger, because in a small set
# the single video of AVE without an event would never occur.
EVENT_LENGTHS = (41, 0, 214, 220, 217, 196, 200, 139, 111, 95, 2750)
# How far the look and the sound of a distractor are from those of the category on the ring. They are so far apart that
# they match neither each other nor the category, and they tell nothing about the category.
DISTRACTOR_STEPS = [(look, sound) for look in range(2, 13) for sound in range(2, 13) if abs(look - sound) > 1]
DISTRACTOR_SHARE = 0.5  # share of videos with a distractor look, and with a distractor sound
LOOK_DENSITY = 0.1  # share of the visual channels that a look activates
SOUND_DENSITY = 0.15  # share of the audio channels that a sound activates
LOOK_STRENGTH = 3.0  # maximum value of a look; the maximum of clutter is 1
SOUND_STRENGTH = 2.0  # maximum value of a sound
VARIATION = 0.5  # maximum relative change of the strength of an object or sound
CLUTTER_ZEROS = 0.75  # share of zeros in the visual features without an object
HISS = 0.4  # standard deviation of the noise in the audio
HISS_THRESHOLD = 0.27  # audio below this becomes zero
CHUNK = 32  # videos that are made at once, to limit memory


class Script(NamedTuple):
    """What is seen and heard in each second. The features are made from this."""

    looks: Tensor
    """int64 (N, 2): the looks of the two objects."""
    sounds: Tensor
    """int64 (N, 2): the two sounds."""
    cells: Tensor
    """bool (N, 2, T, H, W): the 1 to 4 cells of each object; none in seconds when it is not seen."""
    heard: Tensor
    """bool (N, 2, T): when each sound is heard."""
    event: Tensor
    """bool (N, T): when the object of the category is seen and its sound is heard."""


def draw_script(category: Tensor, generator: Generator, *, with_events: bool = True) -> Script:
    """Draw what is seen and heard in each second.

    Args:
        category: int64 (N,), the category of each video.
        generator: the source of all randomness.
        with_events: True: events with the lengths of AVE; False: no events.

    Examples:
        >>> script = draw_script(torch.arange(28), Generator().manual_seed(0))
        >>> script.event.shape, script.cells.shape
        (torch.Size([28, 10]), torch.Size([28, 2, 10, 7, 7]))
    """
    num = len(category)
    weights = torch.tensor(EVENT_LENGTHS, dtype=torch.float32)
    length = torch.multinomial(weights, num * 2, replacement=True, generator=generator).view(num, 2)
    if not with_events:
        length[:, 0] = 0  # distractors are the same as in other videos
    seen, heard = _draw_presence(length, generator)
    event = seen[:, 0] & heard[:, 0]
    kept = torch.rand(2, num, 1, generator=generator) < DISTRACTOR_SHARE
    seen[:, 1] &= kept[0]
    heard[:, 1] &= kept[1]
    own = torch.stack([LOOK_OF[category], SOUND_OF[category]], 1)
    steps = torch.tensor(DISTRACTOR_STEPS)[torch.randint(len(DISTRACTOR_STEPS), (num,), generator=generator)]
    distractors = (own + steps) % torch.tensor([NUM_LOOKS, NUM_SOUNDS])
    looks, sounds = torch.stack([own, distractors], 1).unbind(-1)
    return Script(looks, sounds, _draw_cells(seen, generator), heard, event)


def _draw_presence(length: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw when objects are seen and sounds are heard, bool (N, 2, T).

    Both are present during ``length`` (N, 2) consecutive seconds, and never both in other seconds.
    """
    start = (torch.rand(length.shape, generator=generator) * (SECONDS - length + 1)).long().unsqueeze(-1)
    stop = start + length.unsqueeze(-1)
    second = torch.arange(SECONDS)
    together = (second >= start) & (second < stop)
    # Before and after: 0 only seen, 1 only heard, 2 neither.
    outside = torch.randint(3, (*length.shape, 2), generator=generator).gather(-1, (second >= stop).long())
    return together | (outside == 0), together | (outside == 1)


def _draw_cells(seen: Tensor, generator: Generator) -> Tensor:
    """Draw the cells of each object, bool (N, 2, T, H, W). It is 1 or 2 cells high and wide, and moves in the grid."""
    num, objects, seconds = seen.shape
    size = torch.randint(1, 3, (num, objects, 1, 2), generator=generator)
    start = torch.randint(GRID, (num, objects, 1, 2), generator=generator)
    step = torch.randint(-1, 2, (num, objects, seconds, 2), generator=generator)
    limit = GRID - size
    corner = ((start + step.cumsum(2)) % (2 * limit) - limit).abs().unsqueeze(-1)
    line = torch.arange(GRID)
    rows, columns = ((line >= corner) & (line < corner + size.unsqueeze(-1))).unbind(-2)
    return rows.unsqueeze(-1) & columns.unsqueeze(-2) & seen[..., None, None]


def _draw_prototypes(num: int, dim: int, density: float, generator: Generator) -> Tensor:
    """Draw the channels that looks or sounds activate: sparse (num, dim), in [0, 1)."""
    excited = torch.rand(num, dim, generator=generator) < density
    return excited * torch.rand(num, dim, generator=generator)


def _vary(features: Tensor, generator: Generator) -> Tensor:
    """Vary the strength of objects or sounds (N, 2, channels) between videos."""
    return features * (1 + VARIATION * (2 * torch.rand(*features.shape[:2], 1, generator=generator) - 1))


def _make_visual(script: Script, prototypes: Tensor, generator: Generator) -> Tensor:
    """Make the visual features, objects on clutter: float16 (N, T, H, W, C)."""
    looks = LOOK_STRENGTH * _vary(prototypes[script.looks], generator)
    visual = torch.empty(len(looks), SECONDS, GRID, GRID, VIDEO_DIM, dtype=torch.float16)
    for rows in torch.arange(len(looks)).split(CHUNK):
        clutter = torch.rand(len(rows), *visual.shape[1:], generator=generator)
        clutter = clutter.sub_(CLUTTER_ZEROS).relu_().div_(1 - CLUTTER_ZEROS)
        visual[rows] = clutter.add_(torch.einsum("nothw,noc->nthwc", script.cells[rows].float(), looks[rows])).half()
    return visual


def _make_audio(script: Script, prototypes: Tensor, generator: Generator) -> Tensor:
    """Make the audio features, sounds in noise and a ReLU: float16 (N, T, A)."""
    sounds = SOUND_STRENGTH * _vary(prototypes[script.sounds], generator)
    audio = torch.einsum("not,noa->nta", script.heard.float(), sounds)
    noise = HISS * torch.randn(audio.shape, generator=generator)
    return (audio + noise - HISS_THRESHOLD).relu().half()


def make_procedural_set(
    seed: int = 0, *, num_train: int = 448, num_val: int = 96, num_test: int = 192, num_background: int = 32
) -> AVEData:
    """Make a procedural set in the shape of the AVE release, which takes seconds.

    Args:
        seed: the seed of all random numbers. Another seed also gives other looks and sounds.
        num_train: number of videos for training. All numbers must be at least 1.
        num_val: number of videos for choosing the epoch.
        num_test: number of videos for the final results.
        num_background: number of extra background videos for the weak setting, without events.

    Returns:
        AVEData: visual (N, 10, 7, 7, 512) and audio (N, 10, 128), float16 and never negative. The 28 categories are
        equally frequent. ``object_cells`` also has the seconds when the object is seen but silent. ``decoy_cells`` are
        the cells of the distractor.

    Examples:
        >>> data = make_procedural_set(num_train=4, num_val=2, num_test=2, num_background=1)
        >>> data.visual.shape, data.audio.shape, data.labels.shape
        (torch.Size([8, 10, 7, 7, 512]), torch.Size([8, 10, 128]), torch.Size([8, 10, 29]))
        >>> data.categories[:3]
        ('look A, sound 1', 'look A, sound 2', 'look B, sound 2')
    """
    sizes = {"num_train": num_train, "num_val": num_val, "num_test": num_test, "num_background": num_background}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    generator = Generator().manual_seed(seed)
    looks = _draw_prototypes(NUM_LOOKS, VIDEO_DIM, LOOK_DENSITY, generator)
    sounds = _draw_prototypes(NUM_SOUNDS, AUDIO_DIM, SOUND_DENSITY, generator)

    num = num_train + num_val + num_test
    category = torch.randperm(num, generator=generator) % NUM_CATEGORIES
    script = draw_script(category, generator)
    train, val, test = torch.randperm(num, generator=generator).split([num_train, num_val, num_test])
    label = torch.where(script.event, category.unsqueeze(1), NUM_CATEGORIES)

    extra = torch.randint(NUM_CATEGORIES, (num_background,), generator=generator)
    background = draw_script(extra, generator, with_events=False)
    background_label = torch.full((num_background,), NUM_CATEGORIES)
    return AVEData(
        visual=_make_visual(script, looks, generator),
        audio=_make_audio(script, sounds, generator),
        labels=F.one_hot(label, NUM_CATEGORIES + 1).float(),
        splits={"train": train, "val": val, "test": test},
        categories=CATEGORIES,
        video_labels=F.one_hot(category, NUM_CATEGORIES + 1).float(),
        background_visual=_make_visual(background, looks, generator),
        background_audio=_make_audio(background, sounds, generator),
        background_labels=F.one_hot(background_label, NUM_CATEGORIES + 1).float(),
        object_cells=script.cells[:, 0],
        decoy_cells=script.cells[:, 1],
        eventless_category=0,  # as for AVE
    )
