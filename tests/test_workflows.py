"""The workflows: actions are pinned, permissions are minimal, and the tests cover what the metadata claims."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml")}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["docs", "release", "tests"])
def test_actions_are_pinned(name):
    """Each action is pinned by the hash of a commit, with the version in a comment."""
    steps = re.findall(r"uses: *(.*)", WORKFLOWS[name])
    assert steps
    for step in steps:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+", step), step


def test_an_action_has_one_digest():
    """Each action has the same hash in all workflows."""
    pins = re.findall(r"uses: *(\S+)@(\S+)", "\n".join(WORKFLOWS.values()))
    assert len(dict(pins)) == len(set(pins))


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("tests", {}),
        ("docs", {"deploy": {"pages": "write", "id-token": "write"}, "notebooks": {"contents": "write"}}),
        ("release", {"publish": {"id-token": "write"}}),
    ],
)
def test_permissions_are_least(name, writes):
    """Workflows may only read the repository; a job that needs more declares it. Checkouts keep no credentials."""
    workflow = yaml.safe_load(WORKFLOWS[name])
    assert workflow["permissions"] == {"contents": "read"}
    assert {job: body["permissions"] for job, body in workflow["jobs"].items() if "permissions" in body} == writes
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert "actions/checkout@" not in step.get("uses", "") or step["with"] == {"persist-credentials": False}


def test_matrix_is_what_the_metadata_claims():
    """Each Python of the classifiers is tested with the newest torch, and with the oldest if that supports it."""
    matrix = yaml.safe_load(WORKFLOWS["tests"])["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", PYPROJECT)
    oldest = re.search(r'"torch>=([\d.]+)"', PYPROJECT)[1]
    assert matrix["torch"] == [f"{oldest}.0", "newest"]
    excluded = {(job["python"], job["torch"]) for job in matrix["exclude"]}
    assert excluded == {("3.14", f"{oldest}.0")}
    assert {job["python"] for job in matrix["include"]} == {python for python, _ in excluded}


def test_oldest_torch_can_be_installed(tmp_path):
    """A job pins the given torch, or none for the newest; sympy is not pinned, since torch pins it."""
    steps = yaml.safe_load(WORKFLOWS["tests"])["jobs"]["tests"]["steps"]
    (pin,) = [step for step in steps if "TORCH" in step.get("env", {})]
    before = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for torch, pinned in {"2.6.0": {"torch==2.6.0"}, "newest": set()}.items():
        file = tmp_path / "constraints.txt"
        file.write_text("\n".join(before), encoding="utf-8")
        subprocess.run(["bash", "-ec", pin["run"]], cwd=tmp_path, env=os.environ | {"TORCH": torch}, check=True)  # noqa: S603, S607
        after = file.read_text(encoding="utf-8").splitlines()
        assert set(after) - set(before) == pinned
        gone = {line.partition("==")[0] for line in set(before) - set(after)}
        assert gone == {"torch", "sympy"}


def test_release_publishes_what_was_tested():
    """Build, test and publish run in this order, and use the same files."""
    jobs = yaml.safe_load(WORKFLOWS["release"])["jobs"]
    assert (jobs["test"]["needs"], jobs["publish"]["needs"]) == ("build", "test")
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert [step["with"]["name"] for step in steps if "load-artifact@" in step.get("uses", "")] == ["dist"] * 3
    publish = jobs["publish"]["steps"][-1]
    assert publish["with"] == {"attestations": True}
    version = re.search(rf"{publish['uses']} # v([\d.]+)", WORKFLOWS["release"])[1]
    # The first that reads metadata 2.5, which hatchling writes.
    assert tuple(map(int, version.split("."))) >= (1, 14, 2)
