"""Escape names and text from files before they are printed, so that they cannot control the terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object, most: int | None = None) -> str:
    r"""Return text as one line of printable characters, with escapes for all others.

    Escapes replace terminal sequences, line breaks, marks that change the direction of writing, and lone surrogates,
    which stand for bytes that are not UTF-8. If the result is longer than ``most`` characters, its middle is left out.

    Examples:
        >>> print(printable("Flöte \x1b[31mred\nerror: forged \udcff"))
        Flöte \x1b[31mred\nerror: forged \udcff
        >>> printable("a" + 100_000 * "b" + "c", most=9)
        'abbb…bbbc'
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(text)
    )
    if most is None or len(shown) <= most:
        return shown
    return f"{shown[: most // 2]}…{shown[len(shown) - (most - 1) // 2 :]}"
