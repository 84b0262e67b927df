"""Flip bytes of every kind of file that the commands read, and count the commands that fail in an unexpected way.

    python tests/fuzz_files.py --flips 300

Expected are a result, or an error message in one line. Each flip runs in its own process, with a time limit. The exit
code is 0 if no process ended in a traceback, a crash or a hang.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

from ave.networks.cmran import CMRAN  # noqa: E402
from ave_release import SHAPE, write_annotations, write_release  # noqa: E402
from running import call_main  # noqa: E402

FAULTS = ("traceback", "crash", "hang", "several lines", "memory")
TIME_LIMIT = 180
"""Seconds of a process; most take less than one, but a busy machine may stop for long."""
MEMORY_LIMIT = 4 << 30
START = 4096
"""Half of the flips are in so many bytes at the start, where the formats say what follows."""


def repack(directory):
    """Store the arrays of a release in chunks, packed, in the newest format."""
    for path in directory.glob("*.h5"):
        with h5py.File(path) as file:
            ((name, array),) = ((name, array[:]) for name, array in file.items())
        chunks = tuple(-(-size // 2) for size in array.shape)
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset(name, data=array, chunks=chunks, compression="gzip", shuffle=True)


def write_official(path):
    """Save all names of the authors' network, as views of one small tensor."""
    shapes = json.loads((Path(__file__).parent / "golden" / "official_shapes.json").read_text())["cmran_supervised"]
    stored = torch.full((2048 * 512,), 0.01)
    torch.save({name: stored[: int(np.prod(shape))].view(shape) for name, shape in shapes.items()}, path)


def write_all(place):
    """Write every kind of file, and return for each kind the files and the commands that read them."""
    release, packed, prepared, run = (place / name for name in ("release", "packed", "prepared", "run"))
    for directory in (release, packed):
        directory.mkdir()
        write_release(directory)
        write_annotations(directory, [f"id{row}" for row in range(SHAPE["videos"])])
    repack(packed)
    call_main("prepare", "--data", release, "--output", prepared)
    call_main("train", "--data", release, "--epochs", 2, "--cache", "disk", "--workers", 0, "--output", run)
    rng = np.random.default_rng(0)
    visual, audio = rng.random((3, 5, 3, 2, 11), np.float32), rng.random((3, 5, 7), np.float32)
    for name, save in (("plain", np.savez), ("packed", np.savez_compressed)):
        save(place / f"{name}.npz", visual=visual, audio=audio, names=np.array(["a", "b", "c"]), lengths=[5, 3, 1])
    np.savez(place / "wide.npz", visual=np.ones((1, 2, 1, 1, 512), np.float32), audio=np.ones((1, 2, 128), np.float32))
    write_official(place / "official.pth.tar")
    CMRAN(video_dim=11, audio_dim=7, embed_dim=20, dim_feedforward=17).save_pretrained(place / "network")
    epoch = run / "seed-0" / "checkpoints" / "epoch-0002"
    predict = ("predict", "--output", place / "out", "--checkpoint", place / "network", "--features")
    resume = ("train", "--resume", run)
    return {
        ".h5": (sorted(release.glob("*.h5")), [("check", "--setting", "weak", "--data", release), (*predict, release)]),
        ".h5, packed": (
            sorted(packed.glob("*.h5")),
            [("check", "--setting", "weak", "--data", packed), (*predict, packed)],
        ),
        ".npy": (sorted(prepared.glob("*.npy")), [("check", "--setting", "weak", "--data", prepared)]),
        "prepared.json": ([prepared / "prepared.json"], [("check", "--data", prepared)]),
        "Annotations.txt": ([release / "Annotations.txt"], [("check", "--data", release)]),
        ".npz": ([place / "plain.npz"], [(*predict, place / "plain.npz")]),
        ".npz, packed": ([place / "packed.npz"], [(*predict, place / "packed.npz")]),
        "config.json of a network": ([place / "network" / "config.json"], [(*predict, release)]),
        "model.safetensors": ([place / "network" / "model.safetensors"], [(*predict, release)]),
        ".pth.tar": (
            [place / "official.pth.tar"],
            [(*predict[:3], "--official", place / "official.pth.tar", "--features", place / "wide.npz")],
        ),
        "config.json of a run": ([run / "config.json"], [resume]),
        "checkpoint .json": ([epoch.with_suffix(".json")], [resume]),
        "checkpoint .safetensors": ([epoch.with_suffix(".safetensors")], [resume]),
    }


