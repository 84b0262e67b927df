"""Events in videos without labels: the command on every form of features, and what it refuses before it computes or
writes anything."""

import csv
import io
import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from ave.data.dataset import AVE_CATEGORIES, AVEData
from ave.events import Prediction
from ave.networks import load_network
from ave.networks.cmran import CMRAN
from ave.networks.two_scores import Logits
from ave.predict import predict, read_batches
from ave_release import SHAPE, write_dataset, write_release
from oracles import fill_parameters, slow_events
from running import call_main

GOLDEN = Path(__file__).parent / "golden"
FILES = {"events.csv", "events.json"}
COLUMNS = ["video", "row", "start_s", "end_s", "category", "score"]
CATEGORIES = ["Bark", "Clock", "Horse"]


def make_model(setting="supervised", **options):
    small = {"video_dim": SHAPE["video_dim"], "audio_dim": SHAPE["audio_dim"], "categories": CATEGORIES}
    small |= {"embed_dim": 18, "num_heads": 3, "dim_feedforward": 29}
    return fill_parameters(CMRAN(setting, **(small | options))).eval()


def batches_of(visual, audio, lengths=None):
    data = AVEData(visual, audio, torch.zeros(*audio.shape[:2], 0), {}, (), lengths=lengths)
    return read_batches(data, torch.arange(len(audio)), torch.device("cpu"), "")


def test_scores_that_are_not_finite_are_an_error():
    batches = batches_of(torch.rand(3, 5, 3, 2, 11), torch.rand(3, 5, 7))

    model = make_model()
    torch.nn.init.constant_(model.event_head.bias, torch.inf)
    with pytest.raises(FloatingPointError, match="not finite: try --precision fp32"):
        predict(model, batches)


@pytest.mark.parametrize("lengths", [None, [5, 2, 1] * 13])
def test_batches_change_nothing(lengths, draw):
    """39 videos in batches of 16 get the same predictions as each video alone and without its padding."""
    model = make_model("weak")
    visual, audio = draw(39, 5, 3, 2, 11, dtype=torch.float32), draw(39, 5, 7, dtype=torch.float32)
    together = predict(model, batches_of(visual, audio, None if lengths is None else torch.tensor(lengths)))
    for row, length in enumerate(lengths or [5] * 39):
        (expected,) = predict(model, batches_of(visual[row : row + 1, :length], audio[row : row + 1, :length]))
        assert isinstance(together[row], Prediction)
        assert torch.equal(together[row].labels, expected.labels)
        torch.testing.assert_close(together[row].event_score, expected.event_score, rtol=1e-4, atol=1e-5)
        spans = [(event.start, event.end, event.category) for event in together[row].events]
        assert spans == [(event.start, event.end, event.category) for event in expected.events]


