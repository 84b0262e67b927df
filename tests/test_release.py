"""Reading the AVE release: values are those of the files, and all problems are named at once."""

import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from ave.data.dataset import AVE_CATEGORIES
from ave.data.opening import inspect_set, read_features, read_set
from ave.results.tables import files_table
from ave_release import COLUMNS, SHAPE, write_annotations, write_dataset, write_release

WEAK = ("mil_labels", "labels_noisy", "visual_feature_noisy", "audio_feature_noisy")


@pytest.fixture
def release(tmp_path):
    return tmp_path, write_release(tmp_path)


def write_names(directory, header="", count=SHAPE["videos"], **options):
    write_annotations(directory, [f"id{row % 19}" for row in range(count)], header, **options)


def replace(name, values, dataset="avadataset"):
    """Return a damage that writes other values to a file."""
    return lambda directory: write_dataset(directory / f"{name}.h5", values, dataset)


def declare(name, shape, dataset="avadataset"):
    """Return a damage that leaves only the shape of an array in a file."""

    def damage(directory):
        with h5py.File(directory / f"{name}.h5", "w") as file:
            chunks = tuple(min(size, 10) for size in shape)
            file.create_dataset(dataset, shape, "u1", chunks=chunks)

    return damage


def put(name, place, value):
    """Return a damage that writes one other value to a file."""

    def damage(directory):
        with h5py.File(directory / f"{name}.h5", "r+") as file:
            (array,) = file.values()
            array[place] = value

    return damage


def create_unwritten(path, shape):
    """Create an array whose values were never written."""
    with h5py.File(path, "w") as file:
        file.create_dataset("avadataset", shape, "f4", chunks=(2, *shape[1:]))


def test_rows_are_those_of_the_files(release):
    directory, arrays = release
    data = read_set(directory)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 13, "val": 5, "test": 5}
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(SHAPE["videos"]))
    np.testing.assert_array_equal(data.visual[[7, 2]], arrays["visual_feature"][[7, 2]].astype(np.float32))
    np.testing.assert_array_equal(data.audio[[7, 2]], arrays["audio_feature"][[7, 2]].astype(np.float32))
    np.testing.assert_array_equal(data.labels, arrays["labels"])
    assert data.categories == tuple(map(str, range(28)))  # it is not AVE, whatever its columns
    assert data.names is None


def test_weak_files_are_read_where_they_are(release, setting):
    directory, arrays = release
    data = read_set(directory, setting)
    np.testing.assert_array_equal(data.video_labels, arrays["mil_labels"])
    np.testing.assert_array_equal(data.background_visual[:], arrays["visual_feature_noisy"].astype(np.float32))
    np.testing.assert_array_equal(data.background_audio[:], arrays["audio_feature_noisy"].astype(np.float32))
    np.testing.assert_array_equal(data.background_labels, arrays["labels_noisy"])


def test_supervised_needs_no_weak_files(release):
    directory, _ = release
    for name in WEAK:
        (directory / f"{name}.h5").unlink()
    data = read_set(directory)
    assert data.video_labels is data.background_visual is data.background_audio is data.background_labels is None
    report = inspect_set(directory, "supervised")
    report.raise_problems()
    lines = files_table(report).splitlines()
    assert [line.split(".")[0] for line in lines if line.endswith(" not there")] == list(WEAK)
    with pytest.raises(FileNotFoundError, match=r"mil_labels\.h5 is missing$"):  # the others are AVE's own
        read_set(directory, "weak")


def test_labels_may_be_called_right_labels(release):
    directory, arrays = release
    (directory / "labels.h5").rename(directory / "right_labels.h5")
    np.testing.assert_array_equal(read_set(directory).labels, arrays["labels"])
    assert "right_labels.h5" in files_table(inspect_set(directory))
    write_dataset(directory / "labels.h5", arrays["labels"])
    assert inspect_set(directory).problems == []  # both, as some copies of the release have


