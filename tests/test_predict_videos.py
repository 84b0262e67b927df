"""Events in video files: a stream gives the events of whole features, files are written, and wrong input is refused."""

import csv
import json
import shutil
import signal
import sys
import weakref
from dataclasses import replace
from unittest.mock import Mock

import av
import pytest
import torch

import ave_cmran
from ave.data.dataset import AVE_CATEGORIES, AVEData
from ave.evaluate import _check_fit
from ave.events import cut_windows, find_events, join_windows
from ave.networks.cmran import CMRAN
from ave.predict import check_features
from ave.videos import prediction
from ave.videos.backbones import find_audio, find_visual
from ave.videos.decoding import read_seconds
from ave.videos.extraction import Extraction, extract_seconds, make_sampling
from ave.videos.prediction import check_backbones, compare_features, name_file, predict_seconds
from made_videos import write_video
from oracles import fill_parameters
from running import call_main

COLORS, LOUDNESS = "small_backbones:make_colors", "small_backbones:make_loudness"
FEATURES = Extraction(COLORS, None, LOUDNESS, None, 2)
CATEGORIES = ["Bark", "Clock", "Horse"]


def make_model(**options):
    sizes = {"video_dim": 3, "audio_dim": 8, "embed_dim": 18, "num_heads": 3, "dim_feedforward": 29}
    return fill_parameters(CMRAN(**({"categories": CATEGORIES} | sizes | options))).eval()


def save(model, path, features=FEATURES, longest=4):
    model.features, model.longest = features, longest
    model.save_pretrained(path)
    return path


@pytest.fixture
def clips(tmp_path):
    """Two short clips, and what is no video."""
    directory = tmp_path / "clips"
    directory.mkdir()
    write_video(directory / "long.mp4", 7, fps=5, square=[1, 2, 3], tone=[2, 3, 4])
    write_video(directory / "short.mkv", 2, fps=5, sound=False)
    (directory / "text.mp4").write_text("no video")
    (directory / "notes.txt").write_text("not looked at")
    return directory


def slow_events(model, path, window):
    """Return the events of a video, computed from the features of all its seconds."""
    visual, audio = find_visual(COLORS), find_audio(LOUDNESS)
    features = list(extract_seconds(path, visual, audio, make_sampling(visual, audio, 2), lambda _: None))
    starts, decisions = [], []
    with torch.no_grad():
        for start, held in cut_windows(features, window):
            starts.append(start)
            decisions.append(model.decide(model(*(torch.stack(part)[None] for part in zip(*held, strict=True)))))
    (events,) = find_events(join_windows(starts, decisions, background=3), background=3)
    return [(event.start, event.end, CATEGORIES[event.category], round(event.score, 4)) for event in events]


