"""Decode videos in the child process of :mod:`ave.videos.isolation`, and send what its parent asks for."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ave.stopping import lacks_memory
from ave.videos.decoding import read_duration, read_seconds
from ave.videos.sampling import Sampling

__all__ = ["serve"]

AHEAD = 64 << 20
"""How many bytes the child decodes in advance, but always at least one second."""
LONGEST_TEXT = 1 << 16
"""The size limit of a message about an error or a remark, in bytes."""


def serve() -> None:
    """Answer the requests of the parent process on standard input, until the parent closes it."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is not part of the answer
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_take_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    with suppress(ImportError):  # opening a file will report it
        import av  # noqa: F401  # before memory is limited
    while True:
        _Answer(json.loads(requests.get()), answers).give()


def _take_requests(stream: BinaryIO, requests: queue.Queue[bytes]) -> None:
    """Pass on the requests, and end this process when the parent ends, even if the decoder is busy."""
    for line in stream:
        requests.put(line)
    os._exit(0)


class _Answer:
    """The messages about one request, which a thread writes while the decoder goes on."""

    def __init__(self, request: dict[str, Any], stream: BinaryIO) -> None:
        self._request = request
        self._stream = stream
        self._told = time.monotonic()
        most = max(1, min(AHEAD // request["size"], 1000))
        self._messages: queue.Queue[tuple[bytes, list[Any]] | None] = queue.Queue(most)

    def give(self) -> None:
        """Decode what the request names, and send all messages."""
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        os.chdir(self._request["directory"])
        try:
            _limit_memory(self._request["memory"])
            self._do(Path(self._request["path"]))
        except Exception as error:
            self._tell(error)
        finally:
            _limit_memory(None)
        self._messages.put(None)
        writer.join()

    def _do(self, path: Path) -> None:
        """Decode a video, annotate it, or only read how long it is."""
        if "sampling" in self._request:
            sampling = Sampling(**self._request["sampling"])
            for frames, waveform in read_seconds(path, sampling, self._remark, alive=self._be_alive):
                self._put(b"S", frames.numpy().data.cast("B"), waveform.numpy().data.cast("B"))
        elif "annotation" in self._request:
            from ave.results.annotation import Annotation, annotate_video  # imports matplotlib

            output, sheet = Path(self._request["output"]), Path(self._request["sheet"])
            annotation = Annotation.from_json(self._request["annotation"])
            annotate_video(path, output, sheet, annotation, self._remark, alive=self._be_alive)
        else:
            self._put(b"L", json.dumps(read_duration(path)).encode())
        self._put(b"D")

    def _put(self, kind: bytes, *parts: Any) -> None:
        """Append a message. Wait while too many others have not been sent."""
        self._messages.put((kind, list(parts)))

    def _remark(self, text: str) -> None:
        """Send a remark."""
        self._put(b"R", text.encode(errors="backslashreplace")[:LONGEST_TEXT])

    def _be_alive(self) -> None:
        """Report from time to time that the decoder is still working."""
        if time.monotonic() - self._told > 1:
            self._told = time.monotonic()
            self._put(b"A")

    def _tell(self, error: Exception) -> None:
        """Send an error."""
        if lacks_memory(error):
            self._put(b"M")
        elif isinstance(error, OSError):
            known = [error.errno, error.strerror, error.filename and str(error.filename)]
            self._put(b"E", json.dumps(["OSError", *(known if error.errno is not None else [str(error)])]).encode())
        elif isinstance(error, ValueError):
            self._put(b"E", json.dumps(["ValueError", str(error)]).encode())
        else:
            self._put(b"F", traceback.format_exc().encode(errors="backslashreplace")[-LONGEST_TEXT:])

    def _write(self) -> None:
        """Write the messages."""
        try:
            while (message := self._messages.get()) is not None:
                kind, parts = message
                self._stream.write(kind + sum(len(part) for part in parts).to_bytes(8, "big"))
                for part in parts:
                    _write_all(self._stream, part)
        except OSError:  # the parent ended
            os._exit(0)


def _write_all(stream: BinaryIO, content: Any) -> None:
    """Write all bytes to a pipe, which may accept only a part of them at a time."""
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def _limit_memory(memory: int | None) -> None:
    """Limit the memory that this process may allocate from now on, where the system supports it."""
    if sys.platform == "linux":
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = resource.RLIM_INFINITY if memory is None else taken + memory
        if hard != resource.RLIM_INFINITY:
            wanted = hard if memory is None else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
