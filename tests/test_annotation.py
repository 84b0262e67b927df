"""Annotated videos: overlay and timeline equal slow loops, and the file has the right times, sound and format."""

import errno

import av
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ave.events import Event, Prediction
from ave.results import annotation as annotating
from ave.results.annotation import Annotation, Overlay, Timeline, annotate_video, scale_attention
from ave.results.contact_sheet import EVENT_COLOR, choose_seconds, draw_contact_sheet, shrink
from ave.videos.prediction import list_captions
from made_videos import write_video

CATEGORIES = ["Bark", "Church bell $x$"]


def annotate(tmp_path, source, seconds, attention=None):
    """Annotate a video whose even seconds are events. Return the file, its contact sheet, and the remarks."""
    labels = torch.tensor([2, 0] * seconds)[:seconds]
    events = [Event(second, second + 1, 0, 0.75) for second in range(1, seconds, 2)]
    prediction = Prediction(labels, torch.where(labels == 0, 0.75, 0.125), events)
    remarks = []
    annotation = Annotation(prediction, CATEGORIES, attention)
    annotate_video(source, tmp_path / "out.mp4", tmp_path / "out.png", annotation, remarks.append)
    return tmp_path / "out.mp4", tmp_path / "out.png", remarks


def read(path, kind="video"):
    """Return the times of a stream and its decoded frames."""
    with av.open(str(path)) as container:
        frames = list(container.decode(**{kind: 0}))
        return [frame.pts * frame.time_base for frame in frames], frames


