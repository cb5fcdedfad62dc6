"""Connect to MLflow: configuration, environment, and a connection that fails in seconds, not minutes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cytoray.config import Config, check_location
from cytoray.errors import RegistryError, RegistryUnavailableError
from cytoray.tracking.places import lasting_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_S = 5
_SQLITE = "sqlite:///"


class TrackingConfig(Config):
    """Where runs and models are recorded.

    Relative local paths are taken from the current folder and made absolute; a submitted job refuses them, since its
    current folder is deleted with Ray's session.
    """

    uri: str = Field(
        description="MLflow: http(s)://host:port, sqlite:////absolute/path/mlflow.db or postgresql://… .",
        pattern=r"^(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://",
    )
    experiment: str = Field("cytoray", min_length=1, description="Name of the MLflow experiment; created if missing.")
    artifact_location: str | None = Field(
        None, description="Folder or s3:// prefix for the files of a NEW experiment; default: beside the database."
    )
    journal_folder: str = Field(
        "runs", min_length=1, description="Local folder of the run journals; absolute in a submitted job."
    )

    @field_validator("uri")
    @classmethod
    def _absolute_database(cls, uri: str) -> str:
        """Make the path absolute, since Ray workers have another current folder than the driver."""
        return f"{_SQLITE}{lasting_path(uri.removeprefix(_SQLITE))}" if uri.startswith(_SQLITE) else uri

    @field_validator("journal_folder")
    @classmethod
    def _is_local(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError("journals are written on the local disk: write a path")
        return folder

    @field_validator("artifact_location", "journal_folder")
    @classmethod
    def _absolute_folder(cls, folder: str | None) -> str | None:
        if folder is None:
            return None
        check_location(folder, schemes=())  # MLflow knows many kinds of stores
        return folder if "://" in folder else lasting_path(folder)


def prepare_environment(environment: MutableMapping[str, str] | None = None) -> None:
    """Set MLflow's safe defaults in ``environment`` (default: this process's), keeping what the user has set.

    Never unpickle, send no telemetry, draw no progress bars; path-style addresses on S3 servers other than Amazon's.
    MLflow's HTTP retries are left alone: they are process-wide only, and ``connect`` fails fast without them.
    """
    environment = os.environ if environment is None else environment
    environment.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    environment.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if environment.get("AWS_ENDPOINT_URL") or environment.get("MLFLOW_S3_ENDPOINT_URL"):
        environment.setdefault("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "path")


def connect(uri: str) -> MlflowClient:
    """Return a client of the MLflow at ``uri``. Raises RegistryError within seconds if it does not answer.

    MLflow itself would retry for four minutes over HTTP and almost an hour on a database, so a probe comes first.
    """
    prepare_environment()
    from mlflow import MlflowClient

    with explained(uri):
        _probe(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _probe(uri: str) -> None:
    """Send the store one cheap request, without retries."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        _probe_http(uri)
    elif uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=PROBE_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA schema_version")
    elif parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=PROBE_TIMEOUT_S).close()


def _probe_http(uri: str) -> None:
    """Search once without retries, with the user's credentials; this also detects a server without its database."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(  # type: ignore[no-untyped-call]
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]
        "/api/2.0/mlflow/experiments/search",
        "GET",
        params={"max_results": 1},
        max_retries=0,
        timeout=PROBE_TIMEOUT_S,
        raise_on_status=False,
    )
    if answer.status_code in (401, 403):
        remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        raise RegistryError(f"MLflow at {public(uri)} rejected the credentials.", remedy=remedy, uri=public(uri))
    if answer.status_code >= 500:
        raise RegistryUnavailableError(
            f"MLflow at {public(uri)} answers with an error of its server (HTTP {answer.status_code}).",
            remedy="Look at its log: it runs, but most likely without its database.",
            uri=public(uri),
        )
    if answer.status_code >= 400:
        remedy = "Check the URI: it must be the root of an MLflow tracking server."
        problem = f"The server at {public(uri)} is not MLflow (HTTP {answer.status_code})."
        raise RegistryError(problem, remedy=remedy, uri=public(uri))


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, its database or its object store into a RegistryUnavailableError with a remedy."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, OSError, sqlite3.Error, SQLAlchemyError, BotoCoreError, ClientError, Boto3Error) as error:
        raise RegistryUnavailableError(
            f"MLflow at {public(uri)} cannot be used: {_reason(error)}.",
            remedy="Check that it runs, that the URI and credentials are right, and that its storage can be written.",
            uri=public(uri),
        ) from error


def _reason(error: BaseException) -> str:
    """Return the root cause if it is an operating system error, otherwise the first line."""
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    lines = str(root if isinstance(root, OSError) else error).splitlines() or [type(error).__name__]
    return re.sub(r"//[^/@\s]+@", "//", lines[0])[:300].rstrip(".")  # a URL in the message may contain a password


def experiment_id(client: MlflowClient, name: str, *, artifact_location: str | None, uri: str) -> str:
    """Return the id of the experiment, creating it if missing; artifacts of a local database lie beside it."""
    from mlflow.exceptions import MlflowException

    if artifact_location is None and uri.startswith(_SQLITE):
        artifact_location = (Path(uri.removeprefix(_SQLITE)).parent / "artifacts").as_uri()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # otherwise another process has just created it
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        remedy = f"Restore it (mlflow experiments restore) or set another experiment name than {name!r}."
        raise RegistryError(f"The MLflow experiment {name!r} is deleted.", remedy=remedy, uri=public(uri))
    return str(experiment.experiment_id)


def public(uri: str) -> str:
    """Remove user name and password from ``uri``, for messages and logs."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri
