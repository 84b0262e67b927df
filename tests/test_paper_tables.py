"""Tables of the paper: what each row trains, which rows are skipped or resumed, and what is written."""

import csv
import dataclasses
import json
from pathlib import Path
from threading import Event

import numpy as np
import pytest

import ave_cmran
from ave import InputError, paper_tables
from ave.networks.registry import NETWORKS
from ave.paper_rows import FULL, TABLES
from ave.paper_tables import TablesConfig, _select, bootstrap_interval, main
from ave.train import TrainConfig
from ave_release import write_release
from running import ENVIRONMENT, SMALL, call_main


@pytest.fixture
def release(tmp_path):
    (tmp_path / "release").mkdir()
    write_release(tmp_path / "release")
    return tmp_path / "release"


def launch(started, fails=()):
    """Train rows in this process, with small networks. Rows in ``fails`` fail."""

    def launch(training, config, stop):
        assert isinstance(stop, Event)
        started.append(training.directory.name)
        if training.directory.name in fails:
            return "the disk is full"
        arguments = training.arguments(config)
        network = SMALL if training.row.network == "cmran" else NETWORKS[training.row.network]
        call_main("train", *arguments, network=network)
        return None

    return launch


def test_tables_are_written_and_finished_rows_are_skipped(release, tmp_path, capsys):
    config = TablesConfig(
        tables=(1, 5), rows=("avel-a", "num-layers-1"), setting="supervised", seeds=(3, 5), data=release, epochs=1,
        device="cpu", output=tmp_path / "tables",
    )  # fmt: skip
    started = []
    main(config, launch=launch(started))
    assert sorted(started) == ["supervised-avel-a", "supervised-cmran", "supervised-num-layers-1"]
    printed = capsys.readouterr().out
    assert "3/3 supervised-" in printed
    assert "Audio only" in printed
    assert "not AVE" not in printed
    written = json.loads((tmp_path / "tables" / "table-1.json").read_text())["rows"]
    assert [(row["row"], row["paper"]) for row in written] == [("Audio only", 59.5), ("CMRAN", 77.4)]
    for row, directory in zip(written, ("supervised-avel-a", "supervised-cmran"), strict=True):
        summary = json.loads((tmp_path / "tables" / directory / "metrics.json").read_text())["summary"]
        assert row["accuracy"] == pytest.approx(100 * summary["accuracy"]["mean"])
        assert row["accuracy_std"] == pytest.approx(100 * summary["accuracy"]["std"])
        assert row["seconds_an_epoch"] > 0
    assert written[1]["difference"] is None
    assert written[0]["difference"] == pytest.approx(written[0]["accuracy"] - written[1]["accuracy"])
    assert written[0]["difference_low"] <= written[0]["difference"] <= written[0]["difference_high"]
    with (tmp_path / "tables" / "table-5.csv").open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["1 layer", "CMRAN"]
    names = {path.name for path in (tmp_path / "tables").glob("table-*")}
    assert names == {f"table-{table}.{kind}" for table in (1, 5) for kind in ("csv", "json", "md", "png")}
    assert "| CMRAN | supervised | 77.4 |" in (tmp_path / "tables" / "table-1.md").read_text()

    again = []
    more = dataclasses.replace(config, seeds=(7, 3), tables=(5,))
    main(more, launch=launch(again))
    main(dataclasses.replace(more, seeds=(5,), jobs=2), launch=launch([], ["supervised-cmran"]))
    assert sorted(again) == ["supervised-cmran", "supervised-num-layers-1"]
    written = json.loads((tmp_path / "tables" / "table-5.json").read_text())["rows"]
    assert [[run["seed"] for run in row["runs"]] for row in written] == [[5], [5]]
    assert all(row["seconds_an_epoch"] > 0 for row in written)  # nothing was trained

    with pytest.raises(InputError, match=r"--output must be a new .*, got --epochs 2, where 1 was used"):
        main(dataclasses.replace(config, epochs=2), launch=launch([]))
    (tmp_path / "tables" / "supervised-cmran" / "metrics.json").write_text('{"runs": [')
    with pytest.raises(InputError, match=r"supervised-cmran/metrics\.json must hold the metrics of a training"):
        main(config, launch=launch([]))


