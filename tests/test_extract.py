"""From video files to a dataset: the features, what is kept when the command stops, and what is refused."""

import errno
import json
import shutil
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch

from ave import extract
from ave.data.opening import read_features
from ave.data.prepared import read_manifest
from ave.videos import assembly, isolation
from ave.videos.assembly import Assembly
from ave.videos.decoding import read_duration, read_seconds
from ave.videos.extraction import Extraction, extract_seconds, make_sampling
from ave.videos.files import find_videos
from ave.videos.sampling import Sampling
from fake_backbones import Audio, Visual
from made_videos import write_video
from running import call_main

NETWORKS = ("--visual", "fake_backbones:make_visual", "--audio", "fake_backbones:make_audio")
OPTIONS = (*NETWORKS, "--frames-per-second", 2, "--device", "cpu")
SAMPLING = Sampling(2, 8, 8000, 0.25)
LENGTHS = {"a": 3, "b": 2, "c.d": 4, "e": 2, "f": 3, "g": 3}
EXTRACTION = Extraction("fake_backbones:make_visual", None, "fake_backbones:make_audio", None, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six videos, in which a square and a tone meet in some second; one of them in a subdirectory."""
    directory = tmp_path_factory.mktemp("videos")
    (directory / "sub").mkdir()
    for number, (name, seconds) in enumerate(LENGTHS.items()):
        suffix = ("mp4", "mkv", "MOV")[number % 3]
        place = directory / "sub" if name == "e" else directory
        met = {number % seconds}
        write_video(place / f"{name}.{suffix}", seconds, square=met, tone=met, fps=8, size=(32, 24), rate=8000)
    (directory / "notes.txt").write_text("no video")
    return directory


@pytest.fixture
def videos(made, tmp_path):
    """A copy of the videos."""
    return shutil.copytree(made, tmp_path / "videos")


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Decode in this process, which is faster, and list the videos that are extracted."""
    extracted = []

    def extract_here(path, *arguments, **options):
        extracted.append(path.stem)
        return extract_seconds(path, *arguments, **options, read=read_seconds)

    monkeypatch.setattr(extract, "extract_seconds", extract_here)
    monkeypatch.setattr(extract, "read_duration_isolated", read_duration)
    return extracted


def fail(*arguments, code, capsys):
    """Run the command, which must end with this code, and return the last line of standard error."""
    with pytest.raises(SystemExit) as stop:
        call_main("extract", *OPTIONS, *arguments)
    assert stop.value.code == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_set_of_videos(videos, tmp_path, capsys, assert_close, monkeypatch):
    """The features are right and padded, and the dataset works in all other subcommands."""
    monkeypatch.setattr(assembly, "BLOCK", 2)
    output = tmp_path / "set"
    call_main("extract", "--videos", videos, *OPTIONS, "--output", output)
    printed = capsys.readouterr().out
    assert "6 videos, on cpu, fp32" in printed
    assert "6 videos, 17 s" in printed
    assert sorted(path.name for path in output.iterdir()) == [
        *("audio_feature.npy", "lengths.npy", "prepared.json", "visual_feature.npy")
    ]
    data = read_features(output)
    assert data.names == tuple(LENGTHS)
    assert data.lengths.tolist() == [*LENGTHS.values()]
    assert data.extraction == read_manifest(output).extraction == EXTRACTION
    for row, (name, seconds) in enumerate(LENGTHS.items()):
        decoded = [*read_seconds(find_videos([videos])[name], SAMPLING, print)]
        assert len(decoded) == seconds
        for second, (frames, waveform) in enumerate(decoded):
            assert_close(data.visual[[row]][0, second], Visual()(frames).mean(0))
            assert_close(data.audio[[row]][0, second], Audio()(waveform[None])[0])
        assert not data.visual[[row]][0, seconds:].any()
    loud, met = data.audio[:][..., 0].argmax(1), [number % seconds for number, seconds in enumerate(LENGTHS.values())]
    assert loud.tolist() == met

    with pytest.raises(SystemExit):
        call_main("check", "--data", output)
    said = capsys.readouterr()
    assert "features by fake_backbones:make_visual and fake_backbones:make_audio, 2 frames a second" in said.out
    (names,) = [line.split() for line in said.out.splitlines() if "names of videos" in line]
    assert names == ["prepared.json", "6", "names", "of", "videos", "ok"]
    assert said.err.endswith(
        "labels.npy is missing; `extract` writes features only: give your labels with --labels labels.csv\n"
    )
    labels = tmp_path / "labels.csv"
    rows = [f"{name},{second},{second + 1},meet" for name, second in zip(LENGTHS, met, strict=True)]
    labels.write_text("\n".join(["video,start,end,category", *rows]))
    given = ("--data", output, "--labels", labels)
    call_main("check", *given)
    call_main("train", *given, "--epochs", 2, "--output", tmp_path / "run")
    printed = capsys.readouterr().out
    assert "video features may be negative, so the network standardizes them" in printed
    given = ("--data", output, "--labels", tmp_path / "run/labels.csv")
    call_main("evaluate", *given, "--checkpoint", tmp_path / "run", "--output", tmp_path / "evaluated")
    call_main("predict", "--data", output, "--checkpoint", tmp_path / "run", "--output", tmp_path / "predicted")
    config = json.loads((tmp_path / "run/seed-0/model/config.json").read_text())
    assert config["standardized"] == ["video"]
    assert config["features"]["visual"] == "fake_backbones:make_visual"
    manifest = json.loads((output / "prepared.json").read_text())
    manifest["extraction"]["audio"] = "vggish"
    (output / "prepared.json").write_text(json.dumps(manifest))
    for command in (("evaluate", *given), ("predict", "--data", output)):
        with pytest.raises(SystemExit):
            call_main(*command, "--checkpoint", tmp_path / "run", "--output", tmp_path / "refused")
        assert "got audio features by vggish in place of fake_backbones:make_audio" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_stopped_run_continues(videos, tmp_path, counted, monkeypatch, capsys):
    """A run continues after the last finished video; damaged or changed videos are extracted again."""
    call_main("extract", "--videos", videos, *OPTIONS, "--output", tmp_path / "whole")
    output, arguments = tmp_path / "set", ("--videos", videos, "--output", tmp_path / "set")
    saving = Assembly.adding

    @contextmanager
    def interrupt(self, name, source):
        with saving(self, name, source) as add:
            yield add
            if name == "e":
                raise KeyboardInterrupt

    monkeypatch.setattr(Assembly, "adding", interrupt)
    assert fail(*arguments, code=130, capsys=capsys).endswith(
        "stopped; finished videos are kept: run extract again to continue"
    )
    monkeypatch.setattr(Assembly, "adding", saving)
    with pytest.raises(SystemExit):
        call_main("predict", "--data", output, "--checkpoint", tmp_path)
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"extract has not finished here; run it again"):
        read_features(output)
    finished = sorted((output / "finished").iterdir())
    assert [path.suffix for path in finished] == 3 * [".features", ".json"]
    features, facts = finished[0], finished[3]
    features.write_bytes(features.read_bytes()[:-1] + b"x")
    seconds = json.loads(facts.read_text())["entry"]["shape"][0]
    facts.write_text(facts.read_text().replace(f'"shape": [\n      {seconds}', '"shape": [\n      9'))
    counted.clear()
    call_main("extract", *OPTIONS, *arguments)
    printed = capsys.readouterr().out
    assert "must have the digest" in printed
    assert "continuing in" in printed
    assert "is damaged or of other features, so" in printed
    assert len(counted) == 5
    assert {"e", "f", "g"} <= set(counted)
    for name in ("visual_feature.npy", "audio_feature.npy", "lengths.npy"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    counted.clear()
    call_main("extract", *OPTIONS, *arguments)
    assert "there is nothing to do" in capsys.readouterr().out
    assert counted == []
    (output / "audio_feature.npy").write_bytes(b"")
    call_main("extract", *OPTIONS, *arguments)
    assert "all videos are extracted again" in capsys.readouterr().out
    assert len(counted) == 6
    assert (output / "audio_feature.npy").read_bytes() == (tmp_path / "whole/audio_feature.npy").read_bytes()


def test_videos_that_fail_are_listed_at_the_end(videos, tmp_path, counted, capsys):
    (videos / "b.mkv").write_text("text")
    (videos / "h.mp4").touch()
    child = Mock()
    isolation._idle.append(child)  # it would wait for the next video
    arguments = ("--videos", videos, "--output", tmp_path / "set")
    message = fail(*arguments, code=1, capsys=capsys)
    assert "2 of 7 videos could not be extracted, so" in message
    assert "is not complete: repair or remove them, and run extract again: " in message
    child.stop.assert_called_once()
    assert message.count(str(videos / "b.mkv")) == message.count(str(videos / "h.mp4")) == 1
    for name in ("b.mkv", "h.mp4"):
        (videos / name).unlink()
    counted.clear()
    call_main("extract", *OPTIONS, *arguments)
    assert counted == []
    assert read_features(tmp_path / "set").names == ("a", "c.d", "e", "f", "g")


def test_full_disk_keeps_finished_videos(videos, tmp_path, monkeypatch, capsys):
    def refuse(self, name, *_):
        raise OSError(errno.ENOSPC, "No space left on device", "/disk")

    saving = Assembly.adding
    monkeypatch.setattr(Assembly, "adding", refuse)
    message = fail("--videos", videos, "--output", tmp_path / "set", code=1, capsys=capsys)
    assert "No space left on device; finished videos are kept: run extract again to continue" in message
    monkeypatch.setattr(Assembly, "adding", saving)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9))
    message = fail("--videos", videos, "--output", tmp_path / "set", code=1, capsys=capsys)
    assert "the dataset needs 1.34kB" in message
    assert "got 9.00B free" in message


