"""The files of the AVE release, and of your own dataset in its layout: names, axes, and where to download them.

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
    """The name without its suffix."""
    content: str
    axes: str
    remedy: str
    """What to do if the file is missing or wrong. Only the files of AVE can be downloaded."""
    weak: bool = False
    """Whether only the weak setting needs the file."""
    optional: bool = False
    """Whether the file is optional, and not part of AVE."""

    @property
    def dataset(self) -> str:
        """The name of the dataset in the HDF5 file."""
        return "order" if self.axes == "R" else "lengths" if self.is_lengths else "avadataset"

    @property
    def is_lengths(self) -> bool:
        """Whether the file holds the lengths of videos."""
        return self.axes in ("N", "M")

    @property
    def is_features(self) -> bool:
        """Whether the file holds features."""
        return self.axes[-1] in "CA"

    @property
    def is_extra(self) -> bool:
        """Whether the file belongs to the background videos."""
        return self.axes[0] == "M"


# The shapes of later files are compared with those of earlier files.
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
"""All files of the two settings."""


def needed_files(setting: Setting, *, background_videos: bool = True) -> frozenset[str]:
    """Return the names of the files that a setting requires.

    Args:
        setting: "supervised" or "weak".
        background_videos: whether the weak setting requires the background videos of AVE.
    """
    if setting not in ("supervised", "weak"):
        raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
    needed = [file for file in FILES if not file.optional and (setting == "weak" or not file.weak)]
    return frozenset(file.name for file in needed if background_videos or not file.is_extra)
