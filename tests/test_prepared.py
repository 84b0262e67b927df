"""Prepared datasets: equal to the release up to rounding, even after interruptions; incomplete ones are not read."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

import ave_cmran
from ave import InputError, prepare
from ave.data import arrays as stored
from ave.data.opening import inspect_set, read_features, read_set
from ave.prepare import prepare_release
from ave.results.tables import files_table
from ave_release import write_annotations, write_dataset, write_release

FEATURES = ("visual_feature", "audio_feature", "visual_feature_noisy", "audio_feature_noisy")
# Half a unit in the last place, relative to a normal number; below those, half of the least number.
PRECISION = {"float16": (2**-11, 2**-25), "float32": (2**-24, 2**-150)}


@pytest.fixture
def release(tmp_path):
    directory = tmp_path / "release"
    directory.mkdir()
    arrays = write_release(directory)
    write_annotations(directory, [f"id{row}" for row in range(23)])
    return directory, arrays


@pytest.fixture
def prepared(release, tmp_path):
    prepare_release(release[0], tmp_path / "prepared")
    return tmp_path / "prepared"


def contents(directory):
    """Return the content of every file below a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("dtype", PRECISION)
def test_a_prepared_set_equals_its_release_up_to_rounding(release, tmp_path, setting, dtype):
    directory, arrays = release
    prepare_release(directory, tmp_path / "prepared", dtype)
    own, other = read_set(directory, setting), read_set(tmp_path / "prepared", setting)
    relative, absolute = PRECISION[dtype]
    fields = ("visual", "audio", "background_visual", "background_audio")
    for field, name in zip(fields, FEATURES, strict=True):
        rounded, features = getattr(other, field), arrays[name]
        assert rounded.dtype == dtype
        np.testing.assert_allclose(rounded[[2, 1]].double(), features[[2, 1]], rtol=relative, atol=absolute)
        np.testing.assert_array_equal(rounded[:], features.astype(dtype))
    for field in ("labels", "video_labels", "background_labels"):
        torch.testing.assert_close(getattr(other, field), getattr(own, field), rtol=0, atol=0)
    for split in own.splits:
        torch.testing.assert_close(other.splits[split], own.splits[split], rtol=0, atol=0)
    assert other.categories == own.categories
    assert other.names == own.names == tuple(f"id{row}" for row in range(23))
    features = read_features(tmp_path / "prepared")
    assert features.names == own.names
    assert list(features.splits) == ["train", "val", "test"]


@pytest.mark.parametrize("dtype", PRECISION)
def test_manifest_tells_the_rounding(release, tmp_path, dtype):
    directory, arrays = release
    files = prepare_release(directory, tmp_path / "prepared", dtype).files
    assert json.loads((tmp_path / "prepared" / "prepared.json").read_text())["files"].keys() == files.keys()
    for name in FEATURES:
        errors = np.abs(arrays[name] - arrays[name].astype(dtype))
        assert files[name].absolute_error == errors.max() > 0
        normal = arrays[name] >= np.finfo(dtype).tiny
        assert files[name].relative_error == (errors[normal] / arrays[name][normal]).max() <= PRECISION[dtype][0]
    assert files["labels"].absolute_error == files["train_order"].absolute_error == 0


@pytest.mark.parametrize(
    ("numbers", "rounded", "errors"),
    [
        (
            [1e-9, -6e-5, 1.0, -1.0004, 0, 65504, 65519],
            [0, -1007 * 2**-24, 1, -1, 0, 65504, 65504],
            (15, 0.0004 / 1.0004),
        ),
        ([0, 1, 2, -3, 4, 5, 2049], [0, 1, 2, -3, 4, 5, 2048], (1, 1 / 2049)),
        ([0, 1, 2, -3, 4, 5, 6], [0, 1, 2, -3, 4, 5, 6], (0, 0)),
    ],
)
def test_rounding_of_every_kind_of_number(release, tmp_path, numbers, rounded, errors):
    directory, arrays = release
    array = np.broadcast_to(numbers, arrays["audio_feature"].shape)
    write_dataset(directory / "audio_feature.h5", array)
    entry = prepare_release(directory, tmp_path / "prepared").files["audio_feature"]
    np.testing.assert_array_equal(read_set(tmp_path / "prepared").audio[[3]][0, 0].double(), rounded)
    assert (entry.absolute_error, entry.relative_error) == pytest.approx(errors)