def read_packets(path):
    """Return times and bytes of the packets of the sound."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets]


def test_scale():
    """The heat of each cell is its attention relative to uniform attention, on one scale for the whole video."""
    attention = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(0))
    attention /= attention.sum((1, 2), keepdim=True)
    peak = max(2.0, 6 * attention.max().item())
    scaled = scale_attention(attention)
    for second in range(5):
        for row in range(3):
            for column in range(2):
                expected = max(0.0, (6 * attention[second, row, column].item() - 1) / (peak - 1))
                assert scaled[second, row, column].item() == pytest.approx(expected, abs=1e-6)
    assert not scale_attention(torch.full((3, 7, 7), 1 / 49)).any()


def test_overlay_is_stretched_over_the_frame():
    """Pixels change, toward the color of their cell, only where the attention is more than uniform."""
    heat = torch.zeros(2, 3, 5)
    heat[1, 2, 0] = 1
    frame = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    overlay = Overlay(heat)
    assert np.array_equal(overlay.blend(frame, 0), frame)
    blended = overlay.blend(frame, 1)
    changed = (blended != frame).any(-1)
    assert changed[25:, :5].all()  # the center of the cell
    assert not changed[:14].any()
    assert not changed[:, 16:].any()
    assert np.array_equal(overlay.blend(frame[:, :20], 0), frame[:, :20])  # a new size
    expected = 0.3 * frame[27, 3] + 0.7 * np.array([252, 255, 164])  # the last color of inferno
    assert np.abs(blended[27, 3] - expected).max() <= 2


@pytest.mark.parametrize("width", [270, 1000])
def test_the_event_of_a_second_fits_above_the_timeline(width):
    """The score is at the end of the text, so it is not cut."""
    prediction = Prediction(torch.tensor([0, 1]), torch.zeros(2), [Event(0, 1, 0, 0.5)])
    strip = Timeline(Annotation(prediction, ["Fixed-wing aircraft, airplane"]), width).draw(0.5)
    above = (strip[: len(strip) // 6] < 128).all(2).any(0)
    assert above.any()
    assert not above[-width // 100 - 1 :].any()


def test_cursor_moves_over_the_timeline():
    events = [Event(1, 2, 0, 0.75), Event(2, 3, 1, 0.5)]
    prediction = Prediction(torch.tensor([2, 0, 1, 2]), torch.tensor([0.1, 0.9, 0.8, 0.2]), events)
    annotation = Annotation(prediction, CATEGORIES)
    assert [annotation.name(second) for second in range(4)] == [
        *("background", "Bark (0.75)", "Church bell $x$ (0.50)", "background")  # the scores in events.csv
    ]
    assert [caption.text for caption in list_captions(events, CATEGORIES)] == ["Bark (0.75)", "Church bell $x$ (0.50)"]
    timeline = Timeline(annotation, 500)
    found = []
    for time in (-1, 0.5, 1.5, 3.9, 100):
        strip = timeline.draw(time)
        assert strip.shape == (timeline.height, 500, 3)
        columns = np.flatnonzero((strip == (213, 94, 0)).all(-1).any(0))
        assert len(columns) == 2
        found.append(columns[1])
    per_second = (found[3] - found[1]) / 3.4
    assert found == sorted(found)
    assert found[2] - found[1] == pytest.approx(per_second, abs=1.5)
    assert found[4] - found[0] == pytest.approx(4 * per_second, abs=1.5)
    assert np.array_equal(timeline.draw(0.5)[: timeline.height // 5], timeline.draw(0.9)[: timeline.height // 5])
    assert not np.array_equal(timeline.draw(0.5)[: timeline.height // 5], timeline.draw(1.0)[: timeline.height // 5])


@pytest.mark.parametrize(("rate", "index"), [(1, 0), (2, 1), (16, 2)])
def test_a_contact_sheet_shows_the_middle_of_the_frames_seen(rate, index, tmp_path):
    """Of 5 frames a second, the last one up to the middle of the sampling times."""
    source = write_video(tmp_path / "in.mkv", 2, fps=5, square=[], sound=False)
    prediction = Prediction(torch.tensor([2, 2]), torch.zeros(2), [])
    annotation = Annotation(prediction, CATEGORIES, frames_per_second=rate)
    thumbnails = annotating._write_video(source, tmp_path / "out.mp4", annotation, print, print)
    frames = read(source)[1]
    scale = annotating._Scaler(1, frames[0])
    for second in range(2):
        assert np.array_equal(thumbnails[second], shrink(scale(frames[5 * second + index])))


def test_a_variable_rate_and_the_sound_stay(tmp_path):
    times = [0, 0.1, 0.11, 0.5, 1.3, 1.35, 1.9]
    source = write_video(tmp_path / "in.mp4", 2, times=times, size=(66, 50))
    output, sheet, remarks = annotate(tmp_path, source, 2)
    assert read(output)[0] == read(source)[0]
    assert read_packets(output) == read_packets(source)
    assert remarks == []
    _, frames = read(output)
    assert {frame.format.name for frame in frames} == {"yuv420p"}
    assert frames[0].width % 2 == frames[0].height % 2 == 0
    content = output.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")  # a browser can start before it has the whole file
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_lies_upright_on_a_rotated_video(tmp_path):
    """Attention on the upper left cell brightens the upper left corner of the picture that a player shows."""
    source = write_video(tmp_path / "in.mp4", 1, fps=5, size=(64, 48), rotation=90, sound=False, square=[])
    attention = torch.zeros(1, 4, 3)
    attention[0, 0, 0] = 1
    with_map, without = (
        read(annotate(tmp_path, source, 1, map_)[0])[1][2].to_ndarray(format="rgb24").astype(int)
        for map_ in (attention, None)
    )
    change = (with_map - without).mean(-1)
    assert change[:480].shape == (480, 360)
    assert change[:100, :100].mean() > 30
    assert np.abs(change[200:480]).max() < 12
    assert np.abs(change[:480, 200:]).max() < 12


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("in.mkv", "pcm_s16le", 22_050), ("in.avi", "ac3", 44_100), ("in.avi", "libmp3lame", 8_000)],
)
def test_sound_that_browsers_do_not_play_is_encoded(name, codec, rate, tmp_path):
    """In AVI, the times of the sound have the unit of a frame. An mp4 holds no mp3 of a low rate."""
    source = write_video(tmp_path / name, 2, fps=5, audio_codec=codec, rate=rate)
    output, _, remarks = annotate(tmp_path, source, 2)
    played = codec.removeprefix("lib").removesuffix("lame")
    assert remarks == [f"the annotated video has its sound encoded as AAC, as browsers do not play {played} in an mp4"]
    with av.open(str(output)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.audio[0].duration * container.streams.audio[0].time_base == pytest.approx(2, abs=0.2)


def test_mp3_is_copied(tmp_path):
    source = write_video(tmp_path / "in.avi", 2, fps=5, audio_codec="libmp3lame", rate=22_050)
    output, _, remarks = annotate(tmp_path, source, 2)
    assert remarks == []
    assert [content for _, content in read_packets(output)] == [content for _, content in read_packets(source)]


@pytest.mark.parametrize("options", [{"sound": False}, {"size": (17, 11)}, {"late": 0.5, "early": 0.5}])
def test_hard_kinds(options, tmp_path):
    source = write_video(tmp_path / "in.mkv", 2, fps=5, **options)
    output, _, _ = annotate(tmp_path, source, 2)
    assert read(output)[0] == pytest.approx(read(source)[0], abs=1e-3)
    if options.get("sound", True):
        assert float(read_packets(output)[0][0]) == pytest.approx(float(read_packets(source)[0][0]), abs=1e-3)


def test_seconds_of_a_contact_sheet():
    assert choose_seconds(1) == [0]
    assert choose_seconds(60) == list(range(60))
    for seconds in (61, 1000, 36_000):
        chosen = choose_seconds(seconds)
        assert len(set(chosen)) == 60
        assert max(chosen) < seconds


def test_a_contact_sheet_reads_on_a_narrow_screen(tmp_path):
    """Frames are three in a row and not scaled, below text that stays in their columns. Bars mark the events."""
    generator = np.random.default_rng(0)
    frames = {second: generator.integers(0, 256, (45, 160, 3), dtype=np.uint8) for second in range(5)}
    events = [Event(1, 2, 0, 0.75), Event(4, 5, 1, 0.5)]
    prediction = Prediction(torch.tensor([2, 0, 2, 2, 1]), torch.zeros(5), events)
    draw_contact_sheet(tmp_path / "a.png", Annotation(prediction, ["Bark", "W" * 30]), frames)
    sheet = np.round(255 * plt.imread(tmp_path / "a.png")[..., :3]).astype(np.uint8)
    assert sheet.shape[1] == 3 * (160 + 5) + 5
    tops = []
    for second, frame in frames.items():
        column = sheet[:, 5 + second % 3 * 165 :][:, :160]
        (top,) = [row for row in range(len(sheet) - 44) if np.array_equal(column[row : row + 45], frame)]
        bar = (column[top - 5 : top] == EVENT_COLOR).all()
        assert bar == (second in (1, 4))
        tops.append(top)
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
    written = np.flatnonzero((sheet[tops[0] + 45 : tops[3] - 5] < 128).all(2).any(0))
    assert 250 < written.max() < 330  # the long name of second 4, in the second column


def test_all_frames_get_the_size_of_the_first_one():
    frames = [av.VideoFrame(width, height, "yuv420p") for width, height in ((640, 360), (320, 180), (36, 64))]
    scale = annotating._Scaler(1, frames[0])
    assert [scale(frame).shape for frame in frames] == 3 * [(360, 640, 3)]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, OSError), (errno.EAGAIN, MemoryError)])
def test_a_lack_of_room_is_not_a_fault_of_the_video(number, kind, tmp_path, monkeypatch):
    """A full disk is named with the file; without memory for a thread, FFmpeg says "try again"."""

    def fail(*_):
        raise av.FFmpegError(number, "No room", "file:temporary")

    monkeypatch.setattr(annotating, "_write_video", fail)
    with pytest.raises(kind, match="No room") as raised:
        annotate_video(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "b.png", None, print)
    assert getattr(raised.value, "filename", str(tmp_path / "b.mp4")) == str(tmp_path / "b.mp4")
