"""The command on the real labels, splits and background audio of AVE, with feature files of the release's shapes."""

import json

import h5py
import numpy as np
import pytest

from ave.data.dataset import AVE_CATEGORIES
from ave.networks import load_network
from ave.networks.cmran import CMRAN
from ave_release import write_dataset
from running import SMALL, call_main, run_main

pytestmark = pytest.mark.realdata


def shorten(directory, split, videos):
    """Keep the first rows of a split, and write features for them."""
    path = directory / f"{split}_order.h5"
    with h5py.File(path) as file:
        rows = file["order"][:videos]
    path.unlink()
    write_dataset(path, rows, "order")
    rng = np.random.default_rng(0)
    for name, shape in {"visual_feature": (10, 7, 7, 512), "audio_feature": (10, 128)}.items():
        with h5py.File(directory / f"{name}.h5", "a") as file:
            for row in rows:
                file["avadataset"][row] = rng.random(shape)


@pytest.mark.parametrize(("setting", "name"), [("supervised", "cmran"), ("weak", "avel-av")])
def test_a_short_training(real_release, setting, name, tmp_path, capsys):
    """Train in both settings from the files of the release, weakly with the 178 background videos.

    These take CMRAN long at this size, so that a quicker network is trained weakly. Features are read from disk,
    because all of them would be 4 GB of zeros in memory.
    """
    for split, videos in {"train": 7, "val": 3, "test": 5}.items():
        shorten(real_release, split, videos)
    options = ("--setting", setting, "--epochs", 1, "--cache", "disk", "--workers", 0)
    network = SMALL if name == "cmran" else None
    output, metrics = run_main(tmp_path, "--data", real_release, "--network", name, *options, network=network)
    assert metrics["segments"] == 50
    assert np.isfinite(metrics["history"][0]["loss"])
    assert metrics["accuracy_without_seen"] is not None
    assert load_network(str(output)).categories == AVE_CATEGORIES
    assert "4143x10x7x7x512" in capsys.readouterr().out


def test_every_test_segment_is_counted(real_release, tmp_path):
    """The test split has 4,020 segments, 715 of them background, and 8 videos whose id is also in train."""
    (real_release / "visual_feature_noisy.h5").unlink()
    write_dataset(real_release / "visual_feature.h5", np.zeros((4143, 10, 1, 1, 11)))
    model = CMRAN(video_dim=11, categories=AVE_CATEGORIES, embed_dim=20, dim_feedforward=17)
    model.save_pretrained(tmp_path / "model")
    call_main(
        "evaluate", "--checkpoint", tmp_path / "model", "--data", real_release, "--output", tmp_path / "evaluation"
    )
    (metrics,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["runs"]
    confusion = np.array(metrics["confusion"])
    assert (metrics["videos"], metrics["segments"], confusion.sum()) == (402, 4020, 4020)
    assert confusion[28].sum() == 715
    assert metrics["background_accuracy"] == pytest.approx(715 / 4020)
    assert metrics["seen_videos"] == 8
