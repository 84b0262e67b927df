"""Reproduce Tables 1 to 5 of the CMRAN paper: train each row, and print it beside the published accuracy.

Each row runs `ave_cmran.py train` in its own process. A row that is in several tables is trained once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ave import Setting, checking_input
from ave.data.batches import Cache
from ave.devices import Precision
from ave.networks.registry import find_recipes
from ave.paper_rows import FULL, NAMES, TABLES, Row, Table
from ave.printing import printable
from ave.reading import expecting, load_json
from ave.results.figures import save_figures
from ave.results.files import clearing, write_csv, write_json, writing
from ave.results.metrics import summarize
from ave.results.tables import format_table
from ave.stopping import undisturbed

__all__ = ["TablesConfig", "bootstrap_interval", "main"]

COMMAND = Path(__file__).parents[1] / "ave_cmran.py"
SETTINGS = "settings.json"
PATIENCE = 30
"""Seconds that a training gets to stop. Then it is killed."""
RESAMPLES = 10_000
"""Number of bootstrap samples for a confidence interval."""
HEADER = ("row", "setting", "paper", "ours", "best test epoch", "difference to CMRAN", "parameters", "s/epoch")
NOTE = (
    "ours: at the epoch chosen on val, mean ± standard deviation over the seeds; best test epoch: optimistic, the "
    "convention in papers; difference: with a 95 % interval, from a bootstrap over the test videos for these seeds"
)
NOT_AVE = (
    "This is the procedural set, not AVE: neither the accuracies nor the order of the rows hold for AVE. "
    "Use --data to train on AVE"
)


@dataclass(frozen=True)
class TablesConfig:
    """Train the rows of Tables 1 to 5 of the paper, and print each beside its published accuracy.

    If the command is stopped, run it again with the same --output: finished rows are kept, all others continue.
    """

    tables: tuple[Table, ...] = (1, 2, 3, 4, 5)
    """the tables to reproduce"""
    rows: tuple[str, ...] = ()
    """train only CMRAN and these rows, such as avel-av or relation-co; a wrong name prints all names"""
    setting: Setting | None = None
    """train only in this setting; Table 1 is supervised, Table 2 weak, the others have both"""
    seeds: tuple[int, ...] = (0,)
    """train each row once for each seed"""
    data: Path | None = None
    """directory of AVE, of your own dataset, or written by `prepare`; if omitted: the procedural set"""
    background_videos: bool = True
    """weak setting: also train on the extra background videos"""
    epochs: int | None = None
    """number of epochs; if omitted: as published for each network, or 11 for the procedural set"""
    device: str = "auto"
    """device: auto (the best available), cpu, cuda, cuda:1, mps or another device of torch"""
    precision: Precision = "fp32"
    """mixed precision of the forward pass; fp16 needs a GPU"""
    cache: Cache = "auto"
    """where the features are kept during training; auto: the first of device, memory, disk with enough space"""
    jobs: int = 1
    """number of trainings at the same time; seconds per epoch are reported only if this is 1 in every call"""
    output: Path = Path("runs/tables")
    """directory for the results, new or of an earlier call"""

    def check(self) -> None:
        """Check that each value is in its range."""
        for option, value, least in (("--jobs", self.jobs, 1), ("--epochs", self.epochs, 1)):
            if value is not None and value < least:
                raise ValueError(f"{option} must be at least {least}, got {value}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise ValueError(f"--seeds must be different numbers from 0 to {2**32 - 1}, got {list(self.seeds)}")
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"--data must be a directory, got {self.data}")
        if unknown := sorted(set(self.rows) - set(NAMES)):
            raise ValueError(f"--rows must be some of {', '.join(NAMES)}, got {unknown[0]}")


@dataclass(frozen=True)
class Training:
    """A row in one setting, and the directory of its results."""

    row: Row
    setting: Setting
    directory: Path

    def arguments(self, config: TablesConfig) -> list[str]:
        """Return the command-line arguments of `train`."""
        done = self.trained_seeds()
        seeds = [*done, *(seed for seed in config.seeds if seed not in done)]  # a run may be given more seeds
        arguments = ["--setting", self.setting, *self.row.arguments(), "--seeds", *map(str, seeds)]
        for name in ("data", "epochs", "device", "precision", "cache"):
            if (value := getattr(config, name)) is not None:
                arguments += [f"--{name}", str(value)]
        if not config.background_videos:
            arguments.append("--no-background-videos")
        place = "--resume" if (self.directory / "config.json").is_file() else "--output"
        return [*arguments, place, str(self.directory)]

    def trained_seeds(self) -> list[int]:
        """Return the seeds whose results are in the directory."""
        return [run["seed"] for run in self.read_runs()] if (self.directory / "metrics.json").is_file() else []

    def read_runs(self) -> list[dict[str, Any]]:
        """Return the metrics of each seed.

        Raises:
            ValueError: if the file is missing or damaged.
        """
        path = self.directory / "metrics.json"
        with expecting(f"{path} must hold the metrics of a training"):
            return [{**run, "seed": int(run["seed"])} for run in load_json(path)["runs"]]

    def is_finished(self, seeds: Sequence[int]) -> bool:
        """Return whether the networks of these seeds are trained and evaluated."""
        return set(seeds) <= set(self.trained_seeds())


def main(config: TablesConfig, *, launch: Callable[[Training, TablesConfig, Event], str | None] | None = None) -> None:
    """Train the rows that are not finished, then write and print the tables.

    Args:
        config: the settings.
        launch: a function that trains a row until an event tells it to stop, and returns an error message or None.
            Default: train in a new process.

    Raises:
        InputError: if a setting is wrong, or the directory is in use.
        OSError: if a row could not be trained. All other rows are finished, and the tables leave out this one.
    """
    with checking_input():
        config.check()
        tables = {table: _select(table, config) for table in config.tables}
        if not any(tables.values()):
            raise ValueError(f"--tables, --rows and --setting must select a row, got {list(config.tables)}")
    launch = launch or _launch
    trainings = list({each.directory: each for rows in tables.values() for each in rows}.values())
    failures: dict[str, str] = {}
    with clearing(config.output, new=False):
        # ---- Train the rows that are not finished ----
        with checking_input():
            waiting = [training for training in trainings if not training.is_finished(config.seeds)]
            _check_same(config, alone=config.jobs == 1 or not waiting)
        print(
            f"{len(trainings)} trainings, {len(trainings) - len(waiting)} of them finished; results in {config.output}"
        )
        start, stop = time.monotonic(), Event()
        with ThreadPoolExecutor(config.jobs) as threads:
            running = {threads.submit(launch, training, config, stop): training for training in waiting}
            try:
                for done, future in enumerate(as_completed(running), 1):
                    training = running[future]
                    if reason := future.result():
                        failures[training.directory.name] = reason
                    left = tqdm.format_interval((time.monotonic() - start) / done * (len(waiting) - done))
                    print(
                        f"{done}/{len(waiting)} {training.directory.name}: {reason or 'done'}; about {left} left",
                        flush=True,
                    )
            except KeyboardInterrupt as error:
                raise type(error)("stopped; finished rows are kept: run the same command again to continue") from error
            finally:
                with undisturbed():
                    stop.set()
                    threads.shutdown(cancel_futures=True)

        # ---- Report ----
        for table, rows in tables.items():
            _report(table, [each for each in rows if each.directory.name not in failures], config)
    for note in (NOTE, *([] if config.data else [NOT_AVE])):
        print(textwrap.fill(note, 100))
    if failures:
        name, reason = next(iter(failures.items()))
        raise OSError(f"{len(failures)} of {len(trainings)} trainings failed, the first is {name}: {reason}")


def _check_same(config: TablesConfig, *, alone: bool) -> None:
    """Check that the rows in the output were trained with the same settings, and save these.

    Args:
        config: the settings.
        alone: whether this call trains one row at a time, so that its times can be compared.

    Raises:
        ValueError: if they were trained with other settings.
    """
    data = None if config.data is None else str(config.data.absolute())
    names = ("epochs", "precision", "background_videos")
    settings = {"data": data, **{name: getattr(config, name) for name in names}, "one at a time": alone}
    path = config.output / SETTINGS
    if path.is_file():
        with expecting(f"{path} must hold the settings of the tables"):
            saved = dict(load_json(path))
        settings["one at a time"] = bool(saved.pop("one at a time", False)) and alone
        if differing := [name for name in saved if saved[name] != settings.get(name)]:
            option = f"--{differing[0].replace('_', '-')}"
            came = f"{option} {settings.get(differing[0])}, where {saved[differing[0]]} was used"
            raise ValueError(f"--output must be a new directory, or have the same settings, got {came}")
    write_json(path, settings)


def _select(table: Table, config: TablesConfig) -> list[Training]:
    """Return the selected trainings of a table."""
    settings: tuple[Setting, ...] = {1: ("supervised",), 2: ("weak",)}.get(table, ("supervised", "weak"))  # type: ignore[assignment]
    return [
        Training(row, setting, config.output / f"{setting}-{row.name}")
        for setting in settings
        for row in TABLES[table]
        if config.setting in (None, setting)
        and (not config.rows or row is FULL or row.name in config.rows)
        and setting in find_recipes(row.network)
    ]


def _launch(training: Training, config: TablesConfig, stop: Event) -> str | None:
    """Run a training in a new process. If it fails, return the last line that it printed."""
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    command = [sys.executable, str(COMMAND), "train", *training.arguments(config)]
    log = training.directory.with_suffix(".log")
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)  # noqa: S603
        while process.poll() is None:
            if stop.wait(0.1):
                process.terminate()
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
    if process.returncode == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return printable(lines[-1] if lines else f"exit code {process.returncode}")


def _report(table: Table, trainings: Sequence[Training], config: TablesConfig) -> None:
    """Write a table as Markdown, CSV, JSON and a figure, and print it."""
    full = {training.setting: training for training in trainings if training.row is FULL}
    with checking_input():  # files may have been changed or damaged since the training
        results = [_measure(training, full.get(training.setting), config) for training in trainings]
    if not results:
        return
    cells = [[_show(result, name) for name in HEADER] for result in results]
    data = "the procedural set (not AVE)" if config.data is None else printable(config.data, 100)
    title = f"Table {table} on {data}, "
    title += f"seeds {' '.join(map(str, config.seeds))}"
    path = config.output / f"table-{table}"
    write_json(path.with_suffix(".json"), {"title": title, "note": NOTE, "rows": results})
    write_csv(
        path.with_suffix(".csv"), [{name: value for name, value in row.items() if name != "runs"} for row in results]
    )
    lines = [f"## {title}", "", _line(HEADER), _line(["---"] * len(HEADER)), *map(_line, cells), "", NOTE]
    with writing(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join([*lines, *([] if config.data else ["", NOT_AVE]), ""]), encoding="utf-8")
    save_figures(config.output, {f"table-{table}.png": _draw(title, results)})
    print(format_table(title, cells, HEADER))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measure(training: Training, reference: Training | None, config: TablesConfig) -> dict[str, Any]:
    """Return the results of a row. Accuracies and differences are in %."""
    runs = [run for run in training.read_runs() if run["seed"] in config.seeds]
    summary = summarize(runs)
    alone = load_json(config.output / SETTINGS)["one at a time"]
    epochs = [epoch for run in runs for epoch in run["history"]]
    difference: tuple[float | None, ...] = (None, None, None)
    if reference is not None and reference != training:
        pairs = [_count_correct(each.directory, config.seeds) for each in (training, reference)]
        difference = bootstrap_interval(*pairs[0], pairs[1][0])
    return {
        "setting": training.setting,
        "row": training.row.label,
        "paper": training.row.paper[training.setting],
        "accuracy": 100 * summary["accuracy"]["mean"],
        "accuracy_std": None if summary["accuracy"]["std"] is None else 100 * summary["accuracy"]["std"],
        "best_test_accuracy": 100 * summary["best_test_accuracy"]["mean"],
        "difference": difference[0],
        "difference_low": difference[1],
        "difference_high": difference[2],
        "parameters": runs[0]["parameters"],
        "seconds_an_epoch": sum(sum(epoch["seconds"].values()) for epoch in epochs) / len(epochs) if alone else None,
        "runs": [{"seed": run["seed"], "accuracy": 100 * run["accuracy"]} for run in runs],
    }


def _count_correct(directory: Path, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the correct segments of each test video, averaged over the seeds, and its labeled segments."""
    correct, labeled = [], np.zeros(0)
    for seed in seeds:
        path = directory / f"seed-{seed}" / "predictions.npz"
        with expecting(f"{path} must hold the predictions of a training"), np.load(path) as file:
            labels, predictions = file["labels"], file["predictions"]
        labeled = (labels >= 0).sum(1)
        correct.append(((labels == predictions) & (labels >= 0)).sum(1))
    return np.mean(correct, 0), labeled


