"""The revision of the code for lineage tags, and a digest of the code itself."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

VARIABLE = "CYTORAY_GIT_REVISION"  # for jobs, whose shipped folder has no .git


@cache
def git_revision() -> str:
    """Return the commit of this code, with ``-dirty`` if files differ from it; ``unknown`` outside a repository."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def source_digest() -> str:
    """Return the SHA-256 of all files of the installed package, which differs for edits that are not committed."""
    root, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(root).as_posix()}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
