"""The command: what it trains, prints and writes, and which arguments it rejects."""

import csv
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ave_cmran
from ave.data.opening import read_set
from ave.data.procedural import make_procedural_set
from ave.devices import make_accelerator
from ave.networks.cmran import CMRAN
from ave_release import SHAPE
from running import SMALL, call_main, run_main

FILES = {
    *("config.json", "metrics.json", "metrics.csv", "history.csv", "categories.csv", "confusion.csv"),
    *("learning_curves.png", "confusion.png", "timelines.png", "attention.png"),
}


def assert_alike(metrics, expected):
    """Compare losses up to rounding: features at another place in memory may be summed in another order."""
    losses, others = ([line["loss"] for line in run["history"]] for run in (metrics, expected))
    assert losses == pytest.approx(others, rel=1e-4)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("setting", "precision"), [("supervised", "fp32"), ("weak", "bf16")])
def test_run_on_a_release(release, tmp_path, setting, precision, capsys):
    options = ("--setting", setting, "--precision", precision, "--epochs", 2, "--batch-size", 5)
    output, metrics = run_main(tmp_path, "--data", release, *options, draw=True)
    printed = capsys.readouterr().out
    assert metrics["segments"] == 5 * SHAPE["segments"]
    assert [line["epoch"] for line in metrics["history"]] == [1, 2]
    assert f"{metrics['accuracy']:.1%}" in printed
    assert f"{metrics['background_accuracy']:.1%}" in printed
    assert "visual_feature.h5" in printed  # the checker's table
    assert "forward and backward" in printed
    assert "object_attention" not in metrics
    assert {path.name for path in output.iterdir()} == {*FILES, "seed-0"}
    config = json.loads((output / "config.json").read_text())
    assert config["settings"]["precision"] == precision
    model = CMRAN.from_pretrained(output / "seed-0" / "model")
    assert (model.setting, model.video_dim, len(model.categories)) == (setting, SHAPE["video_dim"], 28)


def test_several_seeds(release, tmp_path, capsys):
    """Each seed gives the same metrics as a run of that seed alone, and the summary has their mean and deviation."""
    options = ("--data", release, "--epochs", 2, "--batch-size", 5)
    call_main("train", *options, "--seeds", 3, 4, "--output", tmp_path / "both")
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "both" / "metrics.json").read_text())
    _, alone = run_main(tmp_path, *options, "--seeds", 4)
    first, second = results["runs"]
    assert (first["seed"], second["seed"]) == (3, 4)
    for name in ("accuracy", "confusion", "best_test_accuracy"):
        assert second[name] == alone[name]
    losses = [[line["loss"] for line in run["history"]] for run in (first, second, alone)]
    assert losses[0] != losses[1]
    assert losses[1] == losses[2]
    accuracies = torch.tensor([first["accuracy"], second["accuracy"]], dtype=torch.float64)
    assert results["summary"]["accuracy"]["mean"] == pytest.approx(accuracies.mean().item())
    assert results["summary"]["accuracy"]["std"] == pytest.approx(accuracies.std().item())
    assert "mean ± std" in printed
    rows = read_csv(tmp_path / "both" / "metrics.csv")
    assert [(row["seed"], float(row["accuracy"])) for row in rows] == [
        ("3", first["accuracy"]),
        ("4", second["accuracy"]),
    ]
    history = read_csv(tmp_path / "both" / "history.csv")
    assert [(row["seed"], row["epoch"]) for row in history] == [("3", "1"), ("3", "2"), ("4", "1"), ("4", "2")]


def test_the_plan_is_told_once_after_the_first_steps(release, tmp_path, capsys):
    options = ("--data", release, "--epochs", 2, "--batch-size", 1, "--keep", 1, "--output", tmp_path / "run")
    call_main("train", *options, "--seeds", 3, 4)
    printed = capsys.readouterr().out
    (said,) = re.findall(r"about \d+ (?:s|min) left; the run will use up to (\d+(?:\.\d+)?)MB in .*run\n", printed)
    assert printed.index(said) < printed.index("epoch   1/2")
    seeds = [tmp_path / "run" / name for name in ("seed-3", "seed-4")]
    left = sum(path.stat().st_size for seed in seeds for path in seed.rglob("*.safetensors")) / 1e6
    assert 0.5 < left / float(said) < 1.3  # of a network so small that headers count


