"""Names of jobs: which file of jobs/ runs a stage, a job's default name, and the id of each attempt."""

from __future__ import annotations

import re

from cytoray.config import Config
from cytoray.errors import JobError
from cytoray.tasks import task_offline

# A job's name is also that of a Kubernetes object: with the suffix of an attempt it has at most 47 characters.
MAX_NAME = 36
NAME = r"[a-z0-9]([a-z0-9-]{0,34}[a-z0-9])?"
_ATTEMPT = re.compile(r"(?P<name>.+)-attempt-(?P<number>[1-9][0-9]*)")
DIGEST_CHARACTERS = 8
_NOT_JOBS = {"serve", "model", "deploy", "pipeline", "rollout"}  # kinds of files that configure no job


def find_job(kind: str) -> str:
    """Return the name of the file of jobs/ that runs the stage ``kind``: ``infer_networks`` for infer-networks.

    Raises JobError for files that configure something else, such as a service.
    """
    if kind in _NOT_JOBS:
        raise JobError(
            f"A file of kind {kind!r} configures no job.",
            remedy="`cytoray serve` runs services, `cytoray pipeline run --cluster` the stages of a pipeline.",
        )
    if kind.startswith("assess-"):
        return "assess"
    if kind in task_offline() and kind != "embed":
        return "answer"
    return kind.replace("-", "_")


def derive_name(job: str, config: Config, *, digest: str) -> str:
    """Return the default name of a job: its file, the run or corpus, and the start of the digest of its settings."""
    subject = next((str(value) for key in ("run", "corpus", "name") if (value := getattr(config, key, None))), "")
    ending = f"-{digest[:DIGEST_CHARACTERS]}"
    words = re.sub(r"[^a-z0-9]+", "-", f"{job}-{subject}".lower()).strip("-")
    return words[: MAX_NAME - len(ending)].rstrip("-") + ending


def check_name(name: str) -> str:
    """Return ``name``; JobError if it cannot be the name of a job."""
    if re.fullmatch(NAME, name) is None or _ATTEMPT.fullmatch(name):
        raise JobError(
            f"{name!r} is not a name for a job.",
            remedy=f"Write up to {MAX_NAME} lower-case letters, digits and '-', beginning and ending with a letter or "
            "a digit, without -attempt-NUMBER.",
        )
    return name


def attempt_id(name: str, attempt: int) -> str:
    """Return the id of an attempt on its cluster; the first has the name of the job."""
    return name if attempt == 1 else f"{name}-attempt-{attempt}"


def split_id(text: str) -> tuple[str, int | None]:
    """Split an id into the name of the job and the number of the attempt; None if ``text`` names the job alone."""
    match = _ATTEMPT.fullmatch(text)
    return (match["name"], int(match["number"])) if match else (text, None)