def bootstrap_interval(
    correct: np.ndarray, labeled: np.ndarray, reference: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same videos, and its 95 % confidence interval, in %.

    This is a paired bootstrap: videos are resampled with replacement, the same ones for both networks.

    Args:
        correct: (B,) the number of correct segments of each video.
        labeled: (B,) the number of labeled segments of each video.
        reference: (B,) the number of correct segments of the network to compare with.
        seed: the seed of the resampling.

    Examples:
        >>> labeled = np.full(50, 10)
        >>> difference, low, high = bootstrap_interval(labeled * 0.8, labeled, labeled * 0.7)
        >>> round(difference, 6), round(low, 6), round(high, 6)
        (10.0, 10.0, 10.0)
    """
    videos = len(labeled)
    counts = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), RESAMPLES)
    differences = counts @ (correct - reference) / np.maximum(counts @ labeled, 1)
    low, high = np.quantile(differences, [0.025, 0.975])
    return 100 * float((correct - reference).sum() / labeled.sum()), 100 * float(low), 100 * float(high)


def _show(result: Mapping[str, Any], column: str) -> str:
    """Format one cell of a table."""
    if column == "ours":
        spread = result["accuracy_std"]
        return f"{result['accuracy']:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
    if column == "paper":
        return "" if result["paper"] is None else str(result["paper"])
    if column == "difference to CMRAN":
        if result["difference"] is None:
            return ""
        return "{difference:+.1f} ({difference_low:+.1f} to {difference_high:+.1f})".format(**result)
    name = {"best test epoch": "best_test_accuracy", "s/epoch": "seconds_an_epoch"}.get(column, column)
    value = result[name]
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if isinstance(value, float) else str(value)


def _draw(title: str, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw our accuracies, with their standard deviation, beside the published ones."""
    figure = Figure(figsize=(9, 1.4 + 0.35 * len(results)), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    spread = [result["accuracy_std"] or 0 for result in results]
    axes.errorbar([r["accuracy"] for r in results], places, xerr=spread, fmt="o", color="#0072b2", label="ours")
    known = [(result["paper"], place) for place, result in enumerate(results) if result["paper"] is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "d", color="#d55e00", fillstyle="none", label="the paper, on AVE")
    axes.set_yticks(places, [f"{result['row']} ({result['setting']})" for result in results])
    axes.invert_yaxis()
    axes.set(xlabel="segment accuracy in %", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure
