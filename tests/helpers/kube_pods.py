"""Problems of pods that no schema shows: names that lead nowhere, rights that are too wide, sizes that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

IMAGE = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*(@sha256:[0-9a-f]{64}|:(?!latest$)[A-Za-z0-9_][\w.-]{0,127})")
SECRET_NAME = re.compile(r"token|password|passwd|secret|api_?key|access_?key|credential", re.IGNORECASE)
UNITS = {"": 1, "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
#: Secrets that docs/cluster.md makes, with their keys; their content is in no file.
SECRETS = {
    "ray-token": {"auth_token"},
    "redis-password": {"password"},
    "mlflow-user": {"username", "password"},
    "api-keys": {"keys.json"},
}
#: Labels that KubeRay adds to the pods of a cluster.
NODE_LABELS = {"ray.io/is-ray-node": "yes"}
SPECS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
TAINTS = {"gpu": "nvidia.com/gpu", "spot": "cytoray/spot"}  # of the node groups of infra/terraform


@dataclass(frozen=True)
class Pod:
    """A pod template: where it stands, its labels and its spec."""

    place: str
    labels: dict[str, str]
    spec: dict[str, Any]
    claims: tuple[str, ...] = ()  # volumes of a StatefulSet
    is_ray: bool = False
    autoscales: bool = False

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All containers."""
        return [*self.spec.get("initContainers", ()), *self.spec.get("containers", ())]

    def port_numbers(self) -> dict[str, int]:
        """Return the ports of its containers by name."""
        return {port["name"]: port["containerPort"] for each in self.containers for port in each.get("ports", ())}


def quantity(text: Any) -> Fraction:
    """Return a quantity of Kubernetes, such as 500m or 2Gi, as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert match is not None, text
    return Fraction(match[1]) * UNITS[match[2]]


def cluster_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the RayCluster spec of a RayCluster, RayJob or RayService; None for other kinds."""
    if document["kind"] not in SPECS:
        return None
    spec = document["spec"]
    for key in SPECS[document["kind"]]:
        spec = spec.get(key, {})
    return spec if isinstance(spec, dict) else {}


def list_pods(document: dict[str, Any]) -> Iterator[Pod]:
    """Yield the pod templates of an object."""
    place = f"{document['kind']}/{document['metadata']['name']}"
    spec = cluster_spec(document)
    if spec is not None:
        groups = [("head", spec.get("headGroupSpec", {}))]
        groups += [(f"group {group.get('groupName')}", group) for group in spec.get("workerGroupSpecs", ())]
        auto = bool(spec.get("enableInTreeAutoscaling"))
        for name, group in groups:
            yield _pod(f"{place} {name}", group.get("template", {}), is_ray=True, autoscales=auto and name == "head")
        if "submitterPodTemplate" in document["spec"]:
            yield _pod(f"{place} submitter", document["spec"]["submitterPodTemplate"])
    elif document["kind"] in ("Deployment", "StatefulSet", "Job"):
        claims = tuple(each["metadata"]["name"] for each in document["spec"].get("volumeClaimTemplates", ()))
        yield _pod(place, document["spec"]["template"], claims=claims)


def _pod(place: str, template: dict[str, Any], **more: Any) -> Pod:
    labels = dict(template.get("metadata", {}).get("labels", {}))
    if more.get("is_ray"):
        labels |= NODE_LABELS
    return Pod(place, labels, template.get("spec", {}), **more)


