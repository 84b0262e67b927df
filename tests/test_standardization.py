"""Signed features: their statistics are those of the valid seconds in train, and are saved with the network."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ave.data.dataset import AVEData, RowView
from ave.data.standardization import find_statistics
from ave.networks import load_network
from ave.networks.registry import CLASSES
from ave.train import TrainConfig, main
from ave.videos.extraction import Extraction
from oracles import fill_parameters
from running import SMALL

VIDEOS, SECONDS, VIDEO_DIM, AUDIO_DIM = 19, 5, 11, 7
EXTRACTION = Extraction("one", "a1", "other", None, 2)


def make_data(seed=0):
    """Features of any sign, far from zero, with NaN in the padding and a constant channel."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, SECONDS + 1, VIDEOS)
    visual = rng.normal(300, 3, (VIDEOS, SECONDS, 3, 2, VIDEO_DIM))
    visual[..., 1] -= 303
    visual[..., 2] = 13
    audio = rng.normal(size=(VIDEOS, SECONDS, AUDIO_DIM))
    for array in (visual, audio):
        array[np.arange(SECONDS) >= lengths[:, None]] = np.nan
    order = rng.permutation(VIDEOS)
    category = rng.integers(0, 4, (VIDEOS, 1)) // 2
    label = np.where(rng.random((VIDEOS, SECONDS)) < 0.6, category, 2)
    return AVEData(
        torch.from_numpy(visual).float(),
        torch.from_numpy(audio).float(),
        torch.eye(3)[label],
        {"train": torch.from_numpy(order[:13]), "test": torch.from_numpy(order[13:])},
        ("saw", "drill"),
        lengths=torch.from_numpy(lengths),
        eventless_category=None,
        extraction=EXTRACTION,
    )


def test_statistics_are_those_of_the_valid_seconds_in_train(assert_close, monkeypatch):
    monkeypatch.setattr("ave.data.standardization.BLOCK", 3 * SECONDS * 6 * VIDEO_DIM)  # of three videos
    data = make_data()
    rows = data.splits["train"].numpy()
    valid = np.arange(SECONDS) < data.lengths.numpy()[rows, None]
    found = find_statistics(data)
    assert [*found] == ["video", "audio"]
    for name, array in (("video", data.visual), ("audio", data.audio)):
        vectors = array.double().numpy()[rows][valid].reshape(-1, array.shape[-1])
        mean, deviation = found[name]
        assert_close(mean.double(), torch.from_numpy(vectors.mean(0)), torch.float32)
        expected = vectors.std(0)
        if name == "video":
            assert expected[2] == 0
            expected[2] = 1
        assert_close(deviation.double(), torch.from_numpy(expected), torch.float32)
    doubled = torch.arange(VIDEOS).repeat(2)
    view = replace(data, visual=RowView(data.visual, doubled), audio=RowView(data.audio, doubled))
    assert_close(find_statistics(replace(view, lengths=data.lengths[doubled])), found)


def test_only_signed_features_are_standardized():
    data = make_data()
    assert [*find_statistics(replace(data, visual=data.visual.abs()))] == ["audio"]
    assert find_statistics(replace(data, visual=data.visual.abs(), audio=data.audio.abs())) == {}


@pytest.mark.parametrize("name", CLASSES)
def test_network_standardizes_its_input(name, tmp_path, assert_close):
    """The output equals that of a plain network for standardized input, also after loading, and with any values at
    padding."""
    sizes = {"video_dim": VIDEO_DIM, "audio_dim": AUDIO_DIM, "categories": ["saw", "drill"]}
    sizes |= {"embed_dim": 20, "dim_feedforward": 17} if name == "CMRAN" else {}
    plain, model = (fill_parameters(CLASSES[name](**sizes)).double().eval() for _ in range(2))
    data = make_data()
    statistics = find_statistics(data)
    model.standardize({})
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.standardize(statistics)
    model.features = EXTRACTION
    assert sum(weight.numel() for weight in model.parameters()) == sum(weight.numel() for weight in plain.parameters())
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert added == {"video_mean", "video_deviation", "audio_mean", "audio_deviation"}
    video, audio = data.visual.double(), data.audio.double()
    mask = torch.arange(SECONDS) >= data.lengths[:, None]
    scaled = [
        (features - mean.double()) / deviation.double()
        for features, (mean, deviation) in zip((video, audio), statistics.values(), strict=True)
    ]
    expected = plain.name_logits(plain(*scaled, padding_mask=mask))
    logits = model.name_logits(model(video, audio, padding_mask=mask))
    assert_close(logits, expected)
    assert all(value.isfinite().all() for value in logits.values())
    model.float().save_pretrained(tmp_path)
    loaded = load_network(str(tmp_path))
    assert_close(loaded.state_dict(), model.state_dict())
    assert loaded.features == EXTRACTION
    assert loaded.standardized == ("video", "audio")
    filled = [features.nan_to_num(7.0).float() for features in (video, audio)]
    assert_close(
        loaded.name_logits(loaded(*filled, padding_mask=mask)),
        model.name_logits(model(video.float(), audio.float(), padding_mask=mask)),
    )
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    assert "one and other, 2 frames a second" in (tmp_path / "README.md").read_text()


def test_wrong_statistics_are_refused(tmp_path):
    model = SMALL(video_dim=VIDEO_DIM, audio_dim=AUDIO_DIM)
    for statistics in ({"sound": (torch.zeros(7),) * 2}, {"video": (torch.zeros(7),) * 2}):
        with pytest.raises(ValueError, match="statistics must have the keys video or audio, and shapes"):
            model.standardize(statistics)
    assert model.standardized == ()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"standardized": "video"}, {"standardized": ["sound"]}, {"features": {"visual": 3}}):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ValueError, match="must hold the arguments of a CMRAN, got"):
            load_network(str(tmp_path))


def test_training_standardizes_and_says_so(tmp_path, capsys):
    """A constant shift and scale of signed features change nothing but rounding."""
    data = make_data()
    data = replace(data, visual=data.visual[:, :, :1, :1])
    losses = []
    for number, (shift, scale) in enumerate([(0, 1), (-5, 64)]):
        config = TrainConfig(epochs=2, batch_size=5, device="cpu", output=tmp_path / f"run-{number}")
        shifted = replace(data, audio=data.audio * scale + shift)
        (metrics,) = main(config, data=shifted, network=SMALL, draw=False)
        losses.append([line["loss"] for line in metrics["history"]])
        assert "video and audio features may be negative, so the network standardizes them" in capsys.readouterr().out
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    saved = load_network(str(tmp_path / "run-0"))
    assert (saved.standardized, saved.features) == (("video", "audio"), EXTRACTION)
