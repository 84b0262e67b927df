"""Audio-visual event localisation with CMRAN: check and prepare the AVE release, train, evaluate, predict.

Without a subcommand it trains; without options it trains on an embedded procedural set in the shape of AVE, in minutes
on two CPU cores. `ave_cmran.py SUBCOMMAND --help` explains every option.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import torch

from ave.commands import InputError, check, evaluate, predict, prepare, train

COMMANDS = {"train": train, "evaluate": evaluate, "predict": predict, "check": check, "prepare": prepare}


def make_parser() -> argparse.ArgumentParser:
    """The command line: a parser for each subcommand, which its module describes."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="ave_cmran.py", description=__doc__, formatter_class=shape, allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="command", metavar="SUBCOMMAND", required=True)
    for name, command in COMMANDS.items():
        description = command.__doc__ or ""
        summary = description.partition("\n")[0]
        command.add_options(
            subparsers.add_parser(
                name, help=summary, description=description, formatter_class=shape, allow_abbrev=False
            )
        )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand. Exit codes: 2 for what was given, 1 for what failed later, 130 for Ctrl-C, 143 for SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["train", *arguments]
    options = make_parser().parse_args(arguments)
    try:
        COMMANDS[options.command].run(options)
    except InputError as error:
        sys.exit(_say(error, 2))
    except (FloatingPointError, OSError) as error:
        sys.exit(_say(error, 1))
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        sys.exit(_say(f"{reason} Use a smaller --batch-size, or another --cache", 1))
    except KeyboardInterrupt as error:
        sys.exit(_say(error if str(error) else "stopped", 143 if isinstance(error, Terminated) else 130))


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with what is begun cleared away."""


def _say(error: object, code: int) -> int:
    if code == 1 or os.environ.get("RANK", "0") == "0":  # what was given is the same for all processes
        print(f"ave_cmran.py: error: {error}", file=sys.stderr)
    return code


def _terminate(*_: object) -> None:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    main()
