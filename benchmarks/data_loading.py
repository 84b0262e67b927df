"""Samples per second of the AVE release read row by row, as it usually is, against the same set prepared.

Makes a set of the release's true shape in a temporary directory (TMPDIR says where, on a disk; 4.6 MB a video in all),
prepares it with the example's own `prepare`, and reads every video once, shuffled, in float32 batches on the host:

- "row by row": a loop over the rows of a batch, each read from HDF5 into a float32 array;
- "release": the example's dataset class on the HDF5 files;
- "prepared": the same class on the float16 files that are mapped into memory; once more without the conversion to
  float32, as training takes it, which converts on the device.

HDF5 comes in two layouts: contiguous, as all files are that the release's repository holds, and a chunk a video.
Cold is with nothing of the files in the page cache, which mincore confirms (the host of a virtual disk may still have
them); warm is right after it. There is one process and no prefetch: it is the storage and the conversion that count.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ave.data.batches import Part, Share, Videos
from ave.data.dataset import SPLITS
from ave.data.prepared import read_set
from ave.prepare import prepare_release
from ave.results.files import write_json
from ave.results.tables import format_table
from benchmarks.machine import describe_machine
from benchmarks.measuring import summarise

SEGMENTS, GRID, VIDEO_DIM, AUDIO_DIM, LABELS = 10, 7, 512, 128, 29
LAYOUTS = ("contiguous", "chunked")
VISUAL_ZEROS, AUDIO_ZEROS = 0.75, 0.65  # the shares of zeros after the ReLUs


def write_set(directory: Path, videos: int, layout: str) -> None:
    """Write what the supervised setting needs, of the release's shapes and dtypes, with random values after a ReLU."""
    rng = np.random.default_rng(0)

    def write(name: str, shape: tuple[int, ...], zeros: float) -> None:
        chunks = (1, *shape) if layout == "chunked" else None
        with h5py.File(directory / f"{name}.h5", "w") as file:
            dataset = file.create_dataset("avadataset", (videos, *shape), "f8", chunks=chunks)
            for row in range(videos):
                values = rng.random(shape, np.float32)
                dataset[row] = np.maximum(values - zeros, 0) * (4 / (1 - zeros))

    write("visual_feature", (SEGMENTS, GRID, GRID, VIDEO_DIM), VISUAL_ZEROS)
    write("audio_feature", (SEGMENTS, AUDIO_DIM), AUDIO_ZEROS)
    labels = np.eye(LABELS, dtype=np.float32)[rng.integers(0, LABELS, (videos, SEGMENTS))]
    with h5py.File(directory / "labels.h5", "w") as file:
        file["avadataset"] = labels
    for split, rows in zip(SPLITS, np.array_split(rng.permutation(videos), len(SPLITS)), strict=True):
        with h5py.File(directory / f"{split}_order.h5", "w") as file:
            file["order"] = rows


