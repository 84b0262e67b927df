"""Labels as plain text: what each line means for each second, how videos are split, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from ave.data.opening import label_set, read_features
from ave.data.own_labels import OwnLabels
from ave.data.splitting import split_videos
from running import call_main

VIDEOS, SECONDS, VIDEO_DIM, AUDIO_DIM = 13, 5, 11, 7
NAMES = [f"clip.{number}" for number in range(VIDEOS)]
LENGTHS = np.array([5, 3, *[5] * (VIDEOS - 2)])


@pytest.fixture
def features(tmp_path):
    """A dataset of features with names, without labels and splits."""
    rng = np.random.default_rng(0)
    (directory := tmp_path / "features").mkdir()
    np.save(directory / "visual_feature.npy", rng.normal(size=(VIDEOS, SECONDS, 2, 1, VIDEO_DIM)))
    np.save(directory / "audio_feature.npy", rng.normal(size=(VIDEOS, SECONDS, AUDIO_DIM)))
    np.save(directory / "lengths.npy", LENGTHS)
    (directory / "Annotations.txt").write_text("".join(f"-&{name}&good&0&0\n" for name in NAMES))
    return directory


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file of labels."""

    def write(*lines, header="video,start,end,category"):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        return path

    return write


def draw_lines():
    """Eleven videos of three categories, one of them with two categories, one without events; two are not listed."""
    lines = [f"{NAMES[row]},{row % 3 / 2},{2 + row % 2},{('saw', 'drill')[row % 2]}" for row in range(2, 11)]
    return [*lines, f"{NAMES[2]},3,5,drill", f"{NAMES[0]},1,2,a kettle", f"{NAMES[1]},,,"]


def test_each_second_has_the_label_of_its_middle(features, write):
    path = write(
        *("clip.0.mp4,0.5,2.49,saw,train", "clip.0.mp4,3.2,3.3,saw,train"),
        *("clip.1,2.51,3.4,saw,test", "clip.2,0,1,saw,train", "clip.2,1.4,2.6,drill,train", "clip.3,1,2,?,val"),
        "clip.2,2,3,?,train",
        header="\ufeffvideo, start,end, Category,split",
    )
    said = []
    data = label_set(features, path, say=said.append)
    assert data.categories == ("drill", "saw")
    assert {split: rows.tolist() for split, rows in data.splits.items()} == {
        "train": [0, 2, VIDEOS],
        "val": [3],
        "test": [1],
    }
    drill, saw, background, none = (*torch.eye(3), torch.zeros(3))
    for row, expected in {
        0: (saw, saw, background, saw, background),
        1: (background, background, saw, none, none),  # of 3 seconds
        2: (none, drill, none, background, background),
        3: (background, none, background, background, background),
        4: [none] * 5,
        VIDEOS: (saw, none, none, background, background),
    }.items():
        assert torch.equal(data.labels[row], torch.stack([*expected])), row
    assert data.video_labels[[0, 1, 2, 3, 4, VIDEOS]].tolist() == [
        *([0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0])
    ]
    bare = read_features(features)
    assert torch.equal(data.visual[[VIDEOS, 1]], bare.visual[[2, 1]])
    assert torch.equal(data.audio[VIDEOS - 1 :], bare.audio[[VIDEOS - 1, 2]])
    assert data.names[VIDEOS:] == ("clip.2",)
    assert len(data.lengths) == len(data.audio) == VIDEOS + 1
    assert (data.eventless_category, data.is_ave) == (None, False)
    assert "videos left out, as they are not in labels.csv: 9, for example clip.4" in " ".join(said)
    assert "cannot be learned" not in " ".join(said)


