"""Gather the features of videos in a directory: a file for each finished video, then the arrays of a dataset.

Features are written second by second, so that memory does not grow with the length of a video. The file of a video has
no header: for each second, the visual features and then the audio features.

Axes: N videos, T seconds, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ave.data.layout import FILES
from ave.data.prepared import FORM, MANIFEST, UNFINISHED, Entry, Manifest, Source, find_damage, parse_manifest
from ave.data.release import MOST_NUMBERS
from ave.printing import printable
from ave.reading import convert, load_json
from ave.results.files import is_leftover, make_directory, write_array, write_json, writing
from ave.videos.extraction import Extraction

__all__ = ["Assembly"]

FINISHED = "finished"
"""The directory with the features of each finished video, until the dataset is complete."""
BLOCK = 64
"""The number of seconds that are in memory at once."""


@dataclass(frozen=True)
class _Finished:
    """What is written beside the features of a finished video."""

    video: str
    extraction: Extraction
    visual_shape: tuple[int, ...]
    audio_dim: int
    entry: Entry


class Assembly:
    """The directory of a dataset that is not complete yet.

    Args:
        output: the directory.
        extraction: how the features are extracted.
        visual_shape: the shape of the visual features of a second, (H, W, C).
        audio_dim: A, width of the audio features.

    Attributes:
        longest: the largest number of seconds that a video may have.
        finished: the entries of the finished videos, whose shape is (seconds, width of the features of a second).
    """

    def __init__(self, output: Path, extraction: Extraction, visual_shape: tuple[int, ...], audio_dim: int) -> None:
        self.output, self.extraction, self.visual_shape, self.audio_dim = output, extraction, visual_shape, audio_dim
        self.finished: dict[str, Entry] = {}
        self._widths = prod(visual_shape), audio_dim
        self.longest = MOST_NUMBERS // max(self._widths)

    def open(self, videos: Mapping[str, Path]) -> Manifest | None:
        """Check what is in the directory, and find the finished videos. Return the manifest if all is complete.

        Raises:
            ValueError: if it holds other files, or features of other videos, or features that were made in another way.
        """
        names = tuple(videos)
        present = {path.name for path in self.output.iterdir() if not is_leftover(path)}
        own = {MANIFEST, UNFINISHED, FINISHED, *(f"{file.name}.npy" for file in FILES)}
        started = present & {MANIFEST, UNFINISHED}
        if strangers := sorted(present - own if started else present):
            expected = "--output must be a new or empty directory, or one where extract was stopped"
            raise ValueError(f"{expected}, got {self.output}, which holds {strangers[0]}")
        old = None
        if started:
            path = self.output / (UNFINISHED if UNFINISHED in started else MANIFEST)
            try:
                old = parse_manifest(path)
            except (OSError, ValueError) as error:
                print(f"{path} is damaged, so it is written again: {error}")
        if old is not None and old.extraction != self.extraction:
            made = "by `prepare`" if old.extraction is None else str(old.extraction)
            raise ValueError(
                f"--output must be a new directory, or one with features by {self.extraction}, got "
                f"{self.output}, with features {made}"
            )
        if old is not None and old.files:  # complete
            damages = [find_damage(self.output / f"{name}.npy", entry) for name, entry in old.files.items()]
            if damage := next(filter(None, damages), None):
                print(f"{damage}; all videos are extracted again")
            elif old.names != names:
                differing = sorted(set(old.names or ()) ^ set(names))
                raise ValueError(
                    f"--output must be a new directory, got {self.output}, which is complete, with other videos: "
                    f"{printable(differing[0])} is only in one of them"
                )
            else:
                self._clean()
                return old
        write_json(self.output / UNFINISHED, asdict(self._manifest(names)))
        make_directory(self.output / FINISHED)
        for name, path in videos.items():
            if (entry := self._find(name)) is not None and entry.source == Source.of(path):
                self.finished[name] = entry
        return None

    @contextmanager
    def adding(self, name: str, source: Source) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Save a video second by second. If the code inside raises an error, nothing is saved.

        Args:
            name: the name of the video.
            source: its file.

        Yields:
            A function that takes the visual and the audio features of the next second.
        """
        path, digest = self._path(name), hashlib.sha256()
        with writing(path) as temporary, temporary.open("wb") as stream:

            def add(visual: Tensor, audio: Tensor) -> None:
                second = torch.cat([visual.flatten(), audio]).numpy().data
                digest.update(second)
                stream.write(second)

            yield add
        finished = self._describe(name, source, path.stat().st_size, digest.hexdigest())
        write_json(path.with_suffix(".json"), asdict(finished))
        self.finished[name] = finished.entry

    def _find(self, name: str) -> Entry | None:
        """Return the entry of a finished video, or None if it is not there, damaged, or made in another way."""
        path = self._path(name)
        facts = path.with_suffix(".json")
        if not facts.is_file():
            return None
        try:
            finished = convert(_Finished, load_json(facts))
        except (OSError, ValueError) as error:
            damage = f"{facts} is damaged: {printable(error, 200)}"
        else:
            entry = finished.entry
            if finished != self._describe(name, entry.source, entry.bytes, entry.sha256):
                damage = f"{facts} is damaged or of other features"
            elif (found := find_damage(path, entry)) is None:
                return entry
            else:
                damage = found
        print(f"{damage}, so {printable(name)} is extracted again")
        return None

    def complete(self, videos: Mapping[str, Path]) -> Manifest:
        """Join the features of all videos, which makes the dataset complete, and remove those of single videos."""
        names = tuple(videos)
        for name in names:
            if find_damage(self._path(name), self.finished[name]) is not None:
                raise OSError(f"the features of {printable(name)} in {self.output} have changed while this ran")
        lengths = [self.finished[name].shape[0] for name in names]
        most, sources = max(lengths), [entry.source for entry in self.finished.values()]
        source = Source(sum(one.bytes for one in sources), max(one.modified_ns for one in sources))
        shapes = {
            "visual_feature": (len(names), most, *self.visual_shape),
            "audio_feature": (len(names), most, self.audio_dim),
        }
        needed, free = sum(4 * prod(shape) for shape in shapes.values()), shutil.disk_usage(self.output).free
        if needed > free:
            expected, came = (tqdm.format_sizeof(size, "B") for size in (needed, free))
            raise OSError(errno.ENOSPC, f"the dataset needs {expected}, got {came} free", str(self.output))
        manifest = self._manifest(names)
        for part, (name, shape) in enumerate(shapes.items()):
            blocks = self._padded(names, most, part)
            manifest.files[name] = self._write(name, shape, np.dtype(np.float32), blocks, source)
        if min(lengths) < most:
            kind = np.dtype(np.int64)
            manifest.files["lengths"] = self._write("lengths", (len(names),), kind, [np.array(lengths, kind)], source)
        for name in {file.name for file in FILES} - manifest.files.keys():  # left by a dataset that was damaged
            (self.output / f"{name}.npy").unlink(missing_ok=True)
        write_json(self.output / MANIFEST, asdict(manifest))
        self._clean()
        return manifest

    def _write(
        self, name: str, shape: tuple[int, ...], kind: np.dtype[Any], blocks: Iterable[NDArray[Any]], source: Source
    ) -> Entry:
        size, digest = write_array(self.output / f"{name}.npy", shape, kind, blocks)
        return Entry(source, 0.0, 0.0, shape, kind.name, size, digest)

    def _padded(self, names: Sequence[str], most: int, part: int) -> Iterator[NDArray[Any]]:
        """Yield the visual features (part 0) or the audio features (1) of each video, with zeros up to the longest."""
        columns = (slice(self._widths[0]), slice(self._widths[0], None))[part]
        for name in names:
            # Memory-mapped, so that the visual features are not read again for the audio features beside them.
            rows = np.memmap(self._path(name), np.float32, "r", shape=self.finished[name].shape)
            seconds = len(rows)
            for first in range(0, seconds, BLOCK):
                yield np.ascontiguousarray(rows[first : first + BLOCK, columns])
            for first in range(seconds, most, BLOCK):
                yield np.zeros((min(BLOCK, most - first), self._widths[part]), np.float32)

    def _manifest(self, names: tuple[str, ...]) -> Manifest:
        return Manifest(FORM, "float32", {}, names, extraction=self.extraction)

    def _describe(self, name: str, source: Source, size: int, digest: str) -> _Finished:
        """Describe a finished video, whose features have ``size`` bytes."""
        width = sum(self._widths)
        entry = Entry(source, 0.0, 0.0, (size // (4 * width), width), "float32", size, digest)
        return _Finished(name, self.extraction, self.visual_shape, self.audio_dim, entry)

    def _path(self, name: str) -> Path:
        # A digest, because the name with another suffix may be too long for a file.
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self.output / FINISHED / f"{digest[:32]}.features"

    def _clean(self) -> None:
        (self.output / UNFINISHED).unlink(missing_ok=True)
        shutil.rmtree(self.output / FINISHED, ignore_errors=True)
