"""What is submitted: a checked configuration, the stage that it is for, and a name; nothing secret."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cytoray.config import Config, read_tree
from cytoray.errors import ConfigError, JobError
from cytoray.operations.jobs.names import check_name, derive_name, find_job
from cytoray.stages.config import load_stage_config
from cytoray.stages.settings import flatten
from cytoray.tracking.places import JOB_VARIABLE, WORKING_DIRECTORIES

_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]*@")
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|ACCESS_KEY|API_?KEY", re.IGNORECASE)
# They look like secrets, and are the names of files or settings.
_HARMLESS = frozenset({"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE", "RAY_AUTH_TOKEN_PATH"})


@dataclass(frozen=True)
class JobRequest:
    """A job to be submitted."""

    name: str
    job: str  # file of jobs/
    stage: str  # kind of the configuration
    text: str  # YAML of the configuration, overrides applied
    settings: Mapping[str, Any]  # resolved values by dotted key
    digest: str  # SHA-256 (hex) of the settings
    config: Config = field(repr=False)
    environment: Mapping[str, str] = field(default_factory=dict)  # variables for the job
    program: str = ""  # module that gets the configuration, with arguments; empty: the file of jobs/


def build_request(
    path: Path,
    *,
    job: str | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> JobRequest:
    """Read and check a configuration as the job will do, and name the job.

    ``job`` is the file of jobs/ that must run it. Raises ConfigError for mistakes in the configuration and for local
    paths that would be lost with the job, JobError for a stage of another job, for secrets and for a bad name.
    """
    config = _check_as_in_a_job(path, overrides)
    kind = str(getattr(config, "kind", "model" if type(config).__name__ == "ModelShapeConfig" else "deploy"))
    found = find_job(kind)
    if job is not None and job.replace("-", "_") not in (found, kind.replace("-", "_")):
        raise JobError(f"{path} configures {kind}, not {job}.", remedy=f"Write `cytoray jobs submit {found}`.")
    text = yaml.safe_dump(read_tree(path, overrides=overrides).data, sort_keys=False, allow_unicode=True)
    settings = dict(flatten(config.model_dump(mode="json")))
    _refuse_credentials(settings, path)
    refuse_secrets(environment or {})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    chosen = check_name(name) if name else derive_name(found, config, digest=digest)
    return JobRequest(chosen, found, kind, text, settings, digest, config, dict(environment or {}))


def build_again(text: str, *, name: str, overrides: Sequence[str], environment: Mapping[str, str]) -> JobRequest:
    """Build the request of a job that was submitted before, from the YAML that it was submitted with."""
    with tempfile.TemporaryDirectory(prefix="cytoray-retry-") as folder:
        file = Path(folder) / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        return build_request(file, overrides=overrides, name=name, environment=environment)


def describe_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each setting that differs: ``train.num_steps (4, here 8)``."""
    missing = "not set"
    return [
        f"{key} ({json.dumps(earlier[key]) if key in earlier else missing}, "
        f"here {json.dumps(now[key]) if key in now else missing})"
        for key in sorted(earlier.keys() | now.keys())
        if earlier.get(key, missing) != now.get(key, missing)
    ]


def refuse_secrets(environment: Mapping[str, str]) -> None:
    """Raise JobError if a variable for a job looks like a secret: whoever may list the jobs could read it."""
    for name, value in environment.items():
        if (_SECRET_NAME.search(name) and name not in _HARMLESS) or _CREDENTIALS.search(value):
            raise JobError(
                f"The variable {name} of the job looks like a secret, and everybody who may list jobs could read it.",
                remedy="Give the nodes their credentials: a role, a Kubernetes Secret, or the environment in which the "
                "head was started.",
                variable=name,
            )


def _refuse_credentials(settings: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError if a value contains a password."""
    for key, value in settings.items():
        if _CREDENTIALS.search(json.dumps(value)):
            raise ConfigError(
                f"{path}: {key}: this URI contains a password, which a job would show to everybody who may list jobs.",
                remedy="Leave it out; for MLflow set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the "
                "cluster's nodes.",
                key=key,
            )


def _check_as_in_a_job(path: Path, overrides: Sequence[str]) -> Config:
    """Load the configuration as the job will, in a folder such as that of a job, and refuse paths that lead into it."""
    path = path.absolute()
    with _job_folder() as folder:
        config = load_stage_config(path, overrides=overrides)
    lost = [key for key, value in flatten(config.model_dump(mode="json")) if str(folder) in json.dumps(value)]
    if lost:
        raise ConfigError(
            f"{path}: {', '.join(lost)}: a relative path, which would lie in the job's folder, and Ray deletes "
            "that with its session.",
            remedy="Write an absolute path that all nodes can read, or s3://….",
            keys=lost,
        )
    return config


@contextlib.contextmanager
def _job_folder() -> Iterator[Path]:
    """Stand in a folder like that of a submitted job while the block runs."""
    before = os.environ.get(JOB_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="cytoray-job-") as name:
        folder = Path(name).resolve() / WORKING_DIRECTORIES / "job"
        folder.mkdir(parents=True)
        os.environ[JOB_VARIABLE] = before or "{}"
        try:
            with contextlib.chdir(folder):
                yield folder
        finally:
            if before is None:
                del os.environ[JOB_VARIABLE]
