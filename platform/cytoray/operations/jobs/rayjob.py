"""The Kubernetes objects of a job: a RayJob with a cluster of its own, and a ConfigMap with its configuration.

They are those of infra/kuberay/jobs: restricted pods, token authentication, a queue, a checkpoint before a pod leaves.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from cytoray import provenance
from cytoray.operations.jobs.kube_config import KubeConfig, PodConfig, account_of, count_workers
from cytoray.operations.jobs.names import attempt_id
from cytoray.operations.jobs.request import JobRequest

NAME_LABEL, ATTEMPT_LABEL, JOB_LABEL = "cytoray/name", "cytoray/attempt", "cytoray/job"
STAGE, CONFIG, SETTINGS, ENVIRONMENT = "cytoray/stage", "cytoray/config", "cytoray/settings", "cytoray/environment"
PROGRAM = "cytoray/program"
MOUNT = "/etc/cytoray"
CONFIG_KEY = "job.yaml"
GRACE_S = 120  # as long as the notice of a spot node
STOP_WAIT_S = 110  # of Ray, for a checkpoint; less than the pod's grace
_SHORT = frozenset({"ingest", "evaluate", "promote", "embed", "answer"})  # minutes each
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def build_objects(request: JobRequest, kube: KubeConfig, *, attempt: int = 1, namespace: str = "cytoray") -> list[Any]:
    """Return the ConfigMap and the RayJob of an attempt."""
    id_ = attempt_id(request.name, attempt)
    labels = {
        "app.kubernetes.io/name": "cytoray",
        NAME_LABEL: request.name,
        ATTEMPT_LABEL: str(attempt),
        JOB_LABEL: request.job.replace("_", "-"),
    }
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": id_, "namespace": namespace, "labels": labels},
        "data": {CONFIG_KEY: request.text},
    }
    queue = {}
    if kube.queue is not None:
        priority = "cytoray-short" if request.job in _SHORT else "cytoray-train"
        queue = {"kueue.x-k8s.io/queue-name": kube.queue, "kueue.x-k8s.io/priority-class": priority}
    annotations = {
        STAGE: request.stage,
        CONFIG: request.text,
        SETTINGS: json.dumps(request.settings),
        ENVIRONMENT: json.dumps(request.environment),
        PROGRAM: request.program,
    }
    rayjob = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": id_, "namespace": namespace, "labels": labels | queue, "annotations": annotations},
        "spec": _job_spec(request, kube, config_map=id_),
    }
    return [config_map, rayjob]


def _job_spec(request: JobRequest, kube: KubeConfig, *, config_map: str) -> dict[str, Any]:
    """Return the spec of a RayJob."""
    variables = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        provenance.VARIABLE: provenance.git_revision(),
        **request.environment,
    }
    return {
        "entrypoint": f"python -m {request.program or f'jobs.{request.job}'} --config {MOUNT}/{CONFIG_KEY}",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kube.keep_s,
        "backoffLimit": kube.retries,
        "submitterConfig": {"backoffLimit": 3},
        "submitterPodTemplate": _submitter(kube),
        "runtimeEnvYAML": json.dumps({"env_vars": variables}),  # JSON is YAML
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token", "secretName": kube.token_secret},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                "template": _pod(request, kube, "head", config_map=config_map),
            },
            "workerGroupSpecs": [_workers(request, kube, config_map=config_map)],
        },
    }


def _workers(request: JobRequest, kube: KubeConfig, *, config_map: str) -> dict[str, Any]:
    """Return the group of workers."""
    number = count_workers(request.config, kube)
    return {
        "groupName": "workers",
        "replicas": number,
        "minReplicas": number,
        "maxReplicas": number,
        "rayStartParams": {},
        "template": _pod(request, kube, "worker", config_map=config_map),
    }


def _pod(request: JobRequest, kube: KubeConfig, role: str, *, config_map: str) -> dict[str, Any]:
    """Return the template of a pod of Ray."""
    size = kube.head if role == "head" else kube.worker
    labels = {"app.kubernetes.io/name": "cytoray", "cytoray/part": "jobs", "cytoray/role": role}
    volumes = [
        {"name": "data", "emptyDir": {"sizeLimit": size.disk}},
        {"name": "tmp", "emptyDir": {"sizeLimit": size.disk}},
        {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size.shm}},
        {"name": "config", "configMap": {"name": config_map}},
    ]
    spec: dict[str, Any] = {
        "serviceAccountName": account_of(request.job, kube),
        "automountServiceAccountToken": False,
        "priorityClassName": kube.priority_class,
        "nodeSelector": dict(size.node_selector),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": _POD_SECURITY,
        "containers": [_container(kube, role, size)],
        "volumes": volumes,
    }
    if size.tolerations:
        spec["tolerations"] = [dict(each) for each in size.tolerations]
    return {"metadata": {"labels": labels}, "spec": spec}


def _container(kube: KubeConfig, role: str, size: PodConfig) -> dict[str, Any]:
    """Return the container of Ray."""
    resources = {"cpu": str(size.cpus), "memory": size.memory}
    if size.gpus:
        resources["nvidia.com/gpu"] = str(size.gpus)
    ports = [{"name": "metrics", "containerPort": 8080}]
    if role == "head":
        ports = [{"name": "gcs", "containerPort": 6379}, {"name": "dashboard", "containerPort": 8265}, *ports]
    mounts: list[dict[str, Any]] = [
        {"name": "data", "mountPath": "/data"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "home", "mountPath": "/home/ray"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "config", "mountPath": MOUNT, "readOnly": True},
    ]
    return {
        "name": f"ray-{role}",
        "image": kube.image,
        "imagePullPolicy": kube.pull_policy,
        "envFrom": [{"configMapRef": {"name": kube.environment}}],
        "env": [_secret("MLFLOW_TRACKING_USERNAME", "username"), _secret("MLFLOW_TRACKING_PASSWORD", "password")],
        "ports": ports,
        "lifecycle": {"preStop": {"exec": {"command": ["leave-cluster", "--grace-s", "100"]}}},
        "securityContext": _RESTRICTED,
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
    }


def _secret(variable: str, key: str) -> dict[str, Any]:
    """Return a variable that comes from the Secret with the user of MLflow."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": "mlflow-user", "key": key, "optional": True}}}


def _submitter(kube: KubeConfig) -> dict[str, Any]:
    """Return the template of the pod that submits the entrypoint to the head and prints its logs."""
    resources = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": kube.image,
        "imagePullPolicy": kube.pull_policy,
        "envFrom": [{"configMapRef": {"name": kube.environment}}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _RESTRICTED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": "/home/ray"}],
    }
    spec = {
        "serviceAccountName": "cytoray-submit",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "securityContext": {key: value for key, value in _POD_SECURITY.items() if key != "fsGroup"},
        "containers": [container],
        "volumes": [{"name": name, "emptyDir": {"sizeLimit": "1Gi"}} for name in ("tmp", "home")],
    }
    labels = {"app.kubernetes.io/name": "cytoray-submitter", "cytoray/role": "submitter"}
    return {"metadata": {"labels": labels}, "spec": spec}
