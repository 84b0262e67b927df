"""What the metadata says of the repository. A build learns its address from the variable REPOSITORY_URL, if it is set.

A release then names its repository, and the README's links and pictures, which are relative in the repository, lead
there from PyPI too: to the files of the release's tag.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://doi.org/10.1145/3394171.3413581"


class RepositoryMetadata(MetadataHookInterface):
    """Fills in ``project.readme`` and ``project.urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Write both fields into the ``project`` table."""
        readme, urls = Path(self.root, "README.md").read_text(encoding="utf-8"), {"Paper": PAPER}
        if repository := os.environ.get("REPOSITORY_URL", "").rstrip("/"):
            tag = f"v{metadata['version']}"
            readme = link_absolutely(readme, Path(self.root), repository, tag)
            urls |= {
                "Source": repository,
                "Issues": f"{repository}/issues",
                "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        metadata["urls"] = urls


def link_absolutely(readme: str, root: Path, repository: str, tag: str) -> str:
    """Make every Markdown link to a file below ``root`` one to that file in the repository at ``tag``."""

    def absolute(link: re.Match[str]) -> str:
        path, anchor = link.groups()
        if not (root / path).exists():
            return link[0]
        view = "raw" if path.endswith((".png", ".svg")) else "blob"
        return f"]({repository}/{view}/{tag}/{path}{anchor})"

    return re.sub(r"\]\(([^()\s#]+)(#[^()\s]*|)\)", absolute, readme)
