"""Signals, failing files, lack of memory and lost processes end a run with a message in one line."""

import errno
import os
import runpy
import signal
import socket
import sys
from datetime import timedelta

import numpy as np
import psutil
import pytest
import torch

import ave.devices
import ave.printing
import ave.stopping
import ave_cmran
from ave.data.arrays import StoredArray
from ave.stopping import find_reason
from ave_release import write_release
from running import SMALL, call_main

KEPT = "finished epochs are kept: continue with --resume"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return directory


def at_step(number, act):
    """Call ``act`` instead of the given training step, counted from 1."""
    steps = []
    step = torch.optim.Adam.step

    def call(*arguments, **options):
        steps.append(1)
        return act() if len(steps) == number else step(*arguments, **options)

    torch.optim.Adam.step = call


def start_anew(errors):
    """Make a forked process behave like one that was started in a terminal."""
    torch.set_num_threads(1)
    os.setpgrp()
    for descriptor, name in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def get_stopped(number, lost, arguments, errors):
    """Run the script, and send a signal to its process group in the second step and while it prints its message."""
    start_anew(errors)

    class Callback:
        """An object whose finalizer sends the signal; Python only prints exceptions from it."""

        def __del__(self):
            os.killpg(0, number)

    def send():
        assert psutil.Process().children() == []  # which the signal would reach, too
        if lost:
            ave.stopping.AGAIN = 0.1
            Callback()
        else:
            os.killpg(0, number)

    at_step(2, send)
    printable = ave.printing.printable
    ave.printing.printable = lambda text: (os.killpg(0, number), printable(text))[1]
    sys.argv = [ave_cmran.__file__, *map(str, arguments)]
    runpy.run_path(ave_cmran.__file__, run_name="__main__")


@pytest.mark.skipif(os.name == "nt", reason="these signals are those of POSIX")
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_ends_in_a_line(number, code, lost, release, tmp_path, processes):
    options = ("--data", release, "--batch-size", 5, "--cache", "disk", "--workers", 2, "--output", tmp_path / "run")
    process = processes.Process(target=get_stopped, args=(number, lost, options, tmp_path / "errors"))
    process.start()
    process.join()
    assert (tmp_path / "errors").read_text() == f"ave_cmran.py: error: stopped; {KEPT} {tmp_path / 'run'}\n"
    assert process.exitcode == code


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("failure", ["cut", "lost", "memory"])
def test_reading_errors_are_reported_in_one_line(failure, workers, tmp_path, capsys, monkeypatch):
    """A reading error is reported in one line, with and without threads; no thread or file is left."""
    np.save(tmp_path / "visual_feature.npy", write_release(tmp_path)["visual_feature"])
    (tmp_path / "visual_feature.h5").unlink()
    output = tmp_path / "run"
    options = ("--data", tmp_path, "--epochs", 1, "--cache", "disk", "--workers", workers, "--output", output)

    def fail(*_):
        raise MemoryError("Unable to allocate 3 TiB")

    def build(*arguments, **options):
        if failure == "cut":
            os.truncate(tmp_path / "visual_feature.npy", 5000)
        elif failure == "lost":
            monkeypatch.setattr(StoredArray, "__getitem__", lambda *_: open("/nowhere"))  # noqa: SIM115
        else:
            monkeypatch.setattr(StoredArray, "__getitem__", fail)
        return SMALL(*arguments, **options)

    with pytest.raises(SystemExit) as stop:
        call_main(*options, network=build)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    reasons = {
        "cut": "is truncated or damaged: ",
        "lost": "/nowhere",
        "memory": "out of memory, so free some: Una",
    }
    assert reasons[failure] in line
    assert f"{KEPT} {output}" in line
    assert line.endswith("or start a new run with a smaller --batch-size") == (failure == "memory")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(10**14),
        lambda: np.empty(10**14),
        lambda: bytearray(10**14),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB.\nMore.")),
    ],
)
def test_lack_of_memory_is_reported_in_one_line(allocate, capsys, monkeypatch):
    """Lack of memory is reported in one line, whoever raises it."""
    monkeypatch.setitem(ave_cmran.COMMANDS, "check", (ave_cmran.CheckConfig, lambda _: allocate()))
    with pytest.raises(SystemExit) as stop:
        call_main("check", "--data", "/nowhere")
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ave_cmran.py: error: out of memory, so free some: ")


def test_full_disk_is_no_wrong_input(capsys, monkeypatch, tmp_path):
    """`check > /dev/full` prints inside the checks of its input."""

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ave.prepare.files_table", fail)
    with pytest.raises(SystemExit) as stop:
        call_main("check", "--data", tmp_path)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("error: a disk is full, that of the results or of standard output: No space left on device")


def test_faults_of_the_program_stay_tracebacks(monkeypatch):
    assert find_reason(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert find_reason(KeyError("connection")) is None
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    assert find_reason(lost) is None  # without other processes
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_reason(lost).startswith("another process of this run has ended or does not respond: [gloo")
    assert find_reason(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def lose_one(rank, port, end, patience, arguments, errors):
    """Train as one of two processes, of which the second gets a signal in its second step."""
    start_anew(errors / str(rank))
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in local.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    ave.devices.PATIENCE = patience
    if rank == 1:
        at_step(2, lambda: os.kill(os.getpid(), end))
    ave_cmran.main(list(map(str, arguments)), network=SMALL, draw=False)


@pytest.mark.skipif(os.name == "nt", reason="these signals are those of POSIX")
@pytest.mark.parametrize(
    ("end", "patience"), [(signal.SIGKILL, ave.devices.PATIENCE), (signal.SIGSTOP, timedelta(seconds=8))]
)
def test_a_lost_process_ends_the_others_with_one_line(end, patience, release, tmp_path, processes):
    """A killed or stopped process ends the other with one line; the waiting time is shortened here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ("--data", release, "--batch-size", 5, "--device", "cpu", "--output", tmp_path / "run")
    arguments = (port, end, patience, options, tmp_path)
    both = [processes.Process(target=lose_one, args=(rank, *arguments)) for rank in (0, 1)]
    for process in both:
        process.start()
    both[0].join()
    both[1].kill()
    (line,) = (tmp_path / "0").read_text().splitlines()
    assert line.startswith("ave_cmran.py: error: another process of this run has ended or does not respond: ")
    assert line.endswith(f"; {KEPT} {tmp_path / 'run'}")
    assert both[0].exitcode == 1
    both[1].join()
    assert (tmp_path / "1").read_text() == ""
