"""Prove that the commands find events in videos. ``python tests/prove_videos.py`` takes two minutes on two cores.

It makes 60 clips in which a square moves and a tone sounds, each in some seconds. The event is where both occur, and
its category is the color of the square. As a user would, it extracts features at 2 frames a second, trains CMRAN on 40
clips, and predicts and annotates the other 20. It fails if too few seconds are correct, if the attention of AGSCA is
not on the square, or if an annotated video does not have the format that browsers play. It plays one in Chromium if
that is installed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import torch

import ave_cmran
from ave.networks import load_network
from ave.videos.backbones import find_audio, find_visual
from ave.videos.extraction import extract_seconds, make_sampling
from ave.videos.prediction import predict_seconds
from ave.videos.procedural import SIDE, SQUARE, Clip, make_clips

CLIPS, HELD_BACK = 60, 20
VISUAL, AUDIO = "efficientnet-lite0", "ave.videos.procedural:make_bands"
LEAST_ACCURACY = 0.9
"""The share of seconds that must be right. Background everywhere is right in about 70 %."""
LEAST_ON_SQUARE = 1.5
"""The attention on the square must be this many times that of uniform attention."""
TRIES = 10
"""Chromium's virtual time does not wait for a video: often the page ends before 0.2 s of it were played."""
PAGE = """<video id=v muted src="{name}"></video><pre id=o>waiting</pre><script>
v.ontimeupdate = () => o.textContent = (v.currentTime > 0.2 && v.webkitAudioDecodedByteCount ? "played" : "started") +
    ` ${{v.videoWidth}} wide, ${{v.webkitAudioDecodedByteCount}} bytes of sound`
v.onerror = () => o.textContent = "error " + v.error.message
v.play()
</script>"""


def main() -> None:
    """Make the clips, run the commands on them, and check the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="keep the results in this new directory")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        prove(Path(scratch) / "proof" if output is None else output)


def prove(output: Path) -> None:
    """Run the proof in a new directory."""
    begun = time.perf_counter()
    clips = make_clips(output / "clips", CLIPS)
    add_splits(output / "clips/labels.csv")
    networks = ("--visual", VISUAL, "--audio", AUDIO, "--frames-per-second", 2)
    run("extract", "--videos", output / "clips", "--output", output / "set", *networks)
    labeled = ("--data", output / "set", "--labels", output / "clips/labels.csv")
    run("train", *labeled, "--epochs", 20, "--output", output / "run")
    held = range(CLIPS - HELD_BACK, CLIPS)
    videos = [output / f"clips/clip-{number:03}.mp4" for number in held]
    run("predict", "--videos", *videos, "--checkpoint", output / "run", "--annotate", "--output", output / "predicted")
    exact, near, background = compare_seconds(output / "predicted/events.json", [clips[number] for number in held])
    print(f"right seconds of the {HELD_BACK} clips held back: {exact:.1%} (background everywhere: {background:.1%})")
    print(f"the same if an event may start or end a second too early or too late: {near:.1%}")
    share, uniform = measure_attention(output / "run", videos, [clips[number] for number in held])
    print(f"attention of AGSCA on the square in seconds of events: {share:.1%} (uniform: {uniform:.1%})")
    check_annotated(output / "predicted/videos" / f"clip-{held[0]:03}.mp4")
    print(f"took {time.perf_counter() - begun:.0f} s")
    if exact < LEAST_ACCURACY or share < LEAST_ON_SQUARE * uniform:
        sys.exit("the events or the attention are not where they should be")


def run(*arguments: object) -> None:
    """Run a command in this process."""
    print("\n$ ave_cmran.py", *arguments, flush=True)
    ave_cmran.main(list(map(str, arguments)))


def add_splits(path: Path) -> None:
    """Add the column ``split`` to the labels: the last 20 clips are held back as test, and there is no val."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["split"] = "test" if number >= CLIPS - HELD_BACK else "train"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def compare_seconds(events: Path, clips: Sequence[Clip]) -> tuple[float, float, float]:
    """Return the share of correct seconds, with tolerances of 0 and 1 s, and that for background everywhere."""
    found: list[list[str | None]] = [[None] * clip.seconds for clip in clips]
    for event in json.loads(events.read_text())["events"]:
        for second in range(event["start_s"], event["end_s"]):
            found[event["row"]][second] = event["category"]
    exact = near = silent = total = 0
    for clip, predicted in zip(clips, found, strict=True):
        truth = [clip.category if second in clip.event else None for second in range(clip.seconds)]
        for second, label in enumerate(predicted):
            exact += label == truth[second]
            near += label in truth[max(second - 1, 0) : second + 2]
            silent += truth[second] is None
            total += 1
    return exact / total, near / total, silent / total


def measure_attention(checkpoint: Path, videos: Sequence[Path], clips: Sequence[Clip]) -> tuple[float, float]:
    """Return the share of attention on the cells of the square in event seconds, and that for uniform attention."""
    model, visual, audio = load_network(str(checkpoint)), find_visual(VISUAL), find_audio(AUDIO)
    shares, uniform = [], []
    for video, clip in zip(videos, clips, strict=True):
        seconds = extract_seconds(video, visual, audio, make_sampling(visual, audio, 2), print)
        attention = predict_seconds(model, seconds, window=0, record=True).attention
        for second in clip.event:
            cells = torch.zeros(7, 7, dtype=torch.bool)
            for time_ in (second, second + 0.5):  # of the two frames
                (top, left), cell = clip.corner(time_), SIDE / 7
                cells[
                    int(top / cell) : int((top + SQUARE) / cell) + 1, int(left / cell) : int((left + SQUARE) / cell) + 1
                ] = True
            shares.append(attention[second][cells].sum().item())
            uniform.append(cells.float().mean().item())
    return sum(shares) / len(shares), sum(uniform) / len(uniform)


def check_annotated(path: Path) -> None:
    """Check the format and the sound of an annotated video, and play it in Chromium if that is installed."""
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        kind = (picture.codec_context.name, picture.codec_context.pix_fmt, sound.codec_context.name)
    content = path.read_bytes()
    if kind != ("h264", "yuv420p", "aac") or content.find(b"moov") > content.find(b"mdat"):
        sys.exit(f"{path} is not as browsers need it: {kind}")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("Chromium is not installed, so the annotated video is not played in it")
        return
    page = path.with_suffix(".html")
    page.write_text(PAGE.format(name=path.name))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}"]
    flags += ["--autoplay-policy=no-user-gesture-required", "--virtual-time-budget=60000", "--dump-dom"]
    command = [browser, *flags, page.as_uri()]
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
        state = done.stdout.partition('<pre id="o">')[2].partition("</pre>")[0]
        if state.startswith("played"):
            break
    else:
        sys.exit(f"Chromium did not play {path}: {state or done.stderr[-300:]}")
    print(f"Chromium {state}")


if __name__ == "__main__":
    main()