def test_a_reference_that_fails_is_left_out(release, tmp_path):
    """If CMRAN fails, the other rows are written without a difference to it."""
    config = TablesConfig(
        tables=(5,), rows=("num-layers-0",), setting="weak", data=release, epochs=1, device="cpu",
        output=tmp_path / "tables",
    )  # fmt: skip
    with pytest.raises(OSError, match="1 of 2 trainings failed, the first is weak-cmran"):
        main(config, launch=launch([], ["weak-cmran"]))
    (row,) = json.loads((tmp_path / "tables" / "table-5.json").read_text())["rows"]
    assert (row["row"], row["difference"]) == ("0 layers", None)


def test_a_row_that_fails_is_left_out_and_told(release, tmp_path, capsys):
    config = TablesConfig(
        tables=(5,), rows=("num-layers-0",), setting="supervised", data=release, epochs=1, device="cpu", jobs=2,
        output=tmp_path / "tables",
    )  # fmt: skip
    with pytest.raises(
        OSError, match="1 of 2 trainings failed, the first is supervised-num-layers-0: the disk is full"
    ):
        main(config, launch=launch([], ["supervised-num-layers-0"]))
    (row,) = json.loads((tmp_path / "tables" / "table-5.json").read_text())["rows"]
    assert (row["row"], row["seconds_an_epoch"]) == ("CMRAN", None)
    started = []
    main(config, launch=launch(started))
    assert started == ["supervised-num-layers-0"]
    assert len(json.loads((tmp_path / "tables" / "table-5.json").read_text())["rows"]) == 2


def test_rows_run_in_processes_of_their_own(release, tmp_path, capsys, monkeypatch):
    """Each row runs the command in a process, here with a small network; if it fails, its last line is reported."""
    assert paper_tables.COMMAND.samefile(ave_cmran.__file__)
    small = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    (tmp_path / "small.py").write_text(f"{small}import running; running.call_main(*sys.argv[1:])")
    monkeypatch.setattr(paper_tables, "COMMAND", tmp_path / "small.py")
    monkeypatch.setenv("OMP_NUM_THREADS", ENVIRONMENT["OMP_NUM_THREADS"])
    config = TablesConfig(
        tables=(5,), rows=("cmran",), setting="weak", data=release, epochs=1, device="cpu", output=tmp_path / "tables"
    )
    main(config)
    assert (tmp_path / "tables" / "weak-cmran" / "seed-0" / "model").is_dir()
    (tmp_path / "fails.py").write_text("import sys; print('first'); sys.exit('last')")
    monkeypatch.setattr(paper_tables, "COMMAND", tmp_path / "fails.py")
    with pytest.raises(OSError, match="the first is weak-cmran: last"):
        main(dataclasses.replace(config, output=tmp_path / "others"))


def test_every_row_is_a_training_of_its_own(tmp_path):
    """The options of each row build its network, and no two rows of a table have the same options."""
    for table in TABLES:
        trainings = _select(table, TablesConfig())
        assert len({training.directory for training in trainings}) == len(trainings)
        for training in trainings:
            config = TrainConfig(training.setting, network=training.row.network, **training.row.options)
            config.check()
            assert training.row is FULL or config != TrainConfig(training.setting)
    assert {training.setting for training in _select(1, TablesConfig())} == {"supervised"}
    assert {training.setting for training in _select(2, TablesConfig())} == {"weak"}
    assert "DAM" not in [training.row.label for training in _select(2, TablesConfig())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"seeds": (3, 3)}, "--seeds must be different numbers from 0 to 4294967295, got \\[3, 3\\]"),
        ({"data": Path("/nowhere")}, "--data must be a directory, got /nowhere"),
        ({"tables": (1,), "setting": "weak"}, "--tables, --rows and --setting must select a row"),
        ({"rows": ("relation-cmra",)}, "--rows must be some of .*, got relation-cmra"),
    ],
)
def test_errors(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        main(TablesConfig(output=tmp_path / "tables", **options), launch=launch([]))
    assert not (tmp_path / "tables").exists()


def test_interval_is_that_of_resampled_videos():
    """The interval agrees with a bootstrap in a loop with other random numbers."""
    generator = np.random.default_rng(5)
    labeled = generator.integers(5, 11, 97)
    correct, reference = (generator.binomial(labeled, share) for share in (0.7, 0.6))
    difference, low, high = bootstrap_interval(correct, labeled, reference)
    assert difference == pytest.approx(100 * (correct.sum() - reference.sum()) / labeled.sum())
    resampled = []
    for _ in range(4000):
        videos = generator.integers(0, 97, 97)
        resampled.append(100 * (correct[videos] - reference[videos]).sum() / labeled[videos].sum())
    assert np.quantile(resampled, [0.025, 0.975]) == pytest.approx([low, high], abs=0.3)
