"""Metrics of a run: each equals a slow loop over the seconds; mean and deviation equal their definitions."""

import json
import math

import h5py
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from ave.data.batches import evaluation_loader
from ave.data.dataset import AVEData
from ave.data.procedural import make_procedural_set
from ave.networks.cmran import CMRAN
from ave.networks.two_scores import Logits, TwoScores
from ave.results.figures import draw_examples
from ave.results.metrics import measure, observe, score, seen_in_training, summarize

CATEGORIES = ("Bark", "Clock", "Goat", "Truck")
BACKGROUND = len(CATEGORIES)


def draw_labels(videos=11, segments=7, seed=0, highest=BACKGROUND):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, highest + 1, (2, videos, segments), generator=generator).unbind()


def count(truth, prediction, seen):
    """Compute the same metrics second by second."""
    names = [*CATEGORIES, "background"]
    confusion = [[0] * len(names) for _ in names]
    tally = dict.fromkeys(["right", "both", "true", "predicted", "unseen", "unseen right"], 0)
    for video in range(len(truth)):
        for true, said in zip(truth[video].tolist(), prediction[video].tolist(), strict=True):
            confusion[true][said] += 1
            tally["right"] += true == said
            tally["true"] += true != BACKGROUND
            tally["predicted"] += said != BACKGROUND
            tally["both"] += true != BACKGROUND and said != BACKGROUND
            if seen is not None and not seen[video]:
                tally["unseen"] += 1
                tally["unseen right"] += true == said

    def share(part, whole):
        return None if whole == 0 else part / whole

    precision, recall = share(tally["both"], tally["predicted"]), share(tally["both"], tally["true"])
    events = tally["predicted"] + tally["true"]
    return {
        "videos": len(truth),
        "segments": truth.numel(),
        "accuracy": tally["right"] / truth.numel(),
        "event_precision": precision,
        "event_recall": recall,
        # The harmonic mean, wherever both are there and not 0.
        "event_f1": 2 / (1 / precision + 1 / recall) if precision and recall else share(0, events),
        "seen_videos": None if seen is None else sum(seen.tolist()),
        "accuracy_without_seen": None if seen is None else share(tally["unseen right"], tally["unseen"]),
        "category_accuracy": {
            name: share(row[label], sum(row)) for label, (name, row) in enumerate(zip(names, confusion, strict=True))
        },
        "confusion": confusion,
    }


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name] == (pytest.approx(value, rel=1e-12) if name == "event_f1" and value else value), name


@pytest.mark.parametrize("seed", range(3))
def test_score_counts_every_second(seed):
    truth, prediction = draw_labels(seed=seed)
    seen = torch.arange(11) % 3 == 0
    result = score(truth, prediction, CATEGORIES, seen)
    assert_same(result, count(truth, prediction, seen))
    assert json.loads(json.dumps(result)) == result


@st.composite
def labeled(draw):
    videos, segments = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    labels = st.lists(st.integers(0, BACKGROUND), min_size=videos * segments, max_size=videos * segments)
    truth, prediction = (torch.tensor(draw(labels)).view(videos, segments) for _ in range(2))
    seen = draw(st.none() | st.lists(st.booleans(), min_size=videos, max_size=videos).map(torch.tensor))
    return truth, prediction, seen


@settings(max_examples=100)
@given(labeled())
def test_score_of_anything(drawn):
    truth, prediction, seen = drawn
    result = score(truth, prediction, CATEGORIES, seen)
    confusion = torch.tensor(result["confusion"])
    assert confusion.sum() == result["segments"] == truth.numel()
    assert result["accuracy"] == pytest.approx(float(confusion.trace() / confusion.sum()))
    shares = [value for name, value in result.items() if name.startswith(("event", "accuracy"))]
    assert all(share is None or 0 <= share <= 1 for share in [*shares, *result["category_accuracy"].values()])
    assert_same(result, count(truth, prediction, seen))


def test_perfect_prediction():
    truth = torch.arange(BACKGROUND + 1).repeat(3, 1)
    result = score(truth, truth, CATEGORIES, torch.tensor([False, True, False]))
    assert (result["accuracy"], result["accuracy_without_seen"]) == (1, 1)
    assert (result["event_precision"], result["event_recall"], result["event_f1"]) == (1, 1, 1)
    assert result["category_accuracy"] == dict.fromkeys([*CATEGORIES, "background"], 1)