def test_wrong_input_is_refused(videos, tmp_path, capsys):
    """Wrong input is rejected before any work."""
    (empty := tmp_path / "empty").mkdir()
    (other := tmp_path / "other").mkdir()
    (other / "mine.txt").touch()
    twin = tmp_path / "a.webm"
    shutil.copy(videos / "a.mp4", twin)
    one = videos / "a.mp4"
    output = tmp_path / "set"
    for arguments, expected in (
        (("--videos", empty), f"--videos must hold videos, such as .mp4, got none in the directory {empty}"),
        (("--videos", tmp_path / "absent"), "which does not exist"),
        (("--videos", videos, twin), f"--videos must have different names, got a twice: {twin} and {one}"),
        (("--videos", one, "--output", other), "--output must be a new or empty directory, or one where extract was"),
        (("--videos", one, "--frames-per-second", 0), "--frames-per-second must be at least 1, got 0"),
        (("--videos", one, "--visual", "vgg19"), "--audio aisfx take weights from packages, without a download"),
        (("--videos", one, "--visual", "vgg16"), "or MODULE:FUNCTION of your own, got 'vgg16'"),
        (("--videos", one, "--visual", "none:f"), "or among the installed packages"),
    ):
        message = fail("--output", output, *arguments, code=2, capsys=capsys)
        assert expected in message
        assert ("without a download" in message) == ("vgg19" in arguments)
        assert not output.exists()
    call_main("extract", *OPTIONS, "--videos", one, one.parent / "a.mp4", "--output", output, "--precision", "bf16")
    assert read_manifest(output).names == ("a",)
    assert "lengths" not in read_manifest(output).files
    for arguments, expected in (
        ((), "which is complete, with other videos: b is only in one of them"),
        (("--frames-per-second", 3), "3 frames a second, got "),
    ):
        assert expected in fail("--output", output, "--videos", videos, *arguments, code=2, capsys=capsys)


