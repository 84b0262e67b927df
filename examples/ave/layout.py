"""The files of the AVE release: what each holds, and where the release has it.

Axes: N videos, T segments, H x W positions, C visual channels, A audio channels, L labels with background as the last,
M extra background videos, R rows of a split.
"""

from __future__ import annotations

from typing import NamedTuple

from ave.data import SPLITS
from ave.model import Setting

__all__ = ["ANNOTATIONS", "AXES", "FILES", "REPOSITORY", "UNNEEDED", "ReleaseFile", "needed_files"]

ANNOTATIONS = "Annotations.txt"
AXES = {
    "N": "videos",
    "T": "segments",
    "H": "rows of positions",
    "W": "columns of positions",
    "C": "visual channels",
    "A": "audio channels",
    "L": "labels",
    "M": "background videos",
}
"""What the axes are, by letter."""
REPOSITORY = "data/ of https://github.com/YapengTian/AVE-ECCV18"
DRIVE = "https://drive.google.com/file/d/{}/view"
UNNEEDED = {
    "labels_closs.h5": "labels without categories, which labels.h5 gives too",
    **{f"{split}_order_match.h5": "of another task, cross-modal matching" for split in SPLITS},
    "prob_label.h5": "another project's file, not the labels",
}


class ReleaseFile(NamedTuple):
    """A file of the release."""

    name: str
    """Without its suffix."""
    content: str
    axes: str
    source: str
    """Where the release has it."""
    weak: bool = False
    """Whether only the weak setting needs it."""

    @property
    def dataset(self) -> str:
        """The name of its array."""
        return "order" if self.axes == "R" else "avadataset"

    @property
    def is_features(self) -> bool:
        """Whether it holds features, and not labels or rows."""
        return self.axes[-1] in "CA"


# Those that come first say what the sizes are that later ones must fit.
FILES = (
    ReleaseFile("labels", "labels of seconds", "NTL", REPOSITORY),
    ReleaseFile("visual_feature", "visual features", "NTHWC", DRIVE.format("1hQwbhutA3fQturduRnHMyfRqdrRHgmC9")),
    ReleaseFile("audio_feature", "audio features", "NTA", DRIVE.format("1F6p4BAOY-i0fDXUOhG7xHuw_fnO5exBS")),
    *(ReleaseFile(f"{split}_order", f"rows of {split}", "R", REPOSITORY) for split in SPLITS),
    ReleaseFile("mil_labels", "labels of videos", "NL", REPOSITORY, weak=True),
    ReleaseFile("labels_noisy", "extra labels", "ML", REPOSITORY, weak=True),
    ReleaseFile(
        "visual_feature_noisy", "extra visual", "MTHWC", DRIVE.format("1I3OtOHJ8G1-v5G2dHIGCfevHQPn-QyLh"), weak=True
    ),
    ReleaseFile("audio_feature_noisy", "extra audio", "MTA", REPOSITORY, weak=True),
)
"""All that the two settings need."""


def needed_files(setting: Setting) -> frozenset[str]:
    """The names of those of FILES that a setting cannot do without.

    Raises:
        ValueError: if there is no such setting.
    """
    if setting not in ("supervised", "weak"):
        raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
    return frozenset(file.name for file in FILES if setting == "weak" or not file.weak)
