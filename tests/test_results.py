"""Tables that line up, and files that are whole or absent, whatever ends their writing."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ave
from ave import results
from ave.results import format_table, make_output, write_csv, write_json, writing


def test_table_of_two_columns():
    assert format_table("Title", [("long name", "1"), ("name", "23.4%")]).splitlines() == [
        "----------------",
        "Title",
        "----------------",
        "long name      1",
        "name       23.4%",
        "----------------",
    ]


def test_table_of_any_columns():
    table = format_table("A title wider than all", [("a", "1", "22"), ("bcd", "4444", "5")], header=("", "x", "yyy"))
    assert table.splitlines() == [
        "----------------------",
        "A title wider than all",
        "----------------------",
        "        x  yyy",
        "----------------------",
        "a       1   22",
        "bcd  4444    5",
        "----------------------",
    ]


def test_table_of_nothing():
    assert format_table("Title", []).splitlines() == ["-----", "Title", "-----", "-----"]
    assert format_table("T", [], ("a", "b")).splitlines() == ["----", "T", "----", "a  b", "----", "----"]


def test_table_of_uneven_rows():
    with pytest.raises(ValueError, match="zip"):
        format_table("Title", [("a", "1"), ("b", "2", "3")])


def test_output_is_made_or_refused(tmp_path):
    make_output(tmp_path / "new" / "run")
    make_output(tmp_path / "new" / "run")
    for path in (tmp_path / "new", tmp_path / "file"):
        if path.name == "file":
            path.touch()
        with pytest.raises(ValueError, match=f"--output must be a new or empty directory, got {path}, which is not"):
            make_output(path)


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), ValueError("wrong")])
@pytest.mark.parametrize("before", [None, "old"])
def test_failed_writing_leaves_what_was(tmp_path, error, before):
    path = tmp_path / "file.txt"
    if before:
        path.write_text(before)

    def write_half():
        with writing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"file.txt": "old"} if before else {})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_disk_that_fills_up_late(tmp_path, monkeypatch, step):
    """A disk may say only when the bytes reach it that it has no room for them."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(results.os, step, failing(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(OSError, match="no space"), writing(path) as temporary:
        temporary.write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "old"}


def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(results.os, "fsync", lambda file: (steps.append(os.fstat(file).st_ino), fsync(file)))
    monkeypatch.setattr(results.os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
    write_json(tmp_path / "file.json", {"a": 1})
    assert steps == [(tmp_path / "file.json").stat().st_ino, "replace"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ave.results import writing
with writing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.skipif(os.name == "nt", reason="these signals are those of POSIX")
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_killed_process_leaves_what_was_and_is_tidied_up_after(tmp_path, signal):
    path = tmp_path / "file.txt"
    path.write_text("old")
    environment = {**os.environ, "PYTHONPATH": str(Path(ave.__file__).parents[1])}
    process = subprocess.run([sys.executable, "-c", KILLED, str(path), signal], env=environment, check=False)  # noqa: S603
    assert process.returncode < 0
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name == ".file.txt.partial.txt"
    with writing(path) as temporary, temporary.open("a") as file:
        file.write("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "new"}


def test_json_is_plain_or_refused(tmp_path):
    write_json(tmp_path / "file.json", {"a": [1, None], "b": "ä"})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": [1, None], "b": "ä"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    assert json.loads((tmp_path / "file.json").read_text())["a"] == [1, None]
    assert len(list(tmp_path.iterdir())) == 1


def test_csv_reads_back(tmp_path):
    rows = [
        {"seed": 0, "name": 'a, "b"\nc', "accuracy": 0.1 + 0.2, "other": None},
        {"accuracy": None, "name": "ä", "seed": 1, "other": "x"},
    ]
    write_csv(tmp_path / "file.csv", rows)
    with (tmp_path / "file.csv").open(encoding="utf-8", newline="") as file:
        header, *cells = csv.reader(file)
    assert header == ["seed", "name", "accuracy", "other"]
    assert cells == [["0", 'a, "b"\nc', str(0.1 + 0.2), ""], ["1", "ä", "", "x"]]
    assert [path.name for path in tmp_path.iterdir()] == ["file.csv"]


def test_csv_of_nothing_has_its_header(tmp_path):
    write_csv(tmp_path / "file.csv", [], header=("video", "start"))
    assert (tmp_path / "file.csv").read_bytes() == b"video,start\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"rows must hold at least one row to take the header of .*file\.csv from, got none"),
        ([{"a": 1}, {"a": 1, "b": 2}], r"rows must all have the keys \['a'\], got \['a', 'b'\] in row 2"),
        ([{"a": 1, "b": 2}, {"b": 1}], r"rows must all have the keys \['a', 'b'\], got \['b'\] in row 2"),
    ],
)
def test_uneven_csv_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_csv(tmp_path / "file.csv", rows)
    assert not list(tmp_path.iterdir())
