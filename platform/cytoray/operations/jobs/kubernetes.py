"""A namespace of Kubernetes with KubeRay as a place for jobs, by kubectl: one RayJob per attempt."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cytoray.errors import ConflictError, JobError
from cytoray.operations.jobs.kube_config import load_kube_config
from cytoray.operations.jobs.rayjob import (
    ATTEMPT_LABEL,
    CONFIG,
    ENVIRONMENT,
    JOB_LABEL,
    NAME_LABEL,
    PROGRAM,
    SETTINGS,
    STAGE,
    build_objects,
)
from cytoray.operations.jobs.records import JobRecord, Status
from cytoray.operations.jobs.request import JobRequest
from cytoray.operations.jobs.yaml_text import to_yaml

OPTION = re.compile(r"kuberay:(?P<context>[^/]*)/(?P<namespace>[a-z0-9]([a-z0-9-]*[a-z0-9])?)")
TIMEOUT_S = 30
_LOST = ("connection refused", "i/o timeout", "unable to connect", "timed out", "connection reset", "no route to host")
_STATUS: dict[str, Status] = {"Running": "running", "Failed": "failed", "ValidationFailed": "failed"}  # else pending
_COMPLETE: dict[str, Status] = {"SUCCEEDED": "succeeded", "STOPPED": "stopped", "": "succeeded"}


@dataclass(frozen=True)
class KubernetesCluster:
    """A namespace that kubectl reaches."""

    option: str
    context: str  # of kubectl; empty for the current one
    namespace: str
    kube: Path | None = None  # file with image and sizes

    def list_jobs(self) -> list[JobRecord]:
        """Return all attempts whose RayJob is there."""
        answer = self._run("get", "rayjobs.ray.io", "-l", NAME_LABEL, "-o", "json")
        return [_record(each) for each in json.loads(answer)["items"]]

    def submit(self, request: JobRequest, *, attempt: int) -> None:
        """Create the objects of an attempt; ConflictError if they exist."""
        objects = build_objects(request, load_kube_config(self.kube), attempt=attempt, namespace=self.namespace)
        self._run("create", "-f", "-", text=to_yaml(objects))

    def read_logs(self, record: JobRecord) -> str:
        """Return what the submitter has printed; empty if its pod is gone."""
        try:
            return self._run("logs", f"job/{record.id}")
        except JobError as error:
            if "not found" in error.problem.lower() or "waiting to start" in error.problem.lower():
                return ""
            raise

    def tail_logs(self, record: JobRecord, write: Callable[[str], None]) -> None:
        """Pass on what the submitter prints until kubectl ends, which it does too early at times (kuberay#4285)."""
        command = [*self._command(), "logs", "-f", f"job/{record.id}"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    write(line)
            finally:
                process.kill()

    def stop(self, record: JobRecord) -> None:
        """Ask the head to stop the job, which has time for a checkpoint; one that waits for its cluster is deleted.

        Suspending the RayJob would not do: Kueue would admit it again.
        """
        if record.status == "pending":
            self._run("delete", "rayjobs.ray.io", record.id, "--wait=false")
            return
        status = json.loads(self._run("get", "rayjobs.ray.io", record.id, "-o", "json")).get("status") or {}
        heads = f"ray.io/cluster={status.get('rayClusterName')},ray.io/node-type=head"
        pod = self._run("get", "pods", "-l", heads, "-o", "name").strip()
        if not pod:
            raise JobError(
                f"{self.option}: the head of job {record.id} is gone.", remedy="Look at it again in a minute."
            )
        self._run("exec", pod, "-c", "ray-head", "--", "ray", "job", "stop", "--no-wait", str(status.get("jobId")))

    def _command(self) -> list[str]:
        """Return the beginning of every command."""
        context = ["--context", self.context] if self.context else []
        return ["kubectl", *context, "--namespace", self.namespace]

    def _run(self, *words: str, text: str | None = None) -> str:
        """Run kubectl and return its output; JobError with its message if it fails."""
        command = [*self._command(), f"--request-timeout={TIMEOUT_S}s", *words]
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ConnectionError(f"kubectl got no answer within {2 * TIMEOUT_S} s") from error
        if done.returncode == 0:
            return done.stdout
        return self._explain(words, done.stderr.strip() or done.stdout.strip())

    def _explain(self, words: Sequence[str], message: str) -> str:
        """Raise the error that a message of kubectl stands for."""
        lower = message.lower()
        if "alreadyexists" in lower.replace(" ", "") and words[0] == "create":
            raise ConflictError("Another process has submitted this attempt.", remedy="Look at `jobs ls`.")
        if any(text in lower for text in _LOST):
            raise ConnectionError(message.splitlines()[-1])
        remedy = f"Look at `kubectl {' '.join(words[:2])}`, and at your rights in namespace {self.namespace}."
        if "the server doesn't have a resource type" in lower or "no matches for kind" in lower:
            remedy = "Install KubeRay and its CRDs on this cluster (docs/cluster.md)."
        elif "context" in lower and "does not exist" in lower:
            remedy = "Choose one that `kubectl config get-contexts` lists."
        elif "unauthorized" in lower or "logged in" in lower:
            remedy = "Log in to the cluster again, such as aws eks update-kubeconfig."
        raise JobError(f"{self.option}: {message.splitlines()[-1][:500]}", remedy=remedy)


def open_kubernetes(option: str, *, kube: Path | None = None) -> KubernetesCluster:
    """Return the namespace that ``kuberay:CONTEXT/NAMESPACE`` names; JobError if kubectl is missing."""
    context, namespace = parse_option(option)
    if shutil.which("kubectl") is None:
        raise JobError("kubectl is not installed.", remedy="Install it, and log in to the cluster.")
    return KubernetesCluster(option, context, namespace, kube)


def parse_option(option: str) -> tuple[str, str]:
    """Return context and namespace of ``kuberay:CONTEXT/NAMESPACE``; the context may be empty."""
    context, _, namespace = option.removeprefix("kuberay:").rpartition("/")  # names of EKS contexts contain slashes
    if OPTION.fullmatch(f"kuberay:/{namespace}") is None or not option.startswith("kuberay:"):
        raise JobError(
            f"--cluster {option}: not kuberay:CONTEXT/NAMESPACE.",
            remedy="For example kuberay:my-cluster/cytoray; kuberay:/cytoray is kubectl's current context.",
        )
    return context, namespace


def _record(rayjob: dict[str, Any]) -> JobRecord:
    """Return the record of a RayJob."""
    metadata, status = rayjob["metadata"], rayjob.get("status") or {}
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    message = str(status.get("message") or status.get("reason") or "")
    return JobRecord(
        id=metadata["name"],
        name=labels[NAME_LABEL],
        attempt=int(labels.get(ATTEMPT_LABEL, "1")),
        job=labels.get(JOB_LABEL, "").replace("-", "_"),
        stage=notes.get(STAGE, ""),
        status=_status(status),
        started_s=_seconds(status.get("startTime")),
        ended_s=_seconds(status.get("endTime")),
        driver_code=_exit_code(message),
        message=message,
        config=notes.get(CONFIG, ""),
        settings=json.loads(notes.get(SETTINGS, "{}")),
        environment=json.loads(notes.get(ENVIRONMENT, "{}")),
        program=notes.get(PROGRAM, ""),
    )


def _status(status: dict[str, Any]) -> Status:
    """Return the status of a RayJob; one that Kueue has not admitted yet, or suspended for another, is pending."""
    deployment = status.get("jobDeploymentStatus", "")
    if deployment == "Complete":
        return _COMPLETE.get(status.get("jobStatus", ""), "failed")
    return _STATUS.get(deployment, "pending")


def _seconds(date: str | None) -> float | None:
    return datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp() if date else None


def _exit_code(message: str) -> int | None:
    """Return the exit code of the job's process, which KubeRay knows by the message of Ray only."""
    match = re.search(r"exit code (-?[0-9]+)", message)
    return int(match[1]) if match else None
