"""Replace the comment ``<!-- commands -->`` on the page of the command line by the options of every subcommand.

The options are read from the help that the parsers print when the page is built, so the page and the program agree.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARKER = "<!-- commands -->"
PAGE = "command_line"
WIDE = os.terminal_size((5000, 24))
"""A terminal in which no line of the help is broken."""


class Option(NamedTuple):
    """One option of a subcommand."""

    flags: str
    """The names of the option, and the values that it takes."""
    text: str
    default: str | None
    """The default value, or None if there is none."""
    required: bool


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the marker by a section for each subcommand."""
    if docname == PAGE:
        source[0] = source[0].replace(MARKER, describe_commands())


def describe_commands() -> str:
    """Return a section of Markdown for each subcommand, with its options as a definition list."""
    from ave_cmran import COMMANDS

    return "\n".join(_describe(name, print_help(name)) for name in COMMANDS)


def print_help(subcommand: str) -> str:
    """Return the help of a subcommand, as it is printed in a wide terminal."""
    from ave_cmran import main

    printed = io.StringIO()
    wide = mock.patch.object(shutil, "get_terminal_size", return_value=WIDE)
    with wide, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([subcommand, "--help"])
    return printed.getvalue()


def read_options(help_text: str) -> Iterator[Option]:
    """Yield the options in the help of a subcommand, except ``--help``.

    Examples:
        >>> list(read_options("  --seeds [INT [INT ...]]  one training for each (default: 0)"))
        [Option(flags='--seeds INT ...', text='one training for each', default='0', required=False)]
    """
    entries: list[str] = []
    for line in (line.strip("│ ") for line in help_text.splitlines()):
        if line.startswith("-"):
            entries.append(line)
        elif entries:  # where the names are long, the text begins on the next line
            entries[-1] += f"  {line}"
    for entry in entries:
        flags, _, text = entry.partition("  ")
        if not re.match(r"--\w", flags):  # -h, or the line below a heading
            continue
        text, required, _ = text.strip().partition(" (required)")
        text, _, default = text.partition(" (default: ")
        default = default.rpartition(")")[0]
        flags = flags.replace("{None}|", "").replace("{None,", "{")
        flags = re.sub(r"\{?\[([^][ ]+) \[\1 \.\.\.\]\]\}?", r"\1 ...", flags)
        yield Option(flags, text, None if default in ("", "None") else default, bool(required))


def _describe(name: str, help_text: str) -> str:
    """Return the section of one subcommand: its description, then its options."""
    about = re.split(r"\n *(?:╭─ )?options", help_text.partition("\n\n")[2], maxsplit=1)[0]
    parts = [f"## {name}\n", _escape(about.strip()), ""]
    for option in read_options(help_text):
        ending = " **Required.**" if option.required else f" Default: `{option.default}`." if option.default else ""
        text = f"{option.text[:1].upper()}{option.text[1:]}."
        parts += [f"`{option.flags}`", f": {_escape(text)}{ending}\n"]
    return "\n".join(parts)


def _escape(text: str) -> str:
    """Escape the names of options, which would become dashes, and ``<setting>``, which would become HTML."""

    def escape(found: re.Match[str]) -> str:
        if found[0].startswith("`"):  # already code
            return found[0]
        return "\\<" if found[0] == "<" else f"`{found[0]}`"

    return re.sub(r"`[^`]*`|(?<![\w-])--\w[\w-]*|<", escape, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
