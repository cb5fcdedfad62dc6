"""infra/mlflow: rendered, valid by Kubernetes' own schemas, confined, and reached by pods of cytoray only."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from kube_network import Peer, allows
from kube_render import kustomize
from kube_schema import core_validator

from .conftest import INFRA

pytestmark = pytest.mark.infra
MLFLOW = Peer({"app.kubernetes.io/name": "mlflow"})
KUBERAY = INFRA / "kuberay" / "base" / "network.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of infra/mlflow by kind; there is one of each."""
    documents = list(yaml.safe_load_all(kustomize(INFRA / "mlflow")))
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def test_objects_are_valid(objects: dict[str, Any]) -> None:
    core = {kind: entry for kind, entry in objects.items() if kind != "SecretProviderClass"}  # the CSI driver's
    assert core.keys() == {"ServiceAccount", "Service", "Deployment", "NetworkPolicy", "ConfigMap"}
    for kind, entry in core.items():
        validator = core_validator(entry["apiVersion"], kind)
        assert validator is not None, kind
        assert [error.message for error in validator.iter_errors(entry)] == []


def test_a_misspelt_key_is_found(objects: dict[str, Any]) -> None:
    text = yaml.safe_dump(objects["Deployment"])
    validator = core_validator("apps/v1", "Deployment")
    assert validator is not None
    for before, after in (("readOnlyRootFilesystem", "readonlyRootFilesystem"), ("containerPort", "containersPort")):
        assert text.count(before) == 1
        assert list(validator.iter_errors(yaml.safe_load(text.replace(before, after))))


def test_the_pod_is_confined(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    context = container["securityContext"]
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "hostPath" not in str(pod)
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"] == "mlflow"
    hosts = set(objects["ConfigMap"]["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
    probes = {container[name]["httpGet"]["httpHeaders"][0]["value"] for name in ("readinessProbe", "livenessProbe")}
    assert {"mlflow:5000", "mlflow.cytoray.svc:5000"} | probes <= hosts
    assert "*" not in "".join(hosts)


def test_only_cytoray_reaches_it_and_it_only_what_it_needs(objects: dict[str, Any]) -> None:
    own = [objects["NetworkPolicy"]]
    policies = [*own, *yaml.safe_load_all(KUBERAY.read_text())]
    ours = Peer({"app.kubernetes.io/name": "cytoray", "cytoray/part": "jobs", "cytoray/role": "worker"})
    assert allows(policies, ours, MLFLOW, 5000)
    assert not allows(policies, ours, MLFLOW, 22)
    assert not allows(policies, Peer({"app.kubernetes.io/name": "other"}), MLFLOW, 5000)
    assert not allows(policies, Peer({}, {"kubernetes.io/metadata.name": "elsewhere"}), MLFLOW, 5000)
    assert allows(policies, MLFLOW, Peer(address="10.40.3.7"), 5432)  # PostgreSQL, within the VPC
    assert not allows(policies, MLFLOW, Peer(address="203.0.113.7"), 5432)
    assert allows(policies, MLFLOW, Peer(address="203.0.113.7"), 443)  # S3
    assert not allows(policies, MLFLOW, Peer(address="169.254.169.254"), 443)  # the role of the node
    assert not allows(policies, MLFLOW, ours, 6379)


def test_it_gets_the_secrets_that_its_script_reads(objects: dict[str, Any]) -> None:
    entries = yaml.safe_load(objects["SecretProviderClass"]["spec"]["parameters"]["objects"])
    files = {entry["objectAlias"] for entry in entries if "jmesPath" not in entry}
    files |= {path["objectAlias"] for entry in entries for path in entry.get("jmesPath", ())}
    assert files == set(re.findall(r'\$SECRETS/([\w-]+)"', (INFRA / "mlflow" / "start_mlflow.sh").read_text()))


def test_names_are_those_of_terraform(objects: dict[str, Any]) -> None:
    access = (INFRA / "terraform" / "access.tf").read_text()
    assert '"mlflow" ? "mlflow" : "cytoray-${role}"' in access
    network = (INFRA / "terraform" / "variables.tf").read_text()
    cidr = objects["NetworkPolicy"]["spec"]["egress"][1]["to"][0]["ipBlock"]["cidr"]
    assert f'default     = "{cidr}"' in network
