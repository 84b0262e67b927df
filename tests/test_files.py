"""Writing files: they are complete or absent after any failure; JSON is checked for its types when it is read."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import ave
from ave import InputError
from ave.reading import read_json
from ave.results import files
from ave.results.files import check_output, clearing, make_directory, write_csv, write_json, writing, writing_directory


def test_output_is_made_or_refused(tmp_path):
    check_output(tmp_path / "new" / "run")
    for _ in range(2):
        with clearing(tmp_path / "new" / "run"):
            check_output(tmp_path / "new" / "run")
    for path in (tmp_path / "new", tmp_path / "file"):
        if path.name == "file":
            path.touch()
        with pytest.raises(ValueError, match=f"--output must be a new or empty directory, got {path}, which is not"):
            check_output(path)


@pytest.mark.parametrize("existing", [".", "new", "new/run"])
def test_an_output_without_files_is_removed_after_a_failure(tmp_path, existing):
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="wrong"), clearing(tmp_path / "new" / "run"):
        raise ValueError("wrong")
    assert set(tmp_path.rglob("*")) == before


def test_an_output_with_files_is_kept_after_a_failure(tmp_path):
    def write_half():
        with clearing(tmp_path / "new"):
            (tmp_path / "new" / "file").touch()
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        write_half()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_output_is_for_one_process(tmp_path):
    """A directory is locked for one process, and a process that waited for the lock must find it empty."""
    output = tmp_path / "run"
    with clearing(output):
        check_output(output)  # as another process would, that has not come far
        for new in (True, False):
            with pytest.raises(InputError, match=f"^{output} is in use by another process: .*another directory$"):
                clearing(output, new=new).__enter__()
        with clearing(output, main=False):
            (output / "file").touch()
    assert [path.name for path in output.iterdir()] == ["file"]
    with pytest.raises(InputError, match="--output must be a new or empty directory"):
        clearing(output).__enter__()
    with clearing(output, new=False):
        pass
    assert [path.name for path in output.iterdir()] == ["file"]


def test_another_process_of_a_launcher_leaves_the_output_to_the_first(tmp_path):
    with clearing(tmp_path / "run", main=False):
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_partial_files_are_removed_at_the_end(error, tmp_path):
    with pytest.raises(error) if error else nullcontext(), clearing(tmp_path / "run"):
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "file").touch()
        (tmp_path / "run" / ".model.partial" / "inner").mkdir(parents=True)
        (tmp_path / "run" / "seed" / ".a.csv.partial.csv").mkdir(parents=True)
        (tmp_path / "run" / "seed" / ".b.csv.partial.csv").touch()
        (tmp_path / "run" / "seed" / ".model.partial").symlink_to(tmp_path / "target")
        (tmp_path / "run" / "seed" / "partial").touch()
        if error:
            raise error
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {"run", "run/seed", "run/seed/partial", "target", "target/file"}


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), ValueError("wrong")])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_write_keeps_the_old_file(tmp_path, error, before):
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
    """An error that only fsync reports leaves the old file."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, step, failing(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(OSError, match="no space") as raised, writing(path) as temporary:
        temporary.write_text("new")
    assert raised.value.filename == str(path)  # so that the message tells which disk is full
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "old"}


def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda file: (steps.append(os.fstat(file).st_ino), fsync(file)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
    write_json(tmp_path / "file.json", {"a": 1})
    assert steps == [(tmp_path / "file.json").stat().st_ino, "replace"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ave.results.files import writing
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


HOLDING = """
import os, signal, sys, time
from pathlib import Path
from ave.results.files import clearing
with clearing(Path(sys.argv[1])):
    if child := os.fork():
        print(child)
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(1)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_killed_process_leaves_no_lock(tmp_path):
    """A lock is released when its process is killed, even while that process had children."""
    output = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(ave.__file__).parents[1])}
    process = subprocess.run(  # noqa: S603
        [sys.executable, "-c", HOLDING, str(output)], env=environment, check=False, stdout=subprocess.PIPE
    )
    assert process.returncode < 0
    check_output(output)
    try:
        with clearing(output):
            pass
    finally:
        os.kill(int(process.stdout), signal.SIGKILL)
    assert list(output.iterdir()) == []


def write_two(path, text):
    with writing_directory(path) as temporary:
        for name in ("one", "two"):
            (temporary / name).write_text(text)


def test_directory_is_replaced_as_a_whole(tmp_path):
    """A directory is replaced completely, and a link in its place is replaced, not followed."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").touch()
    for left in (".model.partial", ".model.partial.old", "model"):
        (tmp_path / left).symlink_to(tmp_path / "target")
    for text in ("first", "second"):
        write_two(tmp_path / "model", text)
        assert {path.name: path.read_text() for path in (tmp_path / "model").iterdir()} == {"one": text, "two": text}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "target"]
    with pytest.raises(UnicodeEncodeError):
        write_two(tmp_path / "model", "\udcff")  # which fails after the first file was opened
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "target"]
    assert (tmp_path / "model" / "one").read_text() == "second"
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["file"]


