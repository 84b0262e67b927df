"""``make`` sets up ``.venv`` once, with a Python that is new enough, and creates it again if it is incomplete."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLDEST = re.search(r'^requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
FAKE = """#!/bin/sh
echo "$0 $*" >> {log}
case "$1 $2" in
--version*) echo Python {version} ;;
-c*) exec {python} -c "import sys; sys.version_info = tuple(map(int, '{version}'.split('.')))
$2" ;;
"-m venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""
"""A Python of any version that makes copies of itself, and notes what it is told."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")


@pytest.fixture
def make(tmp_path):
    """Run ``make demo`` in a directory with only the files that make reads; return its status, errors and calls."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    log = tmp_path / "calls"

    def run(version):
        write_python(tmp_path / "bin/python3", version, log)
        log.write_text("")
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        command = [shutil.which("make"), "demo"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: S603
        return ended.returncode, ended.stderr, log.read_text()

    return run


def write_python(path, version, log):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.format(version=version, log=log, python=sys.executable))
    path.chmod(0o755)


def test_an_old_python_is_refused_before_anything_is_installed(make, tmp_path):
    status, errors, calls = make("3.8")
    assert status != 0
    assert f"Python {OLDEST} or newer is needed, got Python 3.8: name one, as in make PYTHON=python3.12 demo" in errors
    assert "venv" not in calls
    assert not (tmp_path / ".venv").exists()


def test_the_oldest_python_is_taken_and_set_up_once(make):
    status, errors, calls = make(OLDEST)
    assert status == 0, errors
    assert calls.index("-m venv --clear .venv") < calls.index("-m pip install") < calls.index("examples/ave_cmran.py")
    status, _, calls = make("3.8")  # which it no longer asks for
    assert status == 0
    assert "venv --clear" not in calls
    assert "pip install" not in calls


@pytest.mark.parametrize("fault", ["half-made", "of an old Python", "of a Python that is gone"])
def test_an_environment_that_is_not_sound_is_made_anew(make, tmp_path, fault):
    python, ready = tmp_path / ".venv/bin/python", tmp_path / ".venv/.ready"
    write_python(python, "3.8" if fault == "of an old Python" else "3.12", tmp_path / "calls")
    if fault != "half-made":
        ready.touch()
    if fault == "of a Python that is gone":
        python.unlink()
        python.symlink_to(tmp_path / "gone")
    status, errors, calls = make("3.12")
    assert status == 0, errors
    assert calls.count("-m venv --clear .venv") == calls.count("-m pip install") == 1
    assert ready.exists()


def test_other_requirements_are_installed_into_the_same_environment(make, tmp_path):
    make("3.12")
    os.utime(tmp_path / ".venv/.ready", (0, 0))
    _, _, calls = make("3.12")
    assert "pip install" in calls
    assert "venv --clear" not in calls
