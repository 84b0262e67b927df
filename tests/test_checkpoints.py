"""Checkpoints: values are restored exactly, damaged checkpoints are reported and skipped, and old ones are removed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ave.checkpoints import Checkpoints, pack_optimizer, unpack_optimizer


def save(checkpoints, *epochs):
    for epoch in epochs:
        checkpoints.save(epoch, {"model": {"weight": torch.full((2, 3), float(epoch))}}, {"history": [epoch]})


def load(checkpoints):
    said = []
    return checkpoints.load(said.append), said


def test_round_trip(tmp_path):
    checkpoints = Checkpoints(tmp_path / "seed" / "new")
    checkpoints.start(0)
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(5), "c": torch.tensor(1.0), "d": torch.randn(5, 3).T}
    groups = {"model": tensors, "optimizer": {"0.exp_avg": torch.ones(3)}}
    checkpoints.save(7, groups, {"history": [{"loss": 0.1}], "scaler": None})
    (loaded, facts), said = load(checkpoints)
    assert loaded.keys() == groups.keys()
    for group, expected in groups.items():
        assert loaded[group].keys() == expected.keys()
        assert all(torch.equal(loaded[group][name], expected[name]) for name in expected)
    assert (facts["epoch"], facts["history"], facts["scaler"]) == (7, [{"loss": 0.1}], None)
    assert said == []


def test_without_checkpoints_load_returns_none(tmp_path):
    assert load(Checkpoints(tmp_path / "nowhere")) == (None, [])


def test_the_newest_checkpoints_are_kept(tmp_path):
    save(Checkpoints(tmp_path, keep=3), 1, 2, 9, 10)
    stems = sorted(path.name for path in tmp_path.iterdir())
    assert stems == [f"epoch-{epoch:04}.{form}" for epoch in (2, 9, 10) for form in ("json", "safetensors")]
    assert load(Checkpoints(tmp_path))[0][1]["epoch"] == 10


def test_files_with_other_names_are_ignored(tmp_path):
    save(Checkpoints(tmp_path, keep=1), 1)
    shutil.copy(tmp_path / "epoch-0001.json", tmp_path / "epoch-0001 copy.json")
    save(Checkpoints(tmp_path, keep=1), 2)
    assert load(Checkpoints(tmp_path))[0][1]["epoch"] == 2
    assert (tmp_path / "epoch-0001 copy.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("{}"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace("5", "6")),
        lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\x00"),
    ],
)
def test_a_damaged_checkpoint_is_skipped(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4, 5)
    damage(tmp_path / "epoch-0005.safetensors")
    (tensors, facts), said = load(checkpoints)
    assert facts["epoch"] == 4
    assert tensors["model"]["weight"].eq(4).all()
    assert len(said) == 1
    assert "epoch-0005.safetensors is damaged" in said[0]


def test_tensors_without_their_json_are_ignored(tmp_path):
    """A .safetensors file without its .json, as after a kill between the two, is ignored."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4, 5)
    (tmp_path / "epoch-0005.json").unlink()
    (tmp_path / ".epoch-0006.safetensors.partial.safetensors").write_bytes(b"half")
    assert load(checkpoints)[0][1]["epoch"] == 4
    save(checkpoints, 5, 6)
    assert load(checkpoints)[0][1]["epoch"] == 6


def test_if_all_are_damaged_training_starts_again(tmp_path):
    """If all checkpoints are damaged, training starts again, and its first checkpoint replaces the damaged ones."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4, 5)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"x")
    found, said = load(checkpoints)
    assert found is None
    assert len(said) == 2
    save(checkpoints, 1)
    assert load(checkpoints)[0][1]["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001.json", "epoch-0001.safetensors"]


def test_a_kill_between_two_removals_leaves_nothing_for_long(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    (tmp_path / "epoch-0001.json").unlink()
    save(checkpoints, 3, 4)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("left", ["epoch-0001.json epoch-0001.safetensors", "epoch-0001.safetensors"])
def test_resuming_removes_what_a_kill_left(tmp_path, left):
    checkpoints = Checkpoints(tmp_path / "seed" / "checkpoints", keep=1)
    checkpoints.start(0)
    save(checkpoints, 2)
    for name in left.split():
        shutil.copy(checkpoints.directory / f"epoch-0002{Path(name).suffix}", checkpoints.directory / name)
    (checkpoints.directory / "epoch-0003.safetensors").touch()
    checkpoints.start(2)
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == [
        "epoch-0002.json",
        "epoch-0002.safetensors",
    ]


@pytest.mark.parametrize("gone", ["run", "run/seed", "run/seed/checkpoints"])
def test_a_directory_that_is_gone_is_not_created_anew(tmp_path, gone):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run" / "seed" / "checkpoints")
    checkpoints.start(0)
    save(checkpoints, 1)
    (tmp_path / gone).rename(tmp_path / "renamed")
    with pytest.raises(FileNotFoundError, match=rf"{gone} is gone: deleted or renamed"):
        save(checkpoints, 2)
    assert not (tmp_path / gone).exists()
    if gone == "run":
        with pytest.raises(FileNotFoundError, match=rf"{gone} is gone: deleted or renamed"):
            checkpoints.start(1)


def test_nothing_is_pickled(tmp_path):
    save(Checkpoints(tmp_path), 1)
    facts = json.loads((tmp_path / "epoch-0001.json").read_text())
    assert set(facts) == {"epoch", "sha256", "history"}
    header = (tmp_path / "epoch-0001.safetensors").read_bytes()[8:]
    assert header.startswith(b'{"model.weight"')


def test_optimizer_round_trip():
    """A restored optimizer takes the same next step."""
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.Adam(model.parameters(), 0.01, fused=True) for model in models]

    def step(model, optimizer):
        model(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(models[0], optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    packed = {name: value.clone() for name, value in pack_optimizer(optimizers[0]).items()}  # as a file would
    unpack_optimizer(optimizers[1], packed)
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(models[0].bias, models[1].bias)
