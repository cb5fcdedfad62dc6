"""Keep a service under load, and show how memory, open files and threads of its processes grow.

    make soak                     # 20 minutes; SOAK_MINUTES=1440 for a day

The slopes are straight lines through the second half of the samples: what a process takes once, it takes in the first.
One JSON object at the end; the exit code is 1 if an answer was wrong or missing, or if memory grew by more than
``--max-mib-per-hour`` (in a short run, which sees caches fill, the bound is not much more than its noise).
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path[0] = str(Path(__file__).parent)
import os  # noqa: E402

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
from chaos_cells import Oracle, write_model  # noqa: E402
from chaos_head import (  # noqa: E402
    CONTROLLER,
    PROXY,
    REPLICA,
    Service,
    fill_in,
    head_environment,
    scratch_folder,
    started_head,
)
from chaos_load import Load  # noqa: E402

from cytoray.serving.config import AppArgs  # noqa: E402

KINDS = {"replica": REPLICA, "http server": PROXY, "controller": CONTROLLER}
MIB = 2**20


def sample(service: Service, start: float) -> list[dict[str, Any]]:
    """Return what each process of the service takes now."""
    rows = []
    for kind, title in KINDS.items():
        for process in service.head.find(title):
            try:
                found = {
                    "kind": kind,
                    "pid": process.pid,
                    "hours": (time.monotonic() - start) / 3600,
                    "rss_mib": process.memory_info().rss / MIB,
                    "files": process.num_fds(),
                    "threads": process.num_threads(),
                }
            except psutil.NoSuchProcess:
                continue
            rows.append(found)
    return rows


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each process the last values, and their growth per hour over the second half of its samples."""
    found = []
    for pid in sorted({row["pid"] for row in rows}):
        own = [row for row in rows if row["pid"] == pid]
        late = own[len(own) // 2 :]
        result: dict[str, Any] = {"kind": own[0]["kind"], "pid": pid, "samples": len(own)}
        for name in ("rss_mib", "files", "threads"):
            result[name] = round(own[-1][name], 1)
            if len(late) > 2:
                line = np.polyfit([row["hours"] for row in late], [row[name] for row in late], 1)
                result[f"{name}_per_hour"] = round(float(line[0]), 2)
        found.append(result)
    return found


def soak(*, minutes: float, every_s: float, rate: float | None, concurrency: int) -> dict[str, Any]:
    """Start a service of two replicas, keep it under load, and return the figures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        oracle = Oracle()
        oracle.learn("unregistered", write_model(folder / "1", seed=1))
        config = fill_in({"model_uri": str(folder / "1")}, folder)
        environment = head_environment(AppArgs.model_validate(config["applications"][0]["args"]))
        environment["RAY_TMPDIR"] = str(stack.enter_context(scratch_folder()))
        service = Service(stack.enter_context(started_head(environment, num_cpus=4)), config, folder)
        service.deploy()
        start, rows = time.monotonic(), []
        with Load(service.url, oracle, rate=rate, concurrency=concurrency) as traffic:
            while time.monotonic() - start < 60 * minutes:
                rows += sample(service, start)
                time.sleep(every_s)
        rows += sample(service, start)
    return {"minutes": minutes, **traffic.summary.__dict__, "processes": slopes(rows)}


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every-s", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--rate", type=float, default=None, help="requests per second; default: as many as it answers")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight, without --rate")
    parser.add_argument("--max-mib-per-hour", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=None, help="file for the figures")
    given = parser.parse_args()
    found = soak(minutes=given.minutes, every_s=given.every_s, rate=given.rate, concurrency=given.concurrency)
    grown = [each for each in found["processes"] if each.get("rss_mib_per_hour", 0.0) > given.max_mib_per_hour]
    found["passed"] = not (found["failed"] or found["wrong"] or grown)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
