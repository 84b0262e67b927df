"""The quick start runs, its text is true, and it converts to a notebook and to a page of the gallery."""

import ast
import re
import runpy
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from matplotlib import pyplot as plt

import crossmodal_attn
from crossmodal_attn import AGSCA, CMRA, AVInteraction

SCRIPT = Path(__file__).parents[1] / "examples/quickstart.py"
SOURCE = SCRIPT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def left():
    """Run the script, and return its variables and the number of figures that it showed."""
    with patch.object(plt, "show") as show:
        names = runpy.run_path(str(SCRIPT))
    return names | {"figures": plt.get_fignums(), "shows": show.call_count}


def test_it_finds_the_relation(left):
    """Most of the attention of each second goes to the audio second in which its sign is heard."""
    weights, sound = left["weights"], left["sound"]
    assert weights.shape == (1, 2, 10, 20)
    carriers = [[row.equal(sign) for row in sound[0, :, :16]].index(True) for sign in left["heard_signs"]]
    assert sorted(carriers) == list(range(10)) != carriers
    assert weights[0].mean(0)[torch.arange(10), carriers].min() > 0.5
    assert left["loss"] < 0.01 * left["unlearned"]


def test_it_shows_its_picture(left):
    assert left["shows"] == len(left["figures"]) == 1


def test_it_uses_the_layers(left):
    """It uses all three layers, and what it says about their outputs, masks and weights is true."""
    layers = {"guide": AGSCA, "relate": CMRA, "listen": CMRA, "swapped": CMRA, "fuse": AVInteraction}
    assert all(type(left[name]) is layer for name, layer in layers.items())
    assert left["seen"].shape == left["related"].shape == left["fused"].shape == (2, 10, 512)
    assert left["padding"].sum(1).tolist() == [0, 3]
    valid = ~left["padding"]
    assert left["changed"][valid].equal(left["related"][valid])
    assert {path: tuple(weights.shape) for path, weights in left["maps"].items()} == {
        "relate": (2, 4, 10, 20),
        "fuse.attention": (2, 4, 10, 20),
    }


def test_it_reads_as_cells():
    """It has a reST title, then cells that begin with text and contain whole statements."""
    title, underline = ast.get_docstring(ast.parse(SOURCE)).splitlines()[:2]
    assert underline == "=" * len(title)
    header, *cells = re.split(r"^# %%\n", SOURCE, flags=re.MULTILINE)
    assert len(ast.parse(header).body) == 1
    assert len(cells) > 9
    for cell in cells:
        assert cell.startswith("# ")
        assert ast.parse(cell).body
    for heading in re.finditer(r"^# (.+)\n# (-+)$", SOURCE, flags=re.MULTILINE):
        assert len(heading[1]) == len(heading[2])
    assert not re.search(r"^# (%%.|In\[)", SOURCE, flags=re.MULTILINE)


def test_what_it_names_is_public():
    imported = re.search(r"^from crossmodal_attn import (.+)$", SOURCE, flags=re.MULTILINE)[1]
    assert set(imported.split(", ")) <= set(crossmodal_attn.__all__)
