"""The overlays of infra/kuberay: valid for KubeRay, Kueue and Kubernetes, consistent and closed.

No operator and no cloud was at hand: what was never run is listed in docs/cluster.md.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_checks import check, cluster_spec, entrypoint_problems, of_kind
from kube_network import Peer, allows
from kube_pods import SECRETS
from kube_render import KUBERAY, OVERLAYS, documents, kustomize
from kube_schema import kuberay_schemas, read_yaml

from cytoray.config import load_config
from cytoray.serving.deploy_file import DeployFile

pytestmark = pytest.mark.infra
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str):
    schemas = kuberay_schemas()
    for document in documents(overlay):
        place = f"{document['kind']}/{document['metadata']['name']}"
        assert schemas.problems(document) == [], place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_fit_together(overlay: str):
    assert check(documents(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_file_of_jobs_has_a_rayjob(overlay: str):
    modules = {
        re.search(r"jobs\.(\w+)", job["spec"]["entrypoint"])[1]
        for job in of_kind(documents(overlay), "RayJob").values()
    }
    assert modules == {path.stem for path in (ROOT / "jobs").glob("*.py")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_configuration_in_the_image_is_accepted_too(overlay: str):
    found = documents(overlay)
    head = of_kind(found, "RayJob")["pretrain"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    command = "python -m jobs.pretrain --config /opt/cytoray/configs/pretrain/human.yaml --set store=$CYTORAY_STORE"
    assert list(entrypoint_problems(command, head, found)) == []


def named(labels: dict[str, str]) -> Peer:
    return Peer(labels={"app.kubernetes.io/name": "cytoray", **labels})


def elsewhere(namespace: str, labels: dict[str, str] | None = None, **more: str) -> Peer:
    return Peer(labels=labels or {}, namespace={"kubernetes.io/metadata.name": namespace, **more})


def node(part: str, role: str) -> Peer:
    return named({"cytoray/part": part, "cytoray/role": role})


PEERS = {
    "job head": node("jobs", "head"),
    "job worker": node("jobs", "worker"),
    "shared head": node("cluster", "head"),
    "shared worker": node("cluster", "worker"),
    "service head": node("serving", "head"),
    "replica": node("serving", "worker"),
    "submitter": Peer(labels={"app.kubernetes.io/name": "cytoray-submitter", "cytoray/role": "submitter"}),
    "redis": Peer(labels={"app.kubernetes.io/name": "redis"}),
    "mlflow": Peer(labels={"app.kubernetes.io/name": "mlflow"}),
    "stranger here": Peer(labels={"app": "other"}),
    "operator": elsewhere("kuberay-operator", {"app.kubernetes.io/name": "kuberay-operator"}),
    "prometheus": elsewhere("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "gateway": elsewhere("gateways", **{"cytoray/gateway": "true"}),
    "stranger": elsewhere("default"),
    "S3": Peer(address="52.95.110.1"),
    "metadata": Peer(address="169.254.169.254"),
}
PORTS = (22, 443, 5000, 6379, 8000, 8080, 8265, 10001, 33333)
#: Who may open connections to whom, on which of PORTS; nothing else may.
RAY = {*PORTS}
OPEN = {
    **{(f"{part} head", f"{part} {other}"): RAY for part in ("job", "shared") for other in ("head", "worker")},
    **{(f"{part} worker", f"{part} {other}"): RAY for part in ("job", "shared") for other in ("head", "worker")},
    **{(one, other): RAY for one in ("service head", "replica") for other in ("service head", "replica")},
    **{(head, "redis"): {6379} for head in ("job head", "shared head", "service head")},
    **{("operator", head): {8265} for head in ("job head", "shared head", "service head")},
    ("submitter", "job head"): {8265},
    **{("prometheus", name): {8000, 8080} for name in PEERS if name.split()[-1] in ("head", "worker", "replica")},
    ("gateway", "replica"): {8000},
    **{(name, "S3"): {443} for name in PEERS if name.split()[-1] in ("head", "worker", "replica")},
}  # fmt: skip
OUTSIDE = {"operator", "prometheus", "gateway", "stranger", "S3", "metadata"}


def test_exactly_the_listed_connections_are_open():
    policies = list(of_kind(documents("eks-cpu"), "NetworkPolicy").values())
    for source, one in PEERS.items():
        for target, other in PEERS.items():
            if source == target and source in ("redis", "submitter", "mlflow", "stranger here"):
                continue
            if source in OUTSIDE and target in OUTSIDE:
                continue
            found = {port for port in PORTS if allows(policies, one, other, port)}
            assert found == OPEN.get((source, target), set()), (source, target)


def test_names_can_be_looked_up():
    policies = list(of_kind(documents("eks-cpu"), "NetworkPolicy").values())
    dns = elsewhere("kube-system", {"k8s-app": "kube-dns"})
    assert allows(policies, PEERS["replica"], dns, 53, "UDP")
    assert not allows(policies, PEERS["replica"], elsewhere("kube-system"), 53, "UDP")


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            key: leaf for name, each in value.items() for key, leaf in leaves(each, f"{path}.{name}".strip(".")).items()
        }
    return {path: value}


#: The only keys in which the service on Kubernetes may differ from the file of serve/ that its first line names.
EVERYWHERE = {"http_options.host", "edge.keys_file", "tracking.uri", "cache_folder", "jobs.folder"}
DIFFERENCES = {
    "dev": EVERYWHERE | {"proxy_location", "explorer.folder", "max_replicas"},
    "eks-cpu": EVERYWHERE | {"explorer.enabled", "models"},
    "eks-gpu": EVERYWHERE | {"explorer.enabled", "models", "batching.parallel_batches"},
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_is_that_of_serve(overlay: str):
    path = KUBERAY / "overlays" / overlay / "serve.yaml"
    assert of_kind(documents(overlay), "RayService")["cytoray"]["spec"]["serveConfigV2"] == path.read_text()
    origin = re.match(r"# .*?: (serve/\w+\.yaml)", path.read_text())[1]
    ours, theirs = (leaves(load_config(DeployFile, each).model_dump(mode="json")) for each in (path, ROOT / origin))
    ours, theirs = (_flat_application(each) for each in (ours, theirs))
    assert {key for key in ours if ours[key] != theirs[key]} == DIFFERENCES[overlay]


def _flat_application(values: dict[str, Any]) -> dict[str, Any]:
    [application] = values.pop("applications")
    return values | leaves(application["args"])


def test_the_head_of_a_gpu_cluster_asks_for_no_gpu():
    for document in documents("eks-gpu"):
        spec = cluster_spec(document)
        if spec is not None:
            limits = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert "nvidia.com/gpu" not in limits


def test_a_managed_redis_replaces_ours(tmp_path: Path):
    """An overlay of three lines, beside a copy of infra/kuberay."""
    for folder in (KUBERAY, KUBERAY.parent / "aws"):
        shutil.copytree(folder, tmp_path / folder.name)
    folder = tmp_path / "kuberay" / "overlays" / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        "resources: [../eks-cpu]\ncomponents: [../../components/external-redis]\n", encoding="utf-8"
    )
    found = read_yaml(kustomize(folder))
    assert "redis" not in of_kind(found, "StatefulSet") | of_kind(found, "Service")
    assert [problem for each in found for problem in kuberay_schemas().problems(each)] == []
    found += read_yaml(kustomize(KUBERAY / "overlays" / "eks-cpu" / "jobs"))
    assert check(found) == []
    policies = list(of_kind(found, "NetworkPolicy").values())
    assert allows(policies, PEERS["service head"], Peer(address="10.40.3.4"), 6379)
    assert not allows(policies, PEERS["replica"], Peer(address="10.40.3.4"), 6379)


def test_a_file_that_no_kustomization_names_does_not_exist():
    """Every YAML file of infra/kuberay is reached from an overlay or is a kustomization itself."""
    named = {"kustomization.yaml"}
    for path in KUBERAY.rglob("kustomization.yaml"):
        named |= set(re.findall(r"([\w-]+\.yaml)", path.read_text(encoding="utf-8")))
    assert {path.name for path in KUBERAY.rglob("*.yaml")} <= named


def test_the_secrets_are_those_that_the_guide_makes():
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").replace("\\\n", "")
    made = {
        name: set(re.findall(r"--from-(?:literal|file)=([\w.]+)", rest))
        for name, rest in re.findall(r"create secret generic ([\w-]+) (.*)", guide)
    }
    assert made == SECRETS


def test_keys_are_commented():
    """Every configuration of a job comments each key that is not a heading."""
    for path in [*KUBERAY.glob("jobs/config/*.yaml")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ")
        for line in lines[1:]:
            bare = re.fullmatch(r"\s*(kind: .*|[\w-]+:|- \w+:)\s*", line) is not None
            assert bare or "#" in line, (path.name, line)
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["kind"]
