"""A Ray cluster as a place for jobs, by the Jobs API of its dashboard, with token authentication."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytoray.errors import ConflictError, JobError
from cytoray.operations.jobs.names import attempt_id
from cytoray.operations.jobs.records import JobRecord, Status
from cytoray.operations.jobs.request import JobRequest
from cytoray.operations.jobs.shipping import load_runtime_env, packed
from cytoray.operations.jobs.tokens import PROBE_TIMEOUT_S, bearer, require_dashboard

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_URL = "http://127.0.0.1:8265"
ADDRESS = "RAY_API_SERVER_ADDRESS"
# Between SIGTERM and SIGKILL of a job that is stopped; Ray's 3 s are too few for a checkpoint.
STOP_WAIT_S = 60
_STATUS: dict[str, Status] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster whose dashboard has answered."""

    option: str
    url: str
    client: JobSubmissionClient
    runtime_env: Path | None = None  # file; by default configs/runtime_env.yaml

    def list_jobs(self) -> list[JobRecord]:
        """Return all attempts of jobs of cytoray that the head remembers."""
        with _explained(self.url):
            details = self.client.list_jobs()
        return [record for each in details if (record := _record(each)) is not None]

    def submit(self, request: JobRequest, *, attempt: int) -> None:
        """Measure, upload and start; JobError if the upload is too large, ConflictError if the id is in use."""
        id_ = attempt_id(request.name, attempt)
        with packed(request, load_runtime_env(self.runtime_env)) as (entrypoint, runtime_env):
            runtime_env["env_vars"].setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(STOP_WAIT_S))
            with _explained(self.url):
                self.client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=id_,
                    runtime_env=runtime_env,
                    metadata=metadata_of(request, attempt),
                )

    def read_logs(self, record: JobRecord) -> str:
        """Return what the attempt has printed so far."""
        with _explained(self.url):
            return str(self.client.get_job_logs(record.id))

    def tail_logs(self, record: JobRecord, write: Callable[[str], None]) -> None:
        """Pass on what the attempt prints until the web socket ends; OSError if it breaks."""
        import aiohttp

        async def tail() -> None:
            """Read the web socket."""
            async for text in self.client.tail_job_logs(record.id):
                write(text)

        try:
            with warnings.catch_warnings():
                # Ray 2.60 passes ssl=None to aiohttp, which is only a warning, and not the user's.
                warnings.filterwarnings("ignore", message="ssl=None is deprecated", category=DeprecationWarning)
                asyncio.run(tail())
        except (aiohttp.ClientError, RuntimeError) as error:  # RuntimeError is how Ray reports a broken connection
            raise ConnectionError(str(error)) from error

    def stop(self, record: JobRecord) -> None:
        """Send the job SIGTERM: training commits a checkpoint and ends."""
        with _explained(self.url):
            self.client.stop_job(record.id)


def open_ray(option: str, url: str | None, *, runtime_env: Path | None = None) -> RayCluster:
    """Connect to the dashboard at ``url``, by default the one that the environment names or that of this machine.

    Raises JobError if nothing answers, the token is missing or rejected, or Ray has another version.
    """
    url = (url or os.environ.get(ADDRESS) or DEFAULT_URL).rstrip("/")
    url = url if "://" in url else f"http://{url}"
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by Ray when it is imported
    token = require_dashboard(url)
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _address(url), _explained(url):
        return RayCluster(option, url, JobSubmissionClient(url, headers=bearer(token)), runtime_env)


def find_dashboard(address: str) -> str:
    """Return the URL of the dashboard of the cluster whose Ray Client server is at ``ray://host:port``."""
    host, _, port = address.removeprefix("ray://").partition(":")
    try:
        socket.create_connection((host, int(port or 10001)), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise JobError(
            f"No Ray Client server answers at {address} ({error}).",
            remedy="Name the dashboard instead: --cluster http://HOST:8265.",
        ) from error
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    try:
        with ray.init(address=address, logging_level=logging.ERROR) as context:
            return f"http://{context.dashboard_url}"
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise JobError(
            f"The Ray Client server at {address} refused the connection ({_first_line(error)}).",
            remedy="Check RAY_AUTH_TOKEN, or name the dashboard: --cluster http://HOST:8265.",
        ) from error


def metadata_of(request: JobRequest, attempt: int) -> dict[str, str]:
    """Return the metadata of an attempt, which everybody who may list jobs can read."""
    return {
        "cytoray_name": request.name,
        "cytoray_attempt": str(attempt),
        "cytoray_job": request.job,
        "cytoray_stage": request.stage,
        "cytoray_config": request.text,
        "cytoray_settings": json.dumps(request.settings),
        "cytoray_environment": json.dumps(request.environment),
        "cytoray_program": request.program,
    }


def _record(details: JobDetails) -> JobRecord | None:
    """Return the record of an attempt; None for a job of somebody else."""
    metadata = details.metadata or {}
    if "cytoray_name" not in metadata or not details.submission_id:
        return None
    return JobRecord(
        id=details.submission_id,
        name=metadata["cytoray_name"],
        attempt=int(metadata.get("cytoray_attempt", "1")),
        job=metadata.get("cytoray_job", ""),
        stage=metadata.get("cytoray_stage", ""),
        status=_STATUS[str(details.status.value)],
        started_s=_seconds(details.start_time),
        ended_s=_seconds(details.end_time),
        driver_code=details.driver_exit_code,
        message=details.message or "",
        config=metadata.get("cytoray_config", ""),
        settings=json.loads(metadata.get("cytoray_settings", "{}")),
        environment=json.loads(metadata.get("cytoray_environment", "{}")),
        program=metadata.get("cytoray_program", ""),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


@contextlib.contextmanager
def _address(url: str) -> Iterator[None]:
    """Let the client connect to ``url``: Ray prefers what these variables name."""
    names = (ADDRESS, "RAY_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[ADDRESS] = url
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        os.environ.update(before)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raise JobError for errors of the Jobs API, ConnectionError for lost connections, ConflictError for a used id."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise JobError(
            f"The Ray cluster at {url} rejected the token.", remedy="Set RAY_AUTH_TOKEN to that of the head.", url=url
        ) from error
    except OSError as error:  # as the errors of requests are
        raise ConnectionError(f"{url} does not answer ({_first_line(error)})") from error
    except RuntimeError as error:
        text = str(error)
        if "already exists" in text:
            raise ConflictError("Another process has submitted this attempt.", remedy="Look at `jobs ls`.") from error
        raise JobError(
            f"The Ray cluster at {url} refused the request: {_first_line(error)}.",
            remedy="Look at the logs of its dashboard.",
            url=url,
        ) from error


def _first_line(error: BaseException) -> str:
    """Return what an error says, in one short line."""
    text: Any = str(error).strip().splitlines() or [type(error).__name__]
    return str(text[-1] if text[0].startswith("Request failed") else text[0])[:300].rstrip(".")
