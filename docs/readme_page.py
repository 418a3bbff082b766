"""Pages of the site that are files beside docs/: the README as its first page, and the changelog."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINKS = {"](docs/": "](", "](CHANGELOG.md)": "](changelog.md)", "[Apache-2.0](LICENSE)": "Apache-2.0"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the two pages, with their links as they are in docs/."""
    for page, source in (("index.md", "README.md"), ("changelog.md", "CHANGELOG.md")):
        text = (ROOT / source).read_text(encoding="utf-8")
        for old, new in LINKS.items():
            text = text.replace(old, new)
        files.append(File.generated(config, page, content=text))
    return files
