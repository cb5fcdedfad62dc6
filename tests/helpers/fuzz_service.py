"""Mutated bodies for each parser of the service: ``python tests/helpers/fuzz_service.py --requests 1000000``.

Each parser is fuzzed by ``--workers`` processes at a time, in parts of ``--part`` requests, so that a crash ends one
part only. Printed, and written to ``--out`` after each part: requests, answers, codes of refusals, failures (anything
but an answer or a refusal of the catalogue), and how memory grows. A mutation is known by its parser and number:
``--parser json --start 4711 --requests 1`` repeats one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests" / "helpers")]

from fuzz_bodies import LIMITS, PARSERS, Run, bodies_of, check, h5ad_files  # noqa: E402
from h5ad_forks import start_forks  # noqa: E402
from payload_fuzzer import Outcomes, mutated, resident_bytes  # noqa: E402

from cytoray.serving import confinement  # noqa: E402
from cytoray.serving.payloads import h5ad_cells  # noqa: E402
from cytoray.tasks.annotation.answers import AnnotateRequest  # noqa: E402

H5AD = "h5ad"
H5AD_SHARE = 20  # a file takes a process: one file for this many requests of other parsers
PART, SAMPLES, WARM = 250_000, 50, 2_000
MOST_FAILURES = 20
FLAT_MIB = 64.0  # that memory may grow by in 10^6 requests
LIBRARIES_BYTES = 160 * 2**20  # of a process that reads h5ad files, beside its limit


@dataclass
class Part:
    """What became of a range of mutations of one parser."""

    parser: str
    start: int
    requests: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)  # (requests so far, bytes)
    seconds: float = 0.0
    peak_bytes: int = 0  # of the processes that read h5ad files


def fuzz_part(parser: str, start: int, num: int) -> Iterator[Part]:
    """Run a range of mutations; yields what is known SAMPLES times."""
    part, outcomes, rng = Part(parser, start), Outcomes(), random.Random()
    step = max(num // SAMPLES, 1)
    with _parser(parser, part) as (seeds, run):
        began = time.process_time()
        for number in range(start, start + num):
            rng.seed(number)
            body = mutated(seeds, rng)
            try:
                outcomes.parse(body, run)
            except Exception as error:  # noqa: BLE001 - any is a failure
                part.failures.append(f"mutation {number}: {type(error).__name__}: {error}"[:500])
            part.requests += 1
            if part.requests % step == 0 or part.requests == num:
                part.codes, part.seconds = dict(outcomes.by_code), time.process_time() - began
                part.memory.append((part.requests, resident_bytes()))
                yield part
            if len(part.failures) >= MOST_FAILURES:
                break


@contextmanager
def _parser(parser: str, part: Part) -> Iterator[tuple[list[bytes], Run]]:
    """Return bodies and the parser; that of h5ad files has the memory of its processes checked."""
    if parser != H5AD:
        yield bodies_of(parser)
        return
    asked = h5ad_cells.limits_of_reader(LIMITS, matrix="X")
    with tempfile.TemporaryDirectory() as folder, start_forks(asked, confinement.ENVIRONMENT) as forks:

        def run(body: bytes) -> None:
            """Read a file; a reader that was killed is a refusal, and noted by its signal."""
            status, written = forks.read(body)
            part.peak_bytes = forks.peak_bytes
            if status < 0:
                killed[-status] += 1
                part.codes |= {f"reader ended by signal {number}": count for number, count in killed.items()}
            check(
                h5ad_cells.matrix_of(status, written, gene_names="index").as_request(AnnotateRequest.model_construct())
            )

        killed: Counter[int] = Counter()
        yield h5ad_files(Path(folder)), run
        if forks.peak_bytes > h5ad_cells.MEMORY_BYTES + LIBRARIES_BYTES:
            part.failures.append(f"a reader had {forks.peak_bytes / 2**20:.0f} MiB")


def run_part(parser: str, start: int, num: int) -> Iterator[Part]:
    """Run a range of mutations in a process of its own; yields what is known, at last whether the process has ended."""
    words = ["--parser", parser, "--start", str(start), "--requests", str(num)]
    command = [sys.executable, "-W", "ignore", __file__, *words]
    found = Part(parser, start)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = Part(**json.loads(line))
            yield found
    if process.returncode:
        found.failures.append(f"process ended with {process.returncode} after mutation {start + found.requests}")
        yield found


def growth_mib(parts: list[Part]) -> float:
    """Return how memory grows in 10^6 requests: the median over parts of the slope of a line through its samples."""
    slopes = []
    for part in parts:
        memory = np.array([row for row in part.memory if row[0] >= WARM], float)
        if len(memory) > 2:
            slopes.append(np.polyfit(memory[:, 0] / 1e6, memory[:, 1] / 2**20, 1)[0])
    return float(np.median(slopes)) if slopes else float("nan")


def table_of(parts: list[Part]) -> str:
    """Return the figures of each parser as a table."""
    lines = ["parser | requests | answered | refused | failures | us each | MiB per 10^6 | codes", "---|" * 7 + "---"]
    for parser in (*PARSERS, H5AD):
        mine = [part for part in parts if part.parser == parser]
        codes: Counter[str] = sum((Counter(part.codes) for part in mine), Counter())
        requests = sum(part.requests for part in mine)
        if not requests:
            continue
        failures = sum(len(part.failures) for part in mine)
        each = sum(part.seconds for part in mine) / requests * 1e6
        named = ", ".join(f"{code} {count:,}" for code, count in codes.most_common() if code != "answered")
        peak = max(part.peak_bytes for part in mine)
        named += f"; peak memory of a reader {peak / 2**20:.0f} MiB" if peak else ""
        answered = codes["answered"]
        columns = [f"{requests:,}", f"{answered:,}", f"{requests - answered - failures:,}", f"{failures:,}"]
        lines.append(" | ".join([parser, *columns, f"{each:.0f}", f"{growth_mib(mine):.1f}", named]))
    return "\n".join(lines)


def _plan(requests: int, num_h5ad: int, *, size: int) -> list[tuple[str, int, int]]:
    """Return the ranges of mutations of all parsers, the first ones of each before the others."""
    plan = [
        (parser, start, min(size, most - start))
        for parser, most in (*((parser, requests) for parser in PARSERS), (H5AD, num_h5ad))
        for start in range(0, most, size)
    ]
    return sorted(plan, key=lambda one: one[1])


def _fuzz_all(arguments: argparse.Namespace) -> int:
    """Fuzz all parsers; returns the exit code."""
    known: dict[tuple[str, int, int], Part] = {}

    def run(one: tuple[str, int, int]) -> None:
        """Run a part, and write all figures."""
        for part in run_part(*one):
            known[one] = part
            Path(arguments.out).write_text(json.dumps([asdict(part) for part in known.copy().values()]) + "\n")
        print(f"{one[0]} from {one[1]:,}: {known[one].requests:,} requests", file=sys.stderr, flush=True)

    num_h5ad = arguments.h5ad if arguments.h5ad is not None else arguments.requests // H5AD_SHARE
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(run, _plan(arguments.requests, num_h5ad, size=arguments.part)))
    parts = list(known.values())
    print(table_of(parts))
    failures = [f"{part.parser}: {failure}" for part in parts for failure in part.failures]
    grown = [parser for parser in PARSERS if growth_mib([part for part in parts if part.parser == parser]) > FLAT_MIB]
    is_long = arguments.requests >= 10 * WARM  # else memory has not settled
    print("\n".join([*failures, *(f"{parser}: memory grows" for parser in grown if is_long)]))
    return int(bool(failures or (grown and is_long)))


def main() -> int:
    """Fuzz one range of one parser, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="per parser")
    parser.add_argument("--h5ad", type=int, help="h5ad files; default: a twentieth of the requests")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--part", type=int, default=PART, help="requests of a process")
    parser.add_argument("--out", default="fuzz.json", help="figures, as JSON")
    parser.add_argument("--parser", choices=(*PARSERS, H5AD), help="only this one, in this process")
    parser.add_argument("--start", type=int, default=0, help="first mutation")
    arguments = parser.parse_args()
    if arguments.parser is None:
        return _fuzz_all(arguments)
    for part in fuzz_part(arguments.parser, arguments.start, arguments.requests):
        print(json.dumps(asdict(part)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
