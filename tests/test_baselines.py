"""The report of a training on an own dataset has constant answers and the linear probe as baselines."""

import json
from dataclasses import replace

import pytest
import torch

from ave.data.dataset import AVEData
from ave.results.baselines import find_baselines
from ave.results.report import note_few_videos
from ave.train import TrainConfig, main
from running import SMALL

VIDEOS, SECONDS, VIDEO_DIM, AUDIO_DIM = 23, 5, 11, 7


@pytest.fixture(autouse=True)
def _with_probe(monkeypatch):
    monkeypatch.setattr("ave.results.baselines.MOST_SECONDS", 20_000)


def make_data():
    """Features whose mean over positions shows the category in the image, and the event in the sound."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (VIDEOS, 1), generator=generator).expand(-1, SECONDS) % 2
    label = torch.where(torch.rand(VIDEOS, SECONDS, generator=generator) < 0.4, label, 2)
    visual = torch.rand(VIDEOS, SECONDS, 3, 2, VIDEO_DIM, generator=generator)
    visual[..., 5] += 3 * (label == 0)[..., None, None]
    audio = torch.rand(VIDEOS, SECONDS, AUDIO_DIM, generator=generator)
    audio[..., 2] += 3 * (label < 2)
    lengths = torch.randint(2, SECONDS + 1, (VIDEOS,), generator=generator)
    labels = torch.eye(3)[label]
    labels[4] = 0
    padding = torch.arange(SECONDS) >= lengths[:, None]
    labels[padding], visual[padding], audio[padding] = 0, torch.nan, torch.inf
    shown = labels[..., :2].any(1)
    video_labels = torch.cat([shown, ~shown.any(1, keepdim=True)], 1).float()
    splits = {"train": torch.arange(0, 16), "test": torch.arange(16, VIDEOS)}
    more = {"lengths": lengths, "eventless_category": None, "video_labels": video_labels}
    return AVEData(visual, audio, labels, splits, ("saw", "drill"), **more)


def test_baselines():
    data = make_data()
    found = find_baselines(data, "supervised")
    truth = data.labels[16:]
    counts = data.labels[:16, :, :2].sum((0, 1))
    frequent = int(counts.argmax())
    assert found["frequent_category_accuracy"] == pytest.approx((truth[..., frequent].sum() / truth.sum()).item())
    assert found["linear_probe_accuracy"] == 1
    shuffled = replace(data, labels=data.labels[torch.randperm(VIDEOS)] * data.labels.any(-1, keepdim=True))
    assert find_baselines(shuffled, "supervised")["linear_probe_accuracy"] < 1
    assert find_baselines(data, "weak")["linear_probe_accuracy"] < 1  # it knows no seconds
    assert find_baselines(replace(data, is_ave=True), "supervised") == {}


def test_few_videos_are_said():
    """Of val and test, on your own dataset; rows of one video count once."""
    data = replace(make_data(), splits={name: torch.arange(0, 4) for name in ("train", "val", "test")})
    note = "an accuracy on so few has a standard error of up to 25 points"
    assert note_few_videos(data, ("val", "test")) == [
        f"note: val has only 4 videos: {note}; the epoch chosen on them is largely chance",
        f"note: test has only 4 videos: {note}",
    ]
    named = replace(data, names=("a", "b", "a", "b", *"c" * (VIDEOS - 4)))
    assert note_few_videos(named, ("test",))[0].startswith("note: test has only 2 videos: ")
    assert note_few_videos(replace(data, splits={"test": torch.arange(20)}), ("test",)) == []
    assert note_few_videos(replace(data, is_ave=True), ("val", "test")) == []


def test_training_warns(tmp_path, capsys, monkeypatch):
    """Training warns if the network is not better than a baseline, here because it barely learns."""
    config = TrainConfig(epochs=1, lr=1e-9, device="cpu", output=tmp_path / "run")
    data = make_data()
    main(config, data=data, network=SMALL, draw=False)
    printed = capsys.readouterr().out
    assert "baseline: linear probe on pooled features" in printed
    assert "baseline: predict the most frequent category everywhere" in printed
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())["summary"]
    assert metrics["linear_probe_accuracy"] == {"mean": 1.0, "std": None}
    assert f"warning: the network ({metrics['accuracy']['mean']:.1%}) is not better than" in printed
    assert "note: test has only 7 videos: an accuracy on so few has a standard error of up to 19 points\n" in printed
    monkeypatch.setattr("ave.results.baselines.MOST_SECONDS", 3)
    assert "linear_probe_accuracy" not in find_baselines(data, "supervised")
