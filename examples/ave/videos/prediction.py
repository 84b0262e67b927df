"""Find the events in videos while their features are extracted: only the features of a window are held.

Axes: T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ave.data.dataset import AVE_CATEGORIES
from ave.events import Event, Prediction, cut_windows, find_events, join_windows
from ave.networks.localizer import Decision, Localizer
from ave.results.annotation import WEAKEST_PEAK, Annotation
from ave.results.files import make_directory
from ave.results.subtitles import Caption, write_subtitles
from ave.stopping import undisturbed
from ave.videos.backbones import AudioBackbone, VisualBackbone, find_audio, find_visual
from ave.videos.containers import NO_PYAV
from ave.videos.extraction import Extraction, choose_batch, extract_seconds, make_sampling, probe
from ave.videos.files import find_videos
from ave.videos.isolation import annotate_video_isolated, ending_children, read_duration_isolated
from ave.videos.progress import Progress
from ave.videos.sampling import Sampling
from ave.videos.vgg19 import DIGESTS
from crossmodal_attn import AGSCA, record_attention

__all__ = ["VideoFiles", "VideoPrediction", "check_backbones", "compare_features", "list_captions", "name_file"]
__all__ += ["open_videos", "predict_seconds", "summarize"]

AVE_FEATURES = Extraction("vgg19", None, "vggish", None, 16)
"""How the features of the AVE release were extracted. The digests are None, since several files hold these weights."""
AVE_SECONDS = 10
"""The length of the videos of AVE."""
SUMMARIZED = 3
"""How many events of each video are printed."""
LONGEST_NAME = 220
"""The longest name of a result without its suffix, in bytes: most systems allow 255 with all suffixes."""


class VideoPrediction(NamedTuple):
    """The decisions for a video of T seconds, on the CPU, and where the network looked."""

    prediction: Prediction
    attention: Tensor | None
    """The spatial attention of AGSCA, float32 (T, H, W), or None: not recorded, or the network has none."""


@torch.no_grad()
def predict_seconds(
    model: Localizer,
    seconds: Iterable[tuple[Tensor, Tensor]],
    *,
    window: int,
    device: torch.device | str = "cpu",
    record: bool = False,
) -> VideoPrediction:
    """Find the events in a stream of seconds.

    Args:
        model: a network in evaluation mode.
        seconds: the visual features (H, W, C) and the audio features (A,) of each second.
        window: the length in seconds of the windows into which a longer video is cut; 0: no windows.
        device: the device of the network.
        record: whether to record spatial attention. A map with a single position is left out.

    Raises:
        FloatingPointError: if the logits are not finite.
        ValueError: if there is no second, or its features do not fit the network.
    """
    starts: list[int] = []
    decisions: list[Decision] = []
    maps: list[Tensor] = []
    covered = 0
    record = record and any(isinstance(layer, AGSCA) for layer in model.modules())
    with record_attention(model) if record else nullcontext(dict[str, Tensor]()) as recorded:
        for start, held in cut_windows(seconds, window):
            video, audio = (torch.stack(features).to(device)[None] for features in zip(*held, strict=True))
            logits = model(video, audio)
            if not all(part.isfinite().all() for part in model.name_logits(logits).values()):
                raise FloatingPointError("the scores are not finite: try --precision fp32")
            starts.append(start)
            decisions.append(Decision(*(part.cpu() for part in model.decide(logits))))
            found = next((weights for path, weights in recorded.items() if path.endswith("spatial_map")), None)
            if found is not None and found[0, 0].numel() > 1:
                maps.append(found[0, covered - start :].float().cpu())  # the seconds that were in no earlier window
            covered = start + len(held)
    joined = join_windows(starts, decisions, background=model.num_categories)
    (events,) = find_events(joined, background=model.num_categories)
    prediction = Prediction(joined.labels[0], joined.event_score[0].float(), events)
    return VideoPrediction(prediction, torch.cat(maps) if maps else None)


@dataclass
class VideoFiles:
    """Video files to predict, and how their features are extracted."""

    paths: Mapping[str, Path]
    """The files by their names, which are different."""
    visual: VisualBackbone
    audio: AudioBackbone
    sampling: Sampling
    window: int
    annotate: bool
    accelerator: Accelerator
    failed: list[dict[str, str]] = field(default_factory=list)
    """For each video that could not be predicted, its name and the reason."""
    remarks: list[dict[str, str]] = field(default_factory=list)
    """What is unusual in a video, such as missing sound, with its name."""
    stopped: KeyboardInterrupt | None = None
    """What stopped :meth:`predict` after some videos, or None."""

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that the events depend on, of types that JSON has."""
        return {"features": asdict(Extraction.of(self.visual, self.audio, self.sampling)), "window": self.window}

    def predict(self, network: Localizer, categories: Sequence[str], output: Path) -> dict[int, Prediction]:
        """Predict all videos, and write the subtitles of each, and the annotated video, to ``output/videos``.

        A video that fails is named in ``failed``, and the others go on. If a signal stops this, the videos that are
        finished are returned, if there are any.

        Args:
            network: a network in evaluation mode.
            categories: the names of its categories, without background.
            output: the directory of the results.

        Returns:
            dict: the predictions, by the positions of the videos in ``paths``. Videos that failed are left out.

        Raises:
            KeyboardInterrupt: if a signal stops this before a video is finished.
            OSError: if every video fails, or a file cannot be written.
        """
        found: dict[int, Prediction] = {}
        progress = Progress(0, {name: path.stat().st_size for name, path in self.paths.items()})
        try:
            with ending_children(), progress.bar:
                for row, (name, path) in enumerate(self.paths.items()):
                    progress.start(name)
                    if (result := self._read(network, name, path, progress)) is not None:
                        found[row] = result.prediction
                        self._write(name, path, result, categories, output / "videos", progress)
                    progress.finish()
        except KeyboardInterrupt as error:
            if not found:
                raise
            with undisturbed():  # ends the repetition of the signal, which would stop the writing of the results
                self.stopped = error
        if not found:
            raise OSError(f"no video could be predicted; {self.failed[0]['video']}: {self.failed[0]['reason']}")
        return found

    def _read(self, network: Localizer, name: str, path: Path, progress: Progress) -> VideoPrediction | None:
        """Extract and predict one video, or return None if it fails."""
        remark = partial(self._remark, name, progress)
        batch, autocast = choose_batch(self.accelerator.device), self.accelerator.autocast
        seconds = extract_seconds(path, self.visual, self.audio, self.sampling, remark, batch=batch, autocast=autocast)
        try:
            duration = read_duration_isolated(path)
            with closing(seconds):  # type: ignore[type-var]  # a generator, which may hold a process
                return predict_seconds(
                    network,
                    progress.follow(seconds, duration),
                    window=self.window,
                    device=self.accelerator.device,
                    record=self.annotate,
                )
        except (ValueError, OSError, FloatingPointError) as error:
            self._fail(name, str(error), progress)
            return None

    def _write(
        self,
        name: str,
        path: Path,
        result: VideoPrediction,
        categories: Sequence[str],
        directory: Path,
        progress: Progress,
    ) -> None:
        """Write the files of one video."""
        events, seconds = result.prediction.events, len(result.prediction.labels)
        progress.say(f"{name}: {summarize(events, categories, seconds)}")
        make_directory(directory)
        write_subtitles(directory, name_file(name), list_captions(events, categories))
        if self.annotate:
            try:
                self._annotate(name, path, result, categories, directory, progress)
            except (ValueError, FileNotFoundError) as error:  # but a full disk stops the command
                self._fail(name, f"the annotated video could not be written: {error}", progress)

    def _annotate(
        self,
        name: str,
        path: Path,
        result: VideoPrediction,
        categories: Sequence[str],
        directory: Path,
        progress: Progress,
    ) -> None:
        """Write the annotated video and the contact sheet of one video."""
        remark = partial(self._remark, name, progress)
        if result.attention is None:
            remark("no heat map, as the network has no spatial attention of AGSCA over several positions")
        elif (peak := float(result.attention.max()) * result.attention[0].numel()) < WEAKEST_PEAK:
            remark(f"the heat map is faint, as the attention is at most {peak:.1f} times that of uniform attention")
        annotation = Annotation(result.prediction, categories, result.attention, self.sampling.frames_per_second)
        own = name_file(name)
        annotate_video_isolated(path, directory / f"{own}.mp4", directory / f"{own}.png", annotation, remark)

    def _remark(self, name: str, progress: Progress, text: str) -> None:
        self.remarks.append({"video": name, "remark": text})
        progress.say(f"note: {name}: {text}")

    def _fail(self, name: str, reason: str, progress: Progress) -> None:
        self.failed.append({"video": name, "reason": reason})
        progress.say(f"failed: {name}: {reason}")


