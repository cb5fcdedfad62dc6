"""Cells/s of `cytoray serve` over those without HTTP, latency and overload: ``python benchmarks/serve.py``.

Served: real HTTP to the application of `cytoray serve`, from 1 to 64 clients with 1 to 512 cells per request. Offline:
the better of a loop over the cells sorted by length and the batcher in process; both tokenise. The process of the model
has core 0 and one thread in both, all else the other cores, and rounds alternate. Answers are compared with offline.
All of it takes about 40 minutes; a part of it: ``--parts table --cells 64 --concurrency 4 --seconds 5 --rounds 1``.
"""

# R served / offline cells per second

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.serving_load import Body, Connection, Load, ask, quantile_ms, run_closed, run_open
from benchmarks.serving_rig import (
    MODEL_CORE,
    OTHER_CORES,
    Offline,
    build_model,
    draw_cells,
    largest_error,
    make_bodies,
    serving,
)
from cytoray.serving.payloads.media import ARROW, JSON

ROUTE = "/v1/embed"
ACCEPT = {"arrow": ARROW, "json": JSON}
TOLERANCE = 1e-5
FEWEST = 20  # requests at random times, however short the measurement
BULK_CELLS = 4_096
BATCH_S = 0.2  # target_batch_s, the default
PATIENT: dict[str, Any] = {  # so that nothing is refused: a closed loop has at most 64 requests
    "limits": {"max_cells": BULK_CELLS, "max_body_bytes": 2**28, "max_nonzeros": 2**24, "deadline_s": 900.0},
    "batching": {"max_backlog_s": 900.0, "max_queued_tokens": 2**30},
    "max_ongoing_requests": 128,
}
DEADLINE_S = 5.0
BUSY: dict[str, Any] = {"limits": {"deadline_s": DEADLINE_S}, "batching": {"max_backlog_s": DEADLINE_S}}
PARTS = ("table", "open", "idle", "bulk", "rate", "overload")


