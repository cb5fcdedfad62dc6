"""The processes of a running service, HTTP servers and replicas: collect their metrics, notify, and close gates."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE, SERVE_PROXY_NAME
from ray.util import list_named_actors

from cytoray.serving.edge.gate import close_gate
from cytoray.serving.edge.metrics import REGISTRY, ProcessMetrics, collect
from cytoray.serving.rollout.notice import poke_followers

APP_NAME = "cytoray"
REPLICA_PREFIX = f"SERVE_REPLICA::{APP_NAME}#"
SCRAPE_TIMEOUT_S = 2.0


async def gather_metrics() -> list[ProcessMetrics]:
    """Collect the metrics of all processes; one that does not answer in time is left out of this scrape."""
    servers, replicas = await asyncio.to_thread(find_processes)
    return [
        found
        for found in await asyncio.gather(*(_collect(name, actor) for name, actor in (servers | replicas).items()))
        if found is not None
    ]


async def notify_all(name: str) -> None:
    """Have all replicas look at the aliases of the registered model ``name``; one that does not answer is left out."""
    _, replicas = await asyncio.to_thread(find_processes)
    await asyncio.gather(*(_notify(actor, name) for actor in replicas.values()))


def close_gates() -> int:
    """Refuse new requests everywhere; returns the number of requests in flight.

    The HTTP servers refuse if they have an edge, so that requests which wait there for a replica are still answered;
    otherwise the replicas do.
    """
    servers, replicas = find_processes()
    counts = _close(servers)
    return sum(_close(replicas)) if len(counts) < len(servers) else sum(counts)


def find_processes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the actors that are Serve's HTTP servers, and those that are replicas of the service, by name."""
    found = [each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == SERVE_NAMESPACE]
    actors: dict[str, Any] = {}
    for name in found:
        if name.startswith((SERVE_PROXY_NAME, REPLICA_PREFIX)):
            try:
                actors[name] = ray.get_actor(name, namespace=SERVE_NAMESPACE)
            except ValueError:  # it has just ended
                continue
    servers = {name: actor for name, actor in actors.items() if name.startswith(SERVE_PROXY_NAME)}
    return servers, {name: actor for name, actor in actors.items() if name not in servers}


async def _collect(name: str, actor: Any) -> ProcessMetrics | None:
    """Collect the metrics of one process; None if it has ended, does not answer, or has no cytoray."""
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_S):
            found: ProcessMetrics = await actor.__ray_call__.remote(_collect_there, name.rpartition("#")[2])
            return found
    except (RayError, TimeoutError):
        return None


async def _notify(actor: Any, name: str) -> None:
    with contextlib.suppress(RayError, TimeoutError):
        async with asyncio.timeout(SCRAPE_TIMEOUT_S):
            await actor.__ray_call__.remote(_notify_there, name)


def _notify_there(_actor: object, name: str) -> int:
    return poke_followers(name)


def _collect_there(_actor: object, process: str) -> ProcessMetrics:
    return collect(REGISTRY, process=process)


def _close(actors: dict[str, Any]) -> list[int]:
    """Close the gates of processes; returns the number of requests in flight of each that has a gate."""
    counts: list[int] = []
    for actor in actors.values():
        try:
            count = ray.get(actor.__ray_call__.remote(close_gate), timeout=SCRAPE_TIMEOUT_S)
        except (RayError, TimeoutError):  # it has ended, or has no cytoray
            continue
        counts += [] if count is None else [count]
    return counts