def write_ave_shapes(directory, **shapes):
    """Write label files of AVE's shapes, and feature files without values."""
    (directory / "ave").mkdir()
    directory = directory / "ave"
    labels = np.zeros((4143, 2, 29), np.float32)
    labels[..., 28] = 1
    write_dataset(directory / "labels.h5", labels)
    write_dataset(directory / "mil_labels.h5", labels[:, 0])
    shapes = {"visual_feature": (4143, 2, 1, 1, 3), "audio_feature": (4143, 2, 3)} | shapes
    for name, shape in shapes.items():
        with h5py.File(directory / f"{name}.h5", "w") as file:
            file.create_dataset("avadataset", shape, "f4")
    for split, rows in {"train": range(3339), "val": range(3339, 3741), "test": range(3741, 4143)}.items():
        write_dataset(directory / f"{split}_order.h5", np.array(rows), "order")
    return directory


def test_ave_is_known_by_its_shapes(release, tmp_path):
    """Only AVE has download links, and needs background videos for the weak setting, unless they are switched off."""
    directory = write_ave_shapes(tmp_path)
    data = read_set(directory)
    assert data.is_ave
    assert data.describe(directory) == "the AVE set ave"
    with pytest.raises(FileNotFoundError, match=r"labels_noisy\.h5 is missing; the release has it: .* there are also"):
        read_set(directory, "weak")
    assert read_set(directory, "weak", background_videos=False).background_labels is None
    (directory / "train_order.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"the release has it: data/ of https://github\.com/YapengTian/AVE-EC"):
        read_set(directory)
    (directory / "visual_feature.h5").unlink()
    message = (
        r"visual_feature\.h5 is missing; the release has it: https://drive\.google\.com/file/d/1hQwbhutA3fQturduRnHMy"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_set(directory)
    own = read_set(release[0])
    assert not own.is_ave
    assert own.describe(release[0]) == f"the dataset {release[0].name}"
    table = files_table(inspect_set(release[0]))
    assert "a dataset in the layout of the AVE release, for" in table
    assert "the release has it" not in table


def test_some_of_the_extra_videos_are_not_enough(release):
    directory, _ = release
    (directory / "visual_feature_noisy.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"visual_feature_noisy\.h5 is missing"):
        read_set(directory, "weak")
    for name in ("labels_noisy", "audio_feature_noisy"):
        (directory / f"{name}.h5").unlink()
    assert read_set(directory, "weak").background_visual is None


def test_channels_that_may_come_first_are_remarked(release):
    directory, _ = release
    assert not any("channels" in remark for remark in inspect_set(directory).remarks)
    write_dataset(directory / "visual_feature.h5", np.ones((23, 5, 16, 2, 2)))
    (remark,) = (remark for remark in inspect_set(directory).remarks if "channels" in remark)
    assert remark.startswith("visual_feature.h5 is read as 16 x 2 positions with 2 channels: if channels come first")


def test_other_categories_are_numbered(release):
    directory, _ = release
    write_dataset(directory / "labels.h5", np.eye(4)[np.zeros((23, 5), int)])
    for name in WEAK:
        (directory / f"{name}.h5").unlink()
    assert read_set(directory).categories == ("0", "1", "2")


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16", ">i8"])
def test_orders_may_be_of_any_integers(release, dtype):
    directory, _ = release
    rows = read_set(directory).splits["val"]
    write_dataset(directory / "val_order.h5", rows.numpy().astype(dtype), "order")
    assert read_set(directory).splits["val"].dtype == torch.int64
    assert read_set(directory).splits["val"].tolist() == rows.tolist()


@pytest.mark.parametrize("header", ["", "Category&VideoID&Quality&StartTime&EndTime\n"])
@pytest.mark.parametrize(("encoding", "newline"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_names_are_those_of_the_annotations(release, header, encoding, newline):
    """Names are read from annotations, also with the byte-order mark and line ends of Windows."""
    directory, _ = release
    write_names(directory, header, encoding=encoding, newline=newline)
    assert read_set(directory).names == tuple(f"id{row % 19}" for row in range(23))
    assert "\nnote: the 23 videos have 19 names, " in files_table(inspect_set(directory))


def test_features_need_no_labels(release):
    directory, arrays = release
    write_names(directory)
    for path in directory.glob("*label*"):
        path.unlink()
    features = read_features(directory)
    np.testing.assert_array_equal(features.visual[:], arrays["visual_feature"].astype(np.float32))
    np.testing.assert_array_equal(features.audio[:], arrays["audio_feature"].astype(np.float32))
    assert features.labels.shape == (23, 5, 0)
    assert len(features.names) == 23
    assert {split: len(rows) for split, rows in features.splits.items()} == {"train": 13, "val": 5, "test": 5}
    (directory / "val_order.h5").unlink()
    assert list(read_features(directory).splits) == ["train", "test"]
    (directory / "audio_feature.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"audio_feature\.h5 is missing"):
        read_features(directory)


DAMAGES = {
    "missing": (
        lambda directory: (directory / "visual_feature.h5").unlink(),
        "visual_feature",
        r"visual_feature\.h5 is missing",
    ),
    "truncated": (
        lambda directory: (directory / "labels.h5").write_bytes((directory / "labels.h5").read_bytes()[:5000]),
        "labels",
        "a complete HDF5 file, got one that is truncated or damaged ",
    ),
    "not HDF5": (
        lambda directory: (directory / "labels.h5").write_bytes(b"\x00" * 4000),
        "labels",
        "must be a complete HDF5 file, got a file of another kind",
    ),
    "web page": (
        lambda directory: (directory / "audio_feature.h5").write_text("<!DOCTYPE html><title>Google Drive</title>"),
        "audio_feature",
        "got a web page: Google Drive shows one before a large file",
    ),
    "dataset": (
        replace("labels", np.zeros((23, 5, 29)), "labels"),
        "labels",
        "hold the dataset avadataset, got labels",
    ),
    "group": (replace("labels", np.zeros(3), "avadataset/x"), "labels", "hold the dataset avadataset, got avadataset"),
    "text": (replace("labels", np.full((23, 5, 29), b"x")), "labels", r"must hold an array of numbers, got \|S1"),
    "rank": (
        replace("visual_feature", np.ones((23, 5, 6, 11))),
        "visual_feature",
        r"must have the shape \(23, 5, any, any, any\), with no size 0, got \(23, 5, 6, 11\)",
    ),
    "rows": (
        replace("audio_feature", np.ones((22, 5, 7))),
        "audio_feature",
        r"must have the shape \(23, 5, any\), got \(22, 5, 7\): 22 videos where labels\.h5 has 23",
    ),
    "segments": (
        replace("audio_feature", np.ones((23, 4, 7))),
        "audio_feature",
        r"4 segments where labels\.h5 has 5",
    ),
    "extra rows": (
        replace("audio_feature_noisy", np.ones((2, 5, 7))),
        "audio_feature_noisy",
        r"2 background videos where labels_noisy\.h5 has 3",
    ),
    "extra width": (
        replace("visual_feature_noisy", np.ones((3, 5, 3, 2, 13))),
        "visual_feature_noisy",
        r"13 visual channels where visual_feature\.h5 has 11",
    ),
    "columns": (replace("mil_labels", np.eye(28)[:23]), "mil_labels", r"28 labels where labels\.h5 has 29"),
    "empty": (
        replace("visual_feature", np.zeros((23, 5, 0, 2, 11))),
        "visual_feature",
        r"with no size 0, got \(23, 5, 0, 2, 11\)",
    ),
    "empty order": (replace("val_order", np.zeros(0, int), "order"), "val_order", r"with no size 0, got \(0,\)"),
    "NaN": (
        put("visual_feature", (17, 2, 1, 1, slice(3, 6)), np.nan),
        "visual_feature",
        "must hold finite features, got NaN or Inf in 1 of 23 videos, for example row 17",
    ),
    "infinity": (
        put("audio_feature", (4, 2, 6), np.inf),
        "audio_feature",
        "must hold finite features, got NaN or Inf in 1 of 23 videos, for example row 4",
    ),
    "zeros": (
        put("audio_feature_noisy", slice(1, 3), 0.0),
        "audio_feature_noisy",
        "must hold features of every video, got only zeros, or nothing written, in 2 of 3 videos, for example row 1",
    ),
    "never written": (
        lambda directory: create_unwritten(directory / "visual_feature.h5", (23, 5, 3, 2, 11)),
        "visual_feature",
        "must hold features of every video, got only zeros, or nothing written, in 23 of 23 videos, for example row 0",
    ),
    "two ones": (
        put("labels", (3, 1), 1.0),
        "labels",
        r"must hold one-hot labels, one 1 and zeros, got values from 1 to 1 that sum to 29 in row 3, second 1 \(1 of "
        r"115 are wrong\)",
    ),
    "no one": (
        put("mil_labels", 3, 0.0),
        "mil_labels",
        r"one-hot labels.*from 0 to 0 that sum to 0 in row 3 \(1 of 23",
    ),
    "probabilities": (
        replace("mil_labels", np.full((23, 29), 1 / 29)),
        "mil_labels",
        r"one-hot labels.*got values from 0\.0344828 to 0\.0344828 that sum to 1 in row 0 \(23 of",
    ),
    "NaN label": (
        put("labels_noisy", (1, 1), np.nan),
        "labels_noisy",
        "got values from nan to nan that sum to nan in row 1",
    ),
    "one column": (
        replace("labels", np.ones((23, 5, 1))),
        "labels",
        "must have at least two labels",
    ),
    "out of range": (
        replace("train_order", np.array([0, 23]), "order"),
        "train_order",
        "must hold row numbers, from 0 to 22, got 0 to 23",
    ),
    "negative row": (
        replace("train_order", np.array([0, -1]), "order"),
        "train_order",
        "must hold row numbers, from 0 to 22, got -1 to 0",
    ),
    "float order": (
        replace("val_order", np.array([0.6, 1.9]), "order"),
        "val_order",
        "must hold integers, row numbers, got float64",
    ),
    "order name": (replace("val_order", np.arange(5)), "val_order", "must hold the dataset order, got avadataset"),
    "twice": (
        lambda directory: put("train_order", 1, read_set(directory).splits["train"][0].item())(directory),
        "train_order",
        "must hold each row once, got 1 more often, for example row",
    ),
    "many columns": (
        declare("labels", (23, 5, 10**12)),
        "labels",
        "must have at most 134217728 labels, got 1000000000000",
    ),
    "many segments": (
        declare("labels", (23, 10**6, 29)),
        "labels",
        r"must have at most 134217728 numbers, got 667000000, in the shape \(23, 1000000, 29\)",
    ),
    "many channels": (
        declare("visual_feature", (23, 5, 3, 2, 10**9)),
        "visual_feature",
        "must have at most 16384 visual channels, got 1000000000",
    ),
    "large videos": (
        declare("visual_feature", (23, 5, 10**4, 10**4, 11)),
        "visual_feature",
        r"must have at most 134217728 numbers per video, got 5500000000, in the shape",
    ),
    "long order": (
        declare("train_order", (10**6,), "order"),
        "train_order",
        "must hold at most the 23 rows of labels.h5, got 1000000 rows",
    ),
    "pipe": (
        lambda directory: ((directory / "labels.h5").unlink(), os.mkfifo(directory / "labels.h5")),
        "labels",
        "got a named pipe",
    ),
    "annotations pipe": (
        lambda directory: os.mkfifo(directory / "Annotations.txt"),
        "Annotations.txt",
        "must be a regular file, got a named pipe",
    ),
    "annotations short": (
        lambda directory: write_names(directory, count=22),
        "Annotations.txt",
        r"Annotations\.txt must name each of the 23 videos of labels\.h5, got 22 names$",
    ),
    "annotations broken": (
        lambda directory: (directory / "Annotations.txt").write_text("Bark&x&good&0\n" * 23),
        "Annotations.txt",
        "must hold lines category&YouTube id&quality&start&end, got 'Bark&x&good&0'",
    ),
    "annotations binary": (
        lambda directory: (directory / "Annotations.txt").write_bytes(b"\xff\xfe\x00"),
        "Annotations.txt",
        "must be text in utf-8, got: 'utf-8' codec",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named(release, kind):
    """The damaged file, and no other, is named in the table, in the list and in the error."""
    directory, _ = release
    damage, name, message = DAMAGES[kind]
    damage(directory)
    report = inspect_set(directory, "weak")
    (problem,) = (problem for problem in report.problems if problem.file == name)
    others = [other for other in report.problems if other is not problem]
    assert all("must have no row in common" in other.message for other in others)  # if an order is replaced
    table = files_table(report)
    (line,) = (line for line in table.splitlines() if line.partition(".")[0] == name.removesuffix(".txt"))
    assert line.endswith(f" {problem.verdict}")
    assert f"\nwrong: {problem.message}" in table
    assert "the release has it" not in problem.message  # as the dataset is not AVE
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        report.raise_problems()
    assert str(directory / name.removesuffix(".txt")) in str(error.value)
    assert "\n" not in str(error.value)
    if kind in ("NaN", "infinity", "zeros", "never written"):
        read_set(directory, "weak")  # which does not read all features
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_set(directory, "weak")


@pytest.mark.skipif(os.environ.get("HDF5_USE_FILE_LOCKING") == "FALSE", reason="HDF5 is told not to lock files")
@pytest.mark.parametrize("name", ["visual_feature", "labels"])
def test_a_locked_file_is_named_and_nobody_sent_for_another(release, name):
    """A locked file is named without a hint to download it again."""
    fcntl = pytest.importorskip("fcntl")
    directory, _ = release
    with (directory / f"{name}.h5").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        report = inspect_set(directory)
        with pytest.raises(ValueError, match=rf"{name}\.h5 is locked by another process") as error:
            read_set(directory, "supervised")
    (problem,) = (problem for problem in report.problems if problem.file == name)
    (line,) = (line for line in files_table(report).splitlines() if line.startswith(f"{name}.h5 "))
    assert line.endswith(" not opened")
    for message in (problem.message, str(error.value).partition("; and more")[0]):
        assert "the release has it" not in message
        assert "damaged" not in message
    inspect_set(directory).raise_problems()


@pytest.mark.parametrize(("own", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_overlapping_orders_are_named(release, own, other):
    """A row in two splits is an error, because a training video would be tested."""
    directory, _ = release
    splits = read_set(directory).splits
    shared = splits[own][:3]
    write_dataset(directory / f"{other}_order.h5", torch.cat([shared, splits[other]]).numpy(), "order")
    message = (
        rf"{own}_order\.h5 and {other}_order\.h5 must have no row in common, got 3, for example row {shared.min()}"
    )
    with pytest.raises(ValueError, match=message):
        read_set(directory, "supervised")
    (line,) = (line for line in files_table(inspect_set(directory)).splitlines() if line.startswith(f"{own}_order"))
    assert line.endswith(" wrong")


def test_all_faults_are_found_at_once(release):
    directory, _ = release
    for name in ("two ones", "rows", "NaN", "zeros", "annotations short", "out of range"):
        DAMAGES[name][0](directory)
    report = inspect_set(directory, "weak")
    expected = {
        ("labels", "one-hot labels"),
        ("audio_feature", "must have the shape"),
        ("visual_feature", "finite features"),
        ("audio_feature_noisy", "features of every video"),
        ("train_order", "row numbers, from 0 to 22"),
        ("Annotations.txt", "name each of the 23 videos"),
    }
    assert len(report.problems) == len(expected)
    for name, text in expected:
        assert any(problem.file == name and text in problem.message for problem in report.problems)
    with pytest.raises(ValueError, match=r"one-hot labels") as error:
        report.raise_problems()
    assert "; there are also problems with audio_feature, train_order, " in str(error.value)


def test_without_labels_the_others_are_held_against_each_other(release):
    directory, _ = release
    (directory / "labels.h5").write_bytes(b"")
    write_dataset(directory / "audio_feature.h5", np.ones((22, 5, 7)))
    messages = [problem.message for problem in inspect_set(directory).problems]
    assert any("22 videos where visual_feature.h5 has 23" in message for message in messages)
    assert len(messages) == 2


def test_videos_in_no_split_are_remarked(release):
    directory, _ = release
    rows = read_set(directory).splits["train"]
    write_dataset(directory / "train_order.h5", rows[2:].numpy(), "order")
    report = inspect_set(directory)
    assert report.problems == []
    assert f"2 videos are in no split, for example row {rows[:2].min()}" in report.remarks


def test_table_counts_every_split(release):
    directory, arrays = release
    write_names(directory)
    data = read_set(directory)
    cells = {line.split()[0]: line.split() for line in files_table(inspect_set(directory, "weak")).splitlines()[3:]}
    assert cells["visual_feature.h5"][1:4] == ["avadataset", "23x5x3x2x11", "float64"]
    assert cells["labels.h5"][-4:] == ["13", "5", "5", "ok"]
    assert cells["labels_noisy.h5"][-2:] == ["3", "ok"]
    assert cells["val_order.h5"][-2:] == ["5", "ok"]
    background = [int(arrays["labels"][rows, :, -1].sum()) for rows in data.splits.values()]
    assert cells["background"][2:] == list(map(str, background))
    assert cells["Annotations.txt"][1:] == ["23", "names", "ok"]


def test_missing_directory(tmp_path):
    for read in (read_set, inspect_set):
        with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
            read(tmp_path / "nowhere", "weak")


def test_setting_is_checked(release):
    for read in (read_set, inspect_set):
        with pytest.raises(ValueError, match='setting must be "supervised" or "weak", got \'strong\''):
            read(release[0], "strong")


@pytest.mark.realdata
def test_real_labels_and_splits(real_release):
    data = read_set(real_release, "weak")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 3339, "val": 402, "test": 402}
    assert len(set(torch.cat(list(data.splits.values())).tolist())) == 4143
    background = {split: int(data.labels[rows, :, -1].sum()) for split, rows in data.splits.items()}
    assert background == {"train": 5631, "val": 732, "test": 715}
    assert data.labels[data.splits["test"]].flatten(0, 1).shape == (4020, COLUMNS)
    assert torch.bincount((10 - data.labels[..., -1].sum(1)).long()).tolist() == [
        *(1, 0, 214, 220, 217, 196, 200, 139, 111, 95, 2750)
    ]
    assert data.categories == AVE_CATEGORIES
    assert data.video_labels[:, -1].sum() == 0
    assert data.visual.shape == (4143, 10, 7, 7, 512)
    assert data.background_labels.argmax(-1).tolist() == [28] * 178
    audio = data.background_audio[:]
    assert audio.shape == (178, 10, 128)
    assert audio.min() == 0
    assert 4.53 < audio.max() < 4.55
    assert 0.6 < (audio == 0).double().mean() < 0.7
    assert audio.mean().item() == pytest.approx(0.122, abs=5e-4)  # as VGGish after its last ReLU, without PCA
    assert audio.std().item() == pytest.approx(0.262, abs=5e-4)


@pytest.mark.realdata
def test_real_names(real_release):
    data = read_set(real_release, "supervised")
    assert len(data.names) == 4143
    assert len(set(data.names)) == 4097
    groups = [{data.names[row] for row in rows.tolist()} for rows in data.splits.values()]
    crossing = groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert len(crossing) == 18


@pytest.mark.realdata
def test_real_report(real_release):
    report = inspect_set(real_release, "weak")
    unwritten = "must hold features of every video, got only zeros, or nothing written, in 4143 of 4143 videos"
    assert [problem.file for problem in report.problems] == ["visual_feature", "audio_feature"]
    assert all(unwritten in problem.message for problem in report.problems)
    (background,) = (line for line in files_table(report).splitlines() if "background seconds" in line)
    assert background.split()[-3:] == ["5631", "732", "715"]
    table, _, notes = files_table(report).partition("\nnote: ")
    assert "the 4143 videos have 4097 YouTube ids, 18 of them in more than one split" in notes
    table, _, _ = table.partition("\nwrong: ")
    assert max(map(len, table.splitlines())) <= 120
    del report  # which holds the files open
    put("visual_feature", (4100, 9, 6, 6, 511), np.nan)(real_release)
    messages = [problem.message for problem in inspect_set(real_release, "weak").problems]
    assert any("nothing written, in 4142 of 4143 videos" in message for message in messages)
    assert any("got NaN or Inf in 1 of 4143 videos, for example row 4100" in message for message in messages)


@pytest.mark.realdata
def test_real_labels_are_compared(real_release):
    """The label files of AVE agree, and a changed one does not."""
    shutil.copy(real_release / "mil_labels.h5", real_release / "copy.h5")
    (real_release / "copy.h5").replace(real_release / "mil_labels.h5")
    labels = read_set(real_release, "weak").video_labels
    write_dataset(real_release / "mil_labels.h5", labels.roll(1, 0).numpy())
    (message,) = (p.message for p in inspect_set(real_release, "weak").problems if p.file == "mil_labels")
    assert "must hold the category of the seconds in labels.h5, got other labels in " in message