@pytest.mark.parametrize(
    "write",
    [
        lambda run: write_json(run / "seed" / "a.json", {}),
        lambda run: write_two(run / "seed" / "model", ""),
        lambda run: make_directory(run / "seed" / "checkpoints"),
    ],
)
@pytest.mark.parametrize("gone", ["run", "run/seed"])
def test_a_directory_that_is_gone_is_not_created_anew(tmp_path, write, gone):
    (tmp_path / "run" / "seed").mkdir(parents=True)
    (tmp_path / gone).rename(tmp_path / "renamed")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError, match=rf"{gone} is gone: deleted or renamed while this ran$"):
        write(tmp_path / "run")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_directory_that_goes_while_it_is_written_to(tmp_path, steps):
    (tmp_path / "run").mkdir()

    def write():
        with writing(tmp_path / "run" / "a.txt") as temporary:
            if steps > 1:
                temporary.touch()
            (tmp_path / "run").rename(tmp_path / "renamed")
            if steps > 2:
                temporary.write_text("")

    with pytest.raises(FileNotFoundError, match=r"run is gone"):
        write()
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_found_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), writing(tmp_path / "a.txt"):
        (tmp_path / "other").read_text()


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
        ([], r"rows must not be empty without a header, to write .*file\.csv"),
        ([{"a": 1}, {"a": 1, "b": 2}], r"rows must all have the keys \['a'\], got \['a', 'b'\] in row 2"),
        ([{"a": 1, "b": 2}, {"b": 1}], r"rows must all have the keys \['a', 'b'\], got \['b'\] in row 2"),
    ],
)
def test_uneven_csv_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_csv(tmp_path / "file.csv", rows)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Inner:
    rate: float
    path: Path | None = None


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    numbers: tuple[int, ...]
    inner: Inner
    anything: dict[str, Any]


def test_json_is_read_as_a_dataclass(tmp_path):
    value = {"kind": "b", "numbers": [1, 2], "inner": {"rate": 3, "path": "x/y"}, "anything": {"c": [None]}}
    write_json(tmp_path / "file.json", value)
    read = read_json(tmp_path / "file.json", Outer)
    assert read == Outer("b", (1, 2), Inner(3.0, Path("x/y")), {"c": [None]})
    assert type(read.inner.rate) is float


WHOLE = '{"kind": "a", "numbers": [1], "inner": {"rate": 1.0}, "anything": {}}'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"a"', '"c"', "Outer.kind must be .*, got 'c'"),
        ("[1]", "[1, true]", "Outer.numbers must be int, got True"),
        ("[1]", "1", "Outer.numbers must be tuple, got 1"),
        ("1.0", '"1.0"', "Outer.inner.rate must be float, got '1.0'"),
        ('{"rate": 1.0}', "null", "Outer.inner must be Inner, got None"),
        ('{"rate": 1.0}', '{"path": null}', "Outer.inner needs rate"),
        ('{"rate": 1.0}', '{"rate": 1.0, "more": 1}', "Outer.inner has no more"),
        (WHOLE, "[]", r"Outer must be Outer, got \[\]"),
        (WHOLE, "{", "Expecting"),
        (WHOLE, "[" * 200_000, "nested too deep"),
    ],
)
def test_json_of_another_kind_is_named(tmp_path, old, new, message):
    assert old in WHOLE
    (tmp_path / "file.json").write_text(WHOLE.replace(old, new))
    with pytest.raises(ValueError, match=rf"file\.json is damaged, or not what a run wrote: .*{message}"):
        read_json(tmp_path / "file.json", Outer)
