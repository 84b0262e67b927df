"""Make short videos with PyAV: a moving square and a tone at chosen seconds, and every kind that is hard to read."""

import struct
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

CLOCK = 90_000
"""Ticks of a second in the time stamps of frames with a variable rate."""
AMPLITUDE = 0.5
"""Amplitude of the tone."""


def write_video(
    path: Path,
    seconds: float = 3,
    *,
    square: Collection[int] | None = None,
    tone: Collection[int] | None = None,
    fps: float | Fraction = 25,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    video: bool = True,
    sound: bool = True,
    rate: int = 44_100,
    layout: str = "stereo",
    audio_codec: str = "aac",
    hertz: float = 1000,
    late: float = 0,
    early: float = 0,
    rotation: int = 0,
    mirrored: bool = False,
    gains: Sequence[float] | None = None,
    between: int = 0,
) -> Path:
    """Write a video. Its format follows from the suffix of the name.

    Args:
        path: the file to write.
        seconds: its length.
        square: the seconds with a red square, which moves one pixel a frame; in all by default.
        tone: the seconds with a tone; in all by default.
        fps: frames per second.
        times: the times of the frames in seconds, for a variable frame rate.
        size: width and height in pixels.
        codec: encoder of the frames.
        video: whether there is a video stream.
        sound: whether there is sound.
        rate: samples per second.
        layout: channels: "mono", "stereo" or "5.1".
        audio_codec: encoder of the sound, such as "aac", or "pcm_s16le" for exact samples (in .mkv and .mov).
        hertz: frequency of the tone.
        late: seconds after which the sound starts.
        early: seconds before the end at which the sound ends.
        rotation: degrees by which a player rotates the frames clockwise (.mp4 and .mov).
        mirrored: whether a player mirrors the frames left to right before it rotates them.
        gains: factor of the tone in each channel; 1 by default.
        between: number of frames in a row that are coded after a later one.
    """
    import av

    everywhere = range(int(seconds) + 1)
    clock = Fraction(1, CLOCK) if times is not None else 1 / Fraction(fps).limit_denominator(1001)
    if times is None:
        times = [float(index * clock) for index in range(round(seconds * fps))]
    with av.open(str(path), "w") as container:
        picture = waveform = None
        if video:
            picture = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            picture.width, picture.height = size
            picture.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
            picture.time_base = picture.codec_context.time_base = clock
            if codec == "libx264":
                picture.options = {"preset": "ultrafast", "crf": "10", "bf": str(between)}
        if sound:
            waveform = container.add_stream(audio_codec, rate=rate, layout=layout)
        if picture is not None:
            for index, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(
                    draw(index, size, int(time) in (everywhere if square is None else square)), format="rgb24"
                )
                frame.pts, frame.time_base = round(time / clock), clock
                container.mux(picture.encode(frame))
            container.mux(picture.encode())
        if waveform is not None:
            samples = play(seconds - early, rate, everywhere if tone is None else tone, hertz)
            samples = samples[round(late * rate) :]
            for start in range(0, len(samples), 1024):
                block = samples[start : start + 1024]
                factors = np.ones(len(av.AudioLayout(layout).channels)) if gains is None else np.array(gains)
                channels = (factors[:, None] * block).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
                frame.sample_rate = rate
                frame.pts, frame.time_base = start + round(late * rate), Fraction(1, rate)
                container.mux(waveform.encode(frame))
            container.mux(waveform.encode())
    if rotation or mirrored:
        set_display(path, rotation, mirrored)
    return path


def draw(index: int, size: tuple[int, int], square: bool) -> np.ndarray:
    """Return a frame: a gray slope, brighter from frame to frame, with a red square of a fourth of its width."""
    width, height = size
    side = max(2, width // 4)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (np.arange(width) * 80 // width + 40 + index % 50)[None, :, None]
    if square:
        x, y = index % max(1, width - side), (height - side) // 2
        image[y : y + side, x : x + side] = (255, 0, 0)
    return image


def play(seconds: float, rate: int, tone: Collection[int], hertz: float) -> np.ndarray:
    """Return a waveform that is a sine in some seconds and silent in the others."""
    time = np.arange(round(seconds * rate)) / rate
    return (AMPLITUDE * np.sin(2 * np.pi * hertz * time) * np.isin(time.astype(int), list(tone))).astype(np.float32)


def set_display(path: Path, rotation: int, mirrored: bool = False) -> None:
    """Write the display matrix of the first track, which is the picture, into an .mp4 or .mov file."""
    content = bytearray(path.read_bytes())
    sine, cosine = {0: (0, 1), 90: (1, 0), 180: (0, -1), 270: (-1, 0)}[rotation]
    flip = -1 if mirrored else 1
    one = 1 << 16
    at = content.index(b"tkhd") + 44  # after flags, times, numbers and volume in version 0 of the box
    matrix = (flip * cosine * one, flip * sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    content[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def damage_packets(path: Path, numbers: Collection[int], kind: str = "video") -> None:
    """Overwrite packets of a stream with bytes that no decoder accepts, counted from 0 in the order of the file."""
    import av

    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for number, packet in enumerate(container.demux(**{kind: 0})):
            if number in numbers and packet.pos is not None:
                # The bytes after the first 4 are the NAL unit or the header of the frame.
                content[packet.pos + 4 : packet.pos + packet.size] = b"\xff" * (packet.size - 4)
    path.write_bytes(content)


def truncate(path: Path, part: float) -> None:
    """Keep only the first part of a file. The share to keep is a number from 0 to 1."""
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