def pod_problems(pod: Pod, documents: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the problems of a pod, among the objects that are applied with it."""
    yield from (f"{pod.place}: {problem}" for problem in _confinement(pod))
    yield from (f"{pod.place}: {problem}" for problem in _references(pod, documents))
    yield from (f"{pod.place}: {problem}" for problem in _placement(pod))
    for container in pod.containers:
        yield from (f"{pod.place}: {problem}" for problem in _container(container, pod))


def _confinement(pod: Pod) -> Iterator[str]:
    """Yield what the profile `restricted` forbids, and a root that can be written to."""
    outer = pod.spec.get("securityContext", {})
    if outer.get("runAsNonRoot") is not True or outer.get("runAsUser", 0) == 0:
        yield "it may run as root"
    if outer.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile is not RuntimeDefault"
    if pod.spec.get("automountServiceAccountToken") is not pod.autoscales:
        yield f"automountServiceAccountToken is not {pod.autoscales}"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(key):
            yield key
    for container in pod.containers:
        inner = container.get("securityContext", {})
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("privileged"):
            yield f"container {container['name']} may gain rights"
        if inner.get("capabilities", {}).get("drop") != ["ALL"] or inner.get("capabilities", {}).get("add"):
            yield f"container {container['name']} keeps capabilities"
        if inner.get("readOnlyRootFilesystem") is not True:
            yield f"container {container['name']} can write to its root"
        if inner.get("runAsUser") == 0 or inner.get("runAsNonRoot") is False:
            yield f"container {container['name']} runs as root"
    kinds = {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "projected", "downwardAPI"}
    for volume in pod.spec.get("volumes", ()):
        if not kinds & volume.keys():
            yield f"volume {volume['name']} is of a kind that is not allowed"


def _names(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def _references(pod: Pod, documents: list[dict[str, Any]]) -> Iterator[str]:
    """Yield names of other objects, and of volumes, that do not exist."""
    if pod.spec.get("serviceAccountName") not in _names(documents, "ServiceAccount"):
        yield f"unknown service account {pod.spec.get('serviceAccountName')}"
    if (priority := pod.spec.get("priorityClassName")) and priority not in _names(documents, "PriorityClass"):
        yield f"unknown priority class {priority}"
    volumes = {volume["name"] for volume in pod.spec.get("volumes", ())} | set(pod.claims)
    mounted = [mount for container in pod.containers for mount in container.get("volumeMounts", ())]
    for name in sorted({mount["name"] for mount in mounted} - volumes):
        yield f"unknown volume {name}"
    for name in sorted(volumes - {mount["name"] for mount in mounted}):
        yield f"volume {name} is mounted nowhere"
    for kind, name, key in _named(pod):
        known = _known_keys(documents, kind, name)
        if known is None:
            yield f"unknown {kind} {name}"
        elif key is not None and key not in known:
            yield f"{kind} {name} has no key {key}"


def _known_keys(documents: list[dict[str, Any]], kind: str, name: str) -> set[str] | None:
    """Return the keys of a ConfigMap or Secret, an empty set for other kinds; None if it does not exist."""
    if kind == "Secret":
        return SECRETS.get(name)
    found = _names(documents, kind).get(name)
    return None if found is None else set(found.get("data", {}))


def _named(pod: Pod) -> Iterator[tuple[str, str, str | None]]:
    """Yield kind, name and key of each ConfigMap, Secret and claim that a pod refers to."""
    for volume in pod.spec.get("volumes", ()):
        for field, kind, name in (
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
            ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ):
            if field in volume:
                items = volume[field].get("items", [{"key": None}])
                yield from ((kind, volume[field].get(name), item["key"]) for item in items)
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            yield from (
                (kind, source[field]["name"], None)
                for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
                if field in source
            )
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            yield from (
                (kind, source[field]["name"], source[field]["key"])
                for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret"))
                if field in source
            )


def _placement(pod: Pod) -> Iterator[str]:
    """Yield problems of a pod's nodes: a pool whose taint it does not tolerate, a GPU elsewhere than on GPU nodes."""
    pool = pod.spec.get("nodeSelector", {}).get("cytoray/pool")
    unknown = pod.spec.get("nodeSelector", {}).keys() - {"cytoray/pool"}
    if pool not in (None, "cpu", "spot", "gpu") or unknown:
        yield f"no node group has the labels {pod.spec.get('nodeSelector')}"
    tolerated = {each.get("key") for each in pod.spec.get("tolerations", ())}
    if pool in TAINTS and TAINTS[pool] not in tolerated:
        yield f"it does not tolerate the taint {TAINTS[pool]} of its nodes"
    gpus = any("nvidia.com/gpu" in each.get("resources", {}).get("limits", {}) for each in pod.containers)
    if gpus != (pool == "gpu"):
        yield "a GPU on nodes without one, or GPU nodes without using a GPU"
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if pod.is_ray:
        hook = pod.containers[0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        if hook[:2] != ["leave-cluster", "--grace-s"] or not 0 < float(hook[2]) <= grace - 10:
            yield f"preStop does not leave the cluster within terminationGracePeriodSeconds {grace}"


def _container(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    """Yield problems of one container: image, resources, ports, secrets in clear, folders that are written to."""
    name = container["name"]
    if not IMAGE.fullmatch(container.get("image", "")) or container["image"].startswith("cytoray@"):
        yield f"image {container.get('image')} has neither a digest nor a fixed tag"
    requests, limits = (container.get("resources", {}).get(key, {}) for key in ("requests", "limits"))
    if not requests.get("memory") or requests.get("memory") != limits.get("memory"):
        yield f"container {name}: memory requested and its limit differ"
    if "cpu" not in requests:
        yield f"container {name}: no CPU is requested"
    if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
        yield f"container {name}: GPUs requested and their limit differ"
    ports = [port["name"] for port in container.get("ports", ())]
    if len(set(ports)) < len(ports):
        yield f"container {name}: two ports of one name"
    for variable in container.get("env", ()):
        if "value" in variable and SECRET_NAME.search(variable["name"]):
            yield f"container {name}: {variable['name']} stands in clear"
    if pod.is_ray:
        places = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
        for folder in ("/tmp", "/dev/shm", "/home/ray"):
            if folder not in places:
                yield f"container {name}: nothing to write to at {folder}"
        yield from _shared_memory(pod, places.get("/dev/shm"), limits.get("memory"))


def _shared_memory(pod: Pod, volume: str | None, memory: Any) -> Iterator[str]:
    """Yield a problem of the object store's memory, of which Ray takes 30 % of the pod's."""
    empty = next((each.get("emptyDir", {}) for each in pod.spec.get("volumes", ()) if each["name"] == volume), {})
    if empty.get("medium") != "Memory" or not memory:
        yield "/dev/shm is not in memory"
    elif not quantity(memory) / 10 <= quantity(empty.get("sizeLimit", 0)) <= quantity(memory) / 2:
        yield f"/dev/shm has {empty.get('sizeLimit')} of {memory}"