def test_share_of_nothing_is_none():
    """Without predicted events precision is None, without true events recall; F1 is None without either."""
    quiet, loud = torch.full((2, 3), BACKGROUND), torch.zeros(2, 3, dtype=torch.int64)
    everyone = torch.ones(2, dtype=torch.bool)
    silent, invented, nothing = (
        score(*pair, CATEGORIES, everyone) for pair in ((loud, quiet), (quiet, loud), (quiet, quiet))
    )
    assert [silent[f"event_{name}"] for name in ("precision", "recall", "f1")] == [None, 0, 0]
    assert [invented[f"event_{name}"] for name in ("precision", "recall", "f1")] == [0, None, 0]
    assert [nothing[f"event_{name}"] for name in ("precision", "recall", "f1")] == [None, None, None]
    assert nothing["category_accuracy"] == {**dict.fromkeys(CATEGORIES), "background": 1}
    assert (silent["seen_videos"], silent["accuracy_without_seen"]) == (2, None)
    assert score(torch.full((2, 3), -1), quiet, CATEGORIES)["accuracy"] is None


def test_event_is_right_whatever_its_category():
    truth, prediction = torch.tensor([[0, 1, 4, 4]]), torch.tensor([[2, 3, 4, 0]])
    result = score(truth, prediction, CATEGORIES)
    assert result["accuracy"] == 0.25
    assert (result["event_precision"], result["event_recall"]) == (2 / 3, 1)


def test_truth_and_prediction_have_one_shape():
    with pytest.raises(ValueError, match="same shape"):
        score(torch.zeros(3, 5).long(), torch.zeros(3, 4).long(), CATEGORIES)


class MeanMap(torch.nn.Module):
    """Replace AGSCA by the mean of the map, independent of the audio."""

    def forward(self, video, _audio):
        return video.mean((2, 3))


class Silence(torch.nn.Module):
    """A network without a layer of this library."""

    num_categories = 28
    decide, name_logits = TwoScores.decide, TwoScores.name_logits

    def forward(self, video, _audio, **_):
        return Logits(video.sum((2, 3, 4)) * 0, torch.eye(28)[: len(video)])


def test_a_network_without_attention_is_measured():
    """Metrics and figures of attention are left out for a network without attention."""
    data = make_procedural_set(num_train=3, num_val=2, num_test=3, num_background=1)
    accelerator = Accelerator(cpu=True)
    batches = evaluation_loader(data, "test", accelerator)
    without_map, whole = CMRAN(), CMRAN()
    without_map.spatial_channel_attention = MeanMap()
    drawn = {}
    for model, lacking in ((whole, set()), (without_map, {"spatial_map"}), (Silence(), {"spatial_map", "relations"})):
        outcomes = observe(model, batches, accelerator)
        assert {name for name in ("spatial_map", "relations") if getattr(outcomes, name) is None} == lacking
        assert ("object_attention" in measure(outcomes, data, "test")) == ("spatial_map" not in lacking)
        drawn[len(lacking)] = draw_examples(outcomes, data, "test", "title")
    assert [list(figures) for figures in drawn.values()] == [["timelines.png", "attention.png"]] * 2 + [
        ["timelines.png"]
    ]
    titles = [
        {part.get_suptitle().partition(" of AGSCA")[0] for part in drawn[n]["attention.png"].subfigs} for n in (0, 1)
    ]
    assert titles[0] - titles[1] == {"Spatial attention"}


def make_set(names, splits):
    rows = 0 if names is None else len(names)
    splits = {split: torch.tensor(rows) for split, rows in splits.items()}
    return AVEData(torch.zeros(rows, 0), torch.zeros(rows, 0), torch.zeros(rows, 0, 3), splits, ("Bark", "Goat"), names)


def test_seen_in_training_follows_the_order_of_the_split():
    data = make_set(("a", "b", "c", "a", "d", "c", "e"), {"train": [0, 2], "val": [4], "test": [6, 5, 1, 3]})
    assert seen_in_training(data).tolist() == [False, True, False, True]
    assert seen_in_training(data, "val").tolist() == [False]
    assert seen_in_training(data, "train").tolist() == [True, True]


