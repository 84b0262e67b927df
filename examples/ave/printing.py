"""Print text that comes out of files, or names them, so that it cannot pass for anything else."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object, most: int | None = None) -> str:
    r"""Return text as one line of characters that are seen, with escapes for the others.

    Escape sequences of a terminal, line breaks, marks that turn the direction of writing, and lone surrogates, which
    stand for bytes that are not UTF-8, are shown, not obeyed. Of text that is then longer than ``most`` characters, the
    middle is left out.

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
