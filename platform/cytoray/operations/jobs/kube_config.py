"""Image, accounts and sizes of the pods of a RayJob: a small strict file, with the defaults of infra/kuberay."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field

from cytoray.config import Config, load_config
from cytoray.errors import JobError
from cytoray.training.config import RunConfig

KUBE_FILE = Path("configs/kuberay.yaml")
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
# What each job needs decides its account: ingest writes corpora, answers read models only, the rest trains.
_ACCOUNTS = {"ingest": "cytoray-ingest", "embed": "cytoray-serve", "answer": "cytoray-serve"}


class PodConfig(Config):
    """The size of a pod of Ray; requests are limits."""

    cpus: int = Field(3, ge=1, description="CPUs.")
    memory: str = Field("12Gi", pattern=QUANTITY, description="Memory.")
    shm: str = Field("3Gi", pattern=QUANTITY, description="Shared memory, for Ray's objects; part of the memory.")
    disk: str = Field("100Gi", pattern=QUANTITY, description="Space for logs and spilled objects.")
    gpus: int = Field(0, ge=0, description="GPUs (nvidia.com/gpu).")
    node_selector: dict[str, str] = Field({"cytoray/pool": "cpu"}, description="Labels of the nodes to run on.")
    tolerations: tuple[dict[str, str], ...] = Field(
        (), description="Taints of the nodes that are accepted, as in a pod: key, operator, value, effect."
    )


class KubeConfig(Config):
    """The cluster of a RayJob, which starts and ends with it."""

    image: str = Field(
        min_length=1, description="Image of all pods, with its tag or digest: registry/cytoray-cpu:0.1.0."
    )
    pull_policy: str = Field(
        "IfNotPresent", pattern="^(Always|IfNotPresent|Never)$", description="When nodes fetch the image."
    )
    service_account: str | None = Field(
        None, description="Account of the pods; default: cytoray-ingest, cytoray-train or cytoray-serve, by the job."
    )
    token_secret: str = Field("ray-token", description="Secret with Ray's token, key auth_token.")
    environment: str = Field("cytoray-environment", description="ConfigMap whose keys are variables of all pods.")
    priority_class: str = Field("cytoray-jobs", description="PriorityClass of the pods.")
    queue: str | None = Field("cytoray", description="LocalQueue of Kueue; null: no queue.")
    head: PodConfig = Field(PodConfig(), description="Holds drivers and Ray itself; tasks run on workers.")
    worker: PodConfig = Field(PodConfig(cpus=6, memory="20Gi", shm="6Gi", disk="150Gi"), description="Where tasks run.")
    workers: int | None = Field(
        None, ge=1, description="Number of workers; default: enough for workers.num_workers or read_concurrency."
    )
    retries: int = Field(6, ge=0, description="Attempts on a new cluster after a failure; stages continue.")
    keep_s: int = Field(600, ge=0, description="Seconds for which pods with their logs are kept after the end.")


def load_kube_config(path: Path | None) -> KubeConfig:
    """Read the file of --kube; JobError if none is named and the default file is missing."""
    if path is None and not KUBE_FILE.is_file():
        raise JobError(
            f"{KUBE_FILE} is missing, and a RayJob needs an image.",
            remedy=f"Write `image: registry/cytoray-cpu:0.1.0` into {KUBE_FILE}, or name another file with --kube.",
        )
    return load_config(KubeConfig, KUBE_FILE if path is None else path)


def account_of(job: str, kube: KubeConfig) -> str:
    """Return the service account of a job's pods."""
    return kube.service_account or _ACCOUNTS.get(job, "cytoray-train")


def count_workers(config: Config, kube: KubeConfig) -> int:
    """Return the number of worker pods for a stage: one per GPU, or enough CPUs for its processes."""
    if kube.workers is not None:
        return kube.workers
    if isinstance(config, RunConfig):
        workers = config.workers
        if workers.use_gpu:
            return math.ceil(workers.most / max(1, kube.worker.gpus))
        cpus = workers.most * max(workers.cpus_per_worker, workers.threads_per_worker)
        return max(1, math.ceil(cpus / kube.worker.cpus))
    read_concurrency: int | None = getattr(config, "read_concurrency", None)
    num_actors: int = getattr(config, "num_actors", 1)
    cpus = read_concurrency or num_actors
    return max(1, math.ceil(cpus / kube.worker.cpus))
