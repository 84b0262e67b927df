"""Evaluate a trained CMRAN on a split, and report as `train` does.

The network is one that `train` or save_pretrained wrote, or a checkpoint of the authors' code. Without --data it is
evaluated on the embedded procedural set (never AVE itself). It runs plain, under `accelerate launch` and `torchrun`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator

from ave.accelerating import add_device_options, describe_place, make_accelerator
from ave.commands import add_output_option, checking_input, new_output
from ave.data import SPLITS, AVEData
from ave.evaluation import observe
from ave.metrics import summarise
from ave.model import CMRAN
from ave.pretrained import add_model_options, load_model
from ave.procedural import make_procedural_set
from ave.reading import read_set
from ave.reporting import draw_examples, measure, write_figures, write_scores
from ave.results import clearing, make_output
from ave.tables import category_table, results_table


def add_options(parser: argparse.ArgumentParser) -> None:
    """The network, the set, and where to report."""
    add_model_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="directory of the AVE release's HDF5 files, or one that `prepare` made (default: the procedural set)",
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="which videos (default: %(default)s)")
    add_device_options(parser)
    add_output_option(parser, "evaluate")


def run(options: argparse.Namespace) -> None:
    """Check everything first; then evaluate and report."""
    with checking_input():
        model = load_model(options.checkpoint, options.official)
        accelerator = make_accelerator(options.device, options.precision)
        data = make_procedural_set() if options.data is None else read_set(options.data, "supervised")
        _check_fit(model, data)
        output = new_output(options.output, "evaluate")
        if accelerator.is_main_process:
            make_output(output)
    accelerator.print(f"on {describe_place(accelerator)}")
    with clearing(output):
        _evaluate(model, data, options, accelerator, output)
    accelerator.end_training()


def _check_fit(model: CMRAN, data: AVEData) -> None:
    """Refuse a set that is not like the one that the network was trained on."""
    for what, expected, came in (
        ("visual channels", model.video_dim, data.visual.shape[-1]),
        ("audio channels", model.audio_dim, data.audio.shape[-1]),
        ("categories", model.num_categories, len(data.categories)),
    ):
        if came != expected:
            raise ValueError(f"--data must have {expected} {what}, as what the network was trained on, got {came}")
    if model.categories is not None and model.categories != data.categories:
        raise ValueError(
            f"--data must have the categories of the network, {model.categories[0]} and so on, "
            f"got {data.categories[0]} and so on"
        )


def _evaluate(model: CMRAN, data: AVEData, options: argparse.Namespace, accelerator: Accelerator, output: Path) -> None:
    """Run the network, write and print what it gets."""
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    outcomes = observe(prepared, data, options.split, accelerator)
    if not accelerator.is_main_process:
        return
    source = "the procedural set (not AVE)" if options.data is None else f"the AVE set {options.data.name}"
    title = f"CMRAN, {model.setting}, on the {options.split} split of {source}"
    metrics = measure(outcomes, data, options.split)
    summary = summarise([metrics])
    write_scores(output, [metrics], summary, data.categories, title)
    write_figures(output, draw_examples(outcomes, data, options.split, title))
    print(category_table(summary))
    print(results_table(title, [metrics], summary))
    print(f"written to {output}")