def resident_share(path: Path) -> float:
    """The share of a file's pages that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        place = (ctypes.c_char * 1).from_buffer(mapped)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(len(mapped)), pages)
        del place
        if failed:
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
        return sum(page & 1 for page in pages) / len(pages)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class RowByRow:
    """The usual loop: every row of a batch is read from HDF5, and put in a float32 array."""

    def __init__(self, directory: Path) -> None:
        self.visual, self.audio = (h5py.File(path)["avadataset"] for path in feature_files(directory))

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The features of a batch."""
        visual = np.zeros((len(rows), *self.visual.shape[1:]), np.float32)
        audio = np.zeros((len(rows), *self.audio.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            visual[place] = self.visual[row]
            audio[place] = self.audio[row]
        return torch.from_numpy(visual), torch.from_numpy(audio)


class ByDataset:
    """The dataset class of the example, on either form of the set, in float32."""

    def __init__(self, directory: Path) -> None:
        data = read_set(directory, "supervised")
        self.videos = Videos(Part(data.visual, data.audio, data.labels, torch.arange(len(data.labels))))

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The features of a batch."""
        batch = self.videos[Share(rows, 1.0)]
        return batch.video.float(), batch.audio.float()


class AsStored(ByDataset):
    """The same, in the dtype that training takes from it."""

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The features of a batch."""
        batch = self.videos[Share(rows, 1.0)]
        return batch.video, batch.audio


Way = tuple[type[RowByRow] | type[ByDataset], Path]


def feature_files(directory: Path) -> list[Path]:
    """The files that the ways read, of either form."""
    return [path for name in ("visual", "audio") for path in directory.glob(f"{name}_feature.*")]


def measure(way: Way, batches: list[list[int]]) -> dict[str, float]:
    """Samples per second, cold and then warm; opening the files, and verifying prepared ones, are not counted."""
    reader, directory = way
    read = reader(directory)
    for path in feature_files(directory):
        forget(path)
        if (share := resident_share(path)) > 0.01:
            raise RuntimeError(
                f"{path} must be out of the page cache, got {share:.0%} of it there: set TMPDIR to a disk"
            )
    speeds = {}
    for state in ("cold", "warm"):
        start = time.perf_counter()
        samples = sum(len(read(rows)[0]) for rows in batches)
        speeds[state] = samples / (time.perf_counter() - start)
    return speeds


def run(place: Path, videos: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Make the set in both layouts, prepare it, and measure every way, interleaved."""
    ways: dict[str, Way] = {}
    for layout in LAYOUTS:
        (place / layout).mkdir()
        write_set(place / layout, videos, layout)
        ways[f"row by row, {layout} HDF5"] = (RowByRow, place / layout)
        ways[f"release, {layout} HDF5"] = (ByDataset, place / layout)
    start = time.perf_counter()
    files = prepare_release(place / LAYOUTS[0], place / "prepared")["files"]
    seconds = time.perf_counter() - start
    ways["prepared"] = (ByDataset, place / "prepared")
    ways["prepared, float16 batches"] = (AsStored, place / "prepared")
    speeds: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in ways}
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(videos)
        batches = [order[first : first + batch_size].tolist() for first in range(0, videos, batch_size)]
        for name, way in ways.items():
            for state, speed in measure(way, batches).items():
                speeds[name][state].append(speed)
            print(f"{repeat + 1} of {repeats}: {name}", file=sys.stderr)
    return {
        "videos": videos,
        "batch_size": batch_size,
        "repeats": repeats,
        "bytes_before": files["visual_feature"]["source"]["bytes"],
        "bytes_after": files["visual_feature"]["bytes"],
        "prepare_seconds": seconds,
        "machine": {**describe_machine(), "h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version},
        "samples_per_second": {
            name: {state: summarise(values) for state, values in states.items()} for name, states in speeds.items()
        },
    }


def format_results(results: dict[str, Any]) -> str:
    """The speeds, and how many times that of the row-by-row loop in the same layout as the release they are."""
    speeds = results["samples_per_second"]
    usual = speeds[f"row by row, {LAYOUTS[0]} HDF5"]
    rows = []
    for name, states in speeds.items():
        cells = [name]
        for state, values in states.items():
            lower, upper = values["quartiles"]
            ratio = values["median"] / usual[state]["median"]
            cells += [f"{values['median']:.0f}", f"{lower:.0f}-{upper:.0f}", f"{ratio:.2f}x"]
        rows.append(cells)
    title = f"Samples per second, {results['videos']} videos in batches of {results['batch_size']}"
    header = ("", "cold", "quartiles", "ratio", "warm", "quartiles", "ratio")
    return format_table(f"{title}, median of {results['repeats']}", rows, header)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--videos", type=int, default=416, metavar="N", help="(default: %(default)s, 0.8 GB in float64)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="at least 2 (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON of the figures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        results = run(Path(place), options.videos, options.batch_size, options.repeats)
    print(format_results(results))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, results)


if __name__ == "__main__":
    main()
