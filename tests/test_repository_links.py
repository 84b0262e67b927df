"""If the site knows its repository, notebooks install from it and Colab can open them; else there are no such links."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SPECIFICATION = importlib.util.spec_from_file_location("repository", ROOT / "docs/_extensions/repository.py")
repository = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(repository)

ADDRESS = "https://github.com/someone/crossmodal-attn"
GUIDE = """
.. rst-class:: sphx-glr-example-title

.. _sphx_glr_guides_third_modality.py:


A third modality
================

Text.
"""


@pytest.mark.parametrize(("version", "branch"), [("0.2.0.dev0", ""), ("0.2.0", "--branch v0.2.0 ")])
def test_notebook_installs_from_the_repository(version, branch):
    """It installs the extras with which the site itself runs the guides."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r'^docs = \[\s+"crossmodal-attn(\[.+\])"', project, re.MULTILINE)[1]
    cell = repository.first_cell(version, ADDRESS)
    assert f"!git clone --quiet --depth 1 {branch}{ADDRESS} crossmodal-attn\n" in cell
    assert f'%pip install --quiet "./crossmodal-attn{extras}" peft torchao\n' in cell
    ast.parse(re.sub(r"(?m)^( *)[!%].*", r"\1pass", cell))  # the rest is Python


def test_notebook_without_a_repository_says_what_to_do():
    cell = repository.first_cell("0.2.0", "")
    ast.parse(cell)
    assert "git clone" not in cell
    assert 'pip install -e ".[backbones,examples,onnx,video]" peft torchao' in cell


def test_badge_opens_the_branch_that_the_workflow_writes():
    page = repository.add_badge(GUIDE, "third_modality", ADDRESS)
    target = re.search(r"target: (.*)", page)[1]
    jobs = yaml.safe_load((ROOT / ".github/workflows/docs.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["notebooks"]["steps"][-1]["run"].splitlines()[-1].endswith(" notebooks")
    colab = "https://colab.research.google.com/github/someone/crossmodal-attn"
    assert target == f"{colab}/blob/notebooks/third_modality.ipynb"
    assert page.index("================") < page.index("image::") < page.index("Text.")


@pytest.mark.parametrize("address", ["", "https://example.org/someone/crossmodal-attn"])
def test_no_badge_where_colab_cannot_open_it(address):
    assert repository.add_badge(GUIDE, "third_modality", address) == GUIDE
