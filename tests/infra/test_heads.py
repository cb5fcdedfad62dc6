"""What docs/cluster.md says of a lost head and of another token, tried with Ray and Redis on this machine.

A head is killed and started again on its port: with Redis the cluster goes on, without it everything in it is lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chaos_head import (
    BINARIES,
    ROOT,
    Head,
    free_port,
    joined_node,
    live_nodes,
    scratch_folder,
    started_head,
    wait_until,
)
from processes import end_all
from redis_server import PASSWORD, redis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STATE = ROOT / "tests" / "helpers" / "head_state.py"
TOKENS = ("a" * 64, "b" * 64)
NODES_WAIT_S = "600"  # as KubeRay sets it for workers; Ray's default is a minute


@contextmanager
def environment(**more: str) -> Iterator[dict[str, str]]:
    """The environment of a cluster with a scratch folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "REDIS_"))}
    kept |= {"PATH": f"{BINARIES}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    kept |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKENS[0]}
    kept |= {"RAY_raylet_start_wait_time_s": "300", "RAY_gcs_rpc_server_reconnect_timeout_s": NODES_WAIT_S}
    with scratch_folder() as folder:
        yield kept | {"RAY_TMPDIR": str(folder)} | more


def state(head: Head, verb: str) -> list[str]:
    """Make or read the counter by a process of its own."""
    words = [sys.executable, str(STATE), verb, head.gcs]
    done = subprocess.run(words, env=head.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:] + head.log()
    return done.stdout.partition("FOUND ")[2].split()


def jobs(head: Head) -> dict[str, str]:
    """The jobs that the head knows, with their states."""
    answer = httpx.get(f"{head.dashboard}/api/jobs/", headers=head.token, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return {job["submission_id"]: job["status"] for job in answer.json() if job["submission_id"]}


def submit(head: Head, name: str, code: str) -> None:
    """Submit a job whose driver is on the head."""
    body: dict[str, Any] = {"entrypoint": f"{sys.executable} -c '{code}'", "submission_id": name}
    answer = httpx.post(f"{head.dashboard}/api/jobs/", json=body, headers=head.token, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text


def port_of(head: Head) -> int:
    return int(head.gcs.rpartition(":")[2])


@pytest.mark.parametrize("with_redis", [True, False], ids=["redis", "no-redis"])
def test_what_is_left_after_the_head_was_killed(tmp_path: Path, with_redis: bool) -> None:
    with ExitStack() as stack:
        more, options = {}, []
        if with_redis:
            port = free_port()
            stack.enter_context(redis(tmp_path, port))
            more, options = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}"}, [f"--redis-password={PASSWORD}"]
        settings = stack.enter_context(environment(**more))
        head = stack.enter_context(started_head(settings, num_cpus=0, more=options))
        node = stack.enter_context(joined_node(head, num_cpus=1))
        before = state(head, "make")
        assert before[1] == "3"
        submit(head, "ended", "print(1)")
        wait_until(lambda: jobs(head)["ended"] == "SUCCEEDED", "the job has ended")
        submit(head, "interrupted", "import time; time.sleep(3600)")
        wait_until(lambda: jobs(head)["interrupted"] == "RUNNING", "the other job runs")

        end_all(head.process)
        assert node.poll() is None, "the other node waits for a head"
        # Another machine has no such file; here Ray would take the node that is left for the head's.
        (Path(settings["RAY_TMPDIR"]) / "ray" / "ray_current_cluster").unlink()
        again = stack.enter_context(started_head(settings, num_cpus=0, port=port_of(head), more=options))
        if with_redis:
            wait_until(lambda: len(live_nodes(again)) == 2, "the node is back in the cluster")
            assert state(again, "read") == before, "the same process has kept its count"
            wait_until(lambda: jobs(again) == {"ended": "SUCCEEDED", "interrupted": "FAILED"}, "jobs are known")
        else:
            assert state(again, "read") == ["gone"]
            assert jobs(again) == {}
            wait_until(lambda: node.poll() is not None, "the node of the cluster before has ended")
            assert len(live_nodes(again)) == 1


def asked(head: Head, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(f"{head.dashboard}/api/jobs/", headers=headers, timeout=60, trust_env=False).status_code


def test_a_token_is_rotated_by_starting_the_cluster_again(tmp_path: Path) -> None:
    """A file that is replaced changes nothing in a cluster that runs; another start takes the other token only."""
    old, new = TOKENS
    with environment() as settings:
        del settings["RAY_AUTH_TOKEN"]
        file = tmp_path / "token"
        file.write_text(old)
        settings["RAY_AUTH_TOKEN_PATH"] = str(file)
        with started_head(settings, num_cpus=0) as head:
            assert (asked(head, old), asked(head, new), asked(head, None)) == (200, 403, 401)
            file.write_text(new)
            assert (asked(head, old), asked(head, new)) == (200, 403), "it has one token for its life"
            words = [str(BINARIES / "ray"), "start", f"--address={head.gcs}", "--num-cpus=1", "--block"]
            done = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=300)
            assert done.returncode != 0, "a node that starts with the new token cannot join"
            port = port_of(head)
        with started_head(settings, num_cpus=0, port=port) as head, joined_node(head, num_cpus=1):
            assert (asked(head, old), asked(head, new)) == (403, 200)
            assert state(head, "make")[1] == "3", "the other node works"
