"""Extract the features of videos, and write them as a dataset in prepared form."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ave import checking_input
from ave.data.prepared import Manifest, Source
from ave.devices import Precision, make_accelerator
from ave.printing import printable
from ave.results.files import clearing
from ave.videos.assembly import Assembly
from ave.videos.backbones import MissingWeightsError, find_audio, find_visual
from ave.videos.containers import NO_PYAV
from ave.videos.extraction import Extraction, choose_batch, extract_seconds, make_sampling, probe
from ave.videos.files import find_videos
from ave.videos.isolation import ending_children, read_duration_isolated
from ave.videos.progress import Progress

__all__ = ["ExtractConfig", "main"]

PACKAGED = "--visual efficientnet-lite0 --audio aisfx take weights from packages, without a download"
MOST_LISTED = 3


@dataclass(frozen=True)
class ExtractConfig:
    """Turn videos into a dataset of features, with a network for the frames and one for the sound.

    The defaults are the networks of the AVE release, whose weights you download. `--visual efficientnet-lite0 --audio
    aisfx` needs no download: their weights come with packages. The dataset has no labels: give yours to `check`,
    `train` and `evaluate` with --labels. Videos are named after their files, without the suffix.

    If the command is stopped, run it again with the same options: it continues after the last finished video. Videos
    that cannot be read are listed at the end. The dataset is complete when all videos are extracted.
    """

    videos: tuple[Path, ...]
    """video files, or directories: all videos in them and in their subdirectories"""
    output: Path
    """new directory for the dataset, or one where `extract` was stopped"""
    visual: str = "vgg19"
    """network for the frames: vgg19, resnet152, efficientnet-lite0, or MODULE:FUNCTION of your own"""
    visual_weights: Path | None = None
    """file with the weights of the network for the frames"""
    audio: str = "vggish"
    """network for the sound: vggish, aisfx, or MODULE:FUNCTION of your own"""
    audio_weights: Path | None = None
    """file with the weights of the network for the sound"""
    frames_per_second: int = 16
    """number of frames of each second whose features are averaged; fewer are faster"""
    as_release: bool = False
    """choose the frames by the index rule of the AVE release, for clips of 10 s; otherwise by time"""
    device: str = "auto"
    """device: auto (the best available), cpu, cuda, cuda:1, mps or another device of torch"""
    precision: Precision = "fp32"
    """mixed precision of the networks; fp16 needs a GPU"""


def main(config: ExtractConfig) -> Manifest:
    """Extract the features of all videos, and return the manifest of the dataset.

    Raises:
        InputError: if a setting or a file is wrong. This is checked before any work.
        OSError: if videos cannot be read, or a file cannot be written. Finished videos are kept.
    """
    with checking_input():
        if config.frames_per_second < 1:
            raise ValueError(f"--frames-per-second must be at least 1, got {config.frames_per_second}")
        videos = find_videos(config.videos)
        if importlib.util.find_spec("av") is None:
            raise ValueError(NO_PYAV)
        accelerator = make_accelerator(config.device, config.precision)
        if accelerator.num_processes > 1:
            came = accelerator.num_processes
            raise ValueError(f"extract must run in one process, got {came}: start it without a launcher")
        try:
            visual = find_visual(config.visual, config.visual_weights, accelerator.device)
            audio = find_audio(config.audio, config.audio_weights, accelerator.device)
        except MissingWeightsError as error:
            raise ValueError(f"{error}; {PACKAGED}") from error
        sampling = make_sampling(visual, audio, config.frames_per_second, as_release=config.as_release)
        work = Assembly(config.output, Extraction.of(visual, audio, sampling), *probe(visual, audio, sampling))
    batch = choose_batch(accelerator.device)

    def extract(video: Path, remark: Callable[[str], None]) -> Iterator[tuple[Tensor, Tensor]]:
        return extract_seconds(video, visual, audio, sampling, remark, batch=batch, autocast=accelerator.autocast)

    with clearing(config.output, new=False), _pointing_to_repetition():
        with checking_input():
            done = work.open(videos)
        if done is not None:
            print(f"{config.output} is complete, and every digest is right: there is nothing to do")
            return done
        print(f"{len(videos)} videos, on {accelerator.device}, {config.precision}")
        failed = _extract_all(videos, work, extract)
        if failed:
            listed = "; ".join([*failed.values()][:MOST_LISTED])
            more = f"; and {len(failed) - MOST_LISTED} more" if len(failed) > MOST_LISTED else ""
            advice = f"{config.output} is not complete: repair or remove them, and run extract again"
            raise OSError(f"{len(failed)} of {len(videos)} videos could not be extracted, so {advice}: {listed}{more}")
        manifest = work.complete(videos)
    seconds = [entry.shape[0] for entry in work.finished.values()]
    size = tqdm.format_sizeof(sum(entry.bytes for entry in manifest.files.values()), "B")
    print(f"written to {config.output}: {len(videos)} videos, {sum(seconds)} s, {size}; they have no labels yet")
    if max(seconds) * len(seconds) > 4 * sum(seconds):
        longest = max(videos, key=lambda name: work.finished[name].shape[0])
        print(printable(f"note: most of the set is padding up to the {max(seconds)} s of {longest}: cut long videos"))
    return manifest


def _extract_all(
    videos: Mapping[str, Path],
    work: Assembly,
    extract: Callable[[Path, Callable[[str], None]], Iterator[tuple[Tensor, Tensor]]],
) -> dict[Path, str]:
    """Extract all videos that are not finished, and return why some of them could not be read."""
    waiting = {name: path for name, path in videos.items() if name not in work.finished}
    if work.finished:
        print(f"continuing in {work.output}, where {len(work.finished)} videos are finished")
    failed: dict[Path, str] = {}
    progress = Progress(len(videos) - len(waiting), {name: path.stat().st_size for name, path in waiting.items()})
    with ending_children(), progress.bar:
        for name, path in waiting.items():
            progress.start(name)
            try:
                with _reading(path):
                    source, duration = Source.of(path), read_duration_isolated(path)
                    if duration is not None and not work.extraction.as_release:
                        _check_length(int(duration), work.longest)
                with work.adding(name, source) as add:
                    seconds = extract(path, partial(progress.say, f"note: {name}: "))
                    for features in progress.follow(_check(path, seconds, work.longest), duration):
                        add(*features)
            except UnreadableError as error:
                failed[path] = str(error)
                progress.say("failed: ", failed[path])
            progress.finish()
    return failed


class UnreadableError(Exception):
    """A video cannot be read, or its features are wrong. The other videos can still be extracted."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the video in the errors of the code inside."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UnreadableError(printable(error if str(path) in str(error) else f"{path}: {error}", 300)) from error


def _check_length(seconds: int, longest: int) -> None:
    """Reject a video of more than ``longest`` seconds."""
    if seconds > longest:
        raise ValueError(f"it is longer than {longest} s, the limit for these features: cut it")


def _check(path: Path, seconds: Iterator[tuple[Tensor, Tensor]], longest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of the seconds of a video, at most ``longest``. They must be finite."""
    with _reading(path):
        for second, features in enumerate(seconds):
            _check_length(second + 1, longest)
            if not all(feature.isfinite().all() for feature in features):
                raise ValueError(f"its features have NaN or infinite values in second {second}")
            yield features


@contextmanager
def _pointing_to_repetition() -> Iterator[None]:
    """Add to the message of a stopped run how to continue it."""
    advice = "finished videos are kept: run extract again to continue"
    try:
        yield
    except KeyboardInterrupt as error:
        raise type(error)(f"stopped; {advice}") from error
    except OSError as error:
        if error.errno is None:
            raise
        reason = f"{error.strerror}; {advice}"
        raise OSError(error.errno, reason, error.filename) from error
