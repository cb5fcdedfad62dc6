"""Write local files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` atomically: readers see the old file or the new one, never part of one."""
    with draft_of(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``path`` if the block does not raise, and is removed if it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes ``folder`` if the block does not raise, and is removed if it does.

    ``folder`` must not exist.
    """
    draft = folder.parent / f".{folder.name}.{uuid4().hex}"
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
