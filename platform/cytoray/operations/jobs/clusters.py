"""What --cluster names: a Ray dashboard, a Ray Client server, or a namespace of Kubernetes."""

from __future__ import annotations

import re
from pathlib import Path

from cytoray.errors import JobError
from cytoray.operations.jobs.records import Cluster

LOCAL = "local"


def open_cluster(option: str = LOCAL, *, runtime_env: Path | None = None, kube: Path | None = None) -> Cluster:
    """Connect to a cluster: ``local``, ``http(s)://HOST:PORT``, ``ray://HOST:PORT`` or ``kuberay:CONTEXT/NAMESPACE``.

    ``runtime_env`` is the file of what ships with a job to Ray, ``kube`` that of the pods of a RayJob. Raises JobError
    if the cluster cannot be used.
    """
    if option.startswith("kuberay:"):
        from cytoray.operations.jobs.kubernetes import open_kubernetes

        return open_kubernetes(option, kube=kube)
    from cytoray.operations.jobs.ray_jobs import find_dashboard, open_ray

    if option == LOCAL:
        return open_ray(option, None, runtime_env=runtime_env)
    if re.match(r"https?://", option):
        return open_ray(option, option, runtime_env=runtime_env)
    if option.startswith("ray://"):
        return open_ray(option, find_dashboard(option), runtime_env=runtime_env)
    raise JobError(
        f"--cluster {option}: not a cluster.",
        remedy="Write local, http://HOST:8265, ray://HOST:10001 or kuberay:CONTEXT/NAMESPACE.",
    )
