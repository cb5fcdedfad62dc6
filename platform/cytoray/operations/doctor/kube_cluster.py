"""Checks of a namespace of Kubernetes: reached, KubeRay installed, jobs may be created."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from cytoray.errors import JobError
from cytoray.operations.doctor.findings import Finding, fail, ok
from cytoray.operations.jobs.kubernetes import parse_option

TIMEOUT_S = 8


def check_kubernetes(option: str) -> Iterator[Finding]:
    """Ask the API server behind ``kuberay:CONTEXT/NAMESPACE`` by kubectl."""
    try:
        context, namespace = parse_option(option)
    except JobError as error:
        yield fail("cluster.reach", error.problem, remedy=error.remedy)
        return
    if shutil.which("kubectl") is None:
        yield fail("cluster.reach", "kubectl is not installed", remedy="Install it, and log in to the cluster.")
        return
    base = ["kubectl", *(["--context", context] if context else []), "--namespace", namespace]
    found = _ask([*base, "get", "--raw", "/version"])
    if found.returncode:
        remedy = "Log in to the cluster, and choose a context that `kubectl config get-contexts` lists."
        yield fail("cluster.reach", f"{option}: {_last_line(found.stderr)}", remedy=remedy)
        return
    yield ok("cluster.reach", f"{option} answers")
    found = _ask([*base, "auth", "can-i", "create", "rayjobs.ray.io"])
    if "doesn't have a resource type" in found.stderr:
        yield fail("cluster.kuberay", f"{option} has no RayJob", remedy="Install KubeRay and its CRDs on this cluster.")
    elif found.stdout.strip() != "yes":
        remedy = f"Ask for the right to create rayjobs.ray.io and configmaps in namespace {namespace}."
        yield fail("cluster.kuberay", f"{option}: you may not create a RayJob", remedy=remedy)
    else:
        yield ok("cluster.kuberay", f"RayJobs may be created in namespace {namespace}")


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run kubectl; a time-out is an answer too."""
    words = [*command, f"--request-timeout={TIMEOUT_S}s"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S + 1, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer within {TIMEOUT_S} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:300]
