"""Text from files: control characters are escaped, and text that the terminal cannot encode does not stop a run."""

import io
import os
import sys

import pytest

from ave import checking_input
from ave.printing import printable
from running import call_main


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


def test_errors_are_one_line_of_what_is_seen(capsys):
    with pytest.raises(SystemExit) as stop:
        call_main("check", "--data", "/nowhere\x1b[2J\nave_cmran.py: error: forged")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"ave_cmran.py: error: /nowhere\x1b[2J\nave_cmran.py: error: forged is not a directory")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux")
def test_names_that_cannot_be_encoded_stop_nothing(release, tmp_path, monkeypatch):
    """On an ASCII terminal, a directory whose name is not UTF-8 is checked, trained on and written to."""
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    data = release.rename(tmp_path / os.fsdecode("Flöte \xff".encode("latin-1")))
    call_main("check", "--data", data)
    call_main("train", "--data", data, "--epochs", 1, "--batch-size", 13, "--output", data / "run")
    call_main("train", "--resume", data / "run")
    saved = (data / "run").rename(tmp_path / "run")  # of safetensors, paths must be UTF-8
    for command in ("evaluate", "predict"):
        options = ("--checkpoint", saved, "--data", data, "--output", data / command)
        call_main(command, *options, draw=True)
    printed, errors = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    assert errors == ""
    assert r"Fl\udcf6te \udcff" in printed
    for command in ("evaluate", "predict"):
        assert (data / command / "timelines.png").exists()


def test_a_pipe_that_nobody_reads_ends_quietly(release, capsys, monkeypatch):
    """A closed pipe, as with `check | head -1`, ends the command without a message, also during the checks."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as stop:
            call_main("check", "--data", release)
    assert stop.value.code == 141
    assert capsys.readouterr().err == ""
    with pytest.raises(BrokenPipeError), checking_input():
        raise BrokenPipeError
