"""An alias that moves, also to models that must not serve, while MLflow and the store of artifacts come and go."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest
from chaos_cells import Oracle
from chaos_head import NUM_REPLICAS, REPLICA, Service, scaled, wait_until
from chaos_load import Load
from chaos_registry import BROKEN_VERSIONS, CHAMPION, NAME, WEIGHTS, Registry, store_client
from fault_proxy import Fault, FaultProxy

SWAPS, VERSIONS = "cytoray_swaps_total", "cytoray_model_version_info"
POLL_S = 1.0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str, store: FaultProxy) -> Iterator[Registry]:
    """The registry, with the versions 1 and 2."""
    found = Registry(tmp_path_factory.mktemp("registry"), store_client(s3_endpoint))
    try:
        found.start()
        for seed in (1, 2):
            found.add(seed=seed)
        found.promote("1")
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def versions(registry: Registry) -> Oracle:
    """What both answer."""
    found = Oracle()
    for version in ("1", "2"):
        found.learn(version, registry.folder / version)
    return found


@pytest.fixture(scope="module")
def followed(shared: Any, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """On the shared head, a service that follows the alias."""
    config = copy.deepcopy(shared.service.config)
    config["applications"][0]["args"] |= {
        "model_uri": f"models:/{NAME}@{CHAMPION}",
        "tracking": registry.tracking.model_dump(mode="json"),
        "rollout": {"poll_s": POLL_S},
    }
    found = Service(shared.head, config, tmp_path_factory.mktemp("followed"))
    found.deploy()
    found.wait_for_replicas(NUM_REPLICAS)
    return found


def serving(service: Service) -> dict[str, float]:
    """Return the number of replicas that serve each version."""
    found: dict[str, float] = {}
    for labels, count in service.figures(VERSIONS).items():
        named = dict(part.split("=", 1) for part in labels.split(","))
        if named["role"] == '"serving"':
            version = named["version"].strip('"')
            found[version] = found.get(version, 0) + count
    return found


def wait_for_version(service: Service, version: str) -> float:
    """Wait until all replicas serve a version; returns the seconds that it took."""
    start = time.monotonic()
    wait_until(lambda: serving(service) == {version: NUM_REPLICAS}, f"all replicas serve version {version}")
    return time.monotonic() - start


def refusals(service: Service) -> float:
    """Return how often a version was not taken."""
    good = ('result="swapped"', 'result="rolled_back"')
    return sum(value for labels, value in service.figures(SWAPS).items() if not any(one in labels for one in good))


@pytest.fixture
def ready(followed: Service, registry: Registry, store: FaultProxy) -> Iterator[Service]:
    """All replicas serve version 1, before and after the test."""
    yield followed
    store.set_plan()
    registry.promote("1")
    wait_for_version(followed, "1")


def test_s8_the_alias_moves_back_and_forth(ready: Service, registry: Registry, versions: Oracle, outcome: Any) -> None:
    seconds: list[float] = []
    with Load(ready.url, versions) as traffic:
        traffic.wait_for(20)
        for number in range(scaled(3)):
            version = "21"[number % 2]
            registry.promote(version)
            seconds.append(wait_for_version(ready, version))
            traffic.wait_for(50)
    outcome("S8 the alias moves (seen by polling)", len(seconds), traffic, recovery_s=seconds)
    assert set(traffic.summary.versions) == {"1", "2"}
    assert traffic.failures == []


@pytest.mark.parametrize("kind", BROKEN_VERSIONS)
def test_s9_a_broken_champion_never_serves(
    ready: Service, registry: Registry, versions: Oracle, outcome: Any, kind: str
) -> None:
    broken = BROKEN_VERSIONS[kind](registry, 100 + list(BROKEN_VERSIONS).index(kind))
    before = refusals(ready)
    with Load(ready.url, versions, concurrency=2) as traffic:
        traffic.wait_for(10)
        registry.promote(broken)
        wait_until(lambda: refusals(ready) >= before + NUM_REPLICAS, "all replicas have refused the version")
        traffic.wait_for(20)
    outcome(f"S9 champion: {kind}", int(refusals(ready) - before), traffic)
    assert set(traffic.summary.versions) == {"1"}
    assert traffic.failures == []
    assert not (registry.folder / "unpickled").exists()


def test_s9_while_a_champion_loads_for_long_the_one_before_serves(
    ready: Service, registry: Registry, versions: Oracle, store: FaultProxy, outcome: Any
) -> None:
    slow = registry.add(seed=300)
    versions.learn(slow, registry.folder / slow)
    store.set_plan(Fault("slow", key=WEIGHTS, n=100, chunk=1024, delay=0.2))
    with Load(ready.url, versions, concurrency=2) as traffic:
        traffic.wait_for(10)
        registry.promote(slow)
        seconds = wait_for_version(ready, slow)
        traffic.wait_for(20)
    outcome("S9 champion: loads for long", store.fired(), traffic, recovery_s=[seconds])
    assert set(traffic.summary.versions) == {"1", slow}
    assert traffic.failures == []


def test_s10_mlflow_is_away(ready: Service, registry: Registry, versions: Oracle, outcome: Any) -> None:
    """During a swap, for a while, and while a replica starts."""
    with Load(ready.url, versions, concurrency=2) as traffic:
        traffic.wait_for(10)
        registry.promote("2")
        registry.stop()
        victim = ready.head.find(REPLICA)[0]
        victim.kill()
        away = ready.wait_for_replicas(NUM_REPLICAS, without={victim.pid})
        traffic.wait_for(50)
        registry.start()
        seconds = wait_for_version(ready, "2")
        traffic.wait_for(20)
    outcome("S10 MLflow is away, and a replica starts", 2, traffic, recovery_s=[seconds], away_s=away)
    assert traffic.failures == []


FAULTS = {
    "503": Fault("status", key=WEIGHTS, n=6),
    "reset": Fault("reset", key=WEIGHTS, n=3),
    "truncated": Fault("partial", key=WEIGHTS, n=3),
    "flipped bit": Fault("flip", key=WEIGHTS, n=2),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_s11_the_store_of_artifacts_fails(
    ready: Service, registry: Registry, versions: Oracle, store: FaultProxy, outcome: Any, kind: str
) -> None:
    """The version comes as soon as it can be read whole."""
    version = registry.add(seed=400 + list(FAULTS).index(kind))
    versions.learn(version, registry.folder / version)
    store.set_plan(FAULTS[kind])
    with Load(ready.url, versions, concurrency=2) as traffic:
        traffic.wait_for(10)
        registry.promote(version)
        seconds = wait_for_version(ready, version)
        traffic.wait_for(20)
    outcome(f"S11 store of artifacts: {kind}", store.fired(), traffic, recovery_s=[seconds])
    assert set(traffic.summary.versions) == {"1", version}
    assert traffic.failures == []
