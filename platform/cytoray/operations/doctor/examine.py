"""All checks for a store, an MLflow and a cluster, and whether this machine is fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from cytoray import storage
from cytoray.operations.doctor.collective import check_all_reduce, check_gpus
from cytoray.operations.doctor.findings import Check, Finding
from cytoray.operations.doctor.kube_cluster import check_kubernetes
from cytoray.operations.doctor.machine import check_cpus, check_disks, check_files, check_memory
from cytoray.operations.doctor.mlflow_server import check_mlflow
from cytoray.operations.doctor.ray_cluster import check_auth, check_cluster, check_ports
from cytoray.operations.doctor.running import TIME_LIMIT_S, run_checks
from cytoray.operations.doctor.store import check_store
from cytoray.operations.doctor.versions import check_packages, check_python

_NETWORK = "Check the network, proxies and firewalls between here and there; a server that hangs may need a restart."
_MARGIN_S = 1.0  # for ending processes before the report


@dataclass(frozen=True)
class Subject:
    """Store, MLflow and cluster to examine beside this machine; None is left out."""

    store: str | None = None
    tracking_uri: str | None = None
    cluster: str | None = None  # URL of a dashboard, or kuberay:CONTEXT/NAMESPACE


def find_cluster(cluster: str | None) -> str | None:
    """Return the cluster that --cluster names, or the environment, ``local`` as a URL; None if neither does."""
    if cluster is not None and cluster.startswith("kuberay:"):
        return cluster
    given = cluster if cluster not in (None, "local") else os.environ.get("RAY_API_SERVER_ADDRESS")
    if given is None:
        return "http://127.0.0.1:8265" if cluster == "local" else None
    return (given if "://" in given else f"http://{given}").rstrip("/")


def build_checks(subject: Subject, *, limit_s: float = TIME_LIMIT_S) -> list[Check]:
    """Return the checks of a subject, in the order of the report."""
    store, uri, cluster = subject.store, subject.tracking_uri, subject.cluster
    local = storage.local_path(store) if store is not None and not storage.is_remote(store) else None
    checks = [
        Check("python", check_python),
        Check("packages", check_packages),
        Check("auth", check_auth),
        Check("cpus", check_cpus),
        Check("memory", check_memory),
        Check("disk", lambda: check_disks(local), remedy="Look at the mounts: a network disk does not answer."),
        Check("files", check_files),
        Check("gpu", check_gpus, remedy="nvidia-smi hangs: restart the machine or its driver."),
        Check("all_reduce", lambda: check_all_reduce(limit_s=limit_s - _MARGIN_S), late="warn"),
    ]
    if cluster is None:
        checks.append(Check("ports", check_ports))
    else:
        look = check_kubernetes if cluster.startswith("kuberay:") else check_cluster
        checks.append(Check("cluster.reach", lambda: look(cluster), remedy=_NETWORK))
    if store is not None:
        checks.append(Check("store.reach", lambda: check_store(store), remedy=_NETWORK))
    if uri is not None:
        checks.append(Check("mlflow.reach", lambda: check_mlflow(uri), remedy=_NETWORK))
    return checks


def examine(subject: Subject, *, limit_s: float = TIME_LIMIT_S) -> list[Finding]:
    """Run all checks of a subject; returns within ``limit_s`` seconds whatever hangs."""
    return run_checks(build_checks(subject, limit_s=limit_s), limit_s=limit_s)


def describe(findings: list[Finding]) -> Iterator[str]:
    """Format findings as lines of text."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        yield f"{finding.outcome:<4}  {finding.check:<{width}}  {finding.seen}"
        if finding.remedy:
            yield f"{'':<{width + 8}}-> {finding.remedy}"
    counts = {outcome: sum(finding.outcome == outcome for finding in findings) for outcome in ("ok", "warn", "fail")}
    yield ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
