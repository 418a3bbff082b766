"""Pages of the site that are files beside docs/: the README as its first page, and the changelog."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINKS = {
    r"\]\(docs/": "](",
    r"\]\(CHANGELOG.md\)": "](changelog.md)",
    r"\[([^]]*)\]\((LICENSE|examples/)[^)]*\)": r"\1",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the two pages, with their links as they are in docs/."""
    for page, source in (("index.md", "README.md"), ("changelog.md", "CHANGELOG.md")):
        text = (ROOT / source).read_text(encoding="utf-8")
        for old, new in LINKS.items():
            text = re.sub(old, new, text)
        files.append(File.generated(config, page, content=text))
    return files
