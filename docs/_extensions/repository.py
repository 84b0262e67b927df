"""Link to the repository, if ``REPOSITORY_URL`` gives its address, as for the metadata of a release.

The site then links to the repository and to its issue tracker. The notebooks of the guides install the library from the
repository. If the repository is on GitHub, Colab can open each guide that runs as a notebook, from the branch
``notebooks``, which the workflow of the site writes.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

REPOSITORY = os.environ.get("REPOSITORY_URL", "").rstrip("/")
MARKER = "repository-links\n"
NOT_A_NOTEBOOK = "guides/distributed"
"""The guide that starts itself in several processes, and so must be a file."""
GITHUB = "https://github.com/"
COLAB = "https://colab.research.google.com/github/"
TITLE = re.compile(r"(\.\. rst-class:: sphx-glr-example-title\n.*?\n=+\n)", re.DOTALL)
NEEDED = '[backbones,examples,onnx,video]" peft torchao'


def first_cell(version: str, repository: str = REPOSITORY) -> str:
    """Return the first cell of the notebooks, which installs what the guides need.

    Args:
        version: of the library; a notebook of a release installs that release.
        repository: its address; without one, nothing can be installed, and the cell says what to do.
    """
    if not repository:
        return (
            "# The guides need this library and its examples, from a clone of the repository.\n"
            "try:\n"
            "    import ave\n"
            "except ImportError:\n"
            f"    raise SystemExit('In the clone, run: pip install -e \".{NEEDED}. Then restart the kernel.')"
        )
    branch = "" if "dev" in version else f"--branch v{version} "
    return (
        "# Install this library and what the guides need, in Colab or where you downloaded this.\n"
        "import importlib.util\n"
        "import pathlib\n"
        "import sys\n"
        "\n"
        'if importlib.util.find_spec("ave") is None:\n'
        '    if not pathlib.Path("crossmodal-attn").exists():\n'
        f"        !git clone --quiet --depth 1 {branch}{repository} crossmodal-attn\n"
        f'    %pip install --quiet "./crossmodal-attn{NEEDED}\n'
        '    sys.path[:0] = ["crossmodal-attn/examples", "crossmodal-attn"]'
    )


def link(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add the links to the home page, and a badge to the guides that Colab can open."""
    if docname == app.config.root_doc:
        links = f"Repository <{REPOSITORY}>\nReport a problem <{REPOSITORY}/issues>\n" if REPOSITORY else ""
        source[0] = source[0].replace(MARKER, links)
    elif docname.startswith("guides/") and docname not in ("guides/index", NOT_A_NOTEBOOK):
        source[0] = add_badge(source[0], docname.partition("/")[2])


def add_badge(page: str, guide: str, repository: str = REPOSITORY) -> str:
    """Add to a guide in reStructuredText, below its title, a badge that opens its notebook in Colab."""
    if not repository.startswith(GITHUB):
        return page
    address = f"{COLAB}{repository.removeprefix(GITHUB)}/blob/notebooks/{guide}.ipynb"
    badge = f"\n.. image:: ../images/colab.svg\n   :target: {address}\n   :alt: Open in Colab\n"
    return TITLE.sub(lambda title: f"{title[0]}{badge}", page, count=1)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler."""
    app.add_config_value("repository_url", REPOSITORY, "env")  # a change rebuilds all pages
    app.connect("source-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