@pytest.fixture
def checkpoint(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read_events(output):
    """Return the contents of events.json, after checking that events.csv agrees and that any picture is one."""
    pictures = {path.name: path.read_bytes() for path in output.iterdir() if path.name not in FILES}
    assert pictures.keys() <= {"timelines.png"}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    with (output / "events.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    written = json.loads((output / "events.json").read_text())
    assert rows == [{name: str(value) for name, value in event.items()} for event in written["events"]]
    return written


def expected_events(model, visual, audio, rows, names):
    """Return the events that the network finds if it gets all videos at once."""
    with torch.no_grad():
        logits = model(torch.as_tensor(visual[rows]).float(), torch.as_tensor(audio[rows]).float())
    return [
        {
            "video": names[row],
            "row": row,
            "start_s": start,
            "end_s": end,
            "category": model.categories[category],
            "score": pytest.approx(score, abs=1e-4),
        }
        for row, events in zip(
            rows, slow_events(logits, model.num_categories, [SHAPE["segments"]] * len(rows)), strict=True
        )
        for start, end, category, score in events
    ]


@pytest.mark.parametrize("split", [None, "test", "train"])
def test_a_release(release, checkpoint, split, tmp_path, capsys):
    """The command predicts all videos or those of a split, in the order of the split, and names them by their row."""
    arguments = [] if split is None else ["--split", split]
    output, drawn = tmp_path / "out", split == "test"  # few pictures, here and below, as they take most of the time
    call_main("predict", "--checkpoint", checkpoint, "--data", release, "--output", output, *arguments, draw=drawn)
    assert (output / "timelines.png").exists() == drawn
    rows = list(range(SHAPE["videos"]))
    if split is not None:
        with h5py.File(release / f"{split}_order.h5") as file:
            rows = file["order"][:].tolist()
    with h5py.File(release / "visual_feature.h5") as visual, h5py.File(release / "audio_feature.h5") as audio:
        features = visual["avadataset"][:], audio["avadataset"][:]
    written = read_events(tmp_path / "out")
    expected = expected_events(
        load_network(str(checkpoint), None, ()), *features, rows, list(map(str, range(SHAPE["videos"])))
    )
    assert written["events"] == expected
    assert expected
    assert (written["videos"], written["features"]) == (len(rows), str(release))
    printed = capsys.readouterr().out
    assert f"{len(rows)} videos of {len(rows) * SHAPE['segments']} s in total" in printed
    assert re.search(
        rf"^all +{len(expected)} +{sum(e['end_s'] - e['start_s'] for e in expected)}$", printed, re.MULTILINE
    )


def test_only_features_are_needed_and_names_are_used(release, checkpoint, tmp_path):
    """Labels and orders may be missing; videos with the same id are distinguished by their row."""
    for path in release.iterdir():
        if path.name not in ("visual_feature.h5", "audio_feature.h5"):
            path.unlink()
    names = [f"video-{row // 2:07}"[:11] for row in range(SHAPE["videos"])]
    lines = ["Category&VideoID&Quality&StartTime&EndTime"]
    lines += [f"Bark&{name}&good&0&{SHAPE['segments']}" for name in names]
    (release / "Annotations.txt").write_text("\n".join(lines) + "\n")
    call_main("predict", "--checkpoint", checkpoint, "--features", release, "--output", tmp_path / "out", draw=False)
    events = read_events(tmp_path / "out")["events"]
    assert {(event["video"], event["row"]) for event in events} <= {(name, row) for row, name in enumerate(names)}
    assert len({event["row"] for event in events}) > len({event["video"] for event in events})


def test_a_prepared_set(release, checkpoint, tmp_path):
    call_main("prepare", "--data", release, "--output", tmp_path / "prepared", "--dtype", "float32")
    for form in ("release", "prepared"):
        output = tmp_path / f"out-{form}"
        call_main("predict", "--checkpoint", checkpoint, "--features", tmp_path / form, "--output", output, draw=False)
    events, expected = (read_events(tmp_path / f"out-{form}")["events"] for form in ("prepared", "release"))
    assert events == [event | {"score": pytest.approx(event["score"], abs=1e-3)} for event in expected]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
def test_one_video_of_an_npz(checkpoint, dtype, tmp_path):
    rng = np.random.default_rng(0)
    visual, audio = (rng.random(shape) * 3 for shape in ((5, 3, 2, 11), (5, 7)))
    visual, audio = visual.astype(dtype), audio.astype(dtype)
    np.savez(tmp_path / "one.npz", visual=visual, audio=audio, names=np.array("$a clip$"))
    call_main("predict", "--checkpoint", checkpoint, "--data", tmp_path / "one.npz", "--output", tmp_path / "out")
    written = read_events(tmp_path / "out")
    assert written["videos"] == 1
    expected = expected_events(load_network(str(checkpoint), None, ()), visual[None], audio[None], [0], ["$a clip$"])
    assert written["events"] == expected


def test_padded_videos_of_an_npz(checkpoint, tmp_path):
    """Values at padding, even NaN, change nothing, and no event extends into padding."""
    rng = np.random.default_rng(0)
    visual, audio = rng.random((17, 5, 3, 2, 11)), rng.random((17, 5, 7))
    lengths = rng.integers(1, 6, 17)
    results = []
    for filling in (0.0, np.nan):
        for video, length in enumerate(lengths):
            visual[video, length:], audio[video, length:] = filling, filling
        np.savez_compressed(tmp_path / "some.npz", visual=visual, audio=audio, lengths=lengths)
        output, features = tmp_path / f"out-{filling}", "--features=" + str(tmp_path / "some.npz")
        call_main("predict", "--checkpoint", checkpoint, features, "--output", output, draw=filling != 0)
        results.append(read_events(output)["events"])
    assert results[0] == results[1]
    assert results[0]
    assert all(event["end_s"] <= lengths[event["row"]] for event in results[0])


def test_official_checkpoint(tmp_path, capsys):
    """The categories are those of AVE: a head that prefers index 22 predicts "Cat"."""
    path = tmp_path / "best.pth.tar"
    shapes = json.loads((GOLDEN / "official_shapes.json").read_text())["cmran_supervised"]
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    weights["localize_module.event_classifier.bias"][22] = 9.0
    torch.save({"state_dict": weights}, path)
    np.savez(tmp_path / "one.npz", visual=np.ones((3, 1, 1, 512)), audio=np.ones((3, 128)))
    call_main("predict", "--official", path, "--data", tmp_path / "one.npz", "--output", tmp_path / "out")
    (event,) = read_events(tmp_path / "out")["events"]
    assert {name: event[name] for name in COLUMNS[:5]} == {
        "video": "0",
        "row": 0,
        "start_s": 0,
        "end_s": 3,
        "category": "Cat",
    }
    assert event["score"] == pytest.approx(0.5 / (1 + 27 * np.exp(-9.0)), abs=1e-4)


def test_no_event_is_a_result(tmp_path, release, capsys):
    model = make_model("weak", categories=None, num_categories=3)
    with torch.no_grad():
        model.category_head.bias[3] += 1000
    model.save_pretrained(tmp_path / "model")
    call_main("predict", "--checkpoint", tmp_path / "model", "--features", release, "--output", tmp_path / "out")
    assert read_events(tmp_path / "out")["events"] == []
    assert "23 without an event" in capsys.readouterr().out


def test_many_categories_are_cut(tmp_path, monkeypatch, capsys):
    """More than a dozen categories are summed up, and those without names are numbered."""

    def forward(_, video, audio, padding_mask=None):
        category = torch.nn.functional.one_hot(audio[:, 0, 0].long(), 19)
        return Logits(torch.ones(video.shape[:2]), 9.0 * category)

    monkeypatch.setattr(CMRAN, "forward", forward)
    make_model(categories=None, num_categories=19).save_pretrained(tmp_path / "model")
    category = np.minimum(np.arange(211) % 23, 18)  # 55 of the last, 10 or 9 of each other
    audio = np.broadcast_to(category[:, None, None], (211, 2, 7))
    np.savez(tmp_path / "many.npz", visual=np.ones((211, 2, 1, 1, 11)), audio=audio)
    arguments = ["--checkpoint", tmp_path / "model", "--features", tmp_path / "many.npz", "--output", tmp_path / "out"]
    call_main("predict", *arguments, draw=False)
    events = read_events(tmp_path / "out")["events"]
    assert [event["category"] for event in events] == [f"category {index}" for index in category]
    counts = sorted(np.bincount(category).tolist(), reverse=True)
    printed = capsys.readouterr().out
    lines = [
        tuple(map(int, line)) for line in re.findall(r"^(?:all|category \d+|7 others) +(\d+) +(\d+)$", printed, re.M)
    ]
    assert lines == [(count, 2 * count) for count in (211, *counts[:12], sum(counts[12:]))]


@pytest.mark.realdata
def test_names_and_splits_of_ave(tmp_path, ave_files):
    """If the features have as many rows as AVE, each event has the id of its row in the annotations."""
    (tmp_path / "ave").mkdir()
    for name in ("Annotations.txt", "train_order.h5", "val_order.h5", "test_order.h5"):
        (tmp_path / "ave" / name).symlink_to(ave_files / name)
    rng = np.random.default_rng(0)
    write_dataset(tmp_path / "ave" / "visual_feature.h5", rng.random((4143, 10, 3, 2, 11)))
    write_dataset(tmp_path / "ave" / "audio_feature.h5", rng.random((4143, 10, 7)))
    model = make_model(categories=AVE_CATEGORIES)
    with torch.no_grad():
        model.event_head.bias.fill_(100.0)
    model.save_pretrained(tmp_path / "model")
    arguments = ["--checkpoint", tmp_path / "model", "--features", tmp_path / "ave", "--output", tmp_path / "out"]
    call_main("predict", *arguments, "--split", "test", draw=False)
    events = read_events(tmp_path / "out")["events"]
    with h5py.File(ave_files / "test_order.h5") as file:
        rows = file["order"][:].tolist()
    ids = [line.split("&")[1] for line in (ave_files / "Annotations.txt").read_text().splitlines()]
    assert [(event["video"], event["row"]) for event in events] == [(ids[row], row) for row in rows]
    assert [(event["start_s"], event["end_s"]) for event in events] == [(0, 10)] * 402


def write_npz(directory, **changes):
    """Write a valid .npz, except for the given arrays: they are replaced, or left out if None."""
    arrays = {"visual": np.ones((3, 5, 3, 2, 11)), "audio": np.ones((3, 5, 7))} | changes
    np.savez(directory / "features.npz", **{name: array for name, array in arrays.items() if array is not None})
    return ["--features", directory / "features.npz"]


def one_bad_value(value):
    visual = np.ones((3, 5, 3, 2, 11))
    visual[2, 4, 1, 1, 3] = value
    return visual


def cut_npz(directory):
    arguments = write_npz(directory)
    content = arguments[1].read_bytes()
    arguments[1].write_bytes(content[: len(content) // 2])
    return arguments


def flip_npz(directory):
    arguments = write_npz(directory)
    content = bytearray(arguments[1].read_bytes())
    content[1000] ^= 255
    arguments[1].write_bytes(content)
    return arguments


def declare_npz(directory):
    """Write only the header of a large array."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (5 * 10**11,)})
    with zipfile.ZipFile(directory / "features.npz", "w") as archive:
        archive.writestr("visual.npy", header.getvalue() + bytes(10))
    return ["--features", directory / "features.npz"]


def bomb_npz(directory):
    arguments = declare_npz(directory)
    with zipfile.ZipFile(directory / "features.npz") as archive:
        header = archive.read("visual.npy")
    with zipfile.ZipFile(directory / "features.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("visual", "audio"):
            archive.writestr(f"{name}.npy", header)
            archive.getinfo(f"{name}.npy").file_size = 10**13
    return arguments


def pipe_npz(directory):
    os.mkfifo(directory / "features.npz")
    return ["--features", directory / "features.npz"]


def pickle_npz(directory):
    np.savez(directory / "features.npz", visual=np.array([{}], dtype=object), audio=np.ones((3, 5, 7)))
    return ["--features", directory / "features.npz"]


def change_release(change, *arguments):
    def write(directory):
        (directory / "ave").mkdir()
        write_release(directory / "ave")
        change(directory / "ave")
        return ["--features", directory / "ave", *arguments]

    return write


def other_checkpoint(**options):
    def write(directory):
        make_model(**options).save_pretrained(directory / "other")
        return [*write_npz(directory), "--checkpoint", directory / "other"]

    return write


def full_output(directory):
    (directory / "full").mkdir()
    (directory / "full" / "events.csv").write_text("mine")
    return [*write_npz(directory), "--output", directory / "full"]


REFUSED = [
    (
        lambda place: ["--features", place / "none"],
        "--data must be a directory or an .npz file, got .*none, which does not",
    ),
    (lambda place: ["--features", place], "visual_feature"),
    (lambda _: ["--features", __file__], "--data must be a directory or an .npz file, got .*, which is another"),
    (cut_npz, r"got .*features\.npz, which is another file, or truncated"),
    (flip_npz, r"features\.npz must be an undamaged .npz without Python objects, got: .*CRC"),
    (pickle_npz, r"features\.npz must be an undamaged .npz without Python objects, got: Object arrays cannot"),
    (declare_npz, "undamaged .npz .*, got: visual of shape .* in 10 bytes"),
    (bomb_npz, r"features\.npz must fit into memory, got 8000\.0 GB, where"),
    (pipe_npz, "must be a regular file, got a named pipe"),
    (partial(write_npz, audio=None), "must hold numbers in an array called audio, got none"),
    (partial(write_npz, visual=np.array(["a"])), "must hold numbers in an array called visual, got <U1"),
    (partial(write_npz, visual=np.float64(3)), r"visual features must have shape \(videos, seconds, .*, got \(\)"),
    (partial(write_npz, visual=np.ones((3, 5, 6, 11))), r"visual features must have shape .* got \(3, 5, 6, 11\)"),
    (partial(write_npz, audio=np.ones((3, 7))), r"audio features must have shape \(videos, seconds, channels\)"),
    (partial(write_npz, audio=np.ones((3, 7, 7))), "visual and audio features must have the same number of videos"),
    (partial(write_npz, visual=np.ones((0, 5, 3, 2, 11)), audio=np.ones((0, 5, 7))), "none of them 0, got"),
    (partial(write_npz, visual=np.ones((3, 5, 3, 2, 13))), "visual features must have 11 channels, .*, got 13"),
    (
        partial(write_npz, visual=np.ones((3, 5, 11, 2, 3))),
        "got 3, shape .*: move the channels to the last axis",
    ),
    (partial(write_npz, audio=np.ones((3, 5, 13))), "audio features must have 7 channels, .*, got 13"),
    (partial(write_npz, visual=one_bad_value(np.nan)), "visual features must be finite, got NaN or Inf in row 2, sec"),
    (partial(write_npz, visual=one_bad_value(1e300)), "visual features must be finite, got NaN or Inf in row 2, sec"),
    (
        partial(write_npz, audio=np.full((3, 5, 7), np.inf)),
        "audio features must be finite, got NaN or Inf in row 0, second 0",
    ),
    (partial(write_npz, names=np.array(["a", "b"])), "names must have one entry for each of the 3 videos, got 2"),
    (partial(write_npz, names=np.array([1, 2, 3])), "must hold text in an array called names, got int64"),
    (
        partial(write_npz, lengths=np.array([1.0, 2.0, 3.0])),
        "must hold integers in .* lengths, got float64",
    ),
    (partial(write_npz, lengths=np.array([1, 2, 6])), r"lengths must be 3 numbers from 1 to 5, got \[1, 2, 6\]"),
    (partial(write_npz, lengths=np.array([1, 0, 5])), r"lengths must be 3 numbers from 1 to 5, got \[1, 0, 5\]"),
    (partial(write_npz, lengths=np.array([5, 5])), r"lengths must be 3 numbers from 1 to 5, got \[5, 5\]"),
    (
        lambda place: [*write_npz(place), "--split", "test"],
        "--split test needs test_order, got .*npz without it",
    ),
    (
        change_release(lambda place: (place / "val_order.h5").unlink(), "--split", "val"),
        "--split val needs val_order, got .*ave without it",
    ),
    (change_release(lambda place: (place / "audio_feature.h5").unlink()), "audio_feature"),
    (
        change_release(lambda place: write_dataset(place / "audio_feature.h5", np.ones((23, 5, 13)))),
        "audio features must have 7 channels, .*, got 13",
    ),
    (
        change_release(lambda place: write_dataset(place / "audio_feature.h5", np.full((23, 5, 7), np.nan))),
        "audio features must be finite, got NaN or Inf in row 0, second 0",
    ),
    (other_checkpoint(video_dim=512), "visual features must have 512 channels, .*, got 11"),
    (
        lambda place: [*write_npz(place), "--checkpoint", place / "none"],
        "--checkpoint must be a directory that save_pretrained wrote, or hf:owner/name .*none, which is not a",
    ),
    (full_output, "--output must be a new or empty directory"),
    (
        lambda place: [*write_npz(place), "--device", "abacus"],
        "--device must name a device that works here, got abacus",
    ),
]


@pytest.mark.parametrize(("write", "message"), REFUSED)
def test_refused_input(write, message, checkpoint, tmp_path, monkeypatch, capsys):
    """The command prints one line, exits with code 2, and computes and writes nothing."""

    def compute(*_, **__):
        raise AssertionError("computed before all was checked")

    monkeypatch.setattr(CMRAN, "forward", compute)
    (tmp_path / "place").mkdir()
    arguments = write(tmp_path / "place")
    if "--checkpoint" not in arguments:
        arguments = [*arguments, "--checkpoint", checkpoint]
    if "--output" not in arguments:
        arguments = [*arguments, "--output", tmp_path / "out"]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call_main("predict", *arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("ave_cmran.py: error: ")
    assert re.search(message, line)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "a"], "one of --checkpoint and --official must be given, got None and None"),
        (["--checkpoint", "a"], "--data"),
        (
            ["--checkpoint", "a", "--official", "b", "--features", "c"],
            "one of --checkpoint and --official must be given",
        ),
        (["--checkpoint", "a", "--features", "c", "--split", "all"], "--split"),
    ],
)
def test_refused_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        call_main("predict", *arguments)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_one_process_predicts(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ave.predict.make_accelerator", lambda *_: SimpleNamespace(num_processes=2))
    with pytest.raises(SystemExit) as stop:
        call_main("predict", "--checkpoint", checkpoint, *write_npz(tmp_path), "--output", tmp_path / "out")
    assert stop.value.code == 2
    assert "predict must run in one process, got 2: start it without a launcher" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [OSError("no space left on device"), FloatingPointError("not finite")])
def test_what_fails_leaves_nothing_behind(failure, checkpoint, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("ave.predict.predict", fail)
    with pytest.raises(SystemExit) as stop:
        call_main("predict", "--checkpoint", checkpoint, *write_npz(tmp_path), "--output", tmp_path / "out")
    assert stop.value.code == 1
    assert str(failure) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        call_main("predict", "--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in (
        "--checkpoint",
        "--official",
        "--data",
        "--features",
        "--split",
        "--device",
        "--precision",
        "--output",
    ):
        assert name in printed
    for word in ("events.csv", "events.json", "timelines.png", "lengths", "probability"):
        assert word in printed
