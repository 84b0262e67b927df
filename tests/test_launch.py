"""Training in two processes, under torchrun and accelerate launch, gives the results of one process."""

import dataclasses
import json
import os
import runpy
import socket
import sys
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import distributed

from ave.checkpoints import Checkpoints
from ave.data.opening import read_set
from ave.networks.cmran import CMRAN
from ave.train import TrainConfig, main
from ave_release import SHAPE, write_release
from running import call_main

# Accelerate's --multi_gpu is also how it starts several processes on a CPU.
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", 2),
    "accelerate": (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0),
    ),
}
"""The module that each launcher runs, and its options."""
HAND_OVER = """
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as test, test.makefile("rw") as lines:
    print(json.dumps(dict(os.environ)), file=lines, flush=True)
    sys.exit(int(lines.readline()))
"""
"""What the launchers start. It sends its environment to the test, which forks the command, and ends as that does.

Four processes that import torch and the rest anew would take longer than all that they then do.
"""
TOLERANCE = 1e-4
"""Of the mean loss, relative: the sum over a batch is taken in two parts, in float32."""
WEIGHT_TOLERANCE = 2e-3
"""A fifth of a step of Adam, which makes steps of gradients however small."""

PATIENCE = timedelta(minutes=5)
"""After which processes that wait for one another are an error, and no hang."""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return directory


def work(rank, folder, processes):
    """Train without dropout, whose random numbers differ between processes, and save the history to a file."""
    torch.set_num_threads(1)
    if processes > 1:  # what a launcher would say
        local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in local.items()}, OMP_NUM_THREADS="1")
    for setting in ("supervised", "weak"):
        AcceleratorState._reset_state(reset_partial_state=True)
        if processes > 1:  # a training ends by leaving the group
            store = f"file://{folder}/store-{setting}"
            distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=PATIENCE)
        # 13 videos in batches of 5, and 16 weakly: two processes have unequal shares, and of the last batch weakly,
        # which is a single video, one has none. Accuracies are of what is trained on, so that they soon leave zero.
        data = read_set(folder, setting)
        data = dataclasses.replace(data, splits=dict.fromkeys(data.splits, data.splits["train"]))
        network = partial(CMRAN, embed_dim=20, dim_feedforward=17, dropout=0.0, input_dropout=0.0)
        output = folder / f"{setting}-{processes}"
        config = TrainConfig(setting, epochs=4, batch_size=5, lr=1e-2, device="cpu", output=output)
        main(config, data=data, network=network, draw=False)


@pytest.fixture(scope="module")
def trained(release, processes):
    """Return the directories of a training in two processes and of one in a single process."""
    torch.multiprocessing.start_processes(work, (release, 2), nprocs=2, start_method=processes.get_start_method())
    work(0, release, 1)
    return release


def test_two_processes_train_like_one(trained, setting):
    """Losses and weights are equal up to rounding, accuracies exactly; every parameter gets a gradient."""
    outputs = [trained / f"{setting}-{number}" for number in (2, 1)]
    two, one = (json.loads((output / "metrics.json").read_text())["runs"][0]["history"] for output in outputs)
    for epoch, expected in zip(two, one, strict=True):
        assert epoch["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert epoch["val_accuracy"] == expected["val_accuracy"]
        assert epoch["test_accuracy"] == expected["test_accuracy"]
    assert any(epoch["test_accuracy"] > 0.1 for epoch in one)
    ours, theirs = (Checkpoints(output / "seed-0" / "checkpoints").load()[0]["model"] for output in outputs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=WEIGHT_TOLERANCE)


def run_launcher(module, options, errors):
    """Run the module of a launcher as a script, in a process that has imported torch."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = [module, *map(str, options)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_command(environment, printed, arguments):
    """Run the command in the environment that a launcher gave."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.stdout = printed.open("w")
    call_main(*arguments)


def launch(launcher, processes, place, *arguments):
    """Run the command in two processes of a launcher, and return what both print."""
    place.mkdir()
    (place / "hand_over.py").write_text(HAND_OVER)
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        server.settimeout(PATIENCE.total_seconds())
        module, *options = LAUNCHERS[launcher]
        options = (*options, place / "hand_over.py", server.getsockname()[1])
        launching = processes.Process(target=run_launcher, args=(module, options, place / "errors.txt"))
        launching.start()
        started = [stack.enter_context(server.accept()[0]) for _ in range(2)]
        started = [stack.enter_context(connection.makefile("rw")) for connection in started]
        commands = [
            processes.Process(target=run_command, args=(json.loads(lines.readline()), place / f"{number}", arguments))
            for number, lines in enumerate(started)
        ]
        for command in commands:
            command.start()
        for command, lines in zip(commands, started, strict=True):
            command.join()
            print(command.exitcode, file=lines, flush=True)
    launching.join()
    assert launching.exitcode == 0, (place / "errors.txt").read_text()
    return "".join((place / f"{number}").read_text() for number in range(2))


def test_the_command_under_launchers(release, tmp_path, processes):
    """A run of two processes is resumed by one; an evaluation by two counts every segment once."""
    output = tmp_path / "run"
    options = ("--data", release, "--epochs", 1, "--batch-size", 5, "--lr", 0.01, "--output", output)
    printed = launch("torchrun", processes, tmp_path / "torchrun", "train", *options)
    assert "2 x cpu" in printed
    assert printed.count("accuracy at the epoch chosen on val") == 1
    assert json.loads((output / "metrics.json").read_text())["runs"][0]["segments"] == 5 * SHAPE["segments"]

    call_main("train", "--resume", output, "--epochs", 2)
    (trained,) = json.loads((output / "metrics.json").read_text())["runs"]
    assert [line["epoch"] for line in trained["history"]] == [1, 2]
    options = ("--data", release, "--checkpoint", output, "--output", tmp_path / "evaluation")
    assert "2 x cpu" in launch("accelerate", processes, tmp_path / "accelerate", "evaluate", *options)
    (evaluated,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["runs"]
    for name in ("segments", "accuracy", "confusion", "event_f1", "category_accuracy"):
        assert evaluated[name] == trained[name]
