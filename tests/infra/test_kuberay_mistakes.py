"""Single mistakes, planted in rendered overlays: each is reported, by a schema or by the checks between objects."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kube_checks import check
from kube_pods import list_pods
from kube_render import documents
from kube_schema import kuberay_schemas

pytestmark = pytest.mark.infra
REMOVE = object()
HEAD = "headGroupSpec/template/spec"
BOX = f"{HEAD}/containers/0"
USERS = ("labels", "annotations", "matchLabels", "nodeSelector", "selector")
FREE = {*USERS, "data", "limits", "requests", "rayStartParams"}


@dataclass(frozen=True)
class Mistake:
    """A value at a path of one object, and a part of the problem that must be reported."""

    object: str  # KIND/NAME
    path: str  # keys by slashes; ~ stands for a slash within a key
    value: Any
    problem: str
    overlay: str = "eks-gpu"

    def __str__(self) -> str:
        return f"{self.object}:{self.path}"


RUN = "python -m jobs.pretrain --config"
ACCESS = "NetworkPolicy/store-and-registry"
CLUSTER, SERVICE, JOB = "RayCluster/shared", "RayService/cytoray", "RayJob/pretrain"
MISTAKES = [
    # what schemas know
    Mistake(CLUSTER, "spec/rayVersion", 2.6, "spec/rayVersion: 2.6 is not of type 'string'"),
    Mistake(CLUSTER, "spec/authOptions/mode", "tokens", "spec/authOptions/mode: 'tokens' is not one of"),
    Mistake(CLUSTER, "spec/autoscalerOptions/version", "v3", "spec/autoscalerOptions/version: 'v3' is not one of"),
    Mistake(CLUSTER, "apiVersion", "ray.io/v2", "unknown kind 'RayCluster' of apiVersion 'ray.io/v2'"),
    Mistake(CLUSTER, "spec/workerGroupSpecs/1/groupName", REMOVE, "spec/workerGroupSpecs/1: 'groupName' is a required"),
    Mistake(CLUSTER, f"spec/{BOX}/ports/0/containerPort", "gcs", "containerPort: 'gcs' is not of type 'integer'"),
    Mistake(CLUSTER, "spec/workerGroupSpecs/0/maxReplicas", "4", "maxReplicas: '4' is not of type 'integer'"),
    Mistake(SERVICE, "spec/upgradeStrategy/clusterUpgradeOptions/gatewayClassName", REMOVE, "'gatewayClassName' is a"),
    Mistake(JOB, "spec/backoffLimit", "6", "spec/backoffLimit: '6' is not of type 'integer'"),
    Mistake(JOB, "spec/submitterPodTemplate/spec/containers/0/name", REMOVE, "'name' is a required property"),
    Mistake("NetworkPolicy/redis", "apiVersion", "networking.k8s.io/v2", "unknown kind 'NetworkPolicy'"),
    Mistake("Service/redis", "spec/ports/0/port", "6379", "spec/ports/0/port: '6379' is not of type"),
    Mistake("StatefulSet/redis", "spec/template/spec/containers/0/resources/limits/memory", [], "memory: [] is"),
    Mistake("ResourceFlavor/cytoray-spot", "spec/nodeTaints/0/effect", "NoSchedul", "'NoSchedul' is not one of"),
    Mistake("WorkloadPriorityClass/cytoray-train", "value", REMOVE, "'value' is a required property"),
    # names that lead nowhere
    Mistake(CLUSTER, f"spec/{HEAD}/serviceAccountName", "cytoray-trian", "unknown service account cytoray-trian"),
    Mistake(CLUSTER, f"spec/{HEAD}/priorityClassName", "cytoray-job", "unknown priority class cytoray-job"),
    Mistake(CLUSTER, f"spec/{BOX}/envFrom/0/configMapRef/name", "cytoray-env", "unknown ConfigMap cytoray-env"),
    Mistake(CLUSTER, f"spec/{BOX}/env/0/valueFrom/secretKeyRef/name", "mlflow", "unknown Secret mlflow"),
    Mistake(CLUSTER, f"spec/{BOX}/env/0/valueFrom/secretKeyRef/key", "user", "Secret mlflow-user has no key user"),
    Mistake(CLUSTER, "spec/authOptions/secretName", "ray-tokens", "no authentication by the token"),
    Mistake(CLUSTER, f"spec/{BOX}/volumeMounts/1/name", "temp", "unknown volume temp"),
    Mistake(CLUSTER, "metadata/name", "cytoray", "has the same cytoray-head-svc"),
    Mistake(CLUSTER, "spec/gcsFaultToleranceOptions/redisAddress", "reddis:6379", "unknown service reddis"),
    Mistake("LocalQueue/cytoray", "spec/clusterQueue", "cytorays", "unknown ClusterQueue cytorays"),
    Mistake("ClusterQueue/cytoray", "spec/resourceGroups/0/flavors/0/name", "spot", "unknown ResourceFlavor spot"),
    Mistake(JOB, "metadata/labels/kueue.x-k8s.io~queue-name", "gpu", "unknown queue gpu"),
    Mistake(JOB, "metadata/labels/kueue.x-k8s.io~priority-class", "high", "unknown WorkloadPriorityClass high"),
    Mistake("Service/redis", "spec/selector/app.kubernetes.io~name", "reddis", "Service/redis: no pod has the labels"),
    Mistake("Service/redis", "spec/ports/0/targetPort", "resp", "has the port resp"),
    Mistake("Service/redis", "spec/ports/0/targetPort", 6380, "has the port 6380"),
    Mistake("PodDisruptionBudget/serving", "spec/selector/matchLabels/cytoray~role", "replica", "no pod has"),
    Mistake("StatefulSet/redis", "spec/selector/matchLabels/app.kubernetes.io~name", "r", "does not match its pods"),
    # images
    Mistake(CLUSTER, f"spec/{BOX}/image", "example/cytoray-gpu:latest", "neither a digest nor a fixed tag"),
    Mistake(CLUSTER, f"spec/{BOX}/image", "example/cytoray-gpu", "neither a digest nor a fixed tag"),
    Mistake(CLUSTER, f"spec/{BOX}/image", "example/cytoray-gpu@sha256:00", "neither a digest nor a fixed tag"),
    Mistake(CLUSTER, f"spec/{BOX}/image", "example/cytoray-gpu:0.2.0", "its nodes have different images"),
    Mistake(CLUSTER, "spec/rayVersion", "2.59.0", "rayVersion 2.59.0, the image has"),
    # rights
    Mistake(CLUSTER, f"spec/{HEAD}/securityContext/runAsNonRoot", False, "it may run as root"),
    Mistake(CLUSTER, f"spec/{HEAD}/securityContext/seccompProfile", REMOVE, "seccompProfile is not RuntimeDefault"),
    Mistake(CLUSTER, f"spec/{BOX}/securityContext/allowPrivilegeEscalation", True, "may gain rights"),
    Mistake(CLUSTER, f"spec/{BOX}/securityContext/capabilities/drop", ["NET_RAW"], "keeps capabilities"),
    Mistake(CLUSTER, f"spec/{BOX}/securityContext/readOnlyRootFilesystem", REMOVE, "can write to its root"),
    Mistake(CLUSTER, f"spec/{HEAD}/volumes/1", {"name": "tmp", "hostPath": {"path": "/tmp"}}, "kind that is not"),
    Mistake(CLUSTER, f"spec/{HEAD}/hostNetwork", True, "hostNetwork"),
    Mistake(CLUSTER, "spec/workerGroupSpecs/0/template/spec/automountServiceAccountToken", True, "automountService"),
    Mistake("Namespace/cytoray", "metadata/labels/pod-security.kubernetes.io~enforce", "baseline", "restricted"),
    Mistake("ServiceAccount/cytoray-train", "automountServiceAccountToken", REMOVE, "get a token of the API server"),
    Mistake("ServiceAccount/cytoray-serve", "metadata/annotations/eks.amazonaws.com~role-arn",
            "arn:aws:iam::123456789012:role/cytoray-train", "is not the role of this account"),
    # secrets in clear
    Mistake(CLUSTER, f"spec/{BOX}/env/0", {"name": "MLFLOW_TRACKING_PASSWORD", "value": "x"}, "stands in clear"),
    Mistake(CLUSTER, f"spec/{BOX}/env/0", {"name": "RAY_AUTH_TOKEN", "value": "abc"}, "RAY_AUTH_TOKEN stands in clear"),
    Mistake("ConfigMap/cytoray-environment", "kind", "Secret", "a secret in clear text"),
    Mistake(CLUSTER, "spec/gcsFaultToleranceOptions/redisPassword", {"value": "x"}, "not that of a known secret"),
    # networks that are open
    Mistake("NetworkPolicy/redis", "spec/ingress/0/from", REMOVE, "ingress is open to everybody"),
    Mistake("NetworkPolicy/redis", "spec/ingress/0/ports", REMOVE, "on all ports, to other pods"),
    Mistake("NetworkPolicy/redis", "spec/ingress/0/from/0/podSelector", {}, "all pods, or all namespaces"),
    Mistake("NetworkPolicy/redis", "spec/ingress/0/ports/0/port", 6380, "no container has the port 6380"),
    Mistake("NetworkPolicy/service", "spec/ingress/0/from/0", {"namespaceSelector": {}}, "all pods, or all namespaces"),
    Mistake("NetworkPolicy/service", "spec/ingress/0/from/0", {"ipBlock": {"cidr": "0.0.0.0/0"}}, "from addresses"),
    Mistake(ACCESS, "spec/egress/0/ports/0/port", 80, "egress to the world"),
    Mistake(ACCESS, "spec/egress/0/to/0/ipBlock/except", REMOVE, "egress to the world"),
    Mistake("NetworkPolicy/deny-by-default", "spec/policyTypes", ["Ingress"], "nothing is denied by default"),
    Mistake("NetworkPolicy/ray-jobs", "spec/podSelector/matchLabels/cytoray~part", "job", "no pod has the labels"),
    # sizes, nodes, ends
    Mistake(CLUSTER, f"spec/{BOX}/resources/limits/memory", "24Gi", "memory requested and its limit differ"),
    Mistake(CLUSTER, f"spec/{HEAD}/volumes/3/emptyDir/sizeLimit", "64Mi", "/dev/shm has 64Mi of 12Gi"),
    Mistake(CLUSTER, "spec/workerGroupSpecs/1/template/spec/tolerations", REMOVE, "does not tolerate the taint"),
    Mistake(CLUSTER, "spec/workerGroupSpecs/2/template/spec/nodeSelector/cytoray~pool", "cpu", "a GPU on nodes"),
    Mistake(CLUSTER, f"spec/{HEAD}/terminationGracePeriodSeconds", 30, "preStop does not leave the cluster within"),
    Mistake(CLUSTER, f"spec/{BOX}/lifecycle", REMOVE, "preStop does not leave the cluster"),
    Mistake(CLUSTER, "spec/workerGroupSpecs/0/minReplicas", 5, "minReplicas <= replicas <= maxReplicas does not hold"),
    Mistake(JOB, "spec/rayClusterSpec/workerGroupSpecs/0/replicas", 40, "never fit into the quota"),
    Mistake(JOB, "spec/rayClusterSpec/enableInTreeAutoscaling", True, "Kueue does not admit jobs that autoscale"),
    Mistake(JOB, "spec/shutdownAfterJobFinishes", False, "its cluster stays"),
    Mistake(JOB, "spec/runtimeEnvYAML", REMOVE, "it is killed 3 s after it was asked to stop"),
    # commands
    Mistake(JOB, "spec/entrypoint", "python -m jobs.pretrian --config /etc/cytoray/pretrain.yaml", "unknown module"),
    Mistake(JOB, "spec/entrypoint", f"{RUN} /etc/cytoray/pretrian.yaml", "no file /etc/cytoray"),
    Mistake(JOB, "spec/entrypoint", f"{RUN} /opt/cytoray/configs/no.yaml", "no file /opt/cytoray"),
    Mistake(JOB, "spec/entrypoint", f"{RUN} /etc/cytoray/finetune.yaml", "does not run finetune"),
    Mistake(JOB, "spec/entrypoint", "python jobs/pretrain.py", "not `python -m jobs.NAME"),
    Mistake(JOB, "spec/entrypoint", f"{RUN} /etc/cytoray/pretrain.yaml --set train.steps=1", "train.steps"),
    Mistake(JOB, "spec/entrypoint", f"{RUN} /etc/cytoray/pretrain.yaml --set store=$CYTORAY_STOR",
            "unknown variable CYTORAY_STOR"),
    Mistake("ConfigMap/cytoray-environment", "data/CYTORAY_PRECISION", "bf61", "precision"),
    Mistake("ConfigMap/cytoray-jobs", "data/pretrain.yaml", REMOVE, "no file /etc/cytoray/pretrain.yaml"),
    # the service
    Mistake(SERVICE, "spec/upgradeStrategy/type", "Recreate", "users would see a pause"),
    Mistake(SERVICE, "spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent", 60, "stepSizePercent is not"),
    Mistake(SERVICE, "spec/rayClusterConfig/enableInTreeAutoscaling", REMOVE, "needs the autoscaler"),
    Mistake(SERVICE, "spec/rayClusterConfig/gcsFaultToleranceOptions", REMOVE, "takes the service along"),
    Mistake("ConfigMap/cytoray-environment", "data/CYTORAY_STORE", "s3://other", "jobs.folder s3://example-store/jobs"),
    Mistake(SERVICE, "spec/excludeHeadPodFromServeSvc", REMOVE, "requests reach the head"),
    Mistake(SERVICE, f"spec/rayClusterConfig/{BOX}/volumeMounts/4/mountPath", "/etc/keys", "is not mounted in"),
    Mistake(SERVICE, "spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/ports/1/containerPort", 8001,
            "not the port `serve`"),
]  # fmt: skip
SERVE_MISTAKES = [
    ("max_replicas: 4", "max_replica: 4", "max_replica"),
    ("layout: tiered", "layout: tired", "layout"),
    ("num_gpus: 1.0", "num_gpus: one", "num_gpus"),
    ("host: 0.0.0.0", "host: 127.0.0.1", "not reachable from outside"),
    ("port: 8000", "port: 8080", "not the port `serve`"),
    ("cytoray.serving.app:build_app", "cytoray.serving.app:build", "import_path"),
    ("request_timeout_s: 90", "request_timeout_s: 30", "not longer than limits.deadline_s"),
    ("keys_file: /etc/cytoray-keys/keys.json", "body_timeout_s: 30", "edge.keys_file"),
    ("applications:", "application:", "application"),
]


def find(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(each for each in found if f"{each['kind']}/{each['metadata']['name']}" == name)


def problems(found: list[dict[str, Any]], changed: dict[str, Any]) -> list[str]:
    """What is reported; only the object that was changed is held against its schema again."""
    return kuberay_schemas().problems(changed) or check(found)


def change(changed: dict[str, Any], mistake: Mistake) -> None:
    place: Any = changed
    *parents, last = [key.replace("~", "/") for key in mistake.path.split("/")]
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if mistake.value is REMOVE:
        assert last in place, "nothing is there to be removed"
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = mistake.value
    else:
        assert place.get(last) != mistake.value
        place[last] = mistake.value


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_planted_mistake_is_reported(mistake: Mistake):
    found = documents(mistake.overlay)
    changed = find(found, mistake.object)
    change(changed, mistake)
    said = problems(found, changed)
    assert any(mistake.problem in problem for problem in said), said


@pytest.mark.parametrize(("old", "new", "problem"), SERVE_MISTAKES)
def test_a_mistake_in_the_file_of_the_service_is_reported(old: str, new: str, problem: str):
    found = documents("eks-gpu")
    service = find(found, SERVICE)
    text = service["spec"]["serveConfigV2"]
    assert text.count(old) == 1
    service["spec"]["serveConfigV2"] = text.replace(old, new)
    said = problems(found, service)
    assert any(problem in each for each in said), said


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each key that a schema names; not those that users choose."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from keys(each, (*path, number))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield (*path, key)
            if key not in FREE and key != "metadata":
                yield from keys(each, (*path, key))


def misspelt(key: str, random: random.Random) -> str:
    """Swap, double or drop a letter."""
    at = random.randrange(len(key) - 1)
    return random.choice(
        [key[:at] + key[at + 1] + key[at] + key[at + 2 :], key[:at] + key[at] + key[at:], key[:at] + key[at + 1 :]]
    )


@pytest.mark.parametrize("overlay", ["dev", "eks-cpu", "eks-gpu"])
def test_every_kind_of_key_misspelt_at_every_depth_is_unknown(overlay: str):
    """A hundred keys drawn from all objects of an overlay, each misspelt alone; its path is reported."""
    seeded, schemas = random.Random(overlay), kuberay_schemas()
    found = documents(overlay)
    places = [
        (number, path) for number, each in enumerate(found) for path in keys(each) if path[0] not in ("kind", "data")
    ]
    depths = set()
    for number, path in seeded.sample(places, 100):
        document = copy.deepcopy(found[number])
        place = document
        for key in path[:-1]:
            place = place[key]
        wrong = misspelt(path[-1], seeded)
        if wrong == path[-1]:
            continue
        place[wrong] = place.pop(path[-1])
        parent = "/".join(str(key) for key in path[:-1])
        said = schemas.problems(document)
        expected = "apiVersion: unknown kind" if path == ("apiVersion",) else f"{parent}: unknown key {wrong!r}"
        assert any(problem.startswith(expected) for problem in said), (path, said)
        depths.add(len(path))
    assert len(depths) > 8


def test_all_pods_are_looked_at():
    """Two pods for each of 13 jobs with their submitters, the shared cluster's four, the service's two, and Redis."""
    assert sum(len(list(list_pods(each))) for each in documents("eks-gpu")) == 13 * 3 + 4 + 2 + 1
    assert len(MISTAKES) + len(SERVE_MISTAKES) >= 90
