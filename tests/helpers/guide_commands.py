"""Checks of the commands of docs/cluster.md that need a cluster: the files, labels and names they use exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from kube_pods import SECRETS
from kube_schema import Loader

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra" / "kuberay"


def check_cluster_command(words: list[str]) -> bool:
    """Assert that a command of kubectl, helm, docker or ray is about things that exist; False for others."""
    if "|" in words:
        at = words.index("|")
        return check_cluster_command(words[:at]) and check_cluster_command(words[at + 1 :])
    match words:
        case ["kubectl", "-n", "cytoray", *rest] | ["kubectl", *rest]:
            return _check_kubectl(rest)
        case ["docker", "build", "-f", file, "-t", name, *rest, "."]:
            assert (ROOT / file).is_file()
            assert rest in ([], ["--build-arg", "DEVICE=gpu"])
            assert re.fullmatch(r"cytoray-(cpu|gpu):\d+\.\d+\.\d+", name)
        case ["helm", "install", "kuberay-operator", "kuberay/kuberay-operator", "--version", version, *rest]:
            assert version == "1.7.0"
            assert rest[:2] == ["--namespace", "kuberay-operator"], "the network policies open the dashboard to it"
        case ["ray", "up" | "down" | "dashboard", file]:
            assert (ROOT / file).is_file()
        case ["ray", "get-auth-token", "--generate"]:
            pass
        case _:
            return False
    return True


def _check_kubectl(words: list[str]) -> bool:
    match words:
        case ["kustomize", folder] | ["apply" | "diff", "-k", folder]:
            assert (ROOT / folder / "kustomization.yaml").is_file(), folder
        case ["apply", "-f", file]:
            assert (ROOT / file).is_file()
        case ["apply", "-l", label, "-f", "-"]:
            key, _, value = label.partition("=")
            text = "".join((KUBERAY / "jobs" / name).read_text() for name in ("jobs.yaml", "kustomization.yaml"))
            assert f"{key}: {value}" in text, label
        case ["create", "secret", "generic", name, *rest]:
            keys = {word.split("=")[1] for word in rest if word.startswith("--from-")}
            assert keys == SECRETS[name]
        case ["delete" | "get", "secret", name, *_]:
            assert name in SECRETS
        case ["patch", "rayservice", name, "--type", "json", "-p", patch]:
            [operation] = json.loads(patch)
            assert _has_parent(_find("RayService", name), operation["path"])
        case ["get" | "delete", "rayservice" | "raycluster" | "rayjob" as kind, name, *_]:
            assert _find({"rayservice": "RayService", "raycluster": "RayCluster", "rayjob": "RayJob"}[kind], name)
        case ["logs", "-f", job]:
            assert _find("RayJob", job.removeprefix("job/"))
        case ["port-forward", "service/shared-head-svc", "8265:8265"] | ["get", "rayjobs.ray.io,workloads"]:
            assert _find("RayCluster", "shared"), "KubeRay names the service of a head CLUSTER-head-svc"
        case ["port-forward", "service/cytoray-head-svc" | "service/cytoray-serve-svc", "8265:8265" | "8000:8000"]:
            assert _find("RayService", "cytoray"), "KubeRay names the services SERVICE-head-svc and SERVICE-serve-svc"
        case ["port-forward", "service/mlflow", "5000:5000"] | ["logs", "deployment/mlflow"]:
            assert _mlflow("Service")
            assert _mlflow("Deployment")
        case ["rollout", "restart", "deployment/mlflow"]:
            assert _mlflow("Deployment")
        case ["exec" | "logs", "POD", "-c", "ray-head", *_] | ["describe", "pod", "POD"]:
            assert (
                _find("RayCluster", "shared")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["name"]
                == "ray-head"
            )
        case ["get", "rayservices.ray.io,rayclusters.ray.io,rayjobs.ray.io,pods"] | ["get", "events", *_]:
            pass
        case ["get", "pods", *options]:
            labels = [word for word in options if "=" in word and not word.startswith("status.")]
            assert all(_is_label(*label.split("=")) for label in labels), labels
        case _:
            return False
    return True


def _mlflow(kind: str) -> bool:
    """Whether infra/mlflow has an object of a kind called mlflow."""
    objects = yaml.load_all((ROOT / "infra" / "mlflow" / "server.yaml").read_text(encoding="utf-8"), Loader)
    return any(each["kind"] == kind and each["metadata"]["name"] == "mlflow" for each in objects)


def _is_label(key: str, value: str) -> bool:
    """Whether pods of infra/kuberay/base have a label."""
    texts = [path.read_text(encoding="utf-8") for path in KUBERAY.glob("base/*.yaml")]
    return any(re.search(rf"{re.escape(key)}: {re.escape(value)}\b", text) for text in texts)


def _find(kind: str, name: str) -> dict[str, Any]:
    """Return an object of base or jobs by kind and name."""
    for path in [*KUBERAY.glob("base/*.yaml"), KUBERAY / "jobs" / "jobs.yaml"]:
        for each in yaml.load_all(path.read_text(encoding="utf-8"), Loader):
            if each and each["kind"] == kind and each["metadata"]["name"] == name:
                return dict(each)
    raise AssertionError(f"no {kind} {name} in infra/kuberay")


def _has_parent(value: Any, path: str) -> bool:
    """Whether all but the last key of a JSON pointer exist."""
    for key in path.strip("/").split("/")[:-1]:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return isinstance(value, dict | list)
