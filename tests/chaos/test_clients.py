"""Clients that leave, send too much or on purpose the wrong thing, beside others that want an answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import pyarrow as pa
import pytest
from chaos_cells import GENES, Oracle, make_counts
from chaos_head import REPLICA, ROOT, Service, run, scaled, wait_until
from chaos_load import Load
from request_bodies import json_body

MIB = 2**20
IN_FLIGHT, REQUESTS = "cytoray_requests_in_flight", "cytoray_requests_total"
DRIVER = str(ROOT / "tests" / "helpers" / "chaos_driver.py")


def drive(service: Service, action: str, argument: float = 0.0) -> dict[str, int]:
    """Change the service's processes from inside; returns what each reports."""
    environment = service.head.environment | {"RAY_ADDRESS": service.head.gcs}
    found: dict[str, int] = json.loads(run([sys.executable, DRIVER, action, str(argument)], env=environment, cwd=ROOT))
    return found


def memory(service: Service) -> float:
    """Return the resident memory of the replicas in MiB."""
    return sum(process.memory_info().rss for process in service.head.find(REPLICA)) / MIB


def with_status(service: Service, status: int) -> float:
    """Return how many requests have been answered with a status so far."""
    return sum(value for labels, value in service.figures(REQUESTS).items() if f'status="{status}"' in labels)