def name_file(name: str) -> str:
    """Return the name of a video for its results. A name that leaves no room for suffixes is cut, and ends in a digest.

    Examples:
        >>> name_file("street"), len(name_file(250 * "x"))
        ('street', 220)
    """
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    end = f"-{hashlib.sha256(encoded).hexdigest()[:8]}"
    return encoded[: LONGEST_NAME - len(end)].decode(errors="ignore") + end


def summarize(events: Sequence[Event], categories: Sequence[str], seconds: int) -> str:
    """Return in one line how many events a video of some seconds has, and the first of them.

    Examples:
        >>> summarize([Event(2, 5, 0, 0.876), Event(7, 8, 0, 0.5)], ["Bark"], 10)
        '2 events in 10 s: Bark (0.88) 2-5 s, Bark (0.50) 7-8 s'
        >>> summarize([], ["Bark"], 10)
        '0 events in 10 s'
    """
    shown = [f"{event.describe(categories)} {event.start}-{event.end} s" for event in events[:SUMMARIZED]]
    more = ["..."] if len(events) > SUMMARIZED else []
    listed = f": {', '.join(shown + more)}" if shown else ""
    return f"{len(events)} event{'s' * (len(events) != 1)} in {seconds} s{listed}"


def list_captions(events: Iterable[Event], categories: Sequence[str]) -> list[Caption]:
    """Return a caption for each event: its category and its score.

    Examples:
        >>> list_captions([Event(2, 5, 0, 0.876)], ["Bark"])
        [Caption(start=2000, end=5000, text='Bark (0.88)')]
    """
    return [Caption(1000 * event.start, 1000 * event.end, event.describe(categories)) for event in events]


