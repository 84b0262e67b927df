"""Training in two processes, under torchrun and accelerate launch, gives the results of one process."""

import dataclasses
import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import distributed

import ave_cmran
from ave.checkpoints import Checkpoints
from ave.data.opening import read_set
from ave.networks.cmran import CMRAN
from ave.train import TrainConfig, main
from ave_release import SHAPE, write_release
from running import call_main, start

# Accelerate's --multi_gpu is also how it starts several processes on a CPU.
LAUNCHERS = {
    "torchrun": (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
    "accelerate": (
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2),
        *("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0),
    ),
}
SMALL = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {examples!r})
import ave_cmran
from ave.networks.cmran import CMRAN
options = {{"network": partial(CMRAN, embed_dim=20, dim_feedforward=17)}} if sys.argv[1] == "train" else {{}}
ave_cmran.main(draw=False, **options)
"""
"""The command, on a network that is quickly trained, and without figures."""
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


def test_the_command_under_launchers(release, tmp_path):
    """A run of two processes is resumed by one; an evaluation by two counts every segment once."""
    (tmp_path / "small.py").write_text(SMALL.format(examples=str(Path(ave_cmran.__file__).parent)))
    output = tmp_path / "run"
    options = ("--data", release, "--epochs", 1, "--batch-size", 5, "--lr", 0.01, "--output", output)
    process = start("train", *options, launcher=LAUNCHERS["torchrun"], script=tmp_path / "small.py")
    printed, errors = process.communicate(timeout=PATIENCE.total_seconds())
    assert process.returncode == 0, errors
    assert "2 x cpu" in printed
    assert printed.count("accuracy at the epoch chosen on val") == 1
    assert json.loads((output / "metrics.json").read_text())["runs"][0]["segments"] == 5 * SHAPE["segments"]

    call_main("train", "--resume", output, "--epochs", 2)
    (trained,) = json.loads((output / "metrics.json").read_text())["runs"]
    assert [line["epoch"] for line in trained["history"]] == [1, 2]
    options = ("--data", release, "--checkpoint", output, "--output", tmp_path / "evaluation")
    process = start("evaluate", *options, launcher=LAUNCHERS["accelerate"], script=tmp_path / "small.py")
    printed, errors = process.communicate(timeout=PATIENCE.total_seconds())
    assert process.returncode == 0, errors
    assert "2 x cpu" in printed
    (evaluated,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["runs"]
    for name in ("segments", "accuracy", "confusion", "event_f1", "category_accuracy"):
        assert evaluated[name] == trained[name]
