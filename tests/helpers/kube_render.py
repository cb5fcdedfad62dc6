"""Rendered overlays of infra/kuberay, by `kubectl kustomize`."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kube_schema import read_yaml

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"
OVERLAYS = ("dev", "eks-cpu", "eks-gpu")


def kustomize(folder: Path) -> str:
    """Return what `kubectl kustomize` prints for a folder; skips the test without kubectl, fails if it does."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on the PATH")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "warnings of kustomize"
    return done.stdout


@cache
def render(overlay: str) -> str:
    """Return the objects of an overlay and of its jobs, as YAML."""
    folder = KUBERAY / "overlays" / overlay
    return f"{kustomize(folder)}---\n{kustomize(folder / 'jobs')}"


@cache
def _parsed(overlay: str) -> list[dict[str, Any]]:
    return read_yaml(render(overlay))


def documents(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay and of its jobs; a fresh copy, which may be changed."""
    return copy.deepcopy(_parsed(overlay))
