"""Handle what ends a run early: signals, too little memory or disk space, and lost processes.

The command prints the reason in one line.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Terminated", "find_reason", "lacks_memory", "leave", "pointing_to_resume"]
__all__ += ["raising_signals", "terminate", "undisturbed"]

NO_MEMORY = re.compile("DefaultCPUAllocator|out of memory|bad_alloc")
"""Matches a RuntimeError of torch about too little memory."""
NO_ANSWER = re.compile("gloo|nccl|connection|socket|broken pipe|timed? ?out", re.IGNORECASE)
"""Matches a RuntimeError of torch about a lost process."""

AGAIN = 3.0
"""Seconds after which a signal raises again, if it has not ended the command."""


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, so that a command cleans up as after Ctrl-C."""


def leave(number: int, *_: object) -> None:
    """Exit at once on a signal. Use it when there is nothing to clean up."""
    os.write(2, b"ave_cmran.py: error: stopped\n")
    os._exit(128 + number)


def terminate(number: int, *_: object) -> None:
    """Raise :class:`Terminated` on SIGTERM or KeyboardInterrupt on Ctrl-C, repeatedly until it is caught.

    A single exception may be lost: in some callbacks, such as those of imports, Python prints it and continues.
    """
    sys.unraisablehook = lambda _: None
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, lambda *_: terminate(number))
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def raising_signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise exceptions inside the context. Then restore the system's default handlers."""
    # A signal that is ignored stays ignored, such as Ctrl-C for a background process.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM inside the context, so that a stopped command can print its last message."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def lacks_memory(error: Exception) -> bool:
    """Return whether an error is about too little memory, on the host or on a GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def find_reason(error: Exception) -> str | None:
    """Describe why a command failed, or return None if the error is a bug of the program.

    Examples:
        >>> find_reason(MemoryError("Unable to allocate 3 TiB"))
        'out of memory, so free some: Unable to allocate 3 TiB'
        >>> find_reason(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
        True
    """
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if lacks_memory(error):
        return f"out of memory, so free some: {text}"
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # standard output is a closed pipe
        if error.errno == errno.ENOSPC and error.filename is None:
            return f"a disk is full, that of the results or of standard output: {error.strerror}"
        return text
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and isinstance(error, RuntimeError) and NO_ANSWER.search(str(error)):
        return f"another process of this run has ended or does not respond: {text}"
    return None


@contextmanager
def pointing_to_resume(output: Path) -> Iterator[None]:
    """If a run stops after it has written its config.json, add to the error message how to continue the run.

    Raises:
        KeyboardInterrupt: if a signal stopped the run.
        OSError: if a file cannot be read or written, memory runs out, or another process is lost.
    """
    advice = f"finished epochs are kept: continue with --resume {output}"
    try:
        yield
    except KeyboardInterrupt as error:
        if not (output / "config.json").is_file():
            raise
        raise type(error)(f"stopped; {advice}") from error
    except Exception as error:
        if (reason := find_reason(error)) is None or not (output / "config.json").is_file():
            raise
        if lacks_memory(error):
            advice += " and another --cache, or start a new run with a smaller --batch-size"
        raise OSError(f"{reason}; {advice}") from error
