"""RayJobs of `cytoray jobs`: valid by KubeRay's own schema, confined, and spoken to by kubectl (an imitation of it)."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_schema import kuberay_schemas
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.config import build_config, load_config
from cytoray.errors import JobError
from cytoray.operations.jobs.following import follow
from cytoray.operations.jobs.kube_config import KubeConfig, count_workers
from cytoray.operations.jobs.kubernetes import open_kubernetes, parse_option
from cytoray.operations.jobs.rayjob import build_objects
from cytoray.operations.jobs.records import find_job_record
from cytoray.operations.jobs.request import JobRequest, build_request
from cytoray.operations.jobs.stopping import stop_and_wait
from cytoray.operations.jobs.submitting import retry, submit

ROOT = Path(__file__).parents[2]
PLACES = [
    "store=s3://cells/store",
    "tracking.uri=http://mlflow:5000",
    "tracking.artifact_location=s3://cells/mlflow",
    "tracking.journal_folder=/data/journal",
]
PRETRAIN = ROOT / "configs" / "pretrain" / "quickstart.yaml"
# Objects lie in STATE as JSON; it answers as kubectl 1.32 does for the commands that are used.
KUBECTL = """#!{python}
import json, os, pathlib, sys, yaml
state = pathlib.Path({state!r})
words = sys.argv[1:]
with (state / "log").open("a") as log:
    log.write(json.dumps(words) + "\\n")
assert words[:4] == ["--context", "ctx", "--namespace", "cytoray"], words
words = [word for word in words[4:] if not word.startswith("--request-timeout")]
def path(name): return state / f"{{name}}.json"
def fail(message): print(message, file=sys.stderr); sys.exit(1)
match words:
    case ["create", "-f", "-"]:
        for each in yaml.safe_load_all(sys.stdin):
            if each["kind"] == "RayJob":
                name = each["metadata"]["name"]
                if path(name).exists():
                    fail(f'Error from server (AlreadyExists): rayjobs.ray.io "{{name}}" already exists')
                path(name).write_text(json.dumps(each))
    case ["get", "rayjobs.ray.io", "-l", "cytoray/name", "-o", "json"]:
        if (state / "down").exists():
            fail("Unable to connect to the server: dial tcp 10.0.0.1:443: i/o timeout")
        print(json.dumps({{"items": [json.loads(file.read_text()) for file in sorted(state.glob("*.json"))]}}))
    case ["get", "rayjobs.ray.io", name, "-o", "json"]:
        print(path(name).read_text())
    case ["get", "pods", "-l", selector, "-o", "name"]:
        print("pod/head")
    case ["logs", *_, name]:
        file = state / (name.removeprefix("job/") + ".log")
        if not file.exists():
            fail(f'Error from server (NotFound): jobs.batch "{{name}}" not found')
        text = file.read_text()
        if "-f" in words and not (state / "cut").exists():  # the first connection breaks in the middle
            (state / "cut").touch()
            text = text[: len(text) // 2]
        sys.stdout.write(text)
    case ["exec", "pod/head", "-c", "ray-head", "--", "ray", "job", "stop", "--no-wait", id]:
        for file in state.glob("*.json"):
            each = json.loads(file.read_text())
            if each["status"]["jobId"] == id:
                each["status"] |= {{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}}
                file.write_text(json.dumps(each))
    case ["delete", "rayjobs.ray.io", name, "--wait=false"]:
        path(name).unlink()
    case _:
        fail(f"unexpected {{words}}")
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the imitation's objects, with the imitation first on the path."""
    folder = tmp_path / "state"
    folder.mkdir()
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, state=str(folder)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    return folder


def request(*overrides: str, name: str = "run") -> JobRequest:
    return build_request(PRETRAIN, name=name, overrides=[*PLACES, *overrides])


def put_status(state: Path, id_: str, **status: Any) -> None:
    """What KubeRay would write."""
    file = state / f"{id_}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": status}))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["queue=null", "workers=3", "head.gpus=1"],
        ["worker.gpus=1", "worker.tolerations=[{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]"],
    ],
)
def test_the_objects_are_valid_by_the_schemas_of_kuberay(overrides: list[str]):
    kube = build_config(KubeConfig, overrides=["image=registry/cytoray:1", *overrides])
    for each in build_objects(request(), kube, attempt=2):
        assert kuberay_schemas().problems(yaml.safe_load(yaml.safe_dump(each))) == []


