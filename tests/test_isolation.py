"""Videos are decoded in a child process, which neither a crash nor a signal leaves behind."""

import json
import os
import signal
import sys
import time
from contextlib import suppress

import psutil
import pytest
import torch

from ave.events import Event, Prediction
from ave.results.annotation import Annotation, annotate_video
from ave.stopping import Terminated, raising_signals
from ave.videos import isolation
from ave.videos.decoding import Sampling, read_duration, read_seconds
from ave.videos.isolation import (
    annotate_video_isolated,
    read_duration_isolated,
    read_seconds_isolated,
    stop_children,
)
from made_videos import write_video

SMALL = Sampling(frames_per_second=2, size=11, rate=100)
SECOND = 2 * 3 * 11**2 + 4 * 100
# Scripts that take the place of the child.
SEND = f"import os, signal, sys, time; os.write(1, b'S' + ({SECOND}).to_bytes(8, 'big') + bytes({SECOND})); "
CRASH = SEND + "os.kill(os.getpid(), signal.SIGSEGV)"
KILLED = SEND + "os.kill(os.getpid(), signal.SIGKILL)"
FAIL = SEND + "print('Traceback ...', file=sys.stderr); sys.exit('no \\x1b[31m module')"
STALL = SEND + "time.sleep(600)"
CUT = SEND + "os.write(1, b'S' + (100).to_bytes(8, 'big') + b'few')"
HUGE = SEND + "os.write(1, b'S' + b'\\xff' * 8); time.sleep(600)"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "a\n.mkv", late=0.4, fps=5)


@pytest.fixture(autouse=True)
def _no_child_is_left():
    stop_children()  # of earlier tests
    yield
    stop_children()
    assert isolation._idle == []


def children():
    """Return the child processes that decode videos."""
    return [child for child in psutil.Process().children() if isolation.START in child.cmdline()]


def check_annotated(video, tmp_path):
    """The child writes the same files as this process."""
    prediction = Prediction(torch.tensor([0, 1, 0]), torch.tensor([0.1, 0.2, 0.7]), [Event(0, 1, 0, 0.3)])
    annotation = Annotation(prediction, ["bell"], torch.full((3, 2, 2), 0.25), 4)
    copied = Annotation.from_json(json.loads(json.dumps(annotation.to_json())))
    assert str(copied) == str(annotation)
    assert torch.equal(copied.prediction.event_score, prediction.event_score)
    ours, theirs = ([], tmp_path / "a.mp4", tmp_path / "a.png"), ([], tmp_path / "b.mp4", tmp_path / "b.png")
    annotate_video(video, *ours[1:], annotation, ours[0].append)
    annotate_video_isolated(video, *theirs[1:], annotation, theirs[0].append)
    assert ours[0] == theirs[0]
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.read_bytes() == other.read_bytes()
    with pytest.raises(OSError, match="nowhere is gone"):
        annotate_video_isolated(video, tmp_path / "nowhere/c.mp4", tmp_path / "c.png", annotation, print)
    assert not (tmp_path / "c.png").exists()


def test_a_child_decodes_as_this_process(video, tmp_path):
    """One child decodes several videos, also after errors, until it exceeds its memory limit."""
    (tmp_path / "text.mp4").write_text("text")
    lines, remarks = [], []
    for _ in range(2):
        seconds = list(read_seconds_isolated(video, SMALL, lines.append))
        assert len(children()) == 1
    expected = list(read_seconds(video, SMALL, remarks.append))
    for ours, theirs in zip(seconds, expected, strict=True):
        assert torch.equal(ours.frames, theirs.frames)
        assert torch.equal(ours.waveform, theirs.waveform)
    assert lines == 2 * remarks
    assert len(remarks) == 1
    assert read_duration_isolated(video) == read_duration(video)
    with pytest.raises(ValueError, match=r"text\.mp4 is not a video that FFmpeg can read"):
        next(read_seconds_isolated(tmp_path / "text.mp4", SMALL, lines.append))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        next(read_seconds_isolated(tmp_path / "nowhere.mp4", SMALL, lines.append))
    assert [child.pid for child in children()] == [isolation._idle[0]._process.pid]
    check_annotated(video, tmp_path)
    if sys.platform == "linux":
        many = Sampling(frames_per_second=2, size=4001)
        with pytest.raises(ValueError, match=r"a\\n\.mkv takes more memory than the limit of 32 MiB"):
            next(read_seconds_isolated(video, many, lines.append, memory=32 << 20))
        assert children() == []


@pytest.mark.skipif(os.name == "nt", reason="these signals are those of POSIX")
@pytest.mark.parametrize(
    ("child", "reason"),
    [
        (CRASH, "the decoder crashed (SIGSEGV)"),
        (KILLED, "the decoder crashed (SIGKILL, perhaps because the system had too little memory)"),
        (FAIL, "the decoder crashed (exit code 1): no \\x1b[31m module"),
        (STALL, "a second of it took more than 0.3 s"),
        (CUT, "the decoder crashed (exit code 0)"),
        (HUGE, "the decoder sent an invalid message"),
    ],
)
def test_a_child_that_crashes_or_stalls_is_told_in_a_line(child, reason, video, monkeypatch):
    monkeypatch.setattr(isolation, "START", child)
    limit = 0.3 if child == STALL else 60
    seconds = read_seconds_isolated(video, SMALL, print, timeout=limit)
    assert next(seconds).waveform.shape == (100,)
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        next(seconds)
    assert str(caught.value).endswith(f"a\\n.mkv cannot be decoded: {reason}")
    assert children() == []


def test_a_consumer_that_stops_ends_the_child(video, monkeypatch):
    monkeypatch.setattr(isolation, "START", STALL)
    seconds = read_seconds_isolated(video, SMALL, print)
    next(seconds)
    assert len(children()) == 1
    seconds.close()
    assert children() == []

    def fail():
        for _ in read_seconds_isolated(video, SMALL, print):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    del caught  # and with it the frame that holds the iterator
    assert children() == []


def wait_for_child(video, start, number, told):
    """Decode in a child, and report its process id, then the children that are left after a signal has come."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background is started without
    if start is not None:
        isolation.START = start
    with suppress(Terminated, KeyboardInterrupt), raising_signals():
        for _ in read_seconds_isolated(video, SMALL, print):
            (child,) = children()
            told.send(child.pid)
            if number == signal.SIGKILL:
                time.sleep(600)
    told.send(children())


@pytest.mark.skipif(os.name == "nt", reason="these signals are those of POSIX")
@pytest.mark.parametrize(("number", "start"), [(signal.SIGTERM, STALL), (signal.SIGINT, STALL), (signal.SIGKILL, None)])
def test_a_signal_to_the_parent_ends_the_child(number, start, video, processes):
    ours, theirs = processes.Pipe()
    parent = processes.Process(target=wait_for_child, args=(video, start, number, theirs))
    parent.start()
    theirs.close()
    child = psutil.Process(ours.recv())
    os.kill(parent.pid, number)
    if number != signal.SIGKILL:
        assert ours.recv() == []
    parent.join()
    with suppress(psutil.NoSuchProcess):
        child.wait(60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
