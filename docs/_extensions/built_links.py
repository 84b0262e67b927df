"""Fail the build if a page has a broken link, or loads a file from the network."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

LOADING = {"script": "src", "img": "src", "source": "src", "link": "href"}
"""The attributes of files that a browser loads with the page. They must not need the network."""
METADATA = {"canonical", "next", "prev", "index", "search", "author", "copyright"}


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the anchors, links and loaded files of a tag."""
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        loaded = given.get(LOADING.get(tag, ""), "")
        if loaded and given.get("rel") not in METADATA:
            self.loads.append(loaded)


def check(app: Sphinx, exception: Exception | None) -> None:
    """Check every built page."""
    if exception is not None or app.builder.name != "html":
        return
    root = Path(app.outdir).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    for path, page in pages.items():
        place = path.relative_to(root)
        for address in page.loads:
            if urlsplit(address).netloc:
                logger.warning("%s loads %s, which needs the network", place, address)
        for address in (*page.links, *page.loads):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                logger.warning("%s links to %s, which does not exist", place, address)
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                logger.warning("%s links to %s, but that page has no such anchor", place, address)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
