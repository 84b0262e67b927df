"""Tables are aligned, show every metric of every run, and fit the width of a terminal."""

import re

import pytest
import torch

from ave.data.dataset import AVE_CATEGORIES
from ave.results.metrics import score, summarize
from ave.results.tables import category_table, format_table, results_table

WIDTH = 120


def make_runs(number, categories=AVE_CATEGORIES, first_seed=0, seen=None, **more):
    generator = torch.Generator().manual_seed(0)
    runs = []
    for seed in range(first_seed, first_seed + number):
        truth = torch.randint(0, len(categories) + 1, (53, 7), generator=generator)
        right = torch.rand(53, 7, generator=generator) < 0.7
        prediction = torch.where(right, truth, torch.randint(0, len(categories) + 1, (53, 7), generator=generator))
        runs.append(
            {
                **score(truth, prediction, categories, seen),
                "seed": seed,
                "chosen_epoch": 5 + seed % 3,
                "best_test_accuracy": 0.875,
                "best_test_epoch": 11,
                "background_accuracy": 0.1779,
                **more,
            }
        )
    return runs


def cells(table, label):
    (line,) = (line for line in table.splitlines() if line.startswith(f"{label}  "))
    return re.split(r" {2,}", line.removeprefix(label).strip())


def test_table_of_two_columns():
    assert format_table("Title", [("long name", "1"), ("name", "23.4%")]).splitlines() == [
        "----------------",
        "Title",
        "----------------",
        "long name      1",
        "name       23.4%",
        "----------------",
    ]


def test_table_of_any_columns():
    table = format_table("A title wider than all", [("a", "1", "22"), ("bcd", "4444", "5")], header=("", "x", "yyy"))
    assert table.splitlines() == [
        "----------------------",
        "A title wider than all",
        "----------------------",
        "        x  yyy",
        "----------------------",
        "a       1   22",
        "bcd  4444    5",
        "----------------------",
    ]


def test_long_title_makes_no_long_rules():
    table = format_table("path/" * 30, [("name", "1")]).splitlines()
    assert table == ["-" * 80, "path/" * 30, "-" * 80, "name  1", "-" * 80]


def test_table_of_nothing():
    assert format_table("Title", []).splitlines() == ["-----", "Title", "-----", "-----"]
    assert format_table("T", [], ("a", "b")).splitlines() == ["----", "T", "----", "a  b", "----", "----"]


def test_table_of_uneven_rows():
    with pytest.raises(ValueError, match="zip"):
        format_table("Title", [("a", "1"), ("b", "2", "3")])


def test_one_run_has_its_values():
    runs = make_runs(1, seen=torch.arange(53) < 5, object_attention=0.61, object_attention_if_uniform=0.05)
    (run,), table = runs, results_table("Some title", runs, summarize(runs))
    for label, value in {
        "accuracy at the epoch chosen on val": f"{run['accuracy']:.1%}",
        "best test epoch (optimistic; the convention in papers)": "87.5%",
        "accuracy without the 5 test videos seen in train": f"{run['accuracy_without_seen']:.1%}",
        "event vs. background: precision": f"{run['event_precision']:.1%}",
        "event vs. background: recall": f"{run['event_recall']:.1%}",
        "event vs. background: F1": f"{run['event_f1']:.1%}",
        "baseline: predict background everywhere": "17.8%",
        "AGSCA's attention on the true object in event seconds": "61.0%",
        "the same if attention were uniform": "5.0%",
    }.items():
        assert cells(table, label) == [value]
    assert re.findall(r"  that epoch +(\d+)", table) == ["5", "11"]
    assert table.splitlines()[1] == "Some title"


def test_what_is_unknown_is_left_out():
    runs = make_runs(2)
    table = results_table("Some title", runs, summarize(runs))
    assert "seen in train" not in table
    assert "AGSCA" not in table


