"""Gather the features of videos in a directory: a file for each finished video, then the arrays of a dataset.

Axes: N videos, T seconds, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ave.data.layout import FILES
from ave.data.prepared import FORM, MANIFEST, UNFINISHED, Entry, Manifest, Source, find_damage, parse_manifest
from ave.data.release import MOST_OF_VIDEO
from ave.printing import printable
from ave.results.files import is_leftover, make_directory, write_array, write_json, writing
from ave.videos.extraction import Extraction

__all__ = ["Assembly"]

FINISHED = "finished"
"""The directory with a file for each finished video, until the dataset is complete."""


class Assembly:
    """The directory of a dataset that is not complete yet.

    Args:
        output: the directory.
        extraction: how the features are extracted.
        visual_shape: the shape of the visual features of a second, (H, W, C).
        audio_dim: A, width of the audio features.

    Attributes:
        longest: the largest number of seconds that a video may have.
        finished: the number of seconds and the file of each finished video.
    """

    def __init__(self, output: Path, extraction: Extraction, visual_shape: tuple[int, ...], audio_dim: int) -> None:
        self.output, self.extraction, self.visual_shape, self.audio_dim = output, extraction, visual_shape, audio_dim
        self.longest = MOST_OF_VIDEO // max(prod(visual_shape), audio_dim)
        self.finished: dict[str, tuple[int, Source]] = {}

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
            if (features := self.load(name)) is not None and self.finished[name][1] != Source.of(path):
                del self.finished[name]
            del features
        return None

    def save(self, name: str, source: Source, visual: Tensor, audio: Tensor) -> None:
        """Save the features of a video."""
        tensors = {"visual": visual.contiguous(), "audio": audio.contiguous()}
        facts = {"video": name, "source": asdict(source), "extraction": asdict(self.extraction)}
        metadata = {"facts": json.dumps(facts), "sha256": _digest(tensors)}
        with writing(self._path(name)) as temporary:
            temporary.write_bytes(save(tensors, metadata))
        self.finished[name] = len(audio), source

    def load(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Load the features of a video, or return None if they are not there, damaged, or made in another way."""
        self.finished.pop(name, None)
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in ("visual", "audio")}
                metadata = file.metadata()
            facts = json.loads(metadata["facts"])
            source = Source(**facts["source"])
            right = metadata["sha256"] == _digest(tensors) and facts["video"] == name
            right = right and facts["extraction"] == asdict(self.extraction)
            visual, audio = tensors["visual"], tensors["audio"]
            right = right and visual.shape[1:] == self.visual_shape and audio.shape == (len(visual), self.audio_dim)
        except Exception as error:  # safetensors and json raise many types of error at damaged bytes
            print(f"{path} is damaged, so {printable(name)} is extracted again: {printable(error, 200)}")
            return None
        if not right:
            print(f"{path} is damaged or of other features, so {printable(name)} is extracted again")
            return None
        self.finished[name] = len(audio), source
        return visual, audio

    def complete(self, videos: Mapping[str, Path]) -> Manifest:
        """Join the features of all videos, which makes the dataset complete, and remove those of single videos."""
        names = tuple(videos)
        lengths = [self.finished[name][0] for name in names]
        most, sources = max(lengths), [source for _, source in self.finished.values()]
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
        """Yield the features of each video, with zeros up to the longest one."""
        for name in names:
            features = self.load(name)
            if features is None:
                raise OSError(f"the features of {printable(name)} in {self.output} have changed while this ran")
            own = features[part].numpy()
            padded = np.zeros((1, most, *own.shape[1:]), np.float32)
            padded[0, : len(own)] = own
            yield padded

    def _manifest(self, names: tuple[str, ...]) -> Manifest:
        return Manifest(FORM, "float32", {}, names, extraction=self.extraction)

    def _path(self, name: str) -> Path:
        # A digest, because the name with another suffix may be too long for a file.
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self.output / FINISHED / f"{digest[:32]}.safetensors"

    def _clean(self) -> None:
        (self.output / UNFINISHED).unlink(missing_ok=True)
        shutil.rmtree(self.output / FINISHED, ignore_errors=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("visual", "audio"):
        digest.update(repr((tensors[name].dtype, tuple(tensors[name].shape))).encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
