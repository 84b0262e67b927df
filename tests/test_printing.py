"""Text out of files: what a terminal would obey is escaped, and what cannot be encoded fails no run."""

import pytest

from ave.printing import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Violin, fiddle (Flöte, 笛)", "Violin, fiddle (Flöte, 笛)"),
        ("\x1b[2J\x9b31m\x07\x7f", r"\x1b[2J\x9b31m\x07\x7f"),
        ("a\r\nerror: b\u2028c\td", r"a\r\nerror: b\u2028c\td"),
        ("\u202egnp.exe\u2069\u200b", r"\u202egnp.exe\u2069\u200b"),
        (b"\xff.h5".decode(errors="surrogateescape"), r"\udcff.h5"),
    ],
)
def test_printable_text_is_one_line_of_what_is_seen(text, expected):
    assert printable(text) == expected
    assert printable(ValueError(text)) == expected
