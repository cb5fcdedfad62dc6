"""Checks of Python and of the installed packages, against what cytoray requires and against the lock file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import cytoray
from cytoray.operations.doctor.findings import Finding, fail, ok, warn

SHOWN = ("ray", "torch", "deepspeed", "mlflow")
LOCK = "constraints.txt"
MIN_PYTHON = (3, 11)
MAX_LISTED = 6


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Iterator[Finding]:
    """Compare the version of Python."""
    text = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        yield fail("python", f"Python {text}", remedy="Use Python 3.11 or newer; the same on all nodes.")
    else:
        yield ok("python", f"Python {text}")


def check_packages(lock: Path | None = None) -> Iterator[Finding]:
    """Compare the installed packages with the requirements of cytoray, and with the lock file if there is one."""
    found = installed_versions()
    shown = ", ".join(f"{name} {found.get(name, 'missing')}" for name in SHOWN)
    unmet = sorted(_unmet(found))
    if unmet:
        yield fail(
            "packages",
            f"{shown}; not as required: {_listed(unmet)}",
            remedy="pip install --upgrade cytoray, or `make setup`.",
        )
    else:
        yield ok("packages", f"cytoray {cytoray.__version__}, {shown}")
    lock = find_lock() if lock is None else lock
    if lock is None:
        return
    differing = sorted(differing_from(lock, found))
    if differing:
        yield warn(
            "packages.lock",
            f"{len(differing)} packages differ from {lock.name}: {_listed(differing)}",
            remedy=f"pip install --constraint {lock} cytoray; all nodes must have the same versions.",
        )
    else:
        yield ok("packages.lock", f"as in {lock.name}")


def installed_versions() -> dict[str, str]:
    """Return the version of each installed package by its canonical name."""
    return {_canonical(each.name): each.version for each in metadata.distributions() if each.name}


def find_lock() -> Path | None:
    """Return the lock file of the checkout that this code runs from; None for an installed wheel."""
    path = Path(cytoray.__file__).parents[2] / LOCK
    return path if path.is_file() else None


def differing_from(lock: Path, found: Mapping[str, str]) -> Iterator[str]:
    """Describe each installed package whose version is not the locked one; local parts such as +cpu are ignored."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, separator, version = line.partition("==")
        wanted = version.split(";")[0].split("#")[0].strip()
        here = found.get(_canonical(name.strip()))
        if separator and here is not None and here.split("+")[0] != wanted.split("+")[0]:
            yield f"{name.strip()} {here} (locked {wanted})"


def _unmet(found: Mapping[str, str]) -> Iterator[str]:
    """Describe each requirement of cytoray that the installed packages do not meet."""
    try:
        required = metadata.requires("cytoray") or []
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        here = found.get(_canonical(requirement.name))
        if here is None or not requirement.specifier.contains(here, prereleases=True):
            yield f"{requirement.name} {here or 'missing'} (needs {requirement.specifier})"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _listed(entries: list[str]) -> str:
    more = len(entries) - MAX_LISTED
    return ", ".join(entries[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
