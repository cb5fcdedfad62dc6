"""infra/aws/account.env: the one place of account, region, registry, buckets and database."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from kube_render import kustomize

from .conftest import INFRA

pytestmark = pytest.mark.infra
EXAMPLE = {"account": "123456789012", "region": "us-east-1"}
MINE = {
    "account": "999988887777",
    "region": "eu-west-3",
    "registry": "999988887777.dkr.ecr.eu-west-3.amazonaws.com",
    "store": "s3://mine-store",
    "artifacts": "s3://mine-models/mlflow",
    "database": "mlflow@mine.eu-west-3.rds.amazonaws.com:5433",
    "database-secret": "arn:aws:secretsmanager:eu-west-3:999988887777:secret:rds!db-1",
}
FOLDERS = (
    "mlflow",
    *(f"kuberay/overlays/{overlay}{jobs}" for overlay in ("eks-cpu", "eks-gpu") for jobs in ("", "/jobs")),
)
#: What is left of the example, or was never filled in.
LEFT = re.compile(r"123456789012|us-east-1|example|of-infra-aws|ACCOUNT|image: registry/")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What kustomize renders of each folder with an account.env like that of Terraform's output."""
    root = tmp_path_factory.mktemp("account")
    for name in ("aws", "kuberay", "mlflow"):
        shutil.copytree(INFRA / name, root / name)
    (root / "aws" / "account.env").write_text("".join(f"{name}={value}\n" for name, value in MINE.items()))
    return {folder: kustomize(root / folder) for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_of_the_example_is_left(filled: dict[str, str], folder: str) -> None:
    text = filled[folder].replace("folder: s3://example-store/jobs ", "")  # within a text: kube_checks.py looks at it
    assert [line for line in text.splitlines() if LEFT.search(line)] == []
    assert "name: aws\n" not in text, "what is filled in from is no object of the cluster"


def test_values_are_where_they_belong(filled: dict[str, str]) -> None:
    def values(folder: str, key: str) -> set[str]:
        return set(re.findall(rf"{key}: (.*)", filled[folder]))

    roles = {f"arn:aws:iam::999988887777:role/cytoray-{name}" for name in ("ingest", "train", "serve")}
    for device in ("cpu", "gpu"):
        overlay = f"kuberay/overlays/eks-{device}"
        image = f"{MINE['registry']}/cytoray/cytoray-{device}@sha256:{'0' * 64}"
        assert values(f"{overlay}/jobs", "image") == {image}
        assert values(overlay, "image") == {image, f"public.ecr.aws/docker/library/redis@sha256:{'0' * 64}"}
        assert values(overlay, "eks.amazonaws.com/role-arn") == roles
        assert values(overlay, "AWS_REGION") == {"eu-west-3"}
        assert values(overlay, "CYTORAY_STORE") == {"s3://mine-store"}
        assert values(overlay, "CYTORAY_ARTIFACTS") == {"s3://mine-models/mlflow"}
    assert values("mlflow", "MLFLOW_ARTIFACTS") == {"s3://mine-models/mlflow"}
    assert values("mlflow", "AWS_DEFAULT_REGION") == {"eu-west-3"}
    assert values("mlflow", "eks.amazonaws.com/role-arn") == {"arn:aws:iam::999988887777:role/cytoray-mlflow"}
    (database,) = values("mlflow", "MLFLOW_DATABASE")
    assert database.startswith(f"postgresql+psycopg2://{MINE['database']}/mlflow?sslmode=verify-full&")
    assert f'- objectName: "{MINE["database-secret"]}"\n' in filled["mlflow"]


def test_the_file_has_what_terraform_writes() -> None:
    lines = (INFRA / "aws" / "account.env").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    output = (INFRA / "terraform" / "outputs.tf").read_text().partition('output "account_env"')[2].partition("\n}\n")[0]
    assert names == MINE.keys() == set(re.findall(r"^    ([\w-]+) +=", output, re.MULTILINE))


def test_examples_are_of_one_account_and_region() -> None:
    """Numbers of accounts in infra/ and docs/; regions in what is applied to AWS."""
    files = [path for folder in (INFRA, INFRA.parent / "docs") for path in sorted(folder.rglob("*")) if path.is_file()]
    texts = {path: path.read_text(encoding="utf-8", errors="ignore") for path in files if ".terraform" not in str(path)}
    accounts = {number for text in texts.values() for number in re.findall(r"(?::|//| )(\d{12})(?=[:.\"])", text)}
    assert accounts == {EXAMPLE["account"]}
    applied = [path for path in files if path.parent.name == "ray-up" or path.suffix in (".env", ".example")]
    regions = {region for path in applied for region in re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", texts[Path(path)])}
    assert regions == {EXAMPLE["region"]}