def flip(content, draw):
    """Change one byte."""
    end = min(START, len(content)) if draw.random() < 0.5 else len(content)
    changed = bytearray(content)
    changed[draw.randrange(end)] ^= draw.randrange(1, 256)
    return bytes(changed)


def correct_digest(path):
    """Write the digest of a damaged file into its manifest, so that its reader gets beyond the check of the digest."""
    manifest = json.loads((path.parent / "prepared.json").read_text())
    manifest["files"][path.stem]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "prepared.json").write_text(json.dumps(manifest))


def run_forked(arguments, errors):
    """Run a command in a process of its own, and return how it ended."""
    child = os.fork()
    if child == 0:
        with errors.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            call_main(*arguments, **({"draw": False} if arguments[0] == "predict" else {}))
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    deadline = time.monotonic() + TIME_LIMIT
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.wait4(child, 0)
            return "hang"
        time.sleep(0.005)
    code, said = os.waitstatus_to_exitcode(status), errors.read_text(errors="replace")
    lines = [line for line in said.splitlines() if line.startswith("ave_cmran.py: error: ")]
    if code < 0:
        return "crash"
    if "Traceback" in said or code not in (0, 1, 2):
        return "traceback"
    if code and (len(lines) != 1 or said.splitlines()[-1] != lines[0]):
        return "several lines"
    if usage.ru_maxrss * 1024 > MEMORY_LIMIT:
        return "memory"
    return "refused" if code else "taken"


def fuzz(flips, seed, only=None):
    """Flip bytes, print a line for each kind of file and for each fault, and return the number of faults."""
    torch.set_num_threads(1)
    draw, faults = random.Random(seed), 0  # noqa: S311
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "now"
        place.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            kinds = write_all(place)
        shutil.copytree(place, Path(directory) / "whole")
        for kind, (paths, commands) in kinds.items():
            if only is not None and kind not in only:
                continue
            for arguments in commands:  # or nothing would be shown by a refusal
                ended = run_forked(arguments, Path(directory) / "errors.txt")
                if ended != "taken":
                    raise AssertionError(f"{kind}, undamaged: {(Path(directory) / 'errors.txt').read_text()}")
                shutil.rmtree(place / "out", ignore_errors=True)
            counts = Counter()
            for number in range(flips):
                path = draw.choice(paths)
                content = flip(path.read_bytes(), draw)
                path.write_bytes(content)
                if path.suffix == ".npy":
                    correct_digest(path)
                for arguments in commands:
                    ended = run_forked(arguments, Path(directory) / "errors.txt")
                    counts[ended] += 1
                    if ended in FAULTS:
                        print(f"{kind}, flip {number} of {path.name}, {arguments[0]}: {ended}")
                        print((Path(directory) / "errors.txt").read_text(errors="replace")[-600:])
                shutil.rmtree(place)
                shutil.copytree(Path(directory) / "whole", place)
            faults += sum(counts[fault] for fault in FAULTS)
            print(f"{kind:28} {', '.join(f'{count} {ended}' for ended, count in counts.most_common())}", flush=True)
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=300, help="of every kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="kinds of files")
    options = parser.parse_args()
    faults = fuzz(options.flips, options.seed, options.only)
    print(f"{faults} faults")
    sys.exit(faults > 0)
