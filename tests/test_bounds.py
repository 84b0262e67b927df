"""Files that declare more values than they hold are rejected before memory is allocated."""

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ave.networks.cmran import CMRAN
from ave_release import write_release
from running import call_main

GOLDEN = Path(__file__).parent / "golden"
LARGE = 10**12


def declare_dataset(directory, name, shape, dtype="u1"):
    """Make a release in which one file declares a shape, but holds no values."""
    directory.mkdir()
    write_release(directory)
    with h5py.File(directory / f"{name}.h5", "w") as file:
        dataset = "order" if "order" in name else "avadataset"
        file.create_dataset(dataset, shape, dtype, chunks=tuple(min(size, 10) for size in shape))
    return directory


def write_hostile_files(place):
    """Write the files, and return the command that reads each of them."""
    network = place / "network"
    CMRAN(video_dim=11, audio_dim=7, embed_dim=20, dim_feedforward=17).save_pretrained(network)
    (place / "release").mkdir()
    write_release(place / "release")
    predict = ("predict", "--output", place / "out", "--data")
    commands = {}
    for name, shape in (
        ("labels", (LARGE, 5, 29)),
        ("labels", (23, 5, LARGE)),
        ("visual_feature", (23, 5, 3, 2, 10**9)),
        ("visual_feature", (LARGE, 5, 3, 2, 11)),
        ("audio_feature_noisy", (LARGE, 5, 7)),
        ("train_order", (LARGE,)),
    ):
        directory = declare_dataset(place / f"set-{len(commands)}", name, shape)
        commands[f"{name} of {shape}"] = ("check", "--setting", "weak", "--data", directory)
        if name == "visual_feature":
            commands[f"predict {name} of {shape}"] = (*predict, directory, "--checkpoint", network)

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (LARGE,)})
    with zipfile.ZipFile(place / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("visual", "audio"):
            archive.writestr(f"{name}.npy", header.getvalue())
            archive.getinfo(f"{name}.npy").file_size = 10 * LARGE
    commands[".npz"] = (*predict, place / "bomb.npz", "--checkpoint", network)

    config = json.loads((network / "config.json").read_text())
    for name, value in (("embed_dim", 12_000), ("num_layers", 10**9), ("video_dim", LARGE), (None, "[" * 200_000)):
        changed = place / f"network-{name}"
        CMRAN(video_dim=11, audio_dim=7, embed_dim=20, dim_feedforward=17).save_pretrained(changed)
        (changed / "config.json").write_text(value if name is None else json.dumps({**config, name: value}))
        commands[f"config.json, {name}"] = (*predict, place / "release", "--checkpoint", changed)

    shapes = json.loads((GOLDEN / "official_shapes.json").read_text())["cmran_supervised"]
    expanded = {name: torch.zeros(1).expand(10**6, 10**6) for name in shapes}
    torch.save(expanded, place / "expanded.pth.tar")
    commands[".pth.tar"] = (*predict, place / "release", "--official", place / "expanded.pth.tar")
    return commands


def work(commands, place):
    """Run the commands, and write how each ended and the peak memory. This runs in a separate process."""
    sys.stderr, ended = (place / "errors").open("w"), []
    for arguments in commands:
        try:
            call_main(*arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code
        # ru_maxrss would not do: a process inherits that of its parent.
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
        ended.append([code, int(peak)])
    (place / "ended.json").write_text(json.dumps(ended))
    sys.stderr.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_declared_sizes_take_no_memory(tmp_path, processes):
    commands = write_hostile_files(tmp_path)
    process = processes.Process(target=work, args=(list(commands.values()), tmp_path))
    process.start()
    process.join()
    said = (tmp_path / "errors").read_text()
    assert process.exitcode == 0, said
    ended = json.loads((tmp_path / "ended.json").read_text())
    errors = [line for line in said.splitlines() if line.startswith("ave_cmran.py: error: ")]
    assert len(ended) == len(errors) == len(commands), said
    for name, (code, peak) in zip(commands, ended, strict=True):
        assert (name, code) == (name, 2)
        assert peak < 1 << 20, f"{name} took {peak / 2**20:.1f} GiB"