@dataclass
class Row:
    """A cell of the table: R of each round, and what was measured."""

    ratios: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    offline: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A running service beside the offline process with the same model and cells."""

    model: str
    url: str
    offline: Offline
    bodies: Callable[[int, str], list[Body]]
    expected: Any
    options: argparse.Namespace

    def closed(self, *, size: int, clients: int, num: int, wire: str) -> Load:
        """Run a closed loop and check all that was answered."""
        bodies = self.bodies(size, wire)
        return self._checked(
            run_closed(self.url, ROUTE, bodies, clients=clients, num=num, accept=ACCEPT[wire]), wire=wire
        )

    def open(self, *, size: int, rate: float, wire: str) -> Load:
        """Run an open loop of ``rate`` requests per second and check all that was answered."""
        bodies, num = self.bodies(size, wire), max(math.ceil(rate * self.options.seconds), FEWEST)
        return self._checked(run_open(self.url, ROUTE, bodies, rate=rate, num=num, accept=ACCEPT[wire]), wire=wire)

    def best_offline(self, size: int) -> float:
        """Return cells/s of the better offline way."""
        return max(self.offline.rates(seconds=min(self.options.seconds, 4.0), size=size).values())

    def _checked(self, work: Any, *, wire: str) -> Load:
        load: Load = asyncio.run(work)
        error = largest_error(load.answers, self.expected, wire=wire)
        assert error < TOLERANCE, f"answers differ from offline by {error:.2g}"
        return load


def main() -> None:
    """Print the JSON lines, and the table."""
    options = _options()
    rows: dict[tuple[str, str, int, int], Row] = {}
    for model in options.models:
        folder, cells = build_model(model), draw_cells(model)
        known: dict[tuple[int, str], list[Body]] = {}

        def bodies(
            size: int, wire: str, known: dict[tuple[int, str], list[Body]] = known, cells: Any = cells
        ) -> list[Body]:
            """Return the requests of a size, which are made once."""
            if (size, wire) not in known:
                known[size, wire] = make_bodies(cells, size=size, wire=wire)
            return known[size, wire]

        offline = Offline(folder, cells)
        try:
            expected = offline.predict()
            parts = [part for part in options.parts if part != "overload" and _concerns(part, model)]
            if parts:
                with serving(folder, **PATIENT) as url:
                    bench = Bench(model, url, offline, bodies, expected, options)
                    _warm_up(bench)
                    for part in parts:
                        _RUN[part](bench, rows)
            if "overload" in options.parts and model == "small":
                with serving(folder, **BUSY) as url:
                    bench = Bench(model, url, offline, bodies, expected, options)
                    _warm_up(bench)
                    _run_overload(bench)
        finally:
            offline.close()
    _report_goals(rows)
    print(_table(rows, options))


def _options() -> argparse.Namespace:
    quick = common.QUICK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("none", "small", "large"), default=["none", "small", "large"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cells", nargs="+", type=int, default=[64] if quick else [1, 16, 64, 512])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[4] if quick else [1, 4, 16, 64])
    parser.add_argument("--wires", nargs="+", choices=("arrow", "json"), default=["arrow", "json"])
    parser.add_argument("--seconds", type=float, default=2.0 if quick else 5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1 if quick else 5, help="of which the median is taken")
    parser.add_argument("--most-seconds", type=float, default=60.0, help="longer turns of all clients are left out")
    return parser.parse_args()


def _concerns(part: str, model: str) -> bool:
    """Return whether a part is measured with a model."""
    return (part == "rate") == (model == "none") and (part in ("table", "rate") or model == "small")


def _warm_up(bench: Bench) -> None:
    """Let the service and the offline batcher learn what the model costs."""
    rate = bench.best_offline(16)
    bench.closed(size=16, clients=4, num=max(math.ceil(rate / 16), 8), wire="arrow")


def _run_table(bench: Bench, rows: dict[tuple[str, str, int, int], Row]) -> None:
    """Measure R for all sizes of requests and numbers of clients."""
    options = bench.options
    for _ in range(options.rounds):
        for size in options.cells:
            offline = bench.best_offline(size)
            for wire in options.wires if bench.model == "small" else options.wires[:1]:
                for clients in options.concurrency:
                    if clients * size / offline > options.most_seconds:
                        continue
                    num = max(math.ceil(options.seconds * offline / size), 2 * clients)
                    load = bench.closed(size=size, clients=clients, num=num, wire=wire)
                    row = rows.setdefault((bench.model, wire, size, clients), Row())
                    row.ratios.append(load.cells_per_s / offline)
                    row.served.append(load.cells_per_s)
                    row.offline.append(offline)
                    row.p99_ms.append(load.ms(0.99))
    for (model, wire, size, clients), row in rows.items():
        if model == bench.model:
            settings = {"model": model, "wire": wire, "cells": size, "clients": clients, "p99_ms": row.p99_ms}
            settings |= {"ratios": [round(ratio, 3) for ratio in row.ratios]}
            settings |= {"model_core": MODEL_CORE, "other_cores": OTHER_CORES}
            served, offline = statistics.median(row.served), statistics.median(row.offline)
            common.report("serve_ratio", value=served, baseline=offline, settings=settings)


def _run_open_loop(bench: Bench, _rows: object) -> None:
    """Measure latency at 70 % and 90 % of what offline computes."""
    for size in (16, 64):
        for share in (0.7, 0.9):
            offline = bench.best_offline(size)
            load = bench.open(size=size, rate=share * offline / size, wire="arrow")
            settings = {"cells": size, "share": share, "p50_ms": load.ms(0.5), "p99_ms": load.ms(0.99)}
            settings |= {"refused": len(load.refused_s)}
            common.report("serve_open", value=load.cells_per_s, baseline=share * offline, settings=settings)


def _run_idle(bench: Bench, _rows: object) -> None:
    """Measure what the service adds to a single cell when nothing else is to be done."""
    num = max(int(bench.options.seconds * 40), 50)
    for wire in bench.options.wires:
        direct = statistics.median(bench.offline.one_cell_ms(num))
        load = bench.closed(size=1, clients=1, num=num, wire=wire)
        settings = {"wire": wire, "requests": num, "model_ms": round(direct, 2)}
        for name, share in (("serve_idle_p50", 0.5), ("serve_idle_p99", 0.99)):
            common.report(name, value=load.ms(share) - direct, settings=settings)


def _run_beside_bulk(bench: Bench, _rows: object) -> None:
    """Measure single cells while requests of thousands of cells are being answered."""
    load, bulk = asyncio.run(_beside_bulk(bench))
    assert largest_error(load.answers | bulk.answers, bench.expected, wire="arrow") < TOLERANCE
    settings = {"p50_ms": load.ms(0.5), "requests": len(load.seconds), "bulk_cells": BULK_CELLS}
    settings |= {"bulk_cells_per_s": round(bulk.cells_per_s, 1)}
    common.report("serve_beside_bulk", value=load.ms(0.99), settings=settings)


async def _beside_bulk(bench: Bench) -> tuple[Load, Load]:
    load, bulk, stop = Load(), Load(), asyncio.Event()
    (large,), singles = bench.bodies(BULK_CELLS, "arrow"), bench.bodies(1, "arrow")

    async def send_bulk() -> None:
        """Send large requests, two of them at a time."""
        connection = Connection(bench.url, accept=ARROW)
        while not stop.is_set():
            await ask(connection, ROUTE, large, bulk)
        connection.close()

    async def send_singles() -> None:
        """Send a cell every 50 ms at most."""
        connection = Connection(bench.url, accept=ARROW)
        for number in range(max(int(bench.options.seconds * 20), 20)):
            await ask(connection, ROUTE, singles[number % len(singles)], load)
            await asyncio.sleep(0.05)
        connection.close()
        stop.set()

    started = time.perf_counter()
    await asyncio.gather(send_bulk(), send_bulk(), send_singles())
    bulk.elapsed_s = time.perf_counter() - started
    return load, bulk


def _run_rate(bench: Bench, _rows: object) -> None:
    """Measure requests per second if the model does next to nothing."""
    for wire in bench.options.wires:
        pilot = bench.closed(size=1, clients=64, num=300, wire=wire).cells_per_s
        num = math.ceil(pilot * bench.options.seconds)
        load = bench.closed(size=1, clients=64, num=num, wire=wire)
        settings = {"wire": wire, "p50_ms": load.ms(0.5), "p99_ms": load.ms(0.99)}
        common.report("serve_requests", value=load.cells_per_s, settings=settings)


def _run_overload(bench: Bench) -> None:
    """Send five times what the service can answer."""
    size, rate = 64, bench.best_offline(64)
    num = max(math.ceil(bench.options.seconds * rate / size), 8)
    peak = max(bench.closed(size=size, clients=clients, num=num, wire="arrow").cells_per_s for clients in (4, 16))
    if not peak:
        raise RuntimeError(f"The machine is too busy: it answers nothing within {DEADLINE_S:g} s.")
    load = bench.open(size=size, rate=5 * peak / size, wire="arrow")
    settings = {"refused": len(load.refused_s), "answered": len(load.seconds), "p99_ms": load.ms(0.99)}
    settings |= {"deadline_s": DEADLINE_S, "without_retry_after": load.without_retry_after}
    common.report("serve_overload", value=load.cells_per_s, baseline=peak, settings=settings)
    refused = {"refused_p50_ms": quantile_ms(load.refused_s, 0.5)}
    common.report("serve_refusals", value=quantile_ms(load.refused_s, 0.99), settings=refused)


_RUN = {
    "table": _run_table,
    "open": _run_open_loop,
    "idle": _run_idle,
    "bulk": _run_beside_bulk,
    "rate": _run_rate,
}


def _report_goals(rows: dict[tuple[str, str, int, int], Row]) -> None:
    """Report the lowest R of those that have a goal."""
    groups: dict[str, list[float]] = {}
    for (model, _, size, clients), row in rows.items():
        ratio = statistics.median(row.ratios)
        if model == "small" and size >= 16 and clients >= 4:
            groups.setdefault("serve_ratio_64" if size >= 64 else "serve_ratio_16", []).append(ratio)
        if model == "large" and size == 1 and clients == 64:
            groups.setdefault("serve_ratio_1", []).append(ratio)
    for name, ratios in sorted(groups.items()):
        common.report(name, value=min(ratios), settings={"rows": len(ratios)})


def _table(rows: dict[tuple[str, str, int, int], Row], options: argparse.Namespace) -> str:
    """Return R as a table in Markdown: a row per model, format and size, a column per number of clients."""
    head = ["model", "ms/cell", "format", "cells", *(f"c = {clients}" for clients in options.concurrency)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model, wire, size in dict.fromkeys(key[:3] for key in rows):
        found = [rows.get((model, wire, size, clients)) for clients in options.concurrency]
        cost = statistics.median(rate for row in found if row for rate in row.offline)
        ratios = ["" if row is None else f"{statistics.median(row.ratios):.2f}" for row in found]
        lines.append(f"| {' | '.join([model, f'{1e3 / cost:.2f}', wire, str(size), *ratios])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
