"""Audio-visual event localization with CMRAN: extract features, check and prepare datasets, train, evaluate, predict.

The default subcommand is train. Without options, it trains on an embedded procedural set in the shape of AVE, which
takes minutes on two CPU cores. `ave_cmran.py SUBCOMMAND --help` explains every option.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from ave.printing import printable
from ave.stopping import Terminated, find_reason, leave, raising_signals, undisturbed

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)  # the imports take seconds, and might swallow an exception
try:
    import tyro

    from ave import InputError, checking_input
    from ave.evaluate import EvaluateConfig
    from ave.evaluate import main as evaluate
    from ave.extract import ExtractConfig
    from ave.extract import main as extract
    from ave.paper_tables import TablesConfig
    from ave.paper_tables import main as tables
    from ave.predict import PredictConfig
    from ave.predict import main as predict
    from ave.prepare import CheckConfig, PrepareConfig, check, prepare
    from ave.train import SavedRun, TrainConfig
    from ave.train import main as train
except ImportError as _error:
    if (getattr(_error, "name", None) or "").partition(".")[0] == "ave":
        raise
    _hint = 'run pip install -e ".[examples]" in the root of the repository'
    print(f"ave_cmran.py: error: {_error}: {_hint}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    leave(signal.SIGINT)

COMMANDS: dict[str, tuple[Callable[..., Any], Callable[..., object]]] = {
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, evaluate),
    "predict": (PredictConfig, predict),
    "tables": (TablesConfig, tables),
    "check": (CheckConfig, check),
    "prepare": (PrepareConfig, prepare),
    "extract": (ExtractConfig, extract),
}
"""For each subcommand: the dataclass of its settings, which are its options, and the function that runs it."""


def parse(arguments: list[str]) -> Any:
    """Parse a command line into settings. With --resume, the settings of the saved run are the defaults."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["train", *arguments]
    if arguments[0] in ("train", "tables"):
        _check_seeds(arguments)
    elif arguments[0] == "predict":  # --features is the old name of --data
        arguments = [re.sub("^--features(?==|$)", "--data", argument) for argument in arguments]
    kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
    config = tyro.extras.subcommand_cli_from_dict(kinds, prog="ave_cmran.py", description=__doc__, args=arguments)
    if isinstance(config, TrainConfig) and config.resume is not None:
        with checking_input():
            saved = SavedRun.read(config.resume).settings
        config = tyro.cli(TrainConfig, prog="ave_cmran.py train", args=arguments[1:], default=saved)
    return config


def main(arguments: list[str] | None = None, **options: Any) -> None:
    """Run a subcommand.

    Exit codes: 2 for wrong input, 1 for a later failure, 130 for Ctrl-C, 143 for SIGTERM, 141 if standard output is a
    closed pipe.

    Args:
        arguments: the command line. Default: the arguments of this process.
        **options: passed to the function that runs the subcommand.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot encode is no error
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        run = next(run for kind, run in COMMANDS.values() if kind is type(config))
        run(config, **options)
        sys.stdout.flush()
    except InputError as error:
        sys.exit(_say(error, 2))
    except FloatingPointError as error:
        sys.exit(_say(error, 1))
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt as error:
        with undisturbed():
            sys.exit(_say(error if str(error) else "stopped", 143 if isinstance(error, Terminated) else 130))
    except Exception as error:
        if (reason := find_reason(error)) is None:
            raise
        sys.exit(_say(reason, 1))
    finally:
        _flush(sys.stdout)
        _flush(sys.stderr)


def _check_seeds(arguments: list[str]) -> None:
    """Reject seeds that are separated by commas, with a better message than tyro's."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        came = value if option == "--seeds" else option.removeprefix("--seeds=")
        if option.startswith("--seeds") and re.fullmatch(r"\d+(,\d*)+", came):
            meant = " ".join(filter(None, came.split(",")))
            raise InputError(f"--seeds must be numbers separated by spaces, got {came}: did you mean --seeds {meant}?")


def _say(error: object, code: int) -> int:
    """Print an error message in one line, and return the exit code."""
    if code != 2 or os.environ.get("RANK", "0") == "0":  # wrong input is the same for all processes
        print(f"ave_cmran.py: error: {printable(error)}", file=sys.stderr)
    return code


def _flush(stream: TextIO) -> None:
    """Flush a stream. If that fails, discard its text. Otherwise Python would flush it again at exit, and fail."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    with raising_signals():
        main()
