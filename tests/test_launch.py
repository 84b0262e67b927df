"""Several processes: two give what one gives, under torchrun and under accelerate launch."""

import dataclasses
import json
import os
import sys
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed

from ave import training
from ave.commands import train
from ave.model import CMRAN
from ave.release import read_release
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
import runpy, sys
from functools import partial
from pathlib import Path
del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
from matplotlib.figure import Figure
from ave.commands import train
train.CMRAN = partial(train.CMRAN, embed_dim=20, dim_feedforward=17)
Figure.savefig = lambda self, path, **options: path.touch()
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the script that its arguments begin with, on a network that is quickly trained, and leaves pictures empty."""
TOLERANCE = 1e-4
"""Of the mean loss, relative: the sum over a batch is taken in two parts, in float32."""
WEIGHT_TOLERANCE = 1e-3
"""A tenth of a step of Adam, which makes steps of gradients however small."""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return directory


def work(rank, folder, processes):
    """Train without dropout, as its random numbers are each process's own, and leave the history in a file."""
    torch.set_num_threads(1)
    if processes > 1:  # what a launcher would say
        local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in local.items()}, OMP_NUM_THREADS="1")
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == processes
    for setting in ("supervised", "weak"):
        torch.manual_seed(0)
        widths = {"video_dim": SHAPE["video_dim"], "audio_dim": SHAPE["audio_dim"], "embed_dim": 20}
        model = CMRAN(setting, **widths, dim_feedforward=17, dropout=0.0, input_dropout=0.0)
        # 13 videos in batches of 5, and 16 weakly: two processes have unequal shares, and of the last batch weakly,
        # which is a single video, one has none. Accuracies are of what is trained on, so that they soon leave zero.
        data = read_release(folder, setting)
        data = dataclasses.replace(data, splits=dict.fromkeys(data.splits, data.splits["train"]))
        options = {"epochs": 4, "batch_size": 5, "learning_rate": 1e-2, "seed": 0}
        history = [dataclasses.asdict(epoch) for epoch in training.train(model, data, accelerator, **options).history]
        if accelerator.is_main_process:
            (folder / f"{setting}-{processes}.json").write_text(json.dumps(history))
            torch.save(model.state_dict(), folder / f"{setting}-{processes}.pt")
        accelerator.free_memory()
    if processes > 1:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(release, processes):
    """Where two processes have left their training, and one."""
    torch.multiprocessing.start_processes(work, (release, 2), nprocs=2, start_method=processes.get_start_method())
    AcceleratorState._reset_state(reset_partial_state=True)
    work(0, release, 1)
    return release


def test_two_processes_train_as_one_does(trained, setting):
    """Loss and weights up to rounding, accuracies exactly, on the same batches; no parameter is unused."""
    two, one = (json.loads((trained / f"{setting}-{number}.json").read_text()) for number in (2, 1))
    for epoch, expected in zip(two, one, strict=True):
        assert epoch["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert epoch["val_accuracy"] == expected["val_accuracy"]
        assert epoch["test_accuracy"] == expected["test_accuracy"]
    assert any(epoch["test_accuracy"] > 0.1 for epoch in one)
    ours, theirs = (torch.load(trained / f"{setting}-{number}.pt", weights_only=True) for number in (2, 1))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=WEIGHT_TOLERANCE)


def test_the_command_under_launchers(release, tmp_path, monkeypatch, blank_pictures):
    """Trained by two processes it goes on in one; and two evaluate as one does, every segment counted once."""
    (tmp_path / "small.py").write_text(SMALL)
    launchers = {name: (*launcher, tmp_path / "small.py") for name, launcher in LAUNCHERS.items()}
    monkeypatch.setattr(train, "CMRAN", partial(CMRAN, embed_dim=20, dim_feedforward=17))
    output = tmp_path / "run"
    options = ("--data", release, "--epochs", 1, "--batch-size", 5, "--lr", 0.01, "--output", output)
    process = start("train", *options, launcher=launchers["torchrun"])
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "2 x cpu" in printed
    assert printed.count("accuracy at the epoch chosen on val") == 1
    assert json.loads((output / "metrics.json").read_text())["runs"][0]["segments"] == 5 * SHAPE["segments"]

    call_main("train", "--resume", output, "--epochs", 2)
    (trained,) = json.loads((output / "metrics.json").read_text())["runs"]
    assert [line["epoch"] for line in trained["history"]] == [1, 2]
    options = ("--data", release, "--checkpoint", output, "--output", tmp_path / "evaluation")
    process = start("evaluate", *options, launcher=launchers["accelerate"])
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "2 x cpu" in printed
    (evaluated,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["runs"]
    for name in ("segments", "accuracy", "confusion", "event_f1", "category_accuracy"):
        assert evaluated[name] == trained[name]