def test_few_runs_have_a_column_each():
    runs = make_runs(3, first_seed=17)
    table, spread = results_table("Some title", runs, summarize(runs)), summarize(runs)["accuracy"]
    assert cells(table, "seed") == ["17", "18", "19", "mean ± std"]
    assert cells(table, "accuracy at the epoch chosen on val") == [
        *(f"{run['accuracy']:.1%}" for run in runs),
        f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}%",
    ]
    assert re.search(r"  that epoch +7 +5 +6 +6\.0 ± 1\.0\n", table)


def test_many_runs_have_least_and_greatest():
    runs = make_runs(10)
    table, spread = results_table("Some title", runs, summarize(runs)), summarize(runs)["accuracy"]
    accuracies = [run["accuracy"] for run in runs]
    assert cells(table, "10 seeds") == ["mean ± std", "min", "max"]
    assert cells(table, "accuracy at the epoch chosen on val") == [
        f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}%",
        f"{min(accuracies):.1%}",
        f"{max(accuracies):.1%}",
    ]


@pytest.mark.parametrize("number", [1, 2, 4, 5, 10])
def test_tables_fit_the_terminal(number):
    """Tables fit the terminal with the longest seeds and all rows."""
    more = {"object_attention": 1.0, "object_attention_if_uniform": 1.0}
    runs = make_runs(number, first_seed=2**32 - 10, seen=torch.arange(53) < 11, **more)
    summary = summarize(runs)
    lines = [*results_table("Some title", runs, summary).splitlines(), *category_table(summary).splitlines()]
    assert max(map(len, lines)) <= WIDTH
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("number", [1, 3, 7])
def test_share_of_nothing_is_a_dash(number):
    runs = make_runs(number)
    runs[0]["event_precision"] = None
    table = results_table("Some title", runs, summarize(runs))
    row = cells(table, "event vs. background: precision")
    assert row[0] == "-"
    assert row[-1] == "-"
    summary = summarize(runs)
    summary["category_accuracy"]["Bark"] = {"mean": None, "std": None}
    assert cells(category_table(summary), "Bark")[0] == "-"


@pytest.mark.parametrize("categories", [1, 2, 5, 28])
@pytest.mark.parametrize("number", [1, 3])
def test_categories_stand_in_their_order(categories, number):
    names = AVE_CATEGORIES[:categories]
    summary = summarize(make_runs(number, names))
    table = category_table(summary)
    lines = table.splitlines()[3:-1]
    assert len(lines) == (categories + 2) // 2
    found = []
    for block in (slice(0, lines[0].index("%") + 1), slice(lines[0].index("%") + 1, None)):
        found += [re.split(r" {2,}", line[block].strip()) for line in lines if line[block].strip()]
    expected = []
    for name, spread in summary["category_accuracy"].items():
        if spread["std"] is None:
            expected.append([name, f"{spread['mean']:.1%}"])
        else:
            expected.append([name, f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}%"])
    assert found == expected
    assert [name for name, _ in found] == [*names, "background"]
    assert ("mean ± std" in table) == (number > 1)


@pytest.mark.parametrize("number", [1, 3])
def test_names_out_of_files_are_shown_not_obeyed(number):
    """Control characters, forged error lines, bytes that are not UTF-8 and very long names are escaped."""
    names = ("\x1b[31mred\nerror: forged", "\udcff", 50_000 * "long", "\u202eturned")
    runs = make_runs(number, names, history=[{"val_accuracy": 0.5}])
    summary = summarize(runs)
    tables = [category_table(summary), results_table(names[0], runs, summary), results_table(names[2], runs, summary)]
    tables.append(format_table(names[0], [names], names))
    for table in tables:
        table.encode()
        lines = table.splitlines()
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith("error") for line in lines)
        assert max(map(len, lines)) < 1000
    assert r"\x1b[31mred\nerror: forged  " in tables[0]
    assert r"\udcff  " in tables[0]


def test_table_tells_how_the_epoch_was_chosen():
    for accuracy, expected in (
        (0.5, "at the epoch chosen on val"),
        (None, "at the last epoch, as there is no val split"),
    ):
        runs = make_runs(1, history=[{"val_accuracy": accuracy}])
        assert cells(results_table("Some title", runs, summarize(runs)), f"accuracy {expected}")
