"""Find the videos that files and directories name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_videos"]

SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
}
"""The suffixes of the files that are taken from a directory."""


def find_videos(places: Sequence[Path]) -> dict[str, Path]:
    """Find the videos in files and directories, and return their paths by their names, sorted.

    Raises:
        FileNotFoundError: if a file or directory does not exist.
        ValueError: if there is no video, or two files have the same name without their suffix.
    """
    found: defaultdict[str, dict[Path, Path]] = defaultdict(dict)
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"--videos must be files or directories, got {place}, which does not exist")
        files = [place]
        if place.is_dir():
            files = [
                path
                for path in place.rglob("*")
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
            ]
            if not files:
                raise ValueError(f"--videos must hold videos, such as .mp4, got none in the directory {place}")
        for path in files:
            found[path.stem].setdefault(path.resolve(), path)
    for name, paths in sorted(found.items()):
        if len(paths) > 1:
            first, second, *_ = sorted(paths.values())
            raise ValueError(f"--videos must have different names, got {name} twice: {first} and {second}")
    if not found:
        raise ValueError("--videos must name at least one video, got none")
    return {name: next(iter(paths.values())) for name, paths in sorted(found.items())}
