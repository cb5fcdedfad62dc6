"""Hooks of MkDocs: add the generated pages to those of docs/, and expand the patterns of the navigation."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

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


def expand(nav: list[Any], pages: list[str]) -> list[Any]:
    """Return the navigation with each pattern replaced by the pages that match it and are not named elsewhere.

    Earlier patterns come first; sections that end up empty are left out.
    """
    left = sorted(set(pages) - set(_named(nav)), key=_by_number)
    return _expand(nav, left)


def _named(nav: Any) -> list[str]:
    """Return every entry that is a page, not a pattern."""
    if isinstance(nav, str):
        return [] if "*" in nav else [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [name for entry in entries for name in _named(entry)]


def _expand(nav: list[Any], left: list[str]) -> list[Any]:
    """Expand one level; pages that a pattern takes are removed from ``left``."""
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            sections = {title: _expand(each, left) for title, each in entry.items()}
            found += [{title: each} for title, each in sections.items() if each]
        elif "*" in entry:
            taken = [page for page in left if fnmatch.fnmatchcase(page, entry)]
            left[:] = [page for page in left if page not in taken]
            found += taken
        else:
            found.append(entry)
    return found


def _by_number(page: str) -> list[Any]:
    """Sort key that puts page-2 before page-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", page)]
