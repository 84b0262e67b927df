"""Reading of the AVE release: what is read is what stands in the files, and what is wrong is named."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ave.data import AVE_CATEGORIES, Videos, read_release, training_videos
from ave.evaluation import background_accuracy
from ave_release import COLUMNS, SHAPE, run_main, write_dataset, write_release


@pytest.fixture
def release(tmp_path):
    return tmp_path, write_release(tmp_path)


def test_rows_are_those_of_the_files(release):
    directory, arrays = release
    data = read_release(directory)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 13, "val": 5, "test": 5}
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(SHAPE["videos"]))
    videos = Videos(data.visual, data.audio, data.labels, data.splits["val"])
    for index, row in enumerate(data.splits["val"].tolist()):
        for tensor, name in zip(videos[index], ("visual_feature", "audio_feature", "labels"), strict=True):
            assert tensor.dtype == torch.float32
            np.testing.assert_allclose(tensor, arrays[name][row], rtol=1e-6)


def test_weak_training_has_video_labels_and_background_videos(release):
    directory, arrays = release
    videos = training_videos(read_release(directory, "weak"), "weak")
    assert len(videos) == 13 + SHAPE["extra"]
    assert videos[0][2].shape == (COLUMNS,)
    visual, audio, label = videos[14]
    np.testing.assert_allclose(visual, arrays["visual_feature_noisy"][1], rtol=1e-6)
    np.testing.assert_allclose(audio, arrays["audio_feature_noisy"][1], rtol=1e-6)
    assert label.argmax() == COLUMNS - 1


def test_supervised_needs_no_weak_files(release):
    directory, _ = release
    for name in ("mil_labels.h5", "visual_feature_noisy.h5", "audio_feature_noisy.h5", "labels_noisy.h5"):
        (directory / name).unlink()
    data = read_release(directory)
    with pytest.raises(ValueError, match="data must hold video labels and background videos"):
        training_videos(data, "weak")


def test_labels_may_be_called_right_labels(release):
    directory, arrays = release
    (directory / "labels.h5").rename(directory / "right_labels.h5")
    np.testing.assert_array_equal(read_release(directory).labels, arrays["labels"])


def test_missing_files_are_all_named(release):
    directory, _ = release
    for name in ("labels.h5", "val_order.h5", "mil_labels.h5"):
        (directory / name).unlink()
    (directory / "prob_label.h5").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks labels\.h5, val_order\.h5, mil_labels\.h5.*prob_label\.h5 is"):
        read_release(directory, "weak")


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no directory"):
        read_release(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("audio_feature", lambda path: path.write_bytes(path.read_bytes()[:2000]), "must be a complete HDF5 file"),
        ("labels", lambda path: path.write_text("<html>"), "must be a complete HDF5 file"),
        (
            "labels",
            lambda path: write_dataset(path, np.zeros((23, 5, 29)), "labels"),
            "must hold the dataset avadataset",
        ),
        ("visual_feature", lambda path: write_dataset(path, np.zeros((23, 5, 6, 11))), "must hold an array of shape"),
        (
            "audio_feature",
            lambda path: write_dataset(path, np.zeros((22, 5, 7))),
            r"shape \(23, 5, any\), none of them empty, got \(22, 5",
        ),
        ("labels", lambda path: write_dataset(path, np.full((23, 5, 29), np.nan)), "must hold one-hot labels"),
        ("labels", lambda path: write_dataset(path, np.ones((23, 5, 1))), "must hold one-hot labels"),
        ("labels", lambda path: write_dataset(path, np.full((23, 5, 29), b"x")), "must hold numbers, got"),
        ("visual_feature", lambda path: write_dataset(path, np.zeros((23, 5, 0, 2, 11))), "none of them empty"),
        ("audio_feature", lambda path: write_dataset(path, np.zeros(3), "avadataset/inner"), "must hold the dataset"),
        ("train_order", lambda path: write_dataset(path, np.array([0, 23]), "order"), "row indices from 0 to 22"),
        ("train_order", lambda path: write_dataset(path, np.array([0.6, 1.9]), "order"), "must hold integers"),
        ("train_order", lambda path: write_dataset(path, np.zeros(0, int), "order"), "none of them empty"),
    ],
)
def test_damaged_files(release, name, damage, message):
    directory, _ = release
    path = directory / f"{name}.h5"
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        read_release(directory)
    assert path.name in str(error.value)


def test_splits_must_be_disjoint(release):
    """A row in two splits, or twice in one, would be tested on after training."""
    directory, _ = release
    write_dataset(directory / "train_order.h5", np.arange(23), "order")
    with pytest.raises(ValueError, match="must hold splits without a common row"):
        read_release(directory)


def test_setting_is_checked(release):
    with pytest.raises(ValueError, match='setting must be "supervised" or "weak", got \'strong\''):
        read_release(release[0], "strong")


@pytest.fixture
def real_release(tmp_path):
    """The real labels, orders and background audio, beside feature files of the release's shape that take no space."""
    place = os.environ.get("CROSSMODAL_ATTN_DATA")
    if not place:
        pytest.skip("CROSSMODAL_ATTN_DATA does not name a directory with ave/, the files of the AVE release")
    for path in (Path(place) / "ave").glob("*.h5"):
        (tmp_path / path.name).symlink_to(path)
    for name, shape in {
        "visual_feature": (4143, 10, 7, 7, 512),
        "audio_feature": (4143, 10, 128),
        "visual_feature_noisy": (178, 10, 7, 7, 512),
    }.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            # Chunks that are never written are not stored, and read as zero.
            file.create_dataset("avadataset", shape, "f8", chunks=(1, *shape[1:]))
    return tmp_path


@pytest.mark.realdata
def test_real_labels_and_splits(real_release):
    data = read_release(real_release, "weak")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 3339, "val": 402, "test": 402}
    assert len(set(torch.cat(list(data.splits.values())).tolist())) == 4143
    background = {split: int(data.labels[rows, :, -1].sum()) for split, rows in data.splits.items()}
    assert background == {"train": 5631, "val": 732, "test": 715}
    assert background_accuracy(data, "test") == pytest.approx(715 / 4020)
    assert data.categories == AVE_CATEGORIES
    assert data.labels.shape == (4143, 10, 29)
    assert (data.labels.sum(-1) == 1).all()
    assert data.video_labels[:, -1].sum() == 0
    assert len(training_videos(data, "weak")) == 3339 + 178
    _, audio, label = training_videos(data, "weak")[3339]
    assert (audio >= 0).all()
    assert 0 < (audio == 0).float().mean() < 1
    assert label.argmax() == 28


@pytest.mark.realdata
@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_training_on_real_labels(real_release, setting):
    """A short training through the command, on the first rows of the real splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        path = real_release / f"{split}_order.h5"
        with h5py.File(path) as file:
            rows = file["order"][:17]
        path.unlink()
        write_dataset(path, rows, "order")
        with (
            h5py.File(real_release / "visual_feature.h5", "a") as video,
            h5py.File(real_release / "audio_feature.h5", "a") as audio,
        ):
            for row in rows:
                video["avadataset"][row] = rng.random((10, 7, 7, 512))
                audio["avadataset"][row] = rng.random((10, 128))
    _, metrics = run_main(real_release, "--data", real_release, "--setting", setting, "--epochs", 1)
    assert metrics["test_segments"] == 170
    assert np.isfinite(metrics["history"][0]["loss"])
