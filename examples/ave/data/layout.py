"""The files of the AVE release, which own datasets have too: their names, axes and where to get them.

Axes: N videos, T segments, H x W positions, C visual channels, A audio channels, L labels with background as the last,
M extra background videos, R rows of a split.
"""

from __future__ import annotations

from typing import NamedTuple

from ave.data.dataset import SPLITS, Setting

__all__ = ["ANNOTATIONS", "CATEGORIES", "DOWNLOAD", "FILES", "REPOSITORY", "ReleaseFile", "needed_files"]

ANNOTATIONS, CATEGORIES = "Annotations.txt", "categories.txt"
DOWNLOAD = "the release has it: "
REPOSITORY = f"{DOWNLOAD}data/ of https://github.com/YapengTian/AVE-ECCV18"
DRIVE = f"{DOWNLOAD}https://drive.google.com/file/d/{{}}/view"
UNPADDED = "leave it out if no video is padded"


class ReleaseFile(NamedTuple):
    """A file of the release."""

    name: str
    """Its name without the suffix."""
    content: str
    axes: str
    remedy: str
    """What to do if it is missing or wrong. Only AVE's files can be downloaded."""
    weak: bool = False
    """Whether only the weak setting needs it."""
    optional: bool = False
    """Whether AVE does without it."""

    @property
    def dataset(self) -> str:
        """The name of its array in the HDF5 file."""
        return "order" if self.axes == "R" else "lengths" if self.is_lengths else "avadataset"

    @property
    def is_lengths(self) -> bool:
        """Whether it holds the seconds of each video."""
        return self.axes in ("N", "M")

    @property
    def is_features(self) -> bool:
        """Whether it holds features, and not labels or rows."""
        return self.axes[-1] in "CA"

    @property
    def is_extra(self) -> bool:
        """Whether it is of the extra background videos."""
        return self.axes[0] == "M"


# Sizes in the first files decide what the later files must fit.
FILES = (
    ReleaseFile("labels", "labels of seconds", "NTL", REPOSITORY),
    ReleaseFile("visual_feature", "visual features", "NTHWC", DRIVE.format("1hQwbhutA3fQturduRnHMyfRqdrRHgmC9")),
    ReleaseFile("audio_feature", "audio features", "NTA", DRIVE.format("1F6p4BAOY-i0fDXUOhG7xHuw_fnO5exBS")),
    ReleaseFile("lengths", "seconds of videos", "N", UNPADDED, optional=True),
    *(ReleaseFile(f"{split}_order", f"rows of {split}", "R", REPOSITORY) for split in SPLITS),
    ReleaseFile("mil_labels", "labels of videos", "NL", REPOSITORY, weak=True),
    ReleaseFile("labels_noisy", "extra labels", "ML", REPOSITORY, weak=True),
    ReleaseFile(
        "visual_feature_noisy", "extra visual", "MTHWC", DRIVE.format("1I3OtOHJ8G1-v5G2dHIGCfevHQPn-QyLh"), weak=True
    ),
    ReleaseFile("audio_feature_noisy", "extra audio", "MTA", REPOSITORY, weak=True),
    ReleaseFile("lengths_noisy", "extra seconds", "M", UNPADDED, optional=True),
)
"""All files that the two settings need."""


def needed_files(setting: Setting, *, background_videos: bool = True) -> frozenset[str]:
    """Return the names of the files that a setting cannot do without.

    Args:
        setting: "supervised" or "weak".
        background_videos: whether the weak setting needs the extra videos; a dataset other than AVE may lack them.

    Raises:
        ValueError: if there is no such setting.
    """
    if setting not in ("supervised", "weak"):
        raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
    needed = [file for file in FILES if not file.optional and (setting == "weak" or not file.weak)]
    return frozenset(file.name for file in needed if background_videos or not file.is_extra)
