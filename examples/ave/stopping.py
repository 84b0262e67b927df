"""What ends a run early: a signal, or something that the machine or another process lacks; told in one line."""

from __future__ import annotations

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
"""In a RuntimeError of torch, that it found no memory."""
NO_ANSWER = re.compile("gloo|nccl|connection|socket|broken pipe|timed? ?out", re.IGNORECASE)
"""In a RuntimeError of one of several processes, that another one is gone."""

AGAIN = 3.0
"""Seconds after which a signal that has not ended the command raises once more."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, so that it cleans up."""


def leave(number: int, *_: object) -> None:
    """End the process at once on a signal, when there is nothing to clean up."""
    os.write(2, b"ave_cmran.py: error: stopped\n")
    os._exit(128 + number)


def terminate(number: int, *_: object) -> None:
    """Raise :class:`Terminated` on SIGTERM, and KeyboardInterrupt on Ctrl-C; again and again, until it is caught.

    An exception may be lost, such as in the callbacks of Python's own imports, where it would only be printed.
    """
    sys.unraisablehook = lambda _: None
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, lambda *_: terminate(number))
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def raising_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise inside; afterwards they end the process as the system does it."""
    # They may be ignored, as Ctrl-C is in the background.
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
    """Ignore Ctrl-C and SIGTERM, while a command that they stop says so."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def lacks_memory(error: Exception) -> bool:
    """Tell whether an error is that there is too little memory, on the host or on a GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def find_reason(error: Exception) -> str | None:
    """Return in words why a command cannot go on; None for an error that is the fault of the program.

    Examples:
        >>> find_reason(MemoryError("Unable to allocate 3 TiB"))
        'memory ran out, so free some of it: Unable to allocate 3 TiB'
        >>> find_reason(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
        True
    """
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if lacks_memory(error):
        return f"memory ran out, so free some of it: {text}"
    if isinstance(error, OSError) and not isinstance(
        error, BrokenPipeError
    ):  # raised when nobody reads what is printed
        return text
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and isinstance(error, RuntimeError) and NO_ANSWER.search(str(error)):
        return f"another process of this run has ended, or does not answer: {text}"
    return None


@contextmanager
def pointing_to_resume(output: Path) -> Iterator[None]:
    """Add to what stops a run that it can go on, and how.

    Raises:
        KeyboardInterrupt: if it was stopped by a signal.
        OSError: if something cannot be read or written, memory runs out, or another process is gone.
    """
    advice = f"what is finished is kept: go on with --resume {output}"
    try:
        yield
    except KeyboardInterrupt as error:
        raise type(error)(f"stopped; {advice}") from error
    except Exception as error:
        if (reason := find_reason(error)) is None:
            raise
        if lacks_memory(error):
            advice += " and another --cache, or train anew with a smaller --batch-size"
        raise OSError(f"{reason}; {advice}") from error