def test_weight_decay_makes_weights_smaller(release, tmp_path):
    norms = []
    for decay in (0, 0.5):
        output, _ = run_main(tmp_path, "--data", release, "--epochs", 3, "--lr", 0.01, "--weight-decay", decay)
        weights = CMRAN.from_pretrained(output / "seed-0" / "model").parameters()
        norms.append(sum(weight.square().sum() for weight in weights).item())
    assert norms[1] < 0.9 * norms[0]


def test_weak_training_without_background_videos(release, tmp_path, capsys):
    """A dataset without background videos trains as with --no-background-videos."""
    options = ("--setting", "weak", "--epochs", 1, "--data", release)
    _, told = run_main(tmp_path, *options, "--no-background-videos")
    assert "CMRAN, weak, no background videos, on the dataset release: " in capsys.readouterr().out
    _, with_them = run_main(tmp_path, *options)
    for name in ("labels", "visual_feature", "audio_feature"):
        (release / f"{name}_noisy.h5").unlink()
    _, without = run_main(tmp_path, *options)
    losses = [run["history"][0]["loss"] for run in (told, without, with_them)]
    assert losses[0] == losses[1] != losses[2]


def test_metrics_follow_from_the_history(release, tmp_path):
    _, metrics = run_main(tmp_path, "--data", release, "--epochs", 4, "--lr", 0.01)
    history = metrics["history"]
    chosen = max(history, key=lambda epoch: epoch["val_accuracy"])
    assert metrics["chosen_epoch"] == chosen["epoch"]
    assert metrics["accuracy"] == chosen["test_accuracy"]
    assert metrics["best_test_accuracy"] == max(epoch["test_accuracy"] for epoch in history)


def check_predictions(path, release, metrics):
    """Check that the logits give the saved metrics, and that the labels are those of the release."""
    found = np.load(path)
    test = read_set(release)
    rows = test.splits["test"]
    assert found["rows"].tolist() == rows.tolist() == [int(name) for name in found["names"]]
    assert found["labels"].tolist() == test.labels[rows].argmax(-1).tolist()
    decided = np.where(found["event_logits"] >= 0, found["category_logits"].argmax(-1)[:, None], 28)
    assert found["predictions"].tolist() == decided.tolist()
    assert (decided == found["labels"]).mean() == pytest.approx(metrics["accuracy"])
    assert tuple(found["categories"]) == test.categories


