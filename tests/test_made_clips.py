"""Six made clips: square and tone are where the labels say, and all commands for videos work on them.

``tests/prove_videos.py`` shows on 60 of them that the events are found.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ave.networks import load_network
from ave.videos.decoding import read_seconds
from ave.videos.procedural import COLORS, SQUARE, Bands, draw_clip, make_clips
from ave.videos.sampling import Sampling
from running import call_main, run_main

PAGE = (Path(__file__).parents[1] / "docs/run_files.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The clips, their directory, and their labels with a column for the split."""
    directory = tmp_path_factory.mktemp("clips")
    clips = make_clips(directory, 6, seconds=5)
    with (directory / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return clips, directory, rows


def test_clips_show_and_sound_what_the_labels_say(made):
    clips, directory, rows = made
    listen = Bands()
    for number, (clip, row) in enumerate(zip(clips, rows, strict=True)):
        assert row["video"] == f"clip-{number:03}.mp4"
        events = range(int(row["start"]), int(row["end"])) if row["category"] else range(0)
        assert row["category"] in ("", clip.category)
        seconds = list(read_seconds(directory / row["video"], Sampling(1, 112, listen.rate), print))
        assert len(seconds) == 5
        for second, (frames, waveform) in enumerate(seconds):
            y, x = clip.corner(second)
            inside = frames[0, :, y + 4 : y + SQUARE - 4, x + 4 : x + SQUARE - 4].float().mean((1, 2)).numpy()
            seen = np.abs(inside - COLORS[clip.category]).max() < 30
            heard = listen(waveform[None])[0, 3].item() > 1  # the band of 750 to 1000 Hz
            assert (seen, heard) == (second in clip.seen, second in clip.heard)
            assert (seen and heard) == (second in events)


def test_from_videos_to_events(made, tmp_path):
    """The network records how its features were made and its longest video; the page names every output file."""
    _, directory, rows = made
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows(row | {"split": "test" if number > 3 else "train"} for number, row in enumerate(rows))
    networks = ["--visual", "small_backbones:make_colors", "--audio", "ave.videos.procedural:make_bands"]
    call_main("extract", "--videos", directory, "--output", tmp_path / "set", *networks, "--frames-per-second", 2)
    trained, _ = run_main(tmp_path, "--data", tmp_path / "set", "--labels", labels, "--epochs", 1)
    model = load_network(str(trained))
    assert model.longest == 5
    assert model.features.frames_per_second == 2
    videos = [directory / row["video"] for row in rows[4:]]
    output = tmp_path / "out"
    call_main("predict", "--videos", *videos, "--checkpoint", trained, "--annotate", "--output", output)
    written = json.loads((output / "events.json").read_text())
    assert written["window"] == 5
    assert written["videos"] == 2
    assert not written["failed"]
    for name in [*written, *(path.name.replace("clip-004", "NAME") for path in output.rglob("*"))]:
        assert f"`{name}`" in PAGE or f"`videos/{name}`" in PAGE or name in ("videos", "events") or "clip-005" in name


def test_event_of_a_clip_is_where_both_meet():
    generator = np.random.default_rng(0)
    clips = [draw_clip(generator) for _ in range(50)]
    assert all(set(clip.event) == set(clip.seen) & set(clip.heard) for clip in clips)
    assert 0 < sum(not clip.event for clip in clips) < 25


def test_bands_are_those_of_the_spectrum():
    time = torch.arange(16_000) / 16_000
    features = Bands()(torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (100, 880, 7900)]))
    assert features.shape == (3, 32)
    assert features.argmax(1).tolist() == [0, 3, 31]