def test_weak_files_may_come_later(release, tmp_path):
    directory, _ = release
    aside = tmp_path / "aside"
    aside.mkdir()
    for name in ("mil_labels", "labels_noisy", "visual_feature_noisy", "audio_feature_noisy"):
        (directory / f"{name}.h5").rename(aside / f"{name}.h5")
    output = tmp_path / "prepared"
    prepare_release(directory, output)
    assert read_set(output).video_labels is None
    with pytest.raises(FileNotFoundError, match=r"mil_labels\.npy is missing; run prepare again with a release that"):
        read_set(output, "weak")
    for path in aside.iterdir():
        path.rename(directory / path.name)
    prepare_release(directory, output)
    assert read_set(output, "weak").background_visual.shape == (3, 5, 3, 2, 11)


def test_a_finished_set_is_left_alone(release, prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    said = []
    prepare_release(release[0], prepared, say=said.append)
    assert said == [f"{prepared} is prepared, and every digest is right: there is nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


@pytest.mark.parametrize("name", ["visual_feature", "labels", "val_order"])
@pytest.mark.parametrize("kind", ["flipped", "cut", "longer", "gone"])
def test_damage_is_named_and_mended(release, prepared, name, kind):
    whole = contents(prepared)
    path = prepared / f"{name}.npy"
    raw = bytearray(path.read_bytes())
    raw[-7] ^= 0x10
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes({"flipped": bytes(raw), "cut": bytes(raw[:-1]), "longer": bytes(raw) + b"x"}[kind])
    (problem,) = inspect_set(prepared).problems
    assert problem.file == name
    with pytest.raises(ValueError, match=rf"{name}\.npy (is missing|must have .*); run prepare again, which repairs"):
        read_set(prepared)
    said = []
    prepare_release(release[0], prepared, say=said.append)
    assert f"{name}.npy" in said[0]
    assert said[0].endswith("it is prepared again")
    assert contents(prepared) == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"prepared\.json must be what prepare or extract wrote, got: Expecting property .*; run it again"),
        ("[]", r"prepared\.json must be what prepare or extract wrote, got: Manifest must be Manifest, got \[\]"),
        ('{"form": 1}', r"prepared\.json must be what prepare or extract wrote, got: Manifest needs dtype"),
        (
            '{"form": 7, "dtype": "", "files": {}, "names": null}',
            "got: form 7, expected 1, so use a new directory; run",
        ),
        (
            "[" * 200_000,
            r"prepared\.json must be what prepare or extract wrote, got: lists or objects that are nested too deep",
        ),
        ('{"form": 1, "dtype": 2, "files": {}, "names": null}', "got: Manifest.dtype must be"),
        (
            '{"form": 1, "dtype": "float16", "files": {"labels": 3}, "names": null}',
            r"got: Manifest.files.labels must be",
        ),
        ('{"form": 1, "dtype": "float16", "files": {}, "names": [1]}', r"got: Manifest.names must be"),
        (json.dumps({"form": 1, "x" * 10**5: 1}), "got: Manifest has no x{60}; run it again"),
        (
            json.dumps({"form": 1, "dtype": "float16", "files": {"y" * 10**5: 1}, "names": None}),
            "got: Manifest.files.y{60} must be Entry, got 1; run it again",
        ),
    ],
)
def test_a_damaged_manifest_is_named(prepared, text, message):
    (prepared / "prepared.json").write_text(text)
    for read in (read_set, read_features, inspect_set):
        with pytest.raises(ValueError, match=message):
            read(prepared)