def test_every_pod_is_restricted_and_no_secret_is_in_the_objects():
    kube = load_config(KubeConfig, ROOT / "configs" / "kuberay.yaml")
    config_map, rayjob = build_objects(request(), kube)
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [
        spec["submitterPodTemplate"],
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    assert len(pods) == 3
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["rayVersion"] == "2.60.0"
    assert yaml.safe_load(config_map["data"]["job.yaml"])["kind"] == "pretrain"
    assert spec["entrypoint"] == "python -m jobs.pretrain --config /etc/cytoray/job.yaml"
    assert "password" not in re.sub(r'"key": "password"|MLFLOW_TRACKING_PASSWORD', "", json.dumps(rayjob))


def test_workers_follow_the_configuration():
    kube = build_config(KubeConfig, overrides=["image=i", "worker.cpus=4"])
    cpu = request("workers.num_workers=6", "workers.threads_per_worker=2", "train.cells_per_step=64").config
    assert count_workers(cpu, kube) == 3
    gpu = cpu.model_copy(update={"workers": cpu.workers.model_copy(update={"use_gpu": True})})  # type: ignore[attr-defined]
    assert count_workers(gpu, kube) == 6


def test_a_job_is_created_once_followed_through_a_cut_and_retried(state: Path):
    place = open_kubernetes("kuberay:ctx/cytoray")
    assert submit(place, request()).is_new
    again = submit(place, request())
    assert (again.is_new, again.record.status) == (False, "pending")
    with pytest.raises(JobError, match=r"train\.num_steps"):
        submit(place, request("train.num_steps=3"))

    times = {"startTime": "2026-11-29T10:00:00Z", "endTime": "2026-11-29T10:01:40Z"}
    lines = "".join(f"line {number}\n" for number in range(100))
    (state / "run.log").write_text(lines)
    put_status(state, "run", jobDeploymentStatus="Running", jobStatus="RUNNING", **times)
    seen: list[str] = []

    def write(text: str) -> None:
        seen.append(text)
        message = "Job entrypoint command failed with exit code 2, last available logs: …"
        if "".join(seen) == lines:
            put_status(state, "run", jobDeploymentStatus="Failed", jobStatus="FAILED", message=message, **times)

    record = follow(place, again.record, write)
    assert "".join(seen) == lines
    assert (state / "cut").exists()
    assert (record.status, record.exit_code, record.duration_s) == ("failed", 2, 100.0)

    second = retry(place, "run", overrides=["train.num_steps=3"]).record
    assert (second.id, second.attempt, second.settings["train.num_steps"]) == ("run-attempt-2", 2, 3)


def test_stopping_asks_the_head_and_deletes_what_has_not_started(state: Path):
    place = open_kubernetes("kuberay:ctx/cytoray")
    waiting = submit(place, request(name="waiting")).record
    assert stop_and_wait(place, waiting).status == "stopped"
    submit(place, request())
    put_status(state, "run", jobDeploymentStatus="Running", jobStatus="RUNNING", jobId="run-x", rayClusterName="c")
    record = stop_and_wait(place, find_job_record(place, "run"))
    assert (record.status, record.exit_code) == ("stopped", 75)
    commands = [json.loads(line) for line in (state / "log").read_text().splitlines()]
    assert any("ray.io/cluster=c,ray.io/node-type=head" in words for words in commands)


def test_a_server_that_is_not_reached_is_waited_for_and_then_named(state: Path):
    place = open_kubernetes("kuberay:ctx/cytoray")
    record = submit(place, request()).record
    (state / "down").touch()
    with pytest.raises(JobError, match="may still run") as caught:
        follow(place, record, print, patience_s=0.0)
    assert "cytoray jobs attach run --cluster kuberay:ctx/cytoray" in caught.value.remedy


def test_clusters_are_named_by_context_and_namespace():
    arn = "arn:aws:eks:eu-west-1:1:cluster/cells"
    assert parse_option(f"kuberay:{arn}/cytoray") == (arn, "cytoray")
    assert parse_option("kuberay:/cytoray") == ("", "cytoray")
    for bad in ("kuberay:", "kuberay:ctx", "kuberay:ctx/", "kuberay:ctx/Name"):
        with pytest.raises(JobError, match="not kuberay:CONTEXT/NAMESPACE"):
            parse_option(bad) if bad != "kuberay:ctx" else parse_option("kuberay:ctx/")


def test_the_command_line_says_what_is_missing(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["jobs", "submit", "pretrain", "--config", str(PRETRAIN), "--cluster", "kuberay:ctx/cytoray", "--no-wait"]
    words += [word for place in PLACES for word in ("--set", place)]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, JobError)
    assert "needs an image" in str(done.exception)
