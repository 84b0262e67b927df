"""Kill a training and a preparation at every operation on files, resume them, and count differences at the end.

    python tests/kill_files.py --step 1

An operation opens a file to write to it, renames or removes a file, or creates or removes a directory. The exit code is
0 if every resumed run ended with the same files, bytes and weights as a run that was never stopped.
"""

import argparse
import contextlib
import gc
import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

from ave.data.opening import read_set  # noqa: E402
from ave.prepare import prepare_release  # noqa: E402
from ave.train import TrainConfig, main  # noqa: E402
from ave_release import write_release  # noqa: E402
from running import SMALL  # noqa: E402

KILLED = 9
TIMES = ("config.json", "epoch-*.json", "metrics.json", "metrics.csv", "README.md")
"""Files that hold seconds, or the name of the directory."""


def train(release, output):
    """Train for two epochs, which removes the first checkpoint when the second is complete; or resume."""
    AcceleratorState._reset_state(reset_partial_state=True)
    place = {"resume" if (output / "config.json").exists() else "output": output}
    config = TrainConfig(epochs=2, batch_size=13, keep=1, device="cpu", **place)
    main(config, data=read_set(release), network=SMALL, draw=False)


def kill_at(number, directory):
    """Kill this process just before the file operation with this number."""
    numbers = itertools.count(1)

    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path = next(iter(arguments), None)
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if changes and not isinstance(path, int):
            path = Path(os.fsdecode(path))  # without a directory, from one that is removed with all in it
            if (not path.is_absolute() or path.is_relative_to(directory)) and next(numbers) == number:
                os._exit(KILLED)

    sys.addaudithook(hook)


def is_killed(number, run, release, output):
    """Run a function in a separate process that is killed at an operation; return False if it ended before that."""
    if not (child := os.fork()):
        code = 1
        try:
            kill_at(number, output.parent)
            run(release, output)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, KILLED):
        raise RuntimeError(f"{run.__name__} ended with {code} before operation {number}")
    return code == KILLED


def contents(directory):
    """Return every file below a directory, with its bytes if they should be the same each time."""
    return {
        str(path.relative_to(directory)): b"" if path.is_dir() or any(map(path.match, TIMES)) else path.read_bytes()
        for path in directory.rglob("*")
    }


def kill_everywhere(run, step=1):
    """Kill a run at its first operation on files, another ``step`` operations later and so on, and resume each.

    Returns:
        How many were killed, and what differed in the end.
    """
    faults, count = [], 0
    os.fsync = lambda _: None  # the machine stays alive
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w") as null:
        release, undisturbed, output = (Path(directory) / name for name in ("release", "undisturbed", "place/output"))
        release.mkdir()
        write_release(release)
        with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            run(release, undisturbed)
            expected = contents(undisturbed)
            output.parent.mkdir()
            gc.freeze()  # a collection would look at all of torch
            for number in itertools.count(1, step):
                if not is_killed(number, run, release, output):
                    break
                count += 1
                run(release, output)
                came = contents(output)
                wrong = sorted(name for name in came.keys() | expected if came.get(name) != expected.get(name))
                if wrong:
                    faults.append(f"{run.__name__}, killed at operation {number}: {', '.join(wrong)}")
                shutil.rmtree(output)
    return count, faults


RUNS = {"train": train, "prepare": prepare_release}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="between the operations at which runs are killed")
    torch.set_num_threads(1)
    options = parser.parse_args()
    failed = False
    for name, run in RUNS.items():
        count, faults = kill_everywhere(run, options.step)
        failed = failed or bool(faults)
        print("\n".join([f"{name}: killed {count} times, {len(faults)} faults", *faults]))
    sys.exit(failed)