def test_evaluation_of_what_was_trained(release, tmp_path, capsys):
    """`evaluate` gives the metrics that `train` reported, and predictions.npz agrees with both."""
    output, trained = run_main(tmp_path, "--data", release, "--epochs", 3, "--lr", 0.01)
    call_main("evaluate", "--checkpoint", output, "--data", release, "--output", tmp_path / "evaluation", draw=True)
    (evaluated,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["runs"]
    for name in ("accuracy", "confusion", "category_accuracy", "event_precision", "event_recall", "event_f1"):
        assert evaluated[name] == trained[name]
    expected = FILES - {"config.json", "history.csv", "learning_curves.png"} | {"predictions.npz"}
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == expected
    check_predictions(tmp_path / "evaluation" / "predictions.npz", release, trained)
    check_predictions(output / "seed-0" / "predictions.npz", release, trained)
    assert "CMRAN, supervised, on the test split of the dataset release" in capsys.readouterr().out


def test_evaluation_of_another_split(release, tmp_path):
    output, trained = run_main(tmp_path, "--data", release, "--epochs", 4, "--lr", 0.01)
    options = ("--data", release, "--split", "val", "--output", tmp_path / "val")
    call_main("evaluate", "--checkpoint", output, *options)
    (evaluated,) = json.loads((tmp_path / "val" / "metrics.json").read_text())["runs"]
    assert evaluated["accuracy"] == max(epoch["val_accuracy"] for epoch in trained["history"])


def test_where_the_features_are_changes_nothing(release, tmp_path, capsys):
    options = ("--data", release, "--epochs", 2, "--batch-size", 5, "--workers", 1)
    runs = {}
    for cache, place in {"auto": "in", "device": "in", "memory": "in memory", "disk": "stay on disk"}.items():
        runs[cache] = run_main(tmp_path, *options, "--cache", cache)[1]
        assert f"features {place}" in capsys.readouterr().out
    for metrics in runs.values():
        assert_alike(metrics, runs["auto"])
        assert metrics["confusion"] == runs["auto"]["confusion"]


def test_a_prepared_release_trains_alike(release, tmp_path):
    call_main("prepare", "--data", release, "--output", tmp_path / "prepared", "--dtype", "float32")
    options = ("--setting", "weak", "--epochs", 2, "--batch-size", 5)
    assert_alike(*(run_main(tmp_path, "--data", data, *options)[1] for data in (release, tmp_path / "prepared")))


def test_a_compiled_network_trains_alike(release, tmp_path, monkeypatch):
    """--compile gives the losses of eager training, with a quick backend and few layers."""
    compiled = []

    def compile_quickly(model, **options):
        compiled.append(model)
        model._compiled_call_impl = torch.compile(model._call_impl, backend="eager", **options)

    monkeypatch.setattr(CMRAN, "compile", compile_quickly)
    options = ("--data", release, "--epochs", 1, "--batch-size", 13)
    (_, expected), (_, metrics) = (
        run_main(tmp_path, *options, *extra, network=partial(SMALL, num_layers=0, guidance="mean"))
        for extra in ((), ("--compile",))
    )
    assert len(compiled) == 1
    assert metrics["history"][0]["loss"] == pytest.approx(expected["history"][0]["loss"], rel=0.05)


def test_tensorboard(release, tmp_path):
    """A resumed run continues the TensorBoard logs of the run before."""
    output, metrics = run_main(tmp_path, "--data", release, "--epochs", 2, "--batch-size", 2, "--log", "tensorboard")
    call_main("train", "--resume", output, "--epochs", 3)
    logs = EventAccumulator(str(output / "tensorboard" / "seed-0"))
    logs.Reload()
    assert [event.step for event in logs.Scalars("loss")] == [10, 20]
    accuracies = [(event.step, event.value) for event in logs.Scalars("test accuracy")]
    (metrics,) = json.loads((output / "metrics.json").read_text())["runs"]
    assert accuracies == [(7 * line["epoch"], pytest.approx(line["test_accuracy"])) for line in metrics["history"]]


def test_run_on_the_procedural_set(tmp_path, capsys):
    """The default run reports AGSCA's attention on the true cells, and does not call its dataset AVE."""
    few = make_procedural_set(num_train=5, num_val=3, num_test=7, num_background=2)
    output, metrics = run_main(tmp_path, "--epochs", 1, data=few, draw=True)
    assert 0 < metrics["object_attention_if_uniform"] < 4 / 49
    assert 0 < metrics["object_attention"] < 1
    assert "procedural set (not AVE)" in capsys.readouterr().out
    call_main("evaluate", "--checkpoint", output, "--output", tmp_path / "evaluation", data=few)
    (evaluated,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["runs"]
    assert evaluated["object_attention"] == metrics["object_attention"]


@pytest.mark.parametrize("options", [("--relation", "co"), ("--relation", "cmra-f"), ("--network", "avel-av")])
def test_networks_without_all_maps_are_drawn(options, release, tmp_path):
    """attention.png shows only the maps that the network has, and is missing if there are none."""
    output, _ = run_main(tmp_path, "--data", release, "--epochs", 1, *options, network=None, draw=True)
    assert (output / "timelines.png").is_file()
    assert (output / "attention.png").is_file() == (options[0] == "--relation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--lr", "1e999"], "--lr must be a number above 0, got inf"),
        (["--batch-size", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--lr", "-1"], "--lr must be a number above 0, got -1"),
        (["--lr-decay", "0"], "--lr-decay must be above 0, at most 1, got 0"),
        (["--milestones", "0", "3"], "--milestones must be epochs of at least 1, got 0 3"),
        (["--milestones", "3", "3"], "--milestones must be all different, got 3 3"),
        (["--network", "dam", "--setting", "weak"], "--setting must be supervised for dam, got weak"),
        (["--network", "avsdn", "--as-published"], "or avsdn-cpsp with --as-published, got avsdn"),
        (["--relation", "co", "--own-projections"], "--relation must be cmra with --own-projections, got co"),
        (["--network", "avel-a", "--senses", "sight"], "--network must be cmran with --senses, got avel-a"),
        (["--lr", "nan"], "--lr must be a number above 0, got nan"),
        (["--weight-decay", "-1"], "--weight-decay must be a number of at least 0, got -1"),
        (["--weight-decay", "nan"], "--weight-decay must be a number of at least 0, got nan"),
        (["--seeds", "-1"], "--seeds must be from 0 to 4294967295, got -1"),
        (["--seeds", "1.5"], "Error parsing --seeds"),
        (["--seeds", "1", "1"], "--seeds must be all different, got 1 1"),
        (["--seeds", "0,1,2"], "got 0,1,2: did you mean --seeds 0 1 2?"),
        (["train", "--epochs", "1", "--seeds=3,5"], "got 3,5: did you mean --seeds 3 5?"),
        (["--seeds"], "--seeds must be at least one, got none"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--keep", "0"], "--keep must be at least 1, got 0"),
        (["--cache", "attic"], "invalid choice 'attic' for argument '--cache'"),
        (["--log", "stdout"], "'stdout'"),
        (["--device", "meta"], "--device must name a device that works here, got meta"),
        (["--setting", "strong"], "invalid choice 'strong' for argument '--setting'"),
        (["--precision", "fp64"], "invalid choice 'fp64' for argument '--precision'"),
        (["--device", "abacus"], "--device must name a device that works here, got abacus"),
        (["--data", "/nowhere"], "/nowhere is not a directory"),
        (["--batch", "3"], "Unrecognized options: --batch"),
        (["--epoch", "3"], "Perhaps you meant: --epochs"),
        (["--resume", "/nowhere"], "--resume must name the directory of a run"),
        (["trane"], "Unrecognized options: trane"),
        (["evaluate"], "one of --checkpoint and --official must be given, got None and None"),
        (["evaluate", "--checkpoint", "/nowhere"], "/nowhere"),
        (["evaluate", "--official", "/nowhere"], "/nowhere"),
        (["check"], "--data"),
        (["check", "--data", "/nowhere"], "/nowhere is not a directory"),
    ],
)
def test_refused_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call_main(*arguments)
    assert stop.value.code == 2
    errors = " ".join(re.sub(r"[│─╭╮╰╯\n]", " ", capsys.readouterr().err).split())  # without the frame around it
    assert message in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_resume_and_output_exclude_each_other(release, tmp_path, capsys):
    output, _ = run_main(tmp_path, "--data", release, "--epochs", 1)
    with pytest.raises(SystemExit) as stop:
        call_main("train", "--resume", output, "--output", tmp_path / "other")
    assert stop.value.code == 2
    assert "--output must be left out with --resume" in capsys.readouterr().err


def test_evaluation_needs_fitting_features(release, tmp_path, capsys):
    CMRAN(video_dim=13, audio_dim=SHAPE["audio_dim"]).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        call_main(
            "evaluate", "--checkpoint", tmp_path / "model", "--data", release, "--output", tmp_path / "evaluation"
        )
    assert stop.value.code == 2
    assert "--data must have 13 visual channels, like the network's training set, got 11" in capsys.readouterr().err
    assert not (tmp_path / "evaluation").exists()


def test_evaluation_without_data_asks_for_it(tmp_path, capsys):
    SMALL(categories=["Bark", "Clock"]).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        call_main("evaluate", "--checkpoint", tmp_path / "model", "--output", tmp_path / "evaluation")
    assert stop.value.code == 2
    message = "--data must be given: the default is the procedural set, but this network needs"
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works where there is a GPU")
def test_fp16_needs_a_gpu(release, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        call_main("--precision", "fp16", "--data", release, "--output", tmp_path / "run")
    assert stop.value.code == 2
    assert "--precision fp16 needs a GPU, got cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("version", "error", "reason"),
    [
        (None, AssertionError("Torch not compiled with CUDA enabled"), f"torch {torch.__version__} is built without"),
        (
            "12.6",
            RuntimeError("The NVIDIA driver on your system is too old.\nMore."),
            "The NVIDIA driver on your system",
        ),
    ],
)
def test_why_cuda_does_not_work(version, error, reason, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(
        ValueError, match=f"must name a device that works here, got cuda: {re.escape(reason)}"
    ) as caught:
        make_accelerator("cuda")
    assert "\n" not in str(caught.value)


def test_a_run_is_not_overwritten(release, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        call_main("--data", release, "--output", tmp_path / "run")
    assert stop.value.code == 2
    assert "--output must be a new or empty directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (FloatingPointError("the loss of epoch 1 is nan"), 1, "error: the loss of epoch 1 is nan"),
        (OSError("no space left on device"), 1, "error: no space left on device; finished epochs are kept: continue"),
        (KeyboardInterrupt(), 130, "error: stopped; finished epochs are kept: continue with --resume"),
    ],
)
def test_what_fails_is_said_in_a_line(release, tmp_path, capsys, failure, code, message):
    """A failure is reported in one line, and only what --resume needs is left."""

    def fail(*_, **__):
        raise failure

    with pytest.raises(SystemExit) as stop:
        call_main("--data", release, "--output", tmp_path / "run", network=fail)
    assert stop.value.code == code
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_divergence_is_said(release, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(tmp_path, "--data", release, "--epochs", 3, "--lr", 1e30)
    assert stop.value.code == 1
    assert "try a lower --lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "train",
            "setting data background-videos senses epochs batch-size lr milestones lr-decay weight-decay seeds device "
            "precision compile cache workers keep log output resume",
        ),
        ("evaluate", "checkpoint official data split device precision output"),
        ("predict", "checkpoint official data features split device precision output"),
        ("check", "data setting"),
        ("prepare", "data output dtype"),
    ],
)
def test_help_explains_every_option(command, options, capsys):
    with pytest.raises(SystemExit) as stop:
        call_main(command, "--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in options.split():
        assert f"--{name}" in printed


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as stop:
        call_main("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in ("train", "evaluate", "predict", "check", "prepare"):
        assert f"• {name} " in printed


def test_only_the_command_needs_tyro(tmp_path):
    """``ave`` can be imported without tyro, which it does not mention, and imports no package that can wait."""
    (tmp_path / "tyro.py").write_text("raise ImportError('tyro was imported')")
    examples = Path(ave_cmran.__file__).parent
    paths = [*examples.glob("ave/**/*.py"), *examples.parent.glob("benchmarks/*.py")]
    names = [".".join(path.relative_to(examples).with_suffix("").parts) for path in paths if "ave" in path.parts]
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(examples)!r}]\n"
    code += "".join(f"import {name.removesuffix('.__init__')}\n" for name in names if name.startswith("ave"))
    code += "for slow in ('av', 'torch._dynamo', 'torchmetrics', 'tensorboard'): assert slow not in sys.modules, slow"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert process.returncode == 0, process.stderr
    assert all("tyro" not in path.read_text() for path in paths)


