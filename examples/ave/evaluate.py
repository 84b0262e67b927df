"""Evaluate a trained network on a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ave import checking_input
from ave.data.batches import evaluation_loader
from ave.data.dataset import AVE_CATEGORIES, AVEData, Split
from ave.data.opening import label_set, read_set
from ave.data.own_labels import OwnLabels
from ave.data.procedural import make_procedural_set
from ave.devices import Precision, describe_device, make_accelerator
from ave.networks import load_network
from ave.networks.localizer import Localizer
from ave.networks.registry import describe_network
from ave.results.files import check_output, clearing, new_output
from ave.results.metrics import measure, observe, summarize
from ave.results.report import report, write_predictions
from ave.videos.prediction import compare_features

__all__ = ["EvaluateConfig", "main"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a trained network on a split, and write the same report as `train`.

    The network was saved by `train` or save_pretrained, or is a checkpoint of the authors' code. The command also runs
    under `accelerate launch` and `torchrun`.
    """

    checkpoint: str | None = None
    """directory of a run, of one seed, or of save_pretrained; or hf:owner/name from the Hugging Face Hub"""
    official: Path | None = None
    """checkpoint of the authors' code, .pth.tar, instead of --checkpoint"""
    data: Path | None = None
    """directory of AVE, of your own dataset, or written by `prepare`; if omitted: the procedural set"""
    labels: Path | None = None
    """labels of --data as text with the column split, such as the labels.csv in the output of `train --labels`"""
    split: Split = "test"
    """the split to evaluate on"""
    device: str = "auto"
    """device: auto (the best available), cpu, cuda, cuda:1, mps or another device of torch"""
    precision: Precision = "fp32"
    """mixed precision of the forward pass; fp16 needs a GPU"""
    output: Path | None = None
    """new directory for the results; if omitted: runs/<date and time>-evaluate"""


def main(config: EvaluateConfig, *, data: AVEData | None = None, draw: bool = True) -> dict[str, Any]:
    """Evaluate, report, and return the metrics.

    Args:
        config: the settings.
        data: a dataset to use instead of ``config.data``.
        draw: whether to draw figures.

    Raises:
        InputError: if a setting or a file is wrong. This is checked before any work.
        FloatingPointError: if the scores are not finite.
    """
    with checking_input():
        model = load_network(config.checkpoint, config.official, AVE_CATEGORIES)
        accelerator = make_accelerator(config.device, config.precision)
        output = new_output(config.output, "evaluate")
        check_output(output)
        if config.labels is not None and config.data is None:
            raise ValueError(f"--labels must be given with --data, got {config.labels} alone")
    with clearing(output, main=accelerator.is_main_process):
        with checking_input():
            procedural = data is None and config.data is None
            if data is None:
                data = make_procedural_set() if config.data is None else _read_data(config.data, config, model)
            _check_fit(model, data, procedural=procedural)
            batches = evaluation_loader(data, config.split, accelerator)
        accelerator.print(f"on {describe_device(accelerator)}")
        outcomes = observe(accelerator.prepare_model(model, evaluation_mode=True), batches, accelerator)
        metrics = measure(outcomes, data, config.split)
        if accelerator.is_main_process:
            title = f"{describe_network(model)}, on the {config.split} split of {data.describe(config.data)}"
            write_predictions(output, outcomes, data, config.split)
            summary, split = summarize([metrics]), config.split
            report(output, title, [metrics], summary, outcomes, data, split, figures={} if draw else None)
            print(f"written to {output}")
    accelerator.end_training()
    return metrics


def _read_data(directory: Path, config: EvaluateConfig, model: Localizer) -> AVEData:
    """Open a dataset. If its labels are text, the categories are those of the network."""
    if config.labels is None:
        return read_set(directory)
    if not OwnLabels.read(config.labels).has_splits:  # another division would put videos of train into test
        advice = "give the labels.csv in the output of train, or add the column"
        raise ValueError(f"--labels must have a column split, got {config.labels} without it: {advice}")
    return label_set(directory, config.labels, categories=model.categories, needed=(config.split,))


def _check_fit(model: Localizer, data: AVEData, *, procedural: bool) -> None:
    """Reject a dataset whose channels or categories are not those of the network."""
    needed = "--data must have"
    if procedural:
        needed = "--data must be given: the default is the procedural set, but this network needs"
    for what, expected, came in (
        ("visual channels", model.video_dim, data.visual.shape[-1]),
        ("audio channels", model.audio_dim, data.audio.shape[-1]),
        ("categories", model.num_categories, len(data.categories)),
    ):
        if came != expected:
            raise ValueError(f"{needed} {expected} {what}, like the network's training set, got {came}")
    if data.extraction and (difference := compare_features(model, data.extraction)):
        raise ValueError(f"{needed} features like those of the training, got {difference}")
    if model.categories is not None and model.categories != data.categories:
        pairs = enumerate(zip(model.categories, data.categories, strict=True))
        number, (ours, theirs) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"{needed} the categories of the network, {ours!r} as number {number}, got {theirs!r}; for your own "
            f"dataset, list them in categories.txt"
        )