@pytest.mark.parametrize("known", [True, False])
def test_too_long_videos_are_refused(known, videos, tmp_path, counted, monkeypatch, capsys):
    """They are refused before any work if their headers say how long they are."""
    if not known:
        monkeypatch.setattr(extract, "read_duration_isolated", lambda _: None)
    monkeypatch.setattr("ave.videos.assembly.MOST_NUMBERS", 3 * 2 * 2 * 3)
    message = fail("--videos", videos, "--output", tmp_path / "set", code=1, capsys=capsys)
    assert "1 of 6 videos could not be extracted" in message
    assert "it is longer than 3 s, the limit for these features: cut it" in message
    assert ("c.d" in counted) != known


def test_seconds_are_a_stream(assert_close):
    """Features do not depend on the batch size, and at first only one second is read."""
    read = []
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (7, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    waveforms = torch.rand(7, 12_000, generator=generator)

    def decode(path, sampling, remark):
        for second in zip(frames, waveforms, strict=True):
            read.append(second)
            yield extract_seconds.__globals__["Second"](*second)

    sampling = make_sampling(Visual2(), Audio2(), 3)
    assert sampling == Sampling(3, 8, 8000, 0.25)
    results = []
    for batch in (1, 7, 100):
        read.clear()
        stream = extract_seconds("x", Visual2(), Audio2(), sampling, print, batch=batch, read=decode)
        first = next(stream)
        assert len(read) == 1
        results.append([first, *stream])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])
    assert len(results[0]) == 7


class Visual2(Visual):
    name, sha256 = "two", None


class Audio2(Audio):
    name, normalize_peak, sha256 = "two", False, None
