"""Ray's token, chosen in time, and a user's mistake dug out of what Ray wraps around it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from cytoray.cluster import connected, user_error
from cytoray.errors import CorpusError

RAY_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")


def prepare_in(environment: dict[str, str], *, before: str = "") -> subprocess.CompletedProcess[str]:
    """Call prepare_auth in a fresh process; it prints the Ray variables it then has."""
    code = f"""{before}
import json, os
from cytoray.cluster import prepare_auth
prepare_auth()
prepare_auth()
print(json.dumps({{name: os.environ[name] for name in {RAY_VARIABLES} if name in os.environ}}))
"""
    clean = {name: value for name, value in os.environ.items() if name not in RAY_VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment, timeout=280
    )


def variables_after(environment: dict[str, str], *, before: str = "") -> dict[str, str]:
    finished = prepare_in(environment, before=before)
    assert finished.returncode == 0, finished.stderr
    result: dict[str, str] = json.loads(finished.stdout)
    return result


def test_without_any_token_a_new_secret_one_is_made():
    tokens = []
    for _ in range(2):
        variables = variables_after({})
        assert variables.keys() == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
        assert variables["RAY_AUTH_MODE"] == "token"
        assert re.fullmatch("[0-9a-f]{64}", variables["RAY_AUTH_TOKEN"])
        tokens.append(variables["RAY_AUTH_TOKEN"])
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize(
    "environment",
    [
        {"RAY_AUTH_TOKEN": "mine"},
        {"RAY_AUTH_TOKEN_PATH": "/somewhere/token"},
        {"RAY_ADDRESS": "10.0.0.1:6379"},
        {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"},
        {"RAY_AUTH_MODE": "disabled"},
    ],
)
def test_what_the_user_or_the_cluster_has_chosen_stays(environment: dict[str, str]):
    assert variables_after(environment) == {"RAY_AUTH_MODE": "token"} | environment


def test_too_late_is_refused_rather_than_run_open():
    finished = prepare_in({}, before="import ray")
    assert finished.returncode != 0
    assert "CytorayError: Ray was imported before its authentication was chosen" in finished.stderr
    assert "prepare_auth()" in finished.stderr
    chosen = variables_after({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}, before="import ray")
    assert chosen == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}


MISTAKE = CorpusError("No gene matches.", remedy="Name the gene column.", uri="s3://b/x.h5ad")


def chained(cause: BaseException) -> Exception:
    try:
        raise RuntimeError("the pool has failed") from cause
    except RuntimeError as error:
        return error


def in_task(cause: Exception) -> Exception:
    """What ray.get raises for a task that raised ``cause``: an error that claims to be of that class too."""
    wrapped: Exception = RayTaskError("check_rows", "Traceback …", cause).as_instanceof_cause()
    return wrapped


WRAPPED = {
    "bare": MISTAKE,
    "chained": chained(MISTAKE),
    "task": in_task(MISTAKE),
    "task without the class": RayTaskError("check_rows", "Traceback …", MISTAKE),
    "task in task": in_task(in_task(MISTAKE)),
    "task of a chain": in_task(chained(MISTAKE)),
    "worker": WorkerGroupError("worker 1 failed", {0: RuntimeError("told to stop"), 1: MISTAKE}),
    "task in worker": WorkerGroupError("worker 1 failed", {1: in_task(MISTAKE)}),
    "controller": ControllerError(in_task(MISTAKE)),
    "everything": chained(in_task(WorkerGroupError("failed", {3: chained(in_task(MISTAKE))}))),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_users_mistake_is_found_in_every_wrapper(name: str):
    found = user_error(WRAPPED[name])
    assert type(found) is CorpusError
    assert (found.problem, found.remedy, found.details) == (MISTAKE.problem, MISTAKE.remedy, MISTAKE.details)


def test_a_mistake_met_while_handling_another_error_is_found():
    error = KeyError("clean-up failed")
    error.__context__ = MISTAKE
    assert user_error(error) is MISTAKE


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), in_task(ValueError("a bug")), chained(chained(OSError("disk")))]
)
def test_an_error_that_is_nobodys_mistake_is_none(error: Exception):
    assert user_error(error) is None


def test_errors_that_cause_each_other_end():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert user_error(first) is None


def test_a_ray_that_the_caller_started_is_used_and_left_running(ray_cluster: None):
    import ray

    node = ray.get_runtime_context().get_node_id()
    with connected(num_cpus=1):
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized()
