"""Measure how fast the AVE release is read row by row, the usual way, compared with the same dataset after `prepare`.

The script writes a random dataset of the release's shapes to a temporary directory, which needs 4.6 MB per video. Set
TMPDIR to a directory on a disk. It prepares the dataset with the example's `prepare`, and reads every video once,
shuffled, in float32 batches on the host:

- "row by row": a loop over the rows of a batch, each read from HDF5 into a float32 array;
- "release": the example's dataset class on the HDF5 files;
- "prepared": the same class on the memory-mapped float16 files, with conversion to float32 and without. Training
  reads without conversion, and converts on the device.

The HDF5 files have two layouts: contiguous, as in the release, and one chunk per video. A cold reading starts with no
file in the page cache, which mincore checks. (The host of a virtual disk may still cache them.) A warm reading follows.
There is one process and no prefetching, so that only storage and conversion are measured.
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
from ave.data.opening import read_set
from ave.prepare import prepare_release
from ave.results.files import write_json
from ave.results.tables import format_table
from benchmarks.machine import describe_machine
from benchmarks.measuring import median_and_quartiles

SEGMENTS, GRID, VIDEO_DIM, AUDIO_DIM, LABELS = 10, 7, 512, 128, 29
LAYOUTS = ("contiguous", "chunked")
VISUAL_ZEROS, AUDIO_ZEROS = 0.75, 0.65  # the shares of zeros in the features


def write_set(directory: Path, videos: int, layout: str) -> None:
    """Write the files of the supervised setting, with random features in the release's shapes and dtypes."""
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
    """Return the share of a file's pages that are in the page cache."""
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
    """Reader that copies each row of a batch from HDF5 into a float32 array."""

    def __init__(self, directory: Path) -> None:
        self.visual, self.audio = (h5py.File(path)["avadataset"] for path in feature_files(directory))

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Return the features of a batch."""
        visual = np.zeros((len(rows), *self.visual.shape[1:]), np.float32)
        audio = np.zeros((len(rows), *self.audio.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            visual[place] = self.visual[row]
            audio[place] = self.audio[row]
        return torch.from_numpy(visual), torch.from_numpy(audio)


class ByDataset:
    """Reader that uses the dataset class of the example, and converts to float32."""

    def __init__(self, directory: Path) -> None:
        data = read_set(directory, "supervised")
        self.videos = Videos(Part(data.visual, data.audio, data.labels, torch.arange(len(data.labels))))

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Return the features of a batch."""
        batch = self.videos[Share(rows, 1.0)]
        return batch.video.float(), batch.audio.float()


class AsStored(ByDataset):
    """Reader that uses the dataset class of the example, without conversion, as training does."""

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Return the features of a batch."""
        batch = self.videos[Share(rows, 1.0)]
        return batch.video, batch.audio


Way = tuple[type[RowByRow] | type[ByDataset], Path]


def feature_files(directory: Path) -> list[Path]:
    """Return the feature files of a dataset, HDF5 or prepared."""
    return [path for name in ("visual", "audio") for path in directory.glob(f"{name}_feature.*")]


def measure(way: Way, batches: list[list[int]]) -> dict[str, float]:
    """Return the samples per second of a cold and a warm reading. Opening and verifying files does not count."""
    reader, directory = way
    read = reader(directory)
    for path in feature_files(directory):
        forget(path)
        if (share := resident_share(path)) > 0.01:
            raise RuntimeError(
                f"{path} must not be in the page cache, got {share:.0%} of it there: set TMPDIR to a disk"
            )
    speeds = {}
    for state in ("cold", "warm"):
        start = time.perf_counter()
        samples = sum(len(read(rows)[0]) for rows in batches)
        speeds[state] = samples / (time.perf_counter() - start)
    return speeds


def run(place: Path, videos: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Write the dataset in both layouts, prepare it, and measure all ways in turn."""
    ways: dict[str, Way] = {}
    for layout in LAYOUTS:
        (place / layout).mkdir()
        write_set(place / layout, videos, layout)
        ways[f"row by row, {layout} HDF5"] = (RowByRow, place / layout)
        ways[f"release, {layout} HDF5"] = (ByDataset, place / layout)
    start = time.perf_counter()
    files = prepare_release(place / LAYOUTS[0], place / "prepared").files
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
        "bytes_before": files["visual_feature"].source.bytes,
        "bytes_after": files["visual_feature"].bytes,
        "prepare_seconds": seconds,
        "machine": {**describe_machine(), "h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version},
        "samples_per_second": {
            name: {state: median_and_quartiles(values) for state, values in states.items()}
            for name, states in speeds.items()
        },
    }


def format_results(results: dict[str, Any]) -> str:
    """Return a table of the speeds, and of their ratios to reading the release row by row."""
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
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--videos",
        type=int,
        default=416,
        metavar="N",
        help="number of videos (default: %(default)s, 0.8 GB in float64)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="videos per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="number of readings, at least 2 (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file for the results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        results = run(Path(place), options.videos, options.batch_size, options.repeats)
    print(format_results(results))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, results)


if __name__ == "__main__":
    main()
