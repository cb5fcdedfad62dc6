"""Nodes and heads that end, and a service that is asked to."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from chaos_cells import Oracle
from chaos_head import (
    Service,
    fill_in,
    free_port,
    head_environment,
    joined_node,
    scratch_folder,
    started_head,
    wait_until,
)
from chaos_load import AWAY, BROKEN, Load
from processes import end_all, started

from cytoray.serving.config import AppArgs

CLI = [sys.executable, "-c", "from cytoray.cli import main; main()"]


@dataclass
class Cluster:
    """A service on a head without CPUs, whose replicas are on the other nodes."""

    service: Service
    stack: ExitStack
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes: a head, and two with a replica each."""
    folder = tmp_path_factory.mktemp("cluster")
    config = fill_in({"model_uri": str(models / "1"), "num_cpus": 1.0}, folder)
    environment = head_environment(AppArgs.model_validate(config["applications"][0]["args"]))
    with ExitStack() as stack:
        environment["RAY_TMPDIR"] = str(stack.enter_context(scratch_folder()))
        head = stack.enter_context(started_head(environment, num_cpus=0))
        for _ in range(2):
            stack.enter_context(joined_node(head, num_cpus=1))
        service = Service(head, config, folder)
        service.deploy()
        yield Cluster(service, stack, environment)


def test_s6_the_replicas_of_a_lost_node_are_made_up_for(cluster: Cluster, load: Any, outcome: Any) -> None:
    service = cluster.service
    with load(service) as traffic:
        traffic.wait_for(50)
        lost = set(service.head.running_replicas())
        end_all(service.head.nodes[0])
        lost -= {process.pid for process in service.head.find("ray::ServeReplica")}
        traffic.wait_for(100)  # the other node answers
        start = time.monotonic()
        cluster.stack.enter_context(joined_node(service.head, num_cpus=1))
        service.wait_for_replicas(2, without=lost)
        recovery = time.monotonic() - start
        traffic.wait_for(50)
    outcome("S6 SIGKILL of a node of three", len(lost), traffic, recovery_s=[recovery])
    assert traffic.failures == []


def test_s7_without_its_head_a_cluster_has_to_be_started_again(cluster: Cluster, load: Any, outcome: Any) -> None:
    """The HTTP server is on the head: all requests fail until a new head has deployed the service."""
    service = cluster.service
    with load(service, rate=10.0) as traffic:
        traffic.wait_for(20)
        start = time.monotonic()
        end_all(service.head.process, *service.head.nodes)
        with started_head(cluster.environment, num_cpus=2) as head:
            again = Service(head, service.config, service.folder)
            again.deploy()
            outage = time.monotonic() - start
            traffic.wait_for(20)
            traffic.stop()
    outcome("S7 the head ends, and is started again", 1, traffic, recovery_s=[outage], away_s=traffic.longest_gap())
    assert traffic.summary.wrong == 0
    starting = {(503, "model_not_ready")}  # the HTTP server of the new head is there before its replicas
    assert {(record.status, record.code) for record in traffic.failures} <= AWAY | starting
    assert [record for record in traffic.failures if record.start > start], "it was never away"


def test_s21_a_service_that_is_stopped_answers_what_it_has_taken(
    models: Path, oracle: Oracle, tmp_path: Path, outcome: Any
) -> None:
    port = free_port()
    config = {"kind": "serve", "model_uri": str(models / "1"), "port": port, "num_cpus": 0.5}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config | {"max_replicas": 1, "start_timeout_s": 240}))
    words = [*CLI, "serve", "--config", str(tmp_path / "serve.yaml")]
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        output = stack.enter_context((tmp_path / "out").open("w"))
        environment = {**os.environ, "RAY_TMPDIR": str(scratch)}
        service = stack.enter_context(started(words, env=environment, stdout=output, stderr=output))
        wait_until(lambda: "Serving" in (tmp_path / "out").read_text() or service.poll(), "the service is up")
        with Load(f"http://127.0.0.1:{port}", oracle, concurrency=8) as traffic:
            traffic.wait_for(100)
            service.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            code = service.wait(120)
            traffic.stop()
    taken = [record for record in traffic.records if record.start < asked]
    late = [record for record in traffic.records if record.start >= asked and not record.is_good]
    in_flight = [record for record in taken if record.start + record.seconds >= asked]
    outcome("S21 SIGTERM under load", len(in_flight), traffic, seconds_to_end=time.monotonic() - asked)
    assert code == 0
    assert [record for record in taken if not record.is_good] == []
    assert traffic.summary.wrong == 0
    refused = {(record.status, record.code) for record in late}
    assert refused <= BROKEN | {(503, "draining")}