def test_a_manifest_may_say_that_a_set_is_ave(prepared):
    assert not read_set(prepared).is_ave
    manifest = json.loads((prepared / "prepared.json").read_text())
    (prepared / "prepared.json").write_text(json.dumps({**manifest, "ave": True}))
    assert read_set(prepared).is_ave


@pytest.mark.parametrize("left", [(), ("labels", "audio_feature")])
def test_a_file_without_a_digest_is_missing(prepared, left):
    """A file that the manifest does not list is missing; otherwise an empty manifest would disable the digests."""
    manifest = json.loads((prepared / "prepared.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name in left}
    (prepared / "prepared.json").write_text(json.dumps(manifest))
    problems = {problem.file for problem in inspect_set(prepared).problems}
    assert problems == {
        "labels",
        "visual_feature",
        "audio_feature",
        *(f"{s}_order" for s in ("train", "val", "test")),
    }.difference(left)
    for read in (read_set, read_features):
        with pytest.raises(
            FileNotFoundError, match=r"\.npy is missing in prepared.json, which has the digests; run prep"
        ):
            read(prepared)


def test_names_are_as_many_as_videos(prepared):
    manifest = json.loads((prepared / "prepared.json").read_text())
    (prepared / "prepared.json").write_text(json.dumps({**manifest, "names": ["one"]}))
    with pytest.raises(
        ValueError,
        match=r"prepared\.json must name each of the 23 videos of labels\.npy, got 1 names; run prepare again",
    ):
        read_set(prepared)


def test_a_pipe_in_a_prepared_set_is_not_waited_for(prepared):
    for name in ("labels.npy", "prepared.json"):
        (prepared / name).unlink()
        os.mkfifo(prepared / name)
        with pytest.raises(ValueError, match=rf"{name} must be .*a named pipe"):
            read_set(prepared)


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(release, tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "output").mkdir()
    for name in (".visual_feature.npy.partial.npy", ".unfinished.json.partial.json"):
        (tmp_path / "output" / name).symlink_to(tmp_path / "target")
    prepare_release(release[0], tmp_path / "output")
    assert (tmp_path / "target").read_text() == "precious"
    assert not [path for path in (tmp_path / "output").iterdir() if path.is_symlink()]


def test_a_damaged_manifest_is_written_anew(release, prepared):
    whole = contents(prepared)
    (prepared / "prepared.json").write_text("{")
    prepare_release(release[0], prepared)
    assert contents(prepared) == whole


def prepare_until(directory, output, name, rows):
    """Prepare in blocks of three videos, and be killed after ``rows`` rows of a file; if None, before it is renamed.

    This runs in a separate process.
    """
    stored.BLOCK_BYTES = 3 * 5 * 3 * 2 * 11 * 8

    def blocks(self, original=stored.StoredArray.blocks):
        for first, block in original(self):
            yield first, block
            if rows is not None and f"{self.path.stem}.npy" == name and first + len(block) >= rows:
                os.kill(os.getpid(), signal.SIGKILL)

    def replace(source, target, original=os.replace):
        if rows is None and target.name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)

    os.replace = replace

    stored.StoredArray.blocks = blocks
    prepare_release(directory, output)


@pytest.mark.parametrize(
    "moments",
    [
        [
            ("visual_feature.npy", 3),
            ("visual_feature.npy", 12),
            ("audio_feature.npy", None),
            ("audio_feature_noisy.npy", 3),
            ("prepared.json", None),
        ]
    ],
)
def test_a_killed_preparation_ends_like_an_uninterrupted_one(release, tmp_path, moments, processes):
    directory, _ = release
    uninterrupted, output = tmp_path / "uninterrupted", tmp_path / "output"
    prepare_release(directory, uninterrupted)
    for name, rows in moments:
        process = processes.Process(target=prepare_until, args=(directory, output, name, rows))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (output / name).exists()
        assert name == "prepared.json" or (output / f".{name}.partial.npy").exists()
        for read in (read_set, inspect_set):
            with pytest.raises(ValueError, match=r"prepare has not finished here; run it again"):
                read(output)
    said = []
    prepare_release(directory, output, say=said.append)
    assert said == [f"continuing in {output}, where 10 files are ready"]
    assert contents(output) == contents(uninterrupted)


class Stopped(BaseException):
    """Stop a preparation in this process, like a kill."""


def stop_after(monkeypatch, count):
    """Stop a preparation after it has written its manifest some number of times."""
    noted = []

    def write(path, value, original=prepare.write_json):
        original(path, value)
        noted.append(1)
        if len(noted) == count:
            raise Stopped

    monkeypatch.setattr(prepare, "write_json", write)


def test_a_stopped_preparation_continues_with_the_next_file(release, tmp_path, monkeypatch):
    """A stopped preparation continues with the next file, and reads no finished file again."""
    directory, _ = release
    prepare_release(directory, tmp_path / "uninterrupted")
    whole = contents(tmp_path / "uninterrupted")
    read = []

    def blocks(self, original=stored.StoredArray.blocks):
        read.append(self.path.name)
        return original(self)

    monkeypatch.setattr(stored.StoredArray, "blocks", blocks)
    for count in range(1, 40):
        read.clear()
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            try:
                prepare_release(directory, tmp_path / "output")
            except Stopped:
                pass
            else:
                break
        prepare_release(directory, tmp_path / "output")
        assert len(read) == len(set(read)) == 10
        assert contents(tmp_path / "output") == whole
        shutil.rmtree(tmp_path / "output")
    assert count == 13


def test_partial_files_of_a_kill_are_removed(release, tmp_path, monkeypatch):
    directory, _ = release
    prepare_release(directory, tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            prepare_release(directory, tmp_path / "output")
    (tmp_path / "output" / ".visual_feature.npy.partial.npy").write_bytes(b"half a file")
    prepare_release(directory, tmp_path / "output")
    assert contents(tmp_path / "output") == contents(tmp_path / "uninterrupted")


@pytest.mark.parametrize("change", ["source", "dtype", "state"])
def test_a_preparation_with_other_arguments_starts_again(release, tmp_path, monkeypatch, change):
    directory, _ = release
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            prepare_release(directory, output)
    if change == "source":
        write_dataset(directory / "labels.h5", np.eye(29)[np.full((23, 5), 3)])
    if change == "state":
        (output / "unfinished.json").write_text("")
    dtype, said = "float32" if change == "dtype" else "float16", []
    prepare_release(directory, output, dtype, said.append)
    message = {
        "source": "was started from another labels.h5, so all files are prepared again",
        "dtype": "was started in float16, so all files are prepared again",
        "state": "unfinished.json is damaged, so all files are prepared again",
    }
    assert message[change] in said[0]
    prepare_release(directory, tmp_path / "fresh", dtype)
    assert contents(output) == contents(tmp_path / "fresh")
    torch.testing.assert_close(read_set(output).labels, read_set(directory).labels)


def test_files_of_another_unfinished_preparation_are_removed(release, tmp_path, monkeypatch):
    directory, _ = release
    with monkeypatch.context() as patch:
        stop_after(patch, 11)
        with pytest.raises(Stopped):
            prepare_release(directory, tmp_path / "output")
    assert (tmp_path / "output" / "audio_feature_noisy.npy").exists()
    for path in directory.glob("*_noisy.h5"):
        path.unlink()
    prepare_release(directory, tmp_path / "output")
    prepare_release(directory, tmp_path / "fresh")
    assert contents(tmp_path / "output") == contents(tmp_path / "fresh")


def test_unknown_files_in_a_manifest_are_ignored(release, prepared):
    manifest = json.loads((prepared / "prepared.json").read_text())
    manifest["files"]["../other"] = manifest["files"]["labels"]
    (prepared / "prepared.json").write_text(json.dumps(manifest))
    said = []
    prepare_release(release[0], prepared, say=said.append)
    assert "nothing to do" in said[0]


@pytest.mark.parametrize("limit", [100, 9000, 13900])
def test_a_full_disk_is_said_in_a_line_and_the_rest_comes_later(release, tmp_path, monkeypatch, capsys, limit):
    """A full disk is reported in one line, and the next call prepares the rest. A limit on file size is used."""
    resource = pytest.importorskip("resource")
    directory, _ = release
    output = tmp_path / "output"
    monkeypatch.setattr(stored, "BLOCK_BYTES", 3 * 5 * 3 * 2 * 11 * 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            run_command("prepare", "--data", directory, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    (line,) = (line for line in errors.splitlines() if "error" in line)
    assert "File too large; finished files are kept: run prepare again to continue" in line
    assert "Traceback" not in errors
    assert not (output / "prepared.json").exists()
    prepare_release(directory, output)
    prepare_release(directory, tmp_path / "uninterrupted")
    assert contents(output) == contents(tmp_path / "uninterrupted")


def test_too_little_space_is_said_before_anything_is_written(release, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"--output must be on a disk with 35\.\dkB free, got 20\.0kB free at"):
        prepare_release(release[0], tmp_path / "new" / "output")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "visual_feature",
            0.0,
            r"visual_feature\.h5 must hold features of every video, got .* in 1 of 23 videos, .*row 22; there may",
        ),
        ("audio_feature_noisy", np.inf, r"audio_feature_noisy\.h5 must hold finite features"),
        (
            "audio_feature",
            np.nan,
            r"audio_feature\.h5 must hold finite features, got NaN or Inf in 1 of 23 videos, .*`check` finds all",
        ),
        (
            "audio_feature",
            7e4,
            r"audio_feature\.h5: the largest float16 is 65504, got features up to 70000: use --dtype float32",
        ),
    ],
)
def test_bad_features_leave_what_was_finished(release, tmp_path, monkeypatch, name, value, message):
    """Bad features keep the finished files; once they are corrected, only the rest is prepared."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", 5 * 5 * 3 * 2 * 11 * 8)
    directory, arrays = release
    array = arrays[name].copy()
    array[-1, 2, 1] = array[-1, 2, 1] * 0
    array[-1].flat[-1] = value
    if value == 0:
        array[-1] = 0
    write_dataset(directory / f"{name}.h5", array)
    output = tmp_path / "output"
    with pytest.raises(InputError, match=rf"{message}.*; finished files are kept in {output}"):
        prepare_release(directory, output)
    assert not (output / f"{name}.npy").exists()
    with pytest.raises(ValueError, match=r"prepare has not finished here"):
        read_set(output)
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("*.npy")}
    if value == 7e4:
        shutil.copytree(output, tmp_path / "other")
        prepare_release(directory, tmp_path / "other", "float32")
        assert read_set(tmp_path / "other").audio[[22]].max() == 70000
    write_dataset(directory / f"{name}.h5", arrays[name])
    prepare_release(directory, output)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in output.glob("*.npy")}.items()
    prepare_release(directory, tmp_path / "fresh")
    assert contents(output) == contents(tmp_path / "fresh")


def test_bad_features_that_came_later_leave_the_finished_set(release, tmp_path):
    directory, arrays = release
    (directory / "audio_feature_noisy.h5").unlink()
    output = tmp_path / "output"
    prepare_release(directory, output)
    whole = contents(output)
    write_dataset(directory / "audio_feature_noisy.h5", arrays["audio_feature_noisy"] + np.inf)
    with pytest.raises(InputError, match="must hold finite features"):
        prepare_release(directory, output)
    assert whole.items() <= contents(output).items()
    read_set(output)
    with pytest.raises(FileNotFoundError, match=r"audio_feature_noisy\.npy is missing"):
        read_set(output, "weak")
    (directory / "audio_feature_noisy.h5").unlink()
    prepare_release(directory, output)
    assert contents(output) == whole


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda output: output.write_text(""), "must be a new or empty directory.*got"),
        (lambda output: (output.mkdir(), (output / "notes.txt").touch()), r"which holds notes\.txt"),
        (lambda output: (output.mkdir(), (output / "labels.npy").touch()), r"which holds labels\.npy"),
    ],
)
def test_output_with_other_files_is_refused(release, tmp_path, arrange, message):
    arrange(tmp_path / "output")
    with pytest.raises(InputError, match=message):
        prepare_release(release[0], tmp_path / "output")


def test_output_with_another_set_is_refused(release, prepared):
    directory, arrays = release
    whole = contents(prepared)
    with pytest.raises(InputError, match=r"must be a new directory, got .*, which holds a set prepared in float16"):
        prepare_release(directory, prepared, "float32")
    write_dataset(directory / "audio_feature.h5", arrays["audio_feature"])
    with pytest.raises(InputError, match=r"which holds a set prepared from another audio_feature\.h5"):
        prepare_release(directory, prepared)
    assert contents(prepared) == whole


def test_a_release_with_a_fault_is_refused(release, tmp_path):
    (release[0] / "test_order.h5").unlink()
    with pytest.raises(InputError, match=r"test_order\.h5 is missing"):
        prepare_release(release[0], tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_report_has_sizes_and_every_file(prepared):
    report = inspect_set(prepared, "weak")
    assert report.problems == []
    cells = {line.split()[0]: line.split() for line in files_table(report).splitlines()[3:]}
    assert cells["visual_feature.npy"][1:4] == ["15.3kB", "23x5x3x2x11", "float16"]
    assert all(cells[f"{name}.npy"][-1] == "ok" for name in (*FEATURES, "labels", "test_order"))
    assert cells["Annotations.txt"][1] == "23"


def run_command(*arguments):
    ave_cmran.main(list(map(str, arguments)))


def test_commands(release, tmp_path, capsys):
    directory, _ = release
    output = tmp_path / "output"
    run_command("check", "--data", directory, "--setting", "weak")
    assert "for the weak setting" in capsys.readouterr().out
    run_command("prepare", "--data", directory, "--output", output)
    table = capsys.readouterr().out
    sizes = [
        sum(path.stat().st_size for path in place.glob(f"*.{end}"))
        for place, end in ((directory, "h5"), (output, "npy"))
    ]
    (line,) = (line.split() for line in table.splitlines() if line.startswith("all "))
    assert float(line[3]) == pytest.approx(sizes[0] / sizes[1], abs=0.01)
    (line,) = (line.split() for line in table.splitlines() if line.startswith("visual_feature "))
    assert 0 < float(line[4]) < 2**-12 + 1e-6
    run_command("prepare", "--data", directory, "--output", output)
    assert "nothing to do" in capsys.readouterr().out
    run_command("check", "--data", output)
    assert "prepared in float16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "damage", "message"),
    [
        ("check", "infinite", "must hold finite features"),
        ("check", "missing", "labels.h5 is missing"),
        ("check", "nowhere", "is not a directory"),
        ("prepare", "infinite", "must hold finite features"),
        ("prepare", "missing", "labels.h5 is missing"),
        ("prepare", "nowhere", "is not a directory"),
        ("prepare", "file", "--output must be a new or empty directory"),
    ],
)
def test_bad_input_is_a_line_and_exit_code_2(release, tmp_path, capsys, command, damage, message):
    directory, arrays = release
    output = tmp_path / "output"
    if damage == "infinite":
        write_dataset(directory / "audio_feature.h5", arrays["audio_feature"] + np.inf)
    elif damage == "missing":
        (directory / "labels.h5").unlink()
    elif damage == "nowhere":
        directory = tmp_path / "nowhere"
    else:
        output.write_text("")
    with pytest.raises(SystemExit) as stopped:
        run_command(command, "--data", directory, *(["--output", output] if command == "prepare" else []))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ave_cmran.py: error: ")
    assert message in line
    assert not output.exists() or damage in ("file", "infinite")