def test_the_split_depends_on_names_only(features, write):
    """It ignores the order of lines; each category has a video in train; rows of one video share a split."""
    lines = draw_lines()
    data, again = label_set(features, write(*lines)), label_set(features, write(*reversed(lines)))
    assert {split: rows.tolist() for split, rows in data.splits.items()} == {
        split: rows.tolist() for split, rows in again.splits.items()
    }
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == [*range(11), VIDEOS]
    assert len({split for split, rows in data.splits.items() for row in (2, VIDEOS) if row in rows}) == 1
    assert data.labels[data.splits["train"]].any((0, 1)).all()
    groups = {f"{category} {number}": category for category in "abc" for number in range(20)}
    chosen = split_videos(groups, "60/10/30")
    assert Counter((groups[name], split) for name, split in chosen.items()) == {
        (category, split): count for category in "abc" for split, count in (("train", 12), ("val", 2), ("test", 6))
    }
    assert set(split_videos(groups, "80/0/20").values()) == {"train", "test"}
    other = split_videos(groups, "60/10/30", seed=1)
    assert Counter(other.values()) == Counter(chosen.values())
    assert other != chosen
    path = write(*lines)
    seeded = [label_set(features, path, split_seed=seed).splits["train"].tolist() for seed in (None, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_train_check_and_evaluate(features, write, tmp_path, setting, capsys):
    """Weak training needs no extra background videos; a resumed run keeps the labels; evaluate finds the split."""
    path = write(*draw_lines())
    call_main("check", "--data", features, "--labels", path, "--setting", setting)
    checked = capsys.readouterr().out
    assert "note: labels.csv: 11 videos, 1 of them without events, split by video: 8 train, 1 val, 2 test" in checked
    assert "note: videos with several categories: 1, for example clip.2; each has a row" in checked
    output = tmp_path / "run"
    options = ("--data", features, "--labels", path, "--split", "60/20/20", "--setting", setting, "--batch-size", 5)
    call_main("train", *options, "--epochs", 1, "--output", output)
    call_main("train", "--resume", output, "--epochs", 2)
    (trained,) = json.loads((output / "metrics.json").read_text())["runs"]
    assert [*trained["category_accuracy"]] == ["a kettle", "drill", "saw", "background"]
    given = ("--checkpoint", output, "--data", features)
    with pytest.raises(SystemExit):
        call_main("evaluate", *given, "--labels", path, "--output", tmp_path / "refused")
    assert "give the labels.csv in the output of train, or add the column\n" in capsys.readouterr().err
    call_main("evaluate", *given, "--labels", output / "labels.csv", "--output", tmp_path / "evaluated")
    (evaluated,) = json.loads((tmp_path / "evaluated/metrics.json").read_text())["runs"]
    assert evaluated["confusion"] == trained["confusion"]
    only_test = write("clip.12,0,2,saw,test", header="video,start,end,category,split")
    call_main("evaluate", *given, "--labels", only_test, "--output", tmp_path / "other")
    (other,) = json.loads((tmp_path / "other/metrics.json").read_text())["runs"]
    assert (other["videos"], other["segments"]) == (1, SECONDS)


GOOD = ("clip.0,0,1,saw", "clip.1,0,1,saw", "clip.2,0,1,saw", "clip.3,0,1,saw", "clip.4,0,1,saw")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clip.20,0,1,saw", "line 7: video must be one of the dataset, clip.0, clip.1, clip.2, clip.3 and 9 others, "),
        ("clip.1.mp4,0,1,saw", "line 7: video must have the same name in all lines, clip.1, got clip.1.mp4"),
        ("clip.5,0,1", "line 7 must have 4 cells, as line 1, got 3"),
        (",0,1,saw", "line 7 must name a video, got none"),
        ("clip.5,0,,saw", "line 7 must have start, end and category, or none of them for background, got no end"),
        ("clip.5,1,1,saw", "line 7: start and end must be seconds, at least 0, the end after the start, got 1 to 1"),
        (
            "clip.5,nan,1,saw",
            "line 7: start and end must be seconds, at least 0, the end after the start, got nan to 1",
        ),
        (
            "clip.5,0:01,0:02,saw",
            "line 7: start and end must be seconds, at least 0, the end after the start, got 0:01",
        ),
        ("clip.5,2,6,saw", "line 7: the event must be in the 5 s of clip.5, got 2 to 6"),
        ("clip.5,0,1,Background", "line 7 must be an event, got background, which is where no event is"),
        ("clip.1,,,", "line 7: a video without events must have one line, without others, got clip.1, which line 3"),
        ('clip.5,"0,1,saw', "must be CSV in UTF-8, got: unexpected end of data"),
    ],
)
def test_a_wrong_line_is_named(features, write, line, message):
    with pytest.raises(ValueError, match=r"labels\.csv") as error:
        label_set(features, write(*GOOD, line))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_files_are_refused(features, write):
    for lines, header, split, message in (
        (GOOD, "video;start;end;category", None, "got video;start;end;category"),
        ([], "", None, "got an empty file"),
        (["clip.1,,,"], "video,start,end,category", None, "must have at least one event, got none in its 1 lines"),
        (GOOD[:1], "video,start,end,category", None, "must have videos for test, got none among its 1: list more"),
        (GOOD, "video,start,end,category", "70/30", "--split must be the shares of train, val and test in percent"),
        (GOOD, "video,start,end,category", "0/50/50", "--split must be the shares of train, val and test in percent"),
        ([f"{line},train" for line in GOOD], "video,start,end,category,split", None, "must have videos for test"),
        (["clip.0,0,1,saw,dev"], "video,start,end,category,split", None, "must be train, val or test, got dev"),
        (["clip.0,0,1,saw,"], "video,start,end,category,split", None, "line 2 must name a split"),
        (
            ["clip.0,0,1,saw,train", "clip.0,2,3,saw,test"],
            "video,start,end,category,split",
            None,
            "line 3: all lines of clip.0 must have one split, train, got test",
        ),
        (["clip.0,0,1,saw,train"], "video,start,end,category,split", "70/15/15", "--split must be left out, as"),
    ):
        with pytest.raises(ValueError, match=r"labels\.csv|--split") as error:
            label_set(features, write(*lines, header=header), split)
        assert message in str(error.value)
    with pytest.raises(ValueError, match=r"--split-seed must be left out, as .* has a column split, got 1"):
        label_set(features, write("clip.0,0,1,saw,train", header="video,start,end,category,split"), split_seed=1)
    with pytest.raises(ValueError, match="line 2: category must be one of the network, drill, got saw"):
        label_set(features, write(*GOOD), categories=["drill"])
    with pytest.raises(FileNotFoundError):
        OwnLabels.read(features / "absent.csv")


def test_overlaps_are_said(features, write):
    said = []
    label_set(features, write(*GOOD, "clip.0,0.5,2,saw", "clip.1,0.5,2,drill"), say=said.append)
    assert "note: pairs of events of one category that are joined: 1, for example lines 2 and 7" in said
    assert "note: pairs of events of two categories that overlap: 1, for example lines 3 and 8" in said


def test_options_that_need_each_other(features, write, capsys):
    for options in (
        ["train", "--labels", write(*GOOD)],
        ["train", "--data", features, "--split", "70/15/15"],
        ["train", "--data", features, "--split-seed", 1],
        ["check", "--data", features, "--split-seed", 1],
    ):
        with pytest.raises(SystemExit):
            call_main(*options)
        assert "must be given with --" in capsys.readouterr().err
