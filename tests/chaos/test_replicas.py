"""Replicas that die, hang, come and go, while others answer."""

from __future__ import annotations

import copy
import time
from typing import Any

import psutil
from chaos_head import CONTROLLER, NUM_REPLICAS, PROXY, REPLICA, Service, scaled, wait_until
from chaos_load import AWAY

RETRIES = "cytoray_retries_total"


def test_s1_killed_replicas_lose_nothing(healthy: Service, load: Any, outcome: Any) -> None:
    recovery: list[float] = []
    before = healthy.figure(RETRIES)
    with load(healthy) as traffic:
        traffic.wait_for(50)
        for _ in range(scaled(2)):
            victim = healthy.head.find(REPLICA)[0]
            victim.kill()
            recovery.append(healthy.wait_for_replicas(NUM_REPLICAS, without={victim.pid}))
            traffic.wait_for(scaled(100))
    retried = healthy.figure(RETRIES) - before
    outcome("S1 SIGKILL of a replica", len(recovery), traffic, recovery_s=recovery, retries=retried)
    assert traffic.failures == []


def test_s2_a_replica_that_hangs_is_replaced_and_its_requests_are_answered(
    healthy: Service, load: Any, outcome: Any
) -> None:
    with load(healthy) as traffic:
        traffic.wait_for(50)
        victim = healthy.head.find(REPLICA)[0]
        victim.suspend()
        recovery = healthy.wait_for_replicas(NUM_REPLICAS, without={victim.pid})
        gone = psutil.wait_procs([victim], timeout=60)[0]
        traffic.wait_for(100)
    outcome("S2 SIGSTOP of a replica", 1, traffic, recovery_s=[recovery], killed=len(gone))
    assert traffic.failures == []


def test_s3_s4_a_killed_http_server_comes_back(healthy: Service, load: Any, outcome: Any) -> None:
    """A request whose connection breaks is the client's to repeat: none fails with the bundled one."""
    recovery: list[float] = []
    with load(healthy, concurrency=4, with_client=True) as clients, load(healthy, rate=20.0) as plain:
        clients.wait_for(20)
        for _ in range(scaled(2)):
            victim = healthy.head.find(PROXY)[0]
            start = time.monotonic()
            victim.kill()
            wait_until(lambda old=victim.pid: any(each.pid != old for each in healthy.head.find(PROXY)), "a new one")
            plain.wait_for(20)
            recovery.append(time.monotonic() - start)
            clients.wait_for(20)
    outcome("S4 SIGKILL of the HTTP server (client)", len(recovery), clients, recovery_s=recovery)
    outcome("S4 SIGKILL of the HTTP server (no client)", len(recovery), plain, away_s=plain.longest_gap())
    assert clients.failures == []
    assert plain.summary.wrong == 0
    # Only connections break, and only while there is no server.
    assert {(record.status, record.code) for record in plain.failures} <= AWAY


def test_s5_a_replica_dies_while_the_controller_is_down(healthy: Service, load: Any, outcome: Any) -> None:
    recovery: list[float] = []
    with load(healthy) as traffic:
        traffic.wait_for(50)
        for _ in range(scaled(1)):
            controller, victim = healthy.head.find(CONTROLLER)[0], healthy.head.find(REPLICA)[0]
            start = time.monotonic()
            controller.kill()
            victim.kill()
            wait_until(lambda old=controller.pid: [p for p in healthy.head.find(CONTROLLER) if p.pid != old], "another")
            healthy.wait_for_replicas(NUM_REPLICAS, without={victim.pid})
            recovery.append(time.monotonic() - start)
            traffic.wait_for(scaled(100))
    outcome("S5 SIGKILL of the controller, then of a replica", 2 * len(recovery), traffic, recovery_s=recovery)
    assert traffic.failures == []


def test_s12_scaling_up_and_down_under_load(healthy: Service, load: Any, outcome: Any) -> None:
    before = set(healthy.head.running_replicas())
    seconds: list[float] = []
    stayed: set[int] = set()
    with load(healthy) as traffic:
        traffic.wait_for(50)
        for number in (4, 1, NUM_REPLICAS):
            config = copy.deepcopy(healthy.config)
            scaling = {"min_replicas": number, "max_replicas": number}
            config["applications"][0]["deployments"] = [{"name": "CellDeployment", "autoscaling_config": scaling}]
            healthy.head.put(config)
            seconds.append(healthy.wait_for_replicas(number))
            if number > NUM_REPLICAS:
                stayed = before & set(healthy.head.running_replicas())
            traffic.wait_for(100)
    outcome("S12 2 -> 4 -> 1 -> 2 replicas", len(seconds), traffic, recovery_s=seconds, stayed=len(stayed))
    assert traffic.failures == []
    assert stayed == before, "scaling up replaced replicas"  # which ones scaling down stops is Serve's choice


def test_updates_lose_nothing(healthy: Service, load: Any, outcome: Any) -> None:
    seconds: list[float] = []
    with load(healthy) as traffic:
        traffic.wait_for(50)
        for number in range(scaled(1)):
            old = set(healthy.head.running_replicas())
            healthy.args["batching"]["max_wait_s"] = 1.0 + (number + 1) / 1000
            start = time.monotonic()
            healthy.deploy()
            healthy.wait_for_replicas(NUM_REPLICAS, without=old)
            seconds.append(time.monotonic() - start)
            traffic.wait_for(100)
    outcome("S12 `serve deploy` of changed args (surge)", len(seconds), traffic, recovery_s=seconds)
    assert traffic.failures == []