def test_s13_clients_that_leave_leave_nothing_behind(healthy: Service, load: Any, outcome: Any) -> None:
    port, number = healthy.config["http_options"]["port"], scaled(500)
    body = json_body(GENES, make_counts(200, seed=1))
    head = (
        f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def ask_and_leave(gone: asyncio.Event) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        await writer.drain()
        await gone.wait()
        writer.transport.abort()

    async def all_at_once() -> None:
        gone = asyncio.Event()
        clients = [asyncio.create_task(ask_and_leave(gone)) for _ in range(number)]
        await asyncio.sleep(0)
        while healthy.figure(IN_FLIGHT) < 10 and not all(client.done() for client in clients):
            await asyncio.sleep(0.01)
        gone.set()
        await asyncio.gather(*clients)

    left = with_status(healthy, 499)
    asyncio.run(all_at_once())
    wait_until(lambda: healthy.figure(IN_FLIGHT) <= 2, "nothing is in flight but the scrape itself")
    wait_until(lambda: healthy.figure("cytoray_batcher_queued_cells") == 0, "the queues are empty")
    left = with_status(healthy, 499) - left
    with load(healthy, concurrency=2) as traffic:
        traffic.wait_for(50)
    outcome(f"S13 {number} clients disconnect", int(left), traffic)
    assert traffic.failures == []


def test_s14_overload_is_refused_and_the_rest_is_answered(healthy: Service, outcome: Any) -> None:
    heavy = Oracle([make_counts(400, seed=seed) for seed in range(3)])
    heavy.learn("unregistered", Path(healthy.args["model_uri"]))
    with Load(healthy.url, heavy, concurrency=4) as alone:
        alone.wait_for(scaled(40))
    peak = alone.num_good / (max(r.start + r.seconds for r in alone.records) - min(r.start for r in alone.records))
    before = memory(healthy)
    with Load(healthy.url, heavy, rate=5 * peak) as traffic:
        traffic.wait_for(scaled(80))
    refused = [record for record in traffic.records if record.status != 200]
    slowest = sorted(record.seconds for record in refused)
    goodput = traffic.num_good / (traffic.records[-1].start - traffic.records[0].start)
    outcome(
        "S14 five times the load that it can do", len(refused), traffic, grown_mib=round(memory(healthy) - before),
        goodput_of_peak=round(goodput / peak, 2), refused_p50_ms=round(1000 * slowest[len(slowest) // 2]),
    )  # fmt: skip
    assert traffic.summary.wrong == 0
    assert {(record.status, record.code) for record in refused} <= {(503, "overloaded"), (504, "deadline_exceeded")}
    assert all(int(record.retry_after or 0) >= 1 for record in refused if record.status == 503)
    assert traffic.summary.p99_ms < 1000 * healthy.args["limits"]["deadline_s"]
    assert memory(healthy) - before < 1024


def test_s15_bombs_and_slow_clients_do_not_disturb_others(healthy: Service, load: Any, outcome: Any) -> None:
    port, zeros = healthy.config["http_options"]["port"], bytes(64 * MIB)
    bombs = {
        "gzip": (gzip.compress(zeros, 1), {"Content-Encoding": "gzip"}, 413),
        "zstd": (pa.Codec("zstd").compress(zeros, asbytes=True), {"Content-Encoding": "zstd"}, 413),
        "npz": (b"PK\x03\x04" + os.urandom(1000), {"Content-Type": "application/x-npz"}, 400),
        "h5ad": (b"\x89HDF\r\n\x1a\n" + os.urandom(1000), {"Content-Type": "application/x-h5ad"}, 400),
        "depth": (b"[" * MIB, {}, 400),
    }
    before, late = memory(healthy), with_status(healthy, 408)

    async def trickle() -> bytes:
        """Send the beginning of a body and no more; returns the status line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        answer = await reader.readline()
        writer.close()
        return answer

    async def endless() -> int:
        """Send a body of 1 GiB in chunks; returns the status."""

        async def chunks() -> Any:
            for _ in range(1024):
                yield bytes(MIB)

        async with aiohttp.ClientSession() as session:
            try:
                async with session.post(f"{healthy.url}/v1/embed", data=chunks()) as answer:
                    return answer.status
            except aiohttp.ClientError:  # the connection was closed while it was still sending
                return 413

    async def attack() -> tuple[list[bytes], int]:
        slow = [asyncio.create_task(trickle()) for _ in range(100)]
        return await asyncio.gather(*slow), await endless()

    refused_before = with_status(healthy, 413)
    with load(healthy, concurrency=2) as traffic:
        traffic.wait_for(20)
        for name, (body, headers, status) in bombs.items():
            headers = {"Content-Type": "application/json"} | headers
            answer = httpx.post(f"{healthy.url}/v1/embed", content=body, headers=headers, timeout=60, trust_env=False)
            assert answer.status_code == status, (name, answer.text)
        lines, status = asyncio.run(attack())
        traffic.wait_for(20)
    too_large = with_status(healthy, 413) - refused_before
    late = with_status(healthy, 408) - late
    grown = memory(healthy) - before
    outcome("S15 bombs, 1 GiB, 100 slow clients", int(late + too_large), traffic, grown_mib=round(grown))
    assert (status, too_large) == (413, 3)
    assert {line.split()[1] for line in lines} == {b"408"}
    assert late == 100
    assert traffic.failures == []
    assert grown < 512


def test_s16_poison_fails_alone(healthy: Service, load: Any, outcome: Any) -> None:
    counts = make_counts(3, seed=99)
    counts.data[0] = 99.0
    poisoned = json_body(GENES, counts)
    replicas = set(healthy.head.running_replicas())
    assert sum(drive(healthy, "poison", 99.0).values()) >= len(replicas)
    headers = {"Content-Type": "application/json"}
    try:
        with load(healthy) as traffic:
            traffic.wait_for(20)
            codes = [
                httpx.post(f"{healthy.url}/v1/embed", content=poisoned, headers=headers, timeout=60).status_code
                for _ in range(scaled(20))
            ]
            traffic.wait_for(50)
    finally:
        fired = sum(drive(healthy, "restore").values())
    outcome("S16 a cell that makes the model fail", fired, traffic, requests_with_it=len(codes))
    assert set(codes) == {500}
    assert traffic.failures == []
    assert set(healthy.head.running_replicas()) == replicas


def test_s17_the_clock_may_jump(healthy: Service, load: Any, outcome: Any) -> None:
    fired = 0
    replicas = set(healthy.head.running_replicas())
    with load(healthy) as traffic:
        for seconds in (86_400.0, -86_400.0):
            drive(healthy, "clock", seconds)
            traffic.wait_for(scaled(100))
            fired += sum(drive(healthy, "restore").values())
            traffic.wait_for(50)
    outcome("S17 the clock jumps by a day, and back", fired, traffic)
    assert traffic.failures == []
    assert set(healthy.head.running_replicas()) == replicas


def test_s20_neither_files_nor_threads_are_left(healthy: Service, load: Any, outcome: Any) -> None:
    """Open files and threads are the same after more of the same."""

    def use() -> tuple[int, Load]:
        with load(healthy, concurrency=16) as traffic:
            traffic.wait_for(scaled(300))
        for _ in range(10):
            httpx.post(f"{healthy.url}/v1/embed", content=b"no", timeout=60, trust_env=False)
        return len(traffic.records), traffic

    def count() -> dict[str, int]:
        processes: list[psutil.Process] = [
            each for title in (REPLICA, "ray::ProxyActor") for each in healthy.head.find(title)
        ]
        found = {"files": sum(process.num_fds() for process in processes)}
        return found | {"threads": sum(process.num_threads() for process in processes)}

    use()
    before = count()
    used, traffic = use()
    # Connections are closed when the other side has noticed.
    wait_until(lambda: count()["files"] <= before["files"] + 8, f"as many open files as before, {before}")
    after = count()
    outcome("S20 open files and threads", used, traffic, files=after["files"] - before["files"],
            threads=after["threads"] - before["threads"])  # fmt: skip
    assert traffic.failures == []
    assert after["threads"] <= before["threads"] + 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_s18_a_full_disk_fails_uploads_and_nothing_else(healthy: Service, load: Any, outcome: Any) -> None:
    folder = Path(healthy.args["explorer"]["folder"])
    folder.mkdir(exist_ok=True)
    url, part = f"{healthy.url}/explorer/api/sessions", bytes(MIB)
    asked: dict[str, Any] = {"trust_env": False, "timeout": 60}
    run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder)])
    try:
        with load(healthy, concurrency=2) as traffic:
            session = httpx.post(url, json={"name": "cells.h5ad", "num_bytes": 8 * MIB}, **asked).json()["id"]
            answers = [
                httpx.put(f"{url}/{session}/file?offset={offset * MIB}", content=part, **asked) for offset in range(5)
            ]
            received = httpx.get(f"{url}/{session}", **asked).json()["received"]
            (folder / "rest").write_bytes(bytes(shutil.disk_usage(folder).free))
            late = [httpx.post(url, json={"name": "b.h5ad", "num_bytes": MIB}, **asked) for _ in range(9)]
            run(["umount", str(folder)])
            traffic.wait_for(50)
    finally:
        if os.path.ismount(folder):
            run(["umount", "-l", str(folder)])
    refused = [answer for answer in [*answers, *late] if answer.status_code != 200]
    outcome("S18 the disk of uploads is full", len(refused), traffic)
    assert received == MIB * sum(answer.status_code == 200 for answer in answers)
    assert received >= 2 * MIB
    assert {answer.json()["code"] for answer in late} == {"storage_full"}
    assert traffic.failures == []
