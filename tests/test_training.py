"""Training: what the history says follows from the epochs, and a run that goes on ends where it would have ended."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator

from ave.checkpoints import Checkpoints
from ave.evaluation import segment_accuracy
from ave.loading import evaluation_loader
from ave.model import CMRAN
from ave.release import read_release
from ave.training import RECIPES, Epoch, Training, train
from ave_release import SHAPE, write_release


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return read_release(directory, "weak")


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def make_model(setting="supervised", seed=0):
    torch.manual_seed(seed)
    widths = {"video_dim": SHAPE["video_dim"], "audio_dim": SHAPE["audio_dim"]}
    return CMRAN(setting, **widths, embed_dim=20, dim_feedforward=17)


def run(data, accelerator, *, setting="supervised", epochs=3, checkpoints=None, **options):
    model = make_model(setting)
    options = {"batch_size": 5, "learning_rate": 1e-3, "seed": 0, **options}
    training = train(model, data, accelerator, epochs=epochs, checkpoints=checkpoints, **options)
    return training, model.state_dict()


def assert_same(one, other):
    assert one[0].history == other[0].history
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())


def test_the_seed_decides_everything(data, accelerator):
    first = run(data, accelerator, seed=3)
    torch.rand(5)
    assert_same(first, run(data, accelerator, seed=3))
    assert first[0].history != run(data, accelerator, seed=4)[0].history


def test_a_run_that_goes_on_ends_bit_identical(data, accelerator, setting, tmp_path):
    """Weights, history, and the checkpoint with all that the optimizer remembers."""
    straight = run(data, accelerator, setting=setting, epochs=4, checkpoints=Checkpoints(tmp_path / "straight"))
    expected, _ = Checkpoints(tmp_path / "straight").load()
    assert any(name.startswith("optimizer.") and name.endswith(".exp_avg_sq") for name in expected)
    for finished in (1, 2, 3):
        checkpoints = Checkpoints(tmp_path / f"stopped-{finished}")
        run(data, accelerator, setting=setting, epochs=finished, checkpoints=checkpoints)
        assert_same(straight, run(data, accelerator, setting=setting, epochs=4, checkpoints=checkpoints))
        came, _ = checkpoints.load()
        assert expected.keys() == came.keys()
        assert all(torch.equal(value, came[name]) for name, value in expected.items())


def test_a_finished_run_has_nothing_left_to_train(data, accelerator, tmp_path):
    first = run(data, accelerator, checkpoints=Checkpoints(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert_same(first, run(data, accelerator, checkpoints=Checkpoints(tmp_path)))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_after_a_damaged_checkpoint_the_one_before(data, accelerator, tmp_path, capsys):
    straight = run(data, accelerator, checkpoints=Checkpoints(tmp_path))
    path = tmp_path / "epoch-0003.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert_same(straight, run(data, accelerator, checkpoints=Checkpoints(tmp_path)))
    printed = capsys.readouterr().out
    assert "epoch-0003.safetensors is damaged" in printed
    assert "goes on after epoch 2" in printed


def test_a_checkpoint_of_another_network(data, accelerator, tmp_path):
    run(data, accelerator, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="checkpoints must be of this network"):
        run(data, accelerator, setting="weak", checkpoints=Checkpoints(tmp_path))


def test_the_model_ends_with_the_weights_that_are_best_on_val(data, accelerator):
    model = make_model()
    training = train(model, data, accelerator, epochs=5, batch_size=5, learning_rate=1e-2, seed=0)
    best = max(epoch.val_accuracy for epoch in training.history)
    assert training.chosen.epoch == [epoch.val_accuracy for epoch in training.history].index(best) + 1
    assert segment_accuracy(model, evaluation_loader(data, "val", accelerator)) == best
    assert segment_accuracy(model, evaluation_loader(data, "test", accelerator)) == training.chosen.test_accuracy


def test_chosen_is_the_first_of_equals():
    accuracies = [(0.2, 0.3), (0.4, 0.1), (0.4, 0.3)]
    training = Training([Epoch(number, 0.1, 0.2, *pair) for number, pair in enumerate(accuracies, 1)])
    assert (training.chosen.epoch, training.best_test.epoch) == (2, 1)


def test_the_learning_rate_is_halved_after_these_epochs(data, accelerator, setting, monkeypatch):
    monkeypatch.setitem(RECIPES, setting, dataclasses.replace(RECIPES[setting], halvings=(1, 3)))
    training, _ = run(data, accelerator, setting=setting, epochs=5, learning_rate=0.008)
    assert [epoch.learning_rate for epoch in training.history] == [0.008, 0.004, 0.004, 0.002, 0.002]


def test_the_recipes_of_the_authors():
    assert {name: (recipe.clip_norm, recipe.halvings) for name, recipe in RECIPES.items()} == {
        "supervised": (0.1, (10, 20, 30)),
        "weak": (0.5, (5, 20, 40)),
    }


def test_seconds_are_of_every_part(data, accelerator, tmp_path):
    training, _ = run(data, accelerator, checkpoints=Checkpoints(tmp_path))
    parts = ["data", "forward and backward", "optimizer", "evaluation"]
    assert sorted(training.history[0].seconds) == sorted(parts)
    assert sorted(training.history[1].seconds) == sorted([*parts, "checkpoint"])
    assert all(seconds > 0 for epoch in training.history for seconds in epoch.seconds.values())


def test_what_is_logged(data, accelerator):
    logged = []
    training, _ = run(data, accelerator, epochs=4, log=lambda values, step: logged.append((step, values)))
    assert [step for step, values in logged if "loss" in values] == [10]  # 3 steps an epoch
    accuracies = [(step, values["test accuracy"]) for step, values in logged if "test accuracy" in values]
    assert accuracies == [(3 * epoch.epoch, epoch.test_accuracy) for epoch in training.history]


def test_divergence_is_said_and_not_kept(data, accelerator, tmp_path, monkeypatch):
    """Also by the last step of an epoch, whose loss is still finite; a run can go on from the epoch before."""
    checkpoints = Checkpoints(tmp_path)
    run(data, accelerator, epochs=1, batch_size=29, checkpoints=checkpoints)
    with pytest.raises(FloatingPointError, match=r"epoch 2 ended .* loss \d.* try a lower --lr"):
        run(data, accelerator, epochs=2, batch_size=29, learning_rate=torch.inf, checkpoints=checkpoints)
    assert checkpoints.load()[1]["epoch"] == 1
