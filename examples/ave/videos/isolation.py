"""Decode videos in a child process, because a damaged or malicious file may crash a decoder, or make it run forever.

The child decodes ahead while its parent works. It is kept for the next video, and ends with its parent. The child sends
messages, each with a kind, a size and bytes. They can only contain numbers and text.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import torch

from ave.printing import printable
from ave.videos.decoding import Second
from ave.videos.sampling import Sampling
from ave.videos.worker import LONGEST_TEXT

if TYPE_CHECKING:
    from ave.results.annotation import Annotation

__all__ = ["MEMORY", "TIMEOUT", "annotate_video_isolated", "ending_children", "read_duration_isolated"]
__all__ += ["read_seconds_isolated", "stop_children"]

TIMEOUT = 120.0
"""Seconds that the child may take for a second of a video."""
MEMORY = 4 << 30
"""The memory that the child may use for a video, in bytes. Only Linux can limit it."""
GRACE = 10.0
"""The time in seconds that a child has to end after it has closed its output."""
START = "import sys; sys.path[:] = sys.argv[1:]; from ave.videos.worker import serve; serve()"

_idle: list[_Child] = []


def read_seconds_isolated(
    path: Path,
    sampling: Sampling,
    remark: Callable[[str], None],
    *,
    timeout: float = TIMEOUT,
    memory: int | None = MEMORY,
) -> Iterator[Second]:
    """Decode a video second by second in a child process, as :func:`ave.videos.decoding.read_seconds` does.

    Args:
        path: the file.
        sampling: frames and sound of a second.
        remark: called with a line about each thing that is unusual.
        timeout: the time limit for each second of the video, in seconds.
        memory: the memory limit in bytes, or None for no limit. It has an effect only on Linux.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a video that can be decoded, or the decoder crashes or exceeds a limit.
    """
    frames = sampling.frames_per_second * 3 * sampling.size**2
    samples = round(sampling.rate * (1 + 2 * sampling.context))
    size = frames + 4 * samples
    for kind, content in _ask(path, timeout, memory, {"sampling": asdict(sampling)}, size):
        if kind == b"R":
            remark(printable(_read_text(content)))
        elif kind == b"S" and len(content) == size:
            yield Second(
                torch.from_numpy(
                    np.frombuffer(content, np.uint8, frames).reshape(
                        sampling.frames_per_second, 3, sampling.size, sampling.size
                    )
                ),
                torch.from_numpy(np.frombuffer(content, np.float32, samples, frames)),
            )


def read_duration_isolated(path: Path, *, timeout: float = TIMEOUT, memory: int | None = MEMORY) -> float | None:
    """Return the seconds that a video lasts, as its headers say, read in a child process.

    Args:
        path: the file.
        timeout: the time limit, in seconds.
        memory: the memory limit in bytes, or None for no limit. It has an effect only on Linux.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a video, or the decoder crashes or exceeds a limit.
    """
    (content,) = [content for kind, content in _ask(path, timeout, memory, {}) if kind == b"L"]
    return cast("float | None", json.loads(content))


def annotate_video_isolated(
    source: Path,
    output: Path,
    sheet: Path,
    annotation: Annotation,
    remark: Callable[[str], None],
    *,
    timeout: float = TIMEOUT,
    memory: int | None = MEMORY,
) -> None:
    """Write an annotated video and a contact sheet in a child process.

    This is :func:`ave.results.annotation.annotate_video`. If the child crashes, hidden partial files may be left.

    Args:
        source: the video.
        output: the annotated video.
        sheet: the contact sheet.
        annotation: what is drawn.
        remark: called with a line about each thing that differs from the source.
        timeout: the time limit for each frame of the video, in seconds.
        memory: the memory limit in bytes, or None for no limit. It has an effect only on Linux.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if the source is no video that can be decoded, or the decoder crashes or exceeds a limit.
    """
    request = {"annotation": annotation.to_json(), "output": str(output), "sheet": str(sheet)}
    for kind, content in _ask(source, timeout, memory, request):
        if kind == b"R":
            remark(printable(_read_text(content)))


def stop_children() -> None:
    """End the child processes that wait for the next video."""
    while _idle:
        _idle.pop().stop()


@contextmanager
def ending_children() -> Iterator[None]:
    """Inside the context, keep a child process for the next video. End it when the context ends."""
    try:
        yield
    finally:
        stop_children()


def _ask(
    path: Path, timeout: float, memory: int | None, request: Mapping[str, Any], size: int = 1
) -> Iterator[tuple[bytes, bytearray]]:
    """Send a request to a child, and yield its messages of at most ``size`` bytes up to the last one."""
    child = None
    while child is None or not child.is_usable():
        child = _idle.pop() if _idle else _Child()
    finished = False
    try:
        child.send({"path": str(path), "directory": os.getcwd(), "memory": memory, "size": size, **request})
        while True:
            kind, content = child.receive(path, timeout, max(size, LONGEST_TEXT))
            if kind == b"D":
                finished = True
                return
            if kind == b"E":
                finished = True
                _raise(json.loads(content))
            if kind == b"M":
                limit = f" of {memory >> 20} MiB" if memory is not None else ""
                raise ValueError(f"decoding {printable(path)} takes more memory than the limit{limit}")
            if kind == b"F":
                raise RuntimeError(f"the child process that decodes failed:\n{_read_text(content)}")
            yield kind, content
    finally:
        if finished:
            _idle.append(child)
        else:
            child.stop()


def _read_text(content: bytes | bytearray) -> str:
    """Return the text of a message."""
    return content.decode(errors="backslashreplace")


def _raise(error: list[Any]) -> NoReturn:
    """Raise an error of a file that the child reported."""
    kind, *arguments = error
    raise OSError(*arguments) if kind == "OSError" else ValueError(*arguments)


class _Child:
    """A child process that decodes one video after another."""

    def __init__(self) -> None:
        if not _idle:
            atexit.register(stop_children)
        self._owner = os.getpid()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._late = False
        paths = [path or os.getcwd() for path in sys.path]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", START, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches only the parent, which then ends the child
        )

    def is_usable(self) -> bool:
        """Return whether it runs, and this process started it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def send(self, request: dict[str, Any]) -> None:
        """Send a request."""
        assert self._process.stdin is not None  # noqa: S101
        with suppress(BrokenPipeError):  # receive tells why it ended
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, path: Path, timeout: float, most: int) -> tuple[bytes, bytearray]:
        """Return the kind and the content of the next message.

        Raises:
            ValueError: if there is none in time, or the child ends.
        """
        assert self._process.stdout is not None  # noqa: S101
        timer = threading.Timer(timeout, self._stop_late)
        timer.daemon = True
        timer.start()
        try:
            head = self._process.stdout.read(9)
            if len(head) == 9:
                size = int.from_bytes(head[1:], "big")
                if size > most:
                    raise ValueError(f"{printable(path)} cannot be decoded: the decoder sent an invalid message")
                content = bytearray(size)
                if cast("BufferedReader", self._process.stdout).readinto(content) == size:
                    return head[:1], content
        finally:
            timer.cancel()
        raise ValueError(f"{printable(path)} cannot be decoded: {self._find_reason(timeout)}")

    def _stop_late(self) -> None:
        """End the child because it takes too long."""
        self._late = True
        self._process.kill()

    def _find_reason(self, timeout: float) -> str:
        """Return in words why the child ended."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "the decoder closed its output"
        if self._late:
            return f"a second of it took more than {timeout:g} s"
        self._errors.seek(0)
        text = self._errors.read()[-LONGEST_TEXT:].decode(errors="backslashreplace").strip()
        last = f": {printable(text.splitlines()[-1], 200)}" if text else ""
        name = f"signal {-code}" if code < 0 else f"exit code {code}"
        with suppress(ValueError):
            name = signal.Signals(-code).name
        if name == "SIGKILL":
            name += ", perhaps because the system had too little memory"
        return f"the decoder crashed ({name}){last}"

    def stop(self) -> None:
        """End the process, if this one started it."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
