"""Videos are decoded to the frames and the sound of each second, equal to slow oracles; oddities are reported."""

import os
import sys
from fractions import Fraction
from math import floor
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ave.printing import printable
from ave.videos.decoding import Sampling, read_duration, read_seconds
from ave.videos.sound import _resample
from made_videos import AMPLITUDE, damage_packets, set_display, truncate, write_video

EXACT = {"audio_codec": "pcm_s16le", "layout": "mono"}
"""Sound without loss, in .mkv."""
SMALL = Sampling(frames_per_second=2, size=11)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Write a video of 3 s: a square in second 1, and a tone in second 2."""
    return write_video(tmp_path_factory.mktemp("plain") / "plain.mp4", square={1}, tone={2})


def read(path, sampling=SMALL):
    """Return the frames of all seconds, their waveforms, and the remarks."""
    remarks = []
    seconds = list(read_seconds(path, sampling, remarks.append))
    return *map(torch.stack, zip(*seconds, strict=True)), remarks


def decode_all(path):
    """Return the times and the pixels of all frames, without this library."""
    with av.open(str(path)) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    return [time - frames[0][0] for time, _ in frames], [image for _, image in frames]


def resize(image, size):
    """Interpolate between the centers of pixels, one by one."""
    height, width, channels = image.shape
    result = np.empty((channels, size, size))
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            result[:, row, column] = upper * (top + 1 - y) + lower * (y - top)
    return result


def assert_shown(frames, images):
    """Check frames against images that a slow oracle resizes, up to the rounding of halves."""
    assert frames.shape[:2].numel() == len(images)
    expected = np.stack([resize(image, frames.shape[-1]) for image in images])
    assert np.abs(frames.flatten(0, 1).numpy() - expected).max() <= 0.501


@pytest.mark.parametrize(
    ("name", "per_second", "options"),
    [
        ("a.mp4", 7, {"fps": 25}),
        ("a.mp4", 16, {"fps": 30, "size": (62, 34)}),
        ("a.mp4", 7, {"fps": Fraction(30000, 1001), "between": 2}),
        ("a.mkv", 5, {"fps": 12.5, "size": (37, 53)}),
        ("a.mp4", 1, {"fps": 10}),
        ("a.mp4", 7, {"times": [0, 0.011, 0.5, 0.51, 0.52, 1.3, 1.99, 2.0, 2.01, 2.6]}),
        ("a.mkv", 3, {"times": [0.4, 0.41, 1.7, 2.05]}),
    ],
)
def test_frames_are_sampled_by_time(name, per_second, options, tmp_path):
    path = write_video(tmp_path / name, 2.6, sound=False, **options)
    frames, _, _ = read(path, Sampling(per_second, size=13))
    times, images = decode_all(path)
    assert len(frames) == (3 if "0.4" not in str(options) else 2)
    wanted = [Fraction(k, per_second) for k in range(len(frames) * per_second)]
    assert_shown(frames, [images[max(i for i, time in enumerate(times) if time <= at)] for at in wanted])


@pytest.mark.parametrize("count", [7, 19, 37, 50])
def test_rule_of_the_release(count, tmp_path):
    path = write_video(tmp_path / "a.mp4", count / 25, sound=False)
    frames, _, remarks = read(path, Sampling(size=7, as_release=True))
    _, images = decode_all(path)
    assert len(images) == count
    interval = count // 10
    indices = [floor(second * interval + frame / 16 * interval) for second in range(10) for frame in range(16)]
    distinct = {index: images[index] for index in indices}
    for index, image in distinct.items():
        chosen = frames.flatten(0, 1)[torch.tensor(indices) == index]
        assert_shown(chosen[None], [image] * len(chosen))
    assert remarks[-1].startswith(f"the video lasts {count / 25:.2f} s: the rule of the release spreads its frames")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_rotated_as_players_show_them(rotation, mirrored, tmp_path):
    path = write_video(tmp_path / "a.mp4", 0.6, sound=False, size=(64, 34))
    _, images = decode_all(path)
    set_display(path, rotation, mirrored)
    images = [np.rot90(image[:, :: -1 if mirrored else 1], -rotation // 90) for image in images]
    frames, _, _ = read(path, Sampling(1, size=13))
    assert_shown(frames, images[:1])


def test_square_and_tone_are_in_their_seconds(plain):
    frames, waveforms, remarks = read(plain, Sampling(frames_per_second=4, size=16))
    assert frames.shape == (3, 4, 3, 16, 16)
    assert frames.dtype == torch.uint8
    red = (frames[:, :, 0].int() - frames[:, :, 1] > 100).flatten(1).any(1)
    assert red.tolist() == [False, True, False]
    loud = waveforms.square().mean(1).sqrt() > AMPLITUDE / 2
    assert loud.tolist() == [False, False, True]
    assert waveforms.shape == (3, 16_000)
    assert waveforms.dtype == torch.float32
    assert remarks == []


@pytest.mark.parametrize("context", [0, 0.3])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_a_sine_stays_a_sine(rate, context, tmp_path):
    path = write_video(tmp_path / "a.mkv", rate=rate, fps=5, **EXACT)
    _, waveforms, _ = read(path, Sampling(1, size=2, context=context))
    length, before = round(16_000 * (1 + 2 * context)), round(16_000 * context)
    time = (np.arange(3)[:, None] * 16_000 + np.arange(length) - before) / 16_000
    sine = AMPLITUDE * np.sin(2 * np.pi * 1000 * time) * ((time >= 0) & (time < 3))
    assert waveforms.shape == sine.shape
    differences = np.abs(waveforms.numpy() - sine)
    edge = 100  # where a sine starts or ends, its resampling overshoots
    at_edge = np.abs(time - np.round(time)) * 16_000 < edge if context == 0 else np.abs(time * (3 - time)) < 0.03
    assert differences[~at_edge].max() < 1e-3
    assert differences.max() < 0.15
    if context:
        assert torch.equal(waveforms[:-1, 16_000:], waveforms[1:, : length - 16_000])


@pytest.mark.parametrize(("layout", "gains"), [("stereo", (1, 0.2)), ("5.1", (1, 0.5, 0.25, 0, 0.125, -1))])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "pcm_u8"])
def test_sound_is_the_mean_of_the_channels(codec, layout, gains, tmp_path):
    path = write_video(tmp_path / "a.mkv", 1, rate=16_000, fps=5, layout=layout, gains=gains, audio_codec=codec)
    _, (waveform,), _ = read(path)
    sine = AMPLITUDE * np.mean(gains) * np.sin(2 * np.pi * np.arange(16_000) / 16)
    assert np.abs(waveform.numpy() - sine).max() < (0.01 if codec == "pcm_u8" else 1e-4)


def test_sound_is_resampled_in_pieces_as_in_one_go():
    generator = np.random.default_rng(0)
    signal = generator.normal(size=44_100).astype(np.float32)
    pieces = np.split(signal, np.sort(generator.integers(0, 44_100, 53)))
    whole, joined = (np.concatenate(list(_resample(blocks, 44_100, 16_000))) for blocks in ([signal], pieces))
    assert len(whole) == 16_000
    assert np.array_equal(whole, joined)


@pytest.mark.parametrize("context", [0, 0.5])
def test_peak_of_the_file_becomes_one(context, tmp_path):
    path = write_video(tmp_path / "a.mkv", tone={1}, fps=5, **EXACT)
    sampling = Sampling(1, size=2, rate=44_100, context=context)
    _, quiet, _ = read(path, sampling)
    _, loud, _ = read(path, Sampling(1, size=2, rate=44_100, context=context, normalize_peak=True))
    torch.testing.assert_close(loud, quiet / quiet.abs().max())
    silent = write_video(tmp_path / "b.mkv", 1, tone=(), fps=5, **EXACT)
    assert not read(silent, Sampling(normalize_peak=True, size=2))[1].any()


# Each writes a video, and gives a remark or an error.
KINDS = {
    "no sound": ({"sound": False}, None, "no sound: silence is used"),
    "late sound": ({"late": 0.4, **EXACT}, None, "sound starts 0.40 s late: silence is used before"),
    "early end": ({"early": 0.6, **EXACT}, None, "sound ends 0.60 s early: silence is used"),
    "0.4 s": ({"seconds": 0.4, **EXACT}, None, "the video lasts only 0.40 s: "),
    "damaged picture": ({}, lambda path: damage_packets(path, {5, 11, 40}), "3 damaged packets were skipped"),
    "damaged sound": ({}, lambda path: damage_packets(path, {50}, "audio"), "1 damaged packet was skipped"),
    "gap": ({}, lambda path: damage_packets(path, range(50, 60), "audio"), "sound has gaps of 0.2"),
    "cut off": ({}, lambda path: truncate(path, 0.6), "the picture ends at 1."),
    "all damaged": ({}, lambda path: damage_packets(path, range(200)), "can be decoded (75 damaged packets)"),
    "no picture": ({"video": False}, None, "a.mkv has no video stream"),
    "long still": ({"times": [0, 4000]}, None, "a.mkv is damaged: the time stamps of its frames jump from 0.00 s to 4"),
    "text": ({"seconds": 1}, lambda path: path.write_text("a\n" * 999), "a.mkv is not a video that FFmpeg can read"),
    "empty": ({"seconds": 1}, lambda path: path.write_bytes(b""), "a.mkv is empty, so it is not a video"),
    "playlist": ({"seconds": 1}, lambda path: make_playlist(path), "a.mkv is not a video that FFmpeg can read"),
}


def make_playlist(path):
    """Rename a video, and write a list that names it in its place."""
    path.rename(path.with_name("b.mkv"))
    path.write_text("ffconcat version 1.0\nfile b.mkv\n")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hard_to_read_is_told_in_a_line(kind, tmp_path):
    options, change, expected = KINDS[kind]
    path = write_video(tmp_path / "a.mkv", **options)
    if change is not None:
        change(path)
    try:
        frames, waveforms, lines = read(path)
    except ValueError as error:
        lines = [str(error)]
    else:
        assert len(frames) == {"0.4 s": 1, "cut off": 2}.get(kind, 3)
        assert torch.isfinite(waveforms).all()
    assert expected in lines[-1 if expected.endswith("skipped") else 0]
    assert all(line.isprintable() for line in lines)


def test_a_damaged_packet_moves_nothing(tmp_path):
    path = write_video(tmp_path / "a.mkv", tone={2}, square={2})
    before = read(path)
    damage_packets(path, range(5, 20), "audio")
    damage_packets(path, {30, 31})
    after = read(path)
    red, still_red = (frames[:, :, 0].int() - frames[:, :, 1] > 100 for frames, _, _ in (before, after))
    assert torch.equal(red, still_red)
    loud, still_loud = (
        sound.unflatten(1, (50, -1)).square().mean(2).sqrt() > AMPLITUDE / 3 for _, sound, _ in (before, after)
    )
    assert torch.equal(loud, still_loud)
    assert sum("skipped" in line for line in after[2]) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"layout": "mono", "rate": 8000}),
        ("a.mov", {"layout": "5.1", "rate": 48_000, "size": (61, 47)}),
        ("a.avi", {"between": 2, "audio_codec": "mp2"}),
        ("a.mkv", {"codec": "mpeg4", "audio_codec": "libopus", "rate": 48_000}),
        ("a.ts", {"audio_codec": "mp2", "between": 2}),
    ],
)
def test_formats(name, options, tmp_path):
    path = write_video(tmp_path / name, square={1}, tone={2}, **options)
    frames, waveforms, remarks = read(path, Sampling(frames_per_second=5, size=24))
    red = (frames[:, :, 0].int() - frames[:, :, 1] > 100).flatten(2).any(2).sum(1)
    assert red[0] == red[2] == 0
    assert red[1] >= 4
    assert (waveforms.square().mean(1).sqrt() > AMPLITUDE / 3).tolist() == [False, False, True]
    assert remarks == []
    assert read_duration(path) == pytest.approx(3, abs=0.1)


def test_truncated_mp4_is_refused(plain, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(plain.read_bytes())
    truncate(path, 0.6)
    for reader in (read, read_duration):
        with pytest.raises(ValueError, match=r"a\.mp4 is not a video that FFmpeg can read, or it is truncated"):
            reader(path)


def test_tags_need_not_be_utf8(plain, tmp_path):
    tagged = plain.read_bytes().replace(b"Lavf", b"\xff\xfe\xfd\xfc")
    assert tagged != plain.read_bytes()
    (tmp_path / "a.mp4").write_bytes(tagged)
    assert read_duration(tmp_path / "a.mp4") == read_duration(plain)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_names_and_kinds_of_files(tmp_path):
    name = "a\x1b[31m\n\udcff.mp4"
    os.mkfifo(tmp_path / name)
    (tmp_path / "b\n.mp4").mkdir()
    (tmp_path / "c\n.mp4").write_text("text")
    for path in (tmp_path / name, tmp_path / "b\n.mp4", tmp_path / "c\n.mp4", Path("/dev/zero")):
        with pytest.raises(ValueError, match=r"must be a regular file|is not a video") as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert printable(path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.mp4")


def test_pyav_is_optional(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'run pip install -e "\.\[video\]"'):
        read(plain)


@pytest.mark.parametrize("options", [{"frames_per_second": 0}, {"size": 0}, {"rate": -1}, {"context": float("nan")}])
def test_bad_sampling(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be"):
        Sampling(**options)


@pytest.mark.realdata
def test_real_clips():
    place = os.environ.get("CROSSMODAL_ATTN_DATA")
    if not place:
        pytest.skip("CROSSMODAL_ATTN_DATA does not name a directory with clips/, real videos")
    names = {"ActivityNet_v_GGSY1Qvo990.mp4": 18, "VAS_drum_video_02480.mp4": 10, "decord_flipping_a_pancake.mkv": 10}
    for name, length in {**names, "VGGSound_1aDnyPubxdY_000118.mp4": 10, "CAV-MAE_00W1lcxW-WU_40.mp4": 10}.items():
        path = Path(place) / "clips" / name
        frames, waveforms, remarks = read(path, Sampling(16, size=56))
        assert len(frames) == length
        assert (waveforms.square().mean(1) > 0).all()
        assert remarks == []
        assert read_duration(path) == pytest.approx(length, abs=0.5)
        if name.startswith("VGGSound"):  # at 30 frames per second, both rules are the same
            assert torch.equal(frames, read(path, Sampling(16, size=56, as_release=True))[0])