@pytest.mark.parametrize(("package", "argument"), [("tyro", "--help"), ("matplotlib", "train")])
def test_without_the_extra_it_says_what_to_install(tmp_path, package, argument):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}', name='{package}')")
    code = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(ave_cmran.__file__).parent)!r}]\n"
    code += f"sys.argv[1:] = [{argument!r}]; runpy.run_path({ave_cmran.__file__!r}, run_name='__main__')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    (line,) = process.stderr.splitlines()
    assert re.fullmatch(rf'ave_cmran.py: error: .*{package}.*: run pip install -e "\.\[examples\]" .*', line)
    assert process.returncode == 2


def test_data_and_networks_do_not_know_each_other():
    """``ave.data`` and ``ave.networks`` do not import each other or ``ave.train``; dataset.py needs only torch."""
    ave = Path(ave_cmran.__file__).parent / "ave"
    for folder, unknown in {"data": r"ave\.(networks|results|train)", "networks": r"ave\.(data|train)"}.items():
        for path in (ave / folder).glob("*.py"):
            assert not re.search(rf"^(from|import) {unknown}", path.read_text(), re.MULTILINE), path
    for file, needed in {"data/dataset.py": {"ave", "torch"}, "__init__.py": set()}.items():
        imports = re.findall(r"^(?:from|import) (\w+)", (ave / file).read_text(), re.MULTILINE)
        assert set(imports) - set(sys.stdlib_module_names) == needed