@pytest.mark.parametrize("window", [None, 0])
def test_files_and_failures(window, clips, tmp_path, capsys):
    """Each video has the events of its features in every format; a video that fails is named, and the others go on.

    Frames are chosen by time, even if those of the training were not."""
    model = make_model()
    save(model, tmp_path / "model", replace(FEATURES, as_release=window is None))
    arguments = ["--videos", clips, "--checkpoint", tmp_path / "model", "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match="1"):
        call_main("predict", *arguments, *([] if window is None else ["--window", window]))
    captured = capsys.readouterr()
    assert captured.err == "ave_cmran.py: error: 1 of 3 videos failed: see above\n"
    assert "short: no sound" in captured.out
    assert "failed: text: " in captured.out
    assert f"{str(clips)[-20:]}; 2 videos of 9 s in total" in captured.out
    written = json.loads((tmp_path / "out/events.json").read_text())
    assert written["window"] == (4 if window is None else window)
    assert written["features"]["visual"] == COLORS
    assert written["features"]["as_release"] is False
    assert written["videos"] == 2
    assert [failure["video"] for failure in written["failed"]] == ["text"]
    assert {remark["video"] for remark in written["remarks"]} == {"short"}
    found = {name: [] for name in ("long", "short")}
    for event in written["events"]:
        found[event["video"]].append((event["start_s"], event["end_s"], event["category"], event["score"]))
    length = written["window"]
    for row, (name, file) in enumerate([("long", "long.mp4"), ("short", "short.mkv")]):
        assert found[name] == slow_events(model, clips / file, length)
        assert {event["row"] for event in written["events"] if event["video"] == name} <= {row}
        text = (tmp_path / f"out/videos/{name}.labels.txt").read_text()
        rows = [line.split("\t") for line in text.splitlines()]
        spans = [(int(float(start)), int(float(end)), label.rpartition(" ")[0]) for start, end, label in rows]
        assert spans == [event[:3] for event in found[name]]
        assert (tmp_path / f"out/videos/{name}.srt").read_text().count(" --> ") == len(spans)
        assert (tmp_path / f"out/videos/{name}.vtt").read_text().count(" --> ") == len(spans)
    assert found["long"]
    with (tmp_path / "out/events.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(written["events"])
    assert (tmp_path / "out/timelines.png").exists()


@pytest.mark.parametrize("guidance", ["agsca", "mean"])
def test_annotated_videos(guidance, clips, tmp_path, capsys):
    """A network with AGSCA gives a heat map; for another network, the command says that there is none."""
    save(make_model(guidance=guidance), tmp_path / "model")
    videos = [clips / "short.mkv", clips / "long.mp4"]
    arguments = ["--checkpoint", tmp_path / "model", "--output", tmp_path / "out", "--annotate"]
    call_main("predict", "--videos", *videos, *arguments)
    printed = capsys.readouterr().out
    assert ("no heat map" in printed) == (guidance == "mean")
    assert ("the heat map is faint, as the attention is at most 1." in printed) == (guidance == "agsca")
    assert f"{str(videos[0])[-20:]} and 1 more; 2 videos of 9 s in total" in printed
    for name, frames in (("short", 10), ("long", 35)):
        with av.open(str(tmp_path / f"out/videos/{name}.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
        assert (tmp_path / f"out/videos/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_name_of_a_file(tmp_path):
    """Names may be too long with a suffix, or not UTF-8, and the output directory may look like a URL."""
    save(make_model(), tmp_path / "model")
    names = [250 * "x", "a\nb", *(["\udcff"] if sys.platform == "linux" else [])]
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clip.mp4", 3, fps=5, square=[1, 2], tone=[1, 2])
    for name in names:
        shutil.copy(tmp_path / "clip.mp4", tmp_path / f"clips/{name}.mp4")
    output = tmp_path / "http:out"
    arguments = ["--checkpoint", tmp_path / "model", "--output", output, "--annotate"]
    call_main("predict", "--videos", tmp_path / "clips", *arguments)
    assert {event["video"] for event in json.loads((output / "events.json").read_text())["events"]} == set(names)
    with (output / "events.csv").open(newline="", encoding="utf-8") as file:
        shown = {name.encode(errors="backslashreplace").decode() for name in names}
        assert {row["video"] for row in csv.DictReader(file)} == shown
    assert len(list((output / "videos").glob("*.mp4"))) == len(names)
    assert {path.name[:220] for path in (output / "videos").glob("x*")} == {name_file(names[0])}


@pytest.mark.parametrize("window", [5, 0])
def test_a_stream_holds_the_features_of_a_window(window):
    """The attention maps do not depend on the windows."""
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for _ in range(23):
            second = torch.rand(4, 2, 3, generator=generator), torch.rand(8, generator=generator)
            alive.add(second[0])
            kept.append((second[0].clone(), second[1].clone()))
            yield second
            del second
            most = max(most, len(alive))

    kept = []
    result = predict_seconds(model, stream(), window=window, record=True)
    assert most <= (window + 2 if window else 23)
    assert result.attention.shape == (23, 4, 2)
    whole = predict_seconds(model, kept, window=0, record=True)
    torch.testing.assert_close(result.attention, whole.attention)
    torch.testing.assert_close(result.attention.sum((1, 2)), torch.ones(23))
    assert result.prediction.labels.shape == result.prediction.event_score.shape == (23,)


def refused(capsys, *arguments):
    """Return the error message of a refused command."""
    with pytest.raises(SystemExit, match="2"):
        ave_cmran.main(["predict", *map(str, arguments)])
    return capsys.readouterr().err.removeprefix("ave_cmran.py: error: ").strip()


def test_other_features_are_refused(clips, tmp_path, capsys):
    arguments = ["--videos", clips, "--output", tmp_path / "out", "--checkpoint"]
    other = save(make_model(), tmp_path / "other", Extraction(COLORS, "a1b2c3", LOUDNESS, None, 2))
    message = refused(capsys, *arguments, other)
    assert "must be those of the training, got visual weights unknown in place of a1b2c3" in message
    same = save(make_model(), tmp_path / "same")
    message = refused(capsys, *arguments, same, "--visual", "small_backbones:make_vectors")
    assert f"got visual features by small_backbones:make_vectors in place of {COLORS}" in message
    unknown = save(make_model(), tmp_path / "unknown", None)
    assert "--visual and --audio must be given" in refused(capsys, *arguments, unknown)
    wide = save(make_model(audio_dim=9), tmp_path / "wide", None)
    message = refused(capsys, *arguments, wide, "--visual", COLORS, "--audio", LOUDNESS)
    assert message == f"--audio must give 9 channels, as the network needs, got 8 from {LOUDNESS}"
    assert not (tmp_path / "out").exists()


def test_torchvisions_vgg19_is_refused_for_a_network_of_the_release():
    """Its channels mean something else, in videos and in sets. Another network may have been trained on them."""
    ours, theirs = (Extraction("vgg19", digest + 56 * "0", "vggish", None, 16) for digest in ("d01eb7cb", "dcbb9e9d"))
    release, own = make_model(categories=AVE_CATEGORIES), make_model()
    assert compare_features(release, ours) is compare_features(own, theirs) is None
    visual, audio = find_visual(COLORS), find_audio(LOUDNESS)
    visual.name, visual.sha256 = theirs.visual, theirs.visual_sha256
    data = make_set(release, theirs)
    for check in (
        lambda: check_backbones(release, visual, audio, make_sampling(visual, audio, 2)),
        lambda: check_features(data, torch.arange(2), release),
        lambda: _check_fit(release, data, procedural=False),
    ):
        with pytest.raises(ValueError, match="got visual features by torchvision's VGG-19, which was trained separate"):
            check()


def make_set(model, extraction):
    """Return a set of two videos that fits a network."""
    visual, audio = torch.zeros(2, 3, 1, 1, model.video_dim), torch.zeros(2, 3, model.audio_dim)
    labels = torch.zeros(2, 3, len(model.categories) + 1)
    return AVEData(visual, audio, labels, {}, model.categories, extraction=extraction)


@pytest.mark.parametrize(("last", "message"), [("long", "stopped"), ("short", "has the events of 1 of 2 videos")])
def test_a_stopped_prediction_keeps_finished_videos(last, message, clips, tmp_path, monkeypatch, capsys):
    def extract(path, *arguments, **options):
        if path.stem == last:
            if hasattr(signal, "setitimer"):  # as the handler of the signal does
                monkeypatch.setattr(signal, "setitimer", lambda _, seconds: repeated.append(seconds))
            raise KeyboardInterrupt
        yield from extract_seconds(path, *arguments, **options, read=read_seconds)

    repeated = []
    written = Mock(side_effect=lambda *_: repeated.append("written"))
    monkeypatch.setattr("ave.predict.write_csv", written)
    save(make_model(), tmp_path / "model")
    monkeypatch.setattr(prediction, "extract_seconds", extract)
    videos, output = (clips / "long.mp4", clips / "short.mkv"), tmp_path / "out"
    with pytest.raises(SystemExit, match="130"):
        call_main("predict", "--videos", *videos, "--checkpoint", tmp_path / "model", "--output", output)
    assert capsys.readouterr().err.endswith(f"{message}\n")
    assert output.exists() == (last == "short")
    if hasattr(signal, "setitimer"):  # the signal is not repeated while the results are written
        assert repeated == ([0, "written", 0] if last == "short" else [0])
    if output.exists():
        events = json.loads((output / "events.json").read_text())["events"]
        assert {event["video"] for event in events} == {"long"}
        assert len(events) == len((output / "videos/long.labels.txt").read_text().splitlines())


def test_a_video_whose_annotation_is_stopped_has_its_events(clips, tmp_path, monkeypatch, capsys):
    save(make_model(), tmp_path / "model")
    monkeypatch.setattr(prediction, "annotate_video_isolated", Mock(side_effect=[FileNotFoundError, KeyboardInterrupt]))
    videos, output = (clips / "long.mp4", clips / "short.mkv"), tmp_path / "out"
    with pytest.raises(SystemExit, match="130"):
        call_main("predict", "--videos", *videos, "--checkpoint", tmp_path / "model", "--annotate", "--output", output)
    assert "has the events of 2 of 2 videos" in capsys.readouterr().err
    results = json.loads((output / "events.json").read_text())
    assert {event["video"] for event in results["events"]} == {"long", "short"}
    assert [failed["video"] for failed in results["failed"]] == ["long"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --data and --videos must be given, got None and None"),
        (["--videos", "a.mp4", "--data", "b"], "one of --data and --videos must be given, got b and a.mp4"),
        (["--videos", "a.mp4", "--split", "test"], "--split must be given with --data, got test with --videos"),
        (["--data", "b", "--window", "0"], "--window must be given with --videos, got 0 with --data"),
        (["--data", "b", "--annotate"], "--annotate must be given with --videos, got True with --data"),
    ],
)
def test_options_that_exclude_each_other(arguments, message, capsys):
    assert refused(capsys, *arguments, "--checkpoint", "none") == message