def test_seen_in_training_is_unknown_without_names():
    assert seen_in_training(make_set(None, {"train": [0], "val": [1], "test": [2]})) is None


@pytest.mark.realdata
def test_seen_in_training_of_the_real_splits(ave_files):
    """In AVE, 45 ids have several videos, and 18 of them are in several splits: these test videos are found."""
    lines = (ave_files / "Annotations.txt").read_text().splitlines()
    names = tuple(line.split("&")[1] for line in lines)
    splits = {}
    for split in ("train", "val", "test"):
        with h5py.File(ave_files / f"{split}_order.h5") as file:
            splits[split] = file["order"][:].tolist()

    where = {}
    for split, rows in splits.items():
        for row in rows:
            where.setdefault(lines[row].split("&")[1], []).append(split)
    assert sum(len(places) > 1 for places in where.values()) == 45
    assert sum(len(set(places)) > 1 for places in where.values()) == 18
    expected = []
    for row in splits["test"]:
        expected.append(False)
        for other in splits["train"]:
            if lines[other].split("&")[1] == lines[row].split("&")[1]:
                expected[-1] = True

    seen = seen_in_training(make_set(names, splits))
    assert seen.tolist() == expected
    assert len(seen) == 402
    assert seen.sum() == 8


def test_summary_has_mean_and_sample_deviation():
    values = [0.8, 0.9, 0.85, 0.7, 0.95]
    truth, _ = draw_labels()
    runs = [
        {**score(truth, draw_labels(seed=seed)[1], CATEGORIES), "seed": seed, "best_test_accuracy": value}
        for seed, value in enumerate(values, 1)
    ]
    summary = summarize(runs)
    mean = sum(values) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    assert summary["best_test_accuracy"] == {"mean": pytest.approx(mean), "std": pytest.approx(deviation)}
    goats = [run["category_accuracy"]["Goat"] for run in runs]
    mean = sum(goats) / 5
    assert summary["category_accuracy"]["Goat"]["mean"] == pytest.approx(mean)
    assert summary["category_accuracy"]["Goat"]["std"] == pytest.approx(
        math.sqrt(sum((goat - mean) ** 2 for goat in goats) / 4)
    )
    assert list(summary["category_accuracy"]) == [*CATEGORIES, "background"]
    for row in range(BACKGROUND + 1):
        for column in range(BACKGROUND + 1):
            assert summary["confusion"][row][column] == sum(run["confusion"][row][column] for run in runs)
    assert summary["segments"] == {"mean": 77, "std": 0}
    assert json.loads(json.dumps(summary)) == summary


def test_summary_of_one_run_has_no_deviation():
    truth, prediction = draw_labels()
    run = score(truth, prediction, CATEGORIES)
    summary = summarize([run])
    assert summary["accuracy"] == {"mean": run["accuracy"], "std": None}
    assert summary["category_accuracy"]["Bark"] == {"mean": run["category_accuracy"]["Bark"], "std": None}
    assert summary["confusion"] == run["confusion"]


def test_summary_of_what_has_no_value_or_is_no_number():
    """None in one run gives None; text, bools, lists, the seed and what a run lacks are left out."""
    quiet, (truth, prediction) = torch.full((11, 7), BACKGROUND), draw_labels()
    runs = [
        {
            **score(truth, prediction, CATEGORIES),
            "seed": 0,
            "setting": "weak",
            "resumed": True,
            "history": [],
            "loss": 1,
        },
        {**score(truth, quiet, CATEGORIES), "seed": 1, "setting": "weak", "resumed": False, "history": []},
    ]
    summary = summarize(runs)
    assert summary["event_precision"] == {"mean": None, "std": None}
    assert summary["event_recall"]["mean"] == runs[0]["event_recall"] / 2
    assert summary["accuracy_without_seen"] == {"mean": None, "std": None}
    assert not {"seed", "setting", "resumed", "history", "loss"} & summary.keys()


@settings(max_examples=100)
@given(st.floats(0, 1), st.integers(2, 10))
def test_equal_runs_have_their_value_as_mean_and_no_spread(value, number):
    truth, prediction = draw_labels(videos=2, segments=3)
    runs = [{**score(truth, prediction, CATEGORIES), "best_test_accuracy": value}] * number
    assert summarize(runs)["best_test_accuracy"] == {"mean": value, "std": 0}
