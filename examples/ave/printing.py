"""Print text that comes out of files, or names them, so that it cannot pass for anything else."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object) -> str:
    r"""Return text as one line of characters that are seen, with escapes for the others.

    Escape sequences of a terminal, line breaks, marks that turn the direction of writing, and lone surrogates, which
    stand for bytes that are not UTF-8, are shown, not obeyed.

    Examples:
        >>> print(printable("Flöte \x1b[31mred\nerror: forged \udcff"))
        Flöte \x1b[31mred\nerror: forged \udcff
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(text)
    )
