"""Write the pages of the reference, for ``make docs``: ``python scripts/website/reference.py FOLDER``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import config_pages
import http_pages
import python_pages

WRITERS = {"configuration": config_pages, "http": http_pages, "python": python_pages}


def main(folder: Path) -> None:
    """Replace the folder with the pages of today's code."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, module in WRITERS.items():
        module.write(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
