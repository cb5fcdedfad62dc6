"""The navigation of the site: sections whose patterns stand for the pages that are named nowhere else."""

from __future__ import annotations

import fnmatch
import re
from typing import Any


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
