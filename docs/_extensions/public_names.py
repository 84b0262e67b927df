"""Fail the build if a public name of the package is missing from the API pages.

Names are documented as users import them: ``crossmodal_attn.CMRA``, or ``crossmodal_attn.dropout.Dropout`` if only a
module exports them. Short references in docstrings are resolved to these names.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from docutils.nodes import Element, TextElement, document
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PACKAGE = "crossmodal_attn"

logger = logging.getLogger(__name__)


def public_names() -> Iterator[tuple[str, ...]]:
    """Yield each name of each ``__all__``, as the full names that its entry may have."""
    package = importlib.import_module(PACKAGE)
    yield from ((f"{PACKAGE}.{name}",) for name in package.__all__ if not name.startswith("__"))
    for module in pkgutil.iter_modules(package.__path__, f"{PACKAGE}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            names = getattr(importlib.import_module(module.name), "__all__", ())
            yield from ((f"{PACKAGE}.{name}", f"{module.name}.{name}") for name in names)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about missing names. ``make docs`` turns warnings into errors."""
    documented = env.get_domain("py").data["objects"]
    for names in public_names():
        if not any(name in documented for name in names):
            logger.warning("%s is public, but no page documents it: add it below docs/api", names[-1])


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: TextElement) -> Element | None:
    """Resolve ``CMRA.forward``, written in a docstring of any module, as ``crossmodal_attn.CMRA.forward``."""
    target = f"{PACKAGE}.{node.get('reftarget')}"
    domain = env.get_domain("py")
    if node.get("refdomain") != "py" or target not in domain.data["objects"]:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, text)


def add_short_anchors(app: Sphinx, doctree: document) -> None:
    """Add the anchor ``crossmodal_attn.RelationWindow`` to the entry of ``crossmodal_attn.windows.RelationWindow``.

    The source page of a module links to all its names with the prefix of its first name, here that of
    ``crossmodal_attn.relation_mask``.
    """
    for signature in doctree.findall(desc_signature):
        if str(signature.get("module")).startswith(f"{PACKAGE}."):
            signature["ids"].append(f"{PACKAGE}.{signature['fullname']}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handlers."""
    app.connect("env-check-consistency", check)
    app.connect("doctree-read", add_short_anchors)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