def open_videos(
    paths: Sequence[Path],
    model: Localizer,
    accelerator: Accelerator,
    *,
    visual: str | None = None,
    visual_weights: Path | None = None,
    audio: str | None = None,
    audio_weights: Path | None = None,
    frames_per_second: int | None = None,
    window: int | None = None,
    annotate: bool = False,
) -> VideoFiles:
    """Find the videos, and the networks for their features: the same ones as in the training of the network.

    Frames are chosen by time, even if those of the training were chosen by the index rule of the release: that rule is
    for clips of 10 s, and the events of other videos would have wrong times.

    Args:
        paths: video files, or directories of them.
        model: the network that will predict.
        accelerator: its device and precision.
        visual: the name of the network for frames. Default: as in the training.
        visual_weights: the file of its weights.
        audio: the name of the network for sound. Default: as in the training.
        audio_weights: the file of its weights.
        frames_per_second: the frames that are averaged in each second. Default: as in the training.
        window: the length of the windows in seconds, 0 for whole videos. Default: the longest video of the training.
        annotate: whether to write annotated videos.

    Raises:
        OSError: if a file is missing.
        ValueError: if a file, a name or a number is wrong, or features would differ from those of the training.
    """
    if window is not None and window < 0:
        raise ValueError(f"--window must be 0 or more seconds, got {window}")
    found = find_videos(paths)
    if importlib.util.find_spec("av") is None:
        raise ValueError(NO_PYAV)
    known = model.features or AVE_FEATURES
    if model.features is None and model.categories != AVE_CATEGORIES and (visual is None or audio is None):
        raise ValueError("--visual and --audio must be given, as the network does not record what made its features")
    seer = find_visual(visual or known.visual, visual_weights, accelerator.device)
    hearer = find_audio(audio or known.audio, audio_weights, accelerator.device)
    rate = known.frames_per_second if frames_per_second is None else frames_per_second
    sampling = make_sampling(seer, hearer, rate)
    check_backbones(model, seer, hearer, sampling)
    window = model.longest or AVE_SECONDS if window is None else window
    return VideoFiles(found, seer, hearer, sampling, window, annotate, accelerator)


def compare_features(model: Localizer, extraction: Extraction) -> str | None:
    """Return in words the difference of features from those of a network's training, or None if none is known.

    A network that records no features, but has the categories of AVE, was trained on the features of the release. So
    torchvision's VGG-19 is not its network for frames.
    """
    if model.features is not None:
        return model.features.find_difference(extraction)
    weights = DIGESTS.get((extraction.visual_sha256 or "")[:8])
    if model.categories == AVE_CATEGORIES and extraction.visual == AVE_FEATURES.visual and weights == "torchvision":
        return "visual features by torchvision's VGG-19, which was trained separately, in place of the release's VGG-19"
    return None


def check_backbones(model: Localizer, visual: VisualBackbone, audio: AudioBackbone, sampling: Sampling) -> None:
    """Check that the networks for frames and sound are those that made the features of a network's training.

    Raises:
        ValueError: if a name, the weights or the number of channels differ.
    """
    difference = compare_features(model, Extraction.of(visual, audio, sampling))
    if difference is not None:
        raise ValueError(
            f"the networks for frames and sound must be those of the training, got {difference}: "
            f"other features would mean nothing to the network"
        )
    (*_, channels), width = probe(visual, audio, sampling)
    for option, name, came, needed in (
        ("--visual", visual.name, channels, model.video_dim),
        ("--audio", audio.name, width, model.audio_dim),
    ):
        if came != needed:
            raise ValueError(f"{option} must give {needed} channels, as the network needs, got {came} from {name}")
