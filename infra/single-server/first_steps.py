"""Make the buckets and MLflow's user for jobs, once the servers of a single server run; run again, it changes nothing.

``python infra/single-server/first_steps.py SECRETS`` with AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI set (server.env).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import boto3
import httpx

BUCKETS = ("store", "models")
TIMEOUT_S = 30


def main(secrets: Path) -> None:
    """Make what is missing and say what was made."""
    client = boto3.client(
        "s3",
        aws_access_key_id=_secret(secrets, "s3-user"),
        aws_secret_access_key=_secret(secrets, "s3-secret"),
    )
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in sorted(set(BUCKETS) - there):
        client.create_bucket(Bucket=bucket)
        print(f"bucket {bucket}")
    _make_user(os.environ["MLFLOW_TRACKING_URI"], secrets)


def _make_user(uri: str, secrets: Path) -> None:
    """Make the user ``cytoray``, who may create experiments and models but is no administrator."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "cytoray")
    reply = httpx.post(
        f"{uri}/api/2.0/mlflow/users/create",
        json={"username": user, "password": _secret(secrets, "mlflow-user")},
        auth=("admin", _secret(secrets, "mlflow-admin")),
        timeout=TIMEOUT_S,
    )
    if reply.status_code == httpx.codes.OK:
        print(f"user {user} of MLflow")
    elif "RESOURCE_ALREADY_EXISTS" not in reply.text:
        sys.exit(f"MLflow refused to make the user {user}: {reply.status_code} {reply.text}")


def _secret(folder: Path, name: str) -> str:
    return (folder / name).read_text().strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
