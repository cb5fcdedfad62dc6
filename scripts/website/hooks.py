"""Hooks of MkDocs: add the generated pages to those of docs/, and expand the patterns of the navigation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File
from navigation import expand

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
GENERATED = Path(os.environ.get("CYTORAY_REFERENCE", ROOT / "build" / "reference"))  # written by reference.py


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that ``reference.py`` wrote, the changelog and the style sheet; expand the navigation."""
    for path in sorted(GENERATED.rglob("*.md")):
        name = f"reference/{path.relative_to(GENERATED).as_posix()}"
        files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=changelog))
    style = Path(__file__).with_name("site.css").read_text(encoding="utf-8")
    files.append(File.generated(config, "assets/site.css", content=style))
    pages = [file.src_uri for file in files.documentation_pages()]
    config.nav = expand(config.nav or [], pages)
    return files
