"""A hook of MkDocs: README.md and the other pages outside docs/ belong to the site, and links hold in both places."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CHANGELOG.md", "recipes/README.md", "benchmarks/README.md")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages that stand outside docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """In the site the pages of docs/ stand beside README.md, not below it."""
    if page.file.src_uri in OUTSIDE:
        return markdown.replace("](docs/", "](").replace("](../docs/", "](../")
    return markdown.replace("](../", "](")
