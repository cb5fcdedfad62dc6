"""Common code of the benchmarks: one JSON line per claim, fair alternation, memory, the cells to measure with."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.goals import GOALS

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("CYTORAY_BENCH_CACHE", ROOT / "benchmarks" / ".cache"))  # cells, stores, the scGPT wheel
ANNBATCH_PYTHON = ROOT / ".venv-bench" / "bin" / "python"  # Python 3.12: annbatch needs it
WHEELS = CACHE / "wheels"
SCGPT_PYTHON = ROOT / ".venv-bench-scgpt" / "bin" / "python"  # Hugging Face datasets conflicts with our fsspec
RESULTS_VARIABLE = "CYTORAY_BENCH_RESULTS"
QUICK = bool(os.environ.get("CYTORAY_BENCH_QUICK"))  # small and short, to see that everything runs

logger = logging.getLogger("benchmarks")


@dataclass(frozen=True)
class Claim:
    """One figure of this run beside its goal."""

    name: str  # a key of GOALS
    value: float
    baseline: float | None
    ratio: float | None
    goal: str
    met: bool | None  # None if no goal is set
    settings: dict[str, Any]
    note: str = ""
    load: float = 0.0  # of the machine during the measurement, including other processes


def report(
    name: str, *, value: float, baseline: float | None = None, settings: dict[str, Any] | None = None, note: str = ""
) -> Claim:
    """Judge ``value`` (and its ratio to ``baseline``) by the goal ``name`` and print the claim as one JSON line."""
    goal = GOALS[name]
    ratio = value / baseline if baseline else None
    judged = ratio if goal.of_ratio else value
    claim = Claim(
        name=name,
        value=_rounded(value),
        baseline=None if baseline is None else _rounded(baseline),
        ratio=None if ratio is None else _rounded(ratio),
        goal=goal.text,
        met=None if judged is None else goal.is_met(judged),
        settings=settings or {},
        note=note,
        load=round(os.getloadavg()[0], 2),
    )
    emit(asdict(claim))
    return claim


def emit(record: dict[str, Any]) -> None:
    """Print one JSON line, and append it to the file that CYTORAY_BENCH_RESULTS names."""
    line = json.dumps(record)
    print(line, flush=True)
    target = os.environ.get(RESULTS_VARIABLE)
    if target:
        with Path(target).open("a") as file:
            file.write(line + "\n")


def _rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Alternation:
    """Figures of two sides measured in turn, so that a busy minute hits both."""

    ours: list[float]
    theirs: list[float]

    @property
    def value(self) -> float:
        """Our median."""
        return statistics.median(self.ours)

    @property
    def baseline(self) -> float:
        """Their median."""
        return statistics.median(self.theirs)


def alternate(ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int = 5) -> Alternation:
    """Call the two sides in turn ``rounds`` times; each returns its rate (cells/s) or time. Warm up before."""
    pairs = [(ours(), theirs()) for _ in range(2 if QUICK else rounds)]
    return Alternation([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def rate(amount: float, action: Callable[[], object], *, cpu: bool = False) -> float:
    """Measure ``amount`` per second of the wall time (or of this process's CPU time) of ``action``."""
    clock = time.process_time if cpu else time.perf_counter
    started = clock()
    action()
    return amount / (clock() - started)


def drain(batches: Iterable[Any], count: Callable[[Any], int], *, seconds: float, warm_up: int = 2) -> dict[str, Any]:
    """Take batches for ``seconds``, the first ``warm_up`` untimed: cells/s, per CPU second, and latencies in ms."""
    started = time.perf_counter()
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator, None)
    ready = last = time.perf_counter()
    cpu, done, waits = tree_cpu_s(), 0, []
    for batch in iterator:
        done += count(batch)
        now = time.perf_counter()
        waits.append(now - last)
        last = now
        if now - ready > seconds:
            break
    elapsed, cpu = last - ready, tree_cpu_s() - cpu
    waits = sorted(waits) or [0.0]
    return {
        "cells_per_s": done / elapsed if elapsed else 0.0,
        "cells_per_cpu_s": done / cpu if cpu > 0 else None,
        "num_cells": done,
        "warm_up_s": ready - started,
        "median_ms": 1e3 * waits[len(waits) // 2],
        "p999_ms": 1e3 * waits[min(len(waits) - 1, int(len(waits) * 0.999))],
        "max_ms": 1e3 * waits[-1],
    }


def _tree(pid: int | None) -> Iterator[psutil.Process]:
    """A process and everything below it that is still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid or os.getpid())
        yield root
        yield from root.children(recursive=True)


def tree_cpu_s(pid: int | None = None) -> float:
    """CPU seconds of a process (this one) and its living descendants."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def tree_pss_bytes(pid: int | None = None, *, only: Callable[[psutil.Process], bool] = lambda process: True) -> int:
    """Memory of a process and its descendants, shared pages shared out (PSS)."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if only(process):
                total += process.memory_full_info().pss
    return total


@dataclass
class MemoryCurve:
    """PSS of a process tree over time."""

    samples: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes

    @property
    def peak_bytes(self) -> int:
        """The highest sample."""
        return max((size for _, size in self.samples), default=0)

    @property
    def first_bytes(self) -> int:
        """The sample before the work."""
        return self.samples[0][1] if self.samples else 0


@contextlib.contextmanager
def watch_memory(pid: int | None = None, *, every_s: float = 0.5) -> Iterator[MemoryCurve]:
    """Sample the PSS of a process tree while the block runs; walking big maps costs CPU, so not more than needed."""
    curve, stop, started = MemoryCurve(), threading.Event(), time.perf_counter()

    def sample() -> None:
        while not stop.is_set():
            curve.samples.append((time.perf_counter() - started, tree_pss_bytes(pid)))
            stop.wait(every_s)

    curve.samples.append((0.0, tree_pss_bytes(pid)))
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield curve
    finally:
        stop.set()
        thread.join()
        curve.samples.append((time.perf_counter() - started, tree_pss_bytes(pid)))


def run_baseline(python: Path, module: str, *arguments: object) -> list[dict[str, Any]] | None:
    """Run ``benchmarks.baselines.MODULE`` in another environment; its JSON lines, or None with a warning."""
    if not python.exists():
        logger.warning("SKIPPED %s: %s is missing; run `make bench-setup`.", module, python)
        return None
    command = [str(python), "-m", f"benchmarks.baselines.{module}", *(str(argument) for argument in arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def synthetic_files(
    num_cells: int = 200_000, *, num_files: int = 8, compression: str = "gzip", mean_genes: float = 1_500, seed: int = 0
) -> list[Path]:
    """Synthetic h5ad files, made once and kept; ``gzip`` is what anndata writes, and slow to make."""
    from cytoray.corpus.synthetic import SynthConfig, synthesise

    settings = {"num_cells": num_cells, "num_files": num_files, "mean_genes": float(mean_genes), "seed": seed}
    config = SynthConfig.model_validate({**settings, "compression": compression})
    folder = (
        CACHE / "h5ad" / f"{num_cells}-{num_files}-{compression}-{mean_genes:.0f}-{seed}-{config.fingerprint()[:8]}"
    )
    if not (folder / "done").exists():
        synthesise(folder, config)
        (folder / "done").touch()
    return sorted(folder.glob("*.h5ad"))


def warm(paths: Iterable[Path]) -> int:
    """Read files into the page cache; returns their size in bytes."""
    total = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 24):
                total += len(chunk)
    return total


def evict(paths: Iterable[Path]) -> None:
    """Drop these files, and no others, from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def describe_machine() -> dict[str, Any]:
    """Describe the machine."""
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": sys.platform,
        "load": round(os.getloadavg()[0], 2),
    }


def _cpuinfo() -> list[str]:
    """Lines of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
