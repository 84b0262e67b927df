"""Training: the history agrees with the epochs, and a resumed run ends bit for bit like an uninterrupted one."""

import dataclasses
from functools import partial

import pytest
import torch
from accelerate import Accelerator

from ave import InputError
from ave.checkpoints import Checkpoints
from ave.data.batches import evaluation_loader
from ave.data.opening import read_set
from ave.networks.cmran import CMRAN
from ave.results.metrics import Epoch, best_test, choose_epoch, segment_accuracy
from ave.train import TrainConfig, main
from ave_release import write_release
from running import SMALL


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return read_set(directory, "weak")


def run(data, output, *, setting="supervised", epochs=3, batch_size=5, lr=1e-3, seed=0, **options):
    """Train a small network; return its history without seconds, and the content of its last checkpoint."""
    config = TrainConfig(setting, epochs=epochs, batch_size=batch_size, lr=lr, seeds=(seed,), device="cpu", **options)
    config = dataclasses.replace(config, **{"resume" if output.exists() else "output": output})
    (metrics,) = main(config, data=data, network=SMALL, draw=False)
    history = [{**line, "seconds": None} for line in metrics["history"]]
    return history, Checkpoints(output / f"seed-{seed}" / "checkpoints").load()[0]


def assert_same(one, other):
    """Check that history, weights, best weights and optimizer state are bit-identical."""
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for group, tensors in one[1].items():
        assert tensors.keys() == other[1][group].keys()
        assert all(torch.equal(value, other[1][group][name]) for name, value in tensors.items())


def test_the_seed_decides_everything(data, tmp_path):
    first = run(data, tmp_path / "first", seed=3)
    torch.rand(5)
    assert_same(first, run(data, tmp_path / "again", seed=3))
    assert first[0] != run(data, tmp_path / "other", seed=4)[0]


def test_a_resumed_weak_run_ends_bit_identical(data, tmp_path):
    """A run that stopped after epoch 1 or 3 ends the same. In the supervised setting, test_resume.py shows it."""
    straight = run(data, tmp_path / "straight", setting="weak", epochs=4)
    assert any(name.endswith(".exp_avg_sq") for name in straight[1]["optimizer"])
    for finished in (1, 3):
        output = tmp_path / f"stopped-{finished}"
        run(data, output, setting="weak", epochs=finished)
        assert_same(straight, run(data, output, setting="weak", epochs=4))


def test_a_finished_run_has_nothing_left_to_train(data, tmp_path):
    first = run(data, tmp_path / "run")
    place = tmp_path / "run" / "seed-0" / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert_same(first, run(data, tmp_path / "run"))
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(data, tmp_path, capsys):
    straight = run(data, tmp_path / "run")
    path = tmp_path / "run" / "seed-0" / "checkpoints" / "epoch-0003.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert_same(straight, run(data, tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "epoch-0003.safetensors is damaged" in printed
    assert "continuing after epoch 2" in printed


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path):
    run(data, tmp_path / "run", epochs=1)
    config = TrainConfig(epochs=1, batch_size=5, lr=1e-3, device="cpu", resume=tmp_path / "run")
    with pytest.raises(InputError, match=r"checkpoints in .* must be of this network"):
        main(config, data=data, network=partial(SMALL, num_layers=1), draw=False)


def test_the_network_has_the_weights_that_are_best_on_val(data, tmp_path):
    history, _ = run(data, tmp_path / "run", epochs=5, lr=1e-2)
    model = CMRAN.from_pretrained(tmp_path / "run" / "seed-0" / "model")
    best = max(line["val_accuracy"] for line in history)
    accelerator = Accelerator(cpu=True)
    assert segment_accuracy(model, evaluation_loader(data, "val", accelerator)) == best
    (first,) = [line for line in history if line["val_accuracy"] == best][:1]
    assert segment_accuracy(model, evaluation_loader(data, "test", accelerator)) == first["test_accuracy"]


def test_the_earliest_of_equal_epochs_is_chosen():
    accuracies = [(0.2, 0.3), (0.4, 0.1), (0.4, 0.3)]
    history = [Epoch(number, 0.1, 0.2, *pair) for number, pair in enumerate(accuracies, 1)]
    assert (choose_epoch(history).epoch, best_test(history).epoch) == (2, 1)


def test_the_learning_rate_is_halved_after_these_epochs(data, tmp_path, monkeypatch):
    recipe = CMRAN.recipes["supervised"]._replace(milestones=(1, 3))
    monkeypatch.setitem(CMRAN.recipes, "supervised", recipe)
    history, _ = run(data, tmp_path / "run", epochs=5, batch_size=13, lr=0.008)
    assert [line["learning_rate"] for line in history] == [0.008, 0.004, 0.004, 0.002, 0.002]


def test_the_recipes_of_the_authors():
    assert {name: (recipe.clip_norm, recipe.milestones) for name, recipe in CMRAN.recipes.items()} == {
        "supervised": (0.1, (10, 20, 30)),
        "weak": (0.5, (5, 20, 40)),
    }


def test_every_part_of_an_epoch_is_timed(data, tmp_path):
    config = TrainConfig(epochs=2, batch_size=5, device="cpu", output=tmp_path / "run")
    (metrics,) = main(config, data=data, network=SMALL, draw=False)
    first, second = (line["seconds"] for line in metrics["history"])
    parts = ["data", "forward and backward", "optimizer", "evaluation"]
    assert sorted(first) == sorted(parts)
    assert sorted(second) == sorted([*parts, "checkpoint"])
    assert all(seconds > 0 for seconds in (*first.values(), *second.values()))


def test_divergence_is_an_error_and_leaves_no_checkpoint(data, tmp_path, monkeypatch):
    """Weights that are not finite after an epoch are an error, and the checkpoint before them can be resumed."""
    run(data, tmp_path / "run", epochs=1, batch_size=29)
    config = TrainConfig(epochs=2, batch_size=29, lr=1e-3, device="cpu", resume=tmp_path / "run")
    monkeypatch.setattr(TrainConfig, "check_resumes", lambda *_: None)  # which would refuse this learning rate
    with pytest.raises(FloatingPointError, match=r"loss \(\d.*\) .* after epoch 2: try a lower --lr"):
        main(dataclasses.replace(config, lr=1e39), data=data, network=SMALL, draw=False)
    assert_same(run(data, tmp_path / "run", batch_size=29), run(data, tmp_path / "straight", batch_size=29))
