"""Configure Sphinx. ``make docs`` builds the site, with warnings as errors. The build needs no network."""

import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes

# The guides compute little: a second thread mostly waits, which takes CPU time.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parent.parent
# For the extensions of this site, the examples that the guides run, and the report of `benchmarks`.
sys.path[:0] = [str(ROOT / "docs" / "_extensions"), str(ROOT / "examples"), str(ROOT)]

from repository import first_cell  # noqa: E402

from crossmodal_attn import CrossModalRelation, __version__, plots  # noqa: E402

project = "crossmodal-attn"
author = "The crossmodal-attn developers"
copyright = "the crossmodal-attn developers, under the MIT license"
version = release = __version__

# The quick start is an example, and also the first guide.
shutil.copy(ROOT / "examples" / "quickstart.py", ROOT / "docs" / "gallery")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "sphinx-mathjax-offline",
    "benchmark_results",
    "built_links",
    "command_line",
    "public_names",
    "repository",
]
exclude_patterns = ["_build", "_extensions", "gallery", "**/*.ipynb", "guides/*.py", "guides/sg_execution_times.rst"]
root_doc = "index"
# References to other projects are links if the network is available, and plain text otherwise.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|collections|typing|typing_extensions|matplotlib|numpy|np)\..*"),
    (r"py:(class|exc|obj)", r"(bool|int|float|str|object|tuple|list|dict|type|None|[A-Za-z]+Error)(\[.*)?"),
    (r"py:class", r"Tensor.*|Module|Sequence.*|Callable.*|Iterator.*|Mapping.*|Self|Axes.*|ndarray|BlockMask|optional"),
]

html_theme = "furo"
html_title = f"crossmodal-attn {release}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f5f99",
        "color-brand-content": "#1f5f99",
        "modality-video": "#1f5f99",
        "modality-audio": "#b3530a",
        "modality-text": "#2e7d4f",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7fb6ea",
        "color-brand-content": "#7fb6ea",
        "modality-video": "#7fb6ea",
        "modality-audio": "#f0a35e",
        "modality-text": "#7cc99a",
    },
}
html_show_sourcelink = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
autosummary_generate = False
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
# The API pages show this name, and not the long union of types that it stands for.
plots.ArrayLike = type("ArrayLike", (), {"__module__": "numpy.typing"})
# Sphinx shows the callable in a union with a Literal with its markup, "~".
CrossModalRelation.__init__.__annotations__["activation"] = Callable | str


def reachable(inventories: dict[str, str]) -> dict[str, tuple[str, None]]:
    """Return the documentation sites for intersphinx, or none if the network is not available."""
    try:
        for address in inventories.values():
            urllib.request.urlopen(f"{address}/objects.inv", timeout=5).close()  # noqa: S310
    except OSError:
        return {}
    return {name: (address, None) for name, address in inventories.items()}


intersphinx_mapping = reachable(
    {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
        "matplotlib": "https://matplotlib.org/stable",
    }
)

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["guides"],
    "filename_pattern": r"\.py$",  # run all of them
    "within_subsection_order": "gallery_order.ReadingOrder",
    "abort_on_example_error": True,
    "capture_repr": (),  # show only what they print
    "default_thumb_file": str(ROOT / "docs" / "images" / "attention.png"),
    "download_all_examples": False,
    "first_notebook_cell": first_cell(__version__),
    "min_reported_time": 3600,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
}


def escape_stars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the ``*`` of leading dimensions in docstrings, which reStructuredText reads as emphasis."""
    lines[:] = [re.sub(r"(?<=[(, ])\*(?=,|spatial)", r"\\*", line) for line in lines]


def trim_code(app: object, doctree: nodes.document) -> None:
    """Remove the blank line at the end of a doctest in Markdown, which separates output and fence."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.astext().rstrip()
            block.children = [nodes.Text(block.rawsource)]


def mark_short_code(app: object, doctree: nodes.document) -> None:
    """Give names and options in the text a class, with which the style sheet keeps them on one line."""
    for literal in doctree.findall(nodes.literal):
        if len(literal.astext()) <= 28:  # no wider than a phone
            literal["classes"].append("short")


def setup(app: Any) -> None:
    """Register the event handlers."""
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("doctree-read", trim_code)
    app.connect("doctree-read", mark_short_code)
