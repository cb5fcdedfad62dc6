"""An MLflow server with its artifacts in S3 behind the fault proxy, and versions of a model that must not serve."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from chaos_cells import GENES, write_model
from chaos_head import free_port, wait_until
from processes import end_all

from cytoray.registry.models import BYTES_TAG, GOLDEN_TAG, register
from cytoray.tracking import TrackingConfig, prepare_environment
from cytoray.tracking.server import connect

NAME, CHAMPION = "tiny", "champion"
WEIGHTS = "model.safetensors"


@dataclass
class Registry:
    """A model whose versions can be made, broken and named, on a server that can be stopped."""

    folder: Path
    s3: Any  # client of the store, past the proxy
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[Any] | None = None
    made: int = 0

    @property
    def tracking(self) -> TrackingConfig:
        """How the service reaches the server."""
        return TrackingConfig(uri=f"http://127.0.0.1:{self.port}", journal_folder=str(self.folder / "runs"))

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        environment = dict(os.environ, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        prepare_environment(environment)
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        words += ["--no-serve-artifacts", "--default-artifact-root", "s3://cells/mlflow"]
        options: dict[str, Any] = {"env": environment, "cwd": self.folder, "start_new_session": True}
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, **options)
        wait_until(self._answers, "MLflow answers")

    def stop(self) -> None:
        """End the server at once."""
        if self.process is not None:
            end_all(self.process)
            self.process = None

    def add(self, *, seed: int, genes: tuple[str, ...] = GENES, num_labels: int = 3, is_finite: bool = True) -> str:
        """Register a version and return its number; its bundle is the folder of that name."""
        self.made += 1
        bundle = write_model(
            self.folder / f"made-{self.made}", seed=seed, genes=genes, num_labels=num_labels, is_finite=is_finite
        )
        version = str(register(bundle, name=NAME, tracking=self.tracking).version)
        bundle.rename(self.folder / version)
        return version

    def promote(self, version: str) -> None:
        """Move the alias that the service follows."""
        connect(self.tracking.uri).set_registered_model_alias(NAME, CHAMPION, version)

    def tag(self, version: str, key: str, value: str) -> None:
        """Change what is recorded about a version."""
        connect(self.tracking.uri).set_model_version_tag(NAME, version, key, value)

    def tag_of(self, version: str, key: str) -> str:
        """Return what is recorded about a version."""
        return str(connect(self.tracking.uri).get_model_version(NAME, version).tags[key])

    def change_weights(self, version: str, change: Callable[[bytes], bytes | None]) -> None:
        """Change the stored weights of a version; None deletes them."""
        source = connect(self.tracking.uri).get_model_version(NAME, version).source
        bucket, _, prefix = source.removeprefix("s3://").partition("/")
        key = f"{prefix.rstrip('/')}/{WEIGHTS}"
        content = change(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        if content is None:
            self.s3.delete_object(Bucket=bucket, Key=key)
        else:
            self.s3.put_object(Bucket=bucket, Key=key, Body=content)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "mlflow.log").read_text()[-2000:]
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


def store_client(endpoint: str) -> Any:
    """Return a client of the S3 server."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


class _Harmless:
    """An object whose unpickling writes a file, if anything unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _bad_pickle(registry: Registry, seed: int) -> str:
    version = registry.add(seed=seed)
    registry.change_weights(version, lambda _: pickle.dumps(_Harmless(registry.folder / "unpickled")))
    return version


def _flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def _digest_mismatch(registry: Registry, seed: int) -> str:
    version = registry.add(seed=seed)
    registry.change_weights(version, _flip)
    return version


def _missing_file(registry: Registry, seed: int) -> str:
    version = registry.add(seed=seed)
    registry.change_weights(version, lambda _: None)
    return version


def _out_of_memory(registry: Registry, seed: int) -> str:
    version = registry.add(seed=seed)
    registry.tag(version, BYTES_TAG, str(2**50))
    return version


def _golden_mismatch(registry: Registry, seed: int) -> str:
    version, other = registry.add(seed=seed), registry.add(seed=seed + 1000)
    registry.tag(version, GOLDEN_TAG, registry.tag_of(other, GOLDEN_TAG))
    return version


BROKEN_VERSIONS: dict[str, Callable[[Registry, int], str]] = {
    "bad pickle": _bad_pickle,
    "wrong vocabulary": lambda registry, seed: registry.add(seed=seed, genes=(*GENES[:-1], "OTHER")),
    "NaN weights": lambda registry, seed: registry.add(seed=seed, is_finite=False),
    "out of memory": _out_of_memory,
    "missing file": _missing_file,
    "digest mismatch": _digest_mismatch,
    "wrong signature": lambda registry, seed: registry.add(seed=seed, num_labels=0),
    "golden-cell mismatch": _golden_mismatch,
}  # the ninth, a load that takes long, ends well: see the test
