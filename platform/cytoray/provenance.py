"""The revision of the code for lineage tags, a digest of the code itself, and the packages that it runs with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

VARIABLE = "CYTORAY_GIT_REVISION"  # for jobs, whose shipped folder has no .git
# Packages whose version may change the bits of a corpus, of weights, or of what is fitted beside them.
PACKAGES = ("torch", "deepspeed", "ray", "numpy", "scipy", "scikit-learn", "lightgbm", "numba", "pyarrow", "anndata")


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


def processor() -> str:
    """Return the processor's name as reported by the kernel."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, str]:
    """Return what results may depend on besides configuration and data: code, Python, processor kind, packages."""
    from cytoray import __version__

    found = {
        "cytoray": __version__,
        "git_revision": git_revision(),
        "source_digest": source_digest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
