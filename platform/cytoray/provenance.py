"""The git revision of the code, for lineage tags."""

from __future__ import annotations

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
