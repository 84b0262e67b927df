"""Output directories: one process at a time, never created again if they disappear, and links are not followed."""

import pytest

from ave import train as training
from ave.checkpoints import Checkpoints
from ave.data.arrays import StoredArray
from ave.results.files import clearing
from ave_release import write_release
from running import call_main


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return directory


@pytest.fixture(scope="module")
def trained(release, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "trained"
    call_main("train", "--data", release, "--epochs", 1, "--output", output)
    return output


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


COMMANDS = {
    "train": ("--data", "release", "--output", "output"),
    "resume": ("--resume", "trained"),
    "evaluate": ("--checkpoint", "trained", "--data", "release", "--output", "output"),
    "predict": ("--checkpoint", "trained", "--data", "release", "--output", "output"),
    "prepare": ("--data", "release", "--output", "output"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_in_use_is_refused(command, release, trained, tmp_path, capsys, monkeypatch):
    places = {"release": release, "trained": trained, "output": tmp_path / "new" / "output"}
    arguments = [places.get(argument, argument) for argument in COMMANDS[command]]
    before = files(trained)
    with clearing(arguments[-1], new=False), monkeypatch.context() as patched:
        if command in ("train", "resume", "evaluate"):  # before the features are read, which may take long
            patched.setattr(StoredArray, "__init__", lambda *_: pytest.fail("a file of the dataset was opened"))
        with pytest.raises(SystemExit) as stop:
            call_main("train" if command == "resume" else command, *arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"error: {arguments[-1]} is in use by another process: wait" in line
    assert files(trained) == before
    assert not files(tmp_path)
    if command == "prepare":
        call_main(command, *arguments)
        assert ".lock" not in [path.name for path in arguments[-1].iterdir()]


@pytest.mark.parametrize(("moment", "epochs"), [("save", 2), ("save", 1), ("network", 1), ("start", 1)])
def test_a_run_whose_directory_is_renamed_ends(moment, epochs, release, tmp_path, monkeypatch, capsys):
    """The directory is renamed before the next checkpoint, the saved network, the report or the next seed."""
    output = tmp_path / "run"
    owner, name = (training, "write_predictions") if moment == "network" else (Checkpoints, moment)
    original = getattr(owner, name)

    def do(*arguments, **options):
        original(*arguments, **options)
        if output.exists():
            output.rename(tmp_path / "renamed")

    monkeypatch.setattr(owner, name, do)
    with pytest.raises(SystemExit) as stop:
        call_main("train", "--data", release, "--epochs", epochs, "--seeds", 0, 1, "--output", output)
    assert stop.value.code == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert line.endswith(f"error: {output} is gone: deleted or renamed while this ran")  # no hint at --resume OUTPUT
    assert not output.exists()
    monkeypatch.undo()
    call_main("train", "--resume", tmp_path / "renamed")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {"renamed/metrics.json", "renamed/seed-1/model/model.safetensors"} <= names
    assert not [name for name in names if ".partial" in name or ".lock" in name]


def test_links_in_the_place_of_what_is_half_written_are_not_followed(release, tmp_path):
    target = tmp_path / "target"
    (target / "model").mkdir(parents=True)
    (target / "model" / "file").write_text("precious")
    output = tmp_path / "run"
    call_main("train", "--data", release, "--epochs", 1, "--output", output)
    for name in (".model.partial", ".checkpoints.partial", ".predictions.npz.partial.npz"):
        (output / "seed-0" / name).symlink_to(target if name.endswith("npz") else target / "model")
    call_main("train", "--resume", output)
    assert [path.name for path in target.rglob("*")] == ["model", "file"]
    assert (target / "model" / "file").read_text() == "precious"
    assert sorted(path.name for path in (output / "seed-0").iterdir()) == ["checkpoints", "model", "predictions.npz"]
