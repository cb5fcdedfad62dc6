"""infra/terraform applied to moto, an imitation of AWS: everything can be made in one go, and boto3 finds it as wanted.

moto accepts most values without a look, so this shows the order and the references, not that AWS takes each argument.
Its network is not real, policies are not enforced here, and the addons of EKS do nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from processes import started

from .conftest import Terraform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SERVICES = ("ec2", "ecr", "eks", "iam", "kms", "logs", "rds", "s3", "secretsmanager", "sts", "autoscaling")
VARIABLES = {
    "region": "us-east-1", "bucket_prefix": "lab", "source_buckets": ["lab-h5ad"],
    "admin_role_arns": ["arn:aws:iam::123456789012:role/Admins"], "database": {"deletion_protection": False},
}  # fmt: skip


SECURITY_GROUP = "aws_eks_cluster.main.vpc_config[0].cluster_security_group_id"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of a moto server with the policies that AWS itself keeps."""
    code = (
        "from moto.server import ThreadedMotoServer; import threading; s = ThreadedMotoServer('127.0.0.1', port=0, "
        "verbose=False); s.start(); print(s.get_host_and_port()[1], flush=True); threading.Event().wait()"
    )
    environment = {**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with started([sys.executable, "-c", code], env=environment, **pipes) as server:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address


@pytest.fixture(scope="module")
def applied(terraform: Terraform, moto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The outputs of an apply on moto; destroyed at the end."""
    folder = terraform.copy(tmp_path_factory.mktemp("apply") / "copy")
    _leave_out(folder)
    lines = "".join(f'    {name} = "{moto}"\n' for name in SERVICES)
    (folder / "moto_override.tf").write_text(
        'provider "aws" {\n  access_key = "test"\n  secret_key = "test"\n  skip_credentials_validation = true\n'
        "  skip_metadata_api_check = true\n  skip_requesting_account_id = true\n  s3_use_path_style = true\n"
        f"  endpoints {{\n{lines}  }}\n}}\n"
    )
    (folder / "terraform.tfvars.json").write_text(json.dumps(VARIABLES))
    done = terraform.run(folder, "apply", "-input=false", "-auto-approve")
    assert done.returncode == 0, done.stdout[-6000:]
    found = json.loads(terraform.run(folder, "output", "-json").stdout)
    yield {name: entry["value"] for name, entry in found.items()}
    done = terraform.run(folder, "destroy", "-input=false", "-auto-approve")
    assert done.returncode == 0, done.stdout[-3000:]


def _leave_out(folder: Path) -> None:
    """Remove what moto 5.2 answers with 404: access entries and addons; its clusters have no security group either."""
    for path in folder.glob("*.tf"):
        text = path.read_text()
        for kind in ("aws_eks_access_entry", "aws_eks_access_policy_association", "aws_eks_addon"):
            text = re.sub(rf'^resource "{kind}" .*?^}}\n', "", text, flags=re.MULTILINE | re.DOTALL)
        text = text.replace(", aws_eks_addon.network]", "]")
        path.write_text(text.replace(SECURITY_GROUP, "aws_security_group.database.id"))


def _client(service: str, moto: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client(service, endpoint_url=moto, region_name="us-east-1", **keys)


def test_outputs_are_those_that_overlays_need(applied: dict[str, Any]) -> None:
    assert applied["store"] == "s3://lab-store"
    assert applied["artifact_location"] == "s3://lab-models/mlflow"
    assert applied["service_account_roles"]["cytoray:cytoray-train"].endswith(":role/cytoray-train")
    assert applied["image_repositories"]["cytoray-gpu"].endswith("/cytoray/cytoray-gpu")


def test_buckets_are_as_wanted(applied: dict[str, Any], moto: str) -> None:
    client = _client("s3", moto)
    assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} == {"lab-store", "lab-models"}
    for bucket in ("lab-store", "lab-models"):
        assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        assert all(client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
        (rule,) = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
        rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        assert {rule["ID"] for rule in rules} == {"abort-multipart", "forget-noncurrent"}
        assert not [rule for rule in rules if rule.get("Expiration", {}).get("Days")]


def test_gpu_nodes_start_at_zero(applied: dict[str, Any], moto: str) -> None:
    group = _client("eks", moto).describe_nodegroup(clusterName="cytoray", nodegroupName="gpu")["nodegroup"]
    assert group["scalingConfig"]["minSize"] == group["scalingConfig"]["desiredSize"] == 0
    assert group["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}]


def test_roles_have_one_policy_each(applied: dict[str, Any], moto: str) -> None:
    client = _client("iam", moto)
    for role in ("ingest", "train", "serve", "mlflow"):
        assert client.list_role_policies(RoleName=f"cytoray-{role}")["PolicyNames"] == [role]
        assert client.list_attached_role_policies(RoleName=f"cytoray-{role}")["AttachedPolicies"] == []


def test_the_database_is_private(applied: dict[str, Any], moto: str) -> None:
    (database,) = _client("rds", moto).describe_db_instances()["DBInstances"]
    assert database["StorageEncrypted"]
    assert not database["PubliclyAccessible"]
