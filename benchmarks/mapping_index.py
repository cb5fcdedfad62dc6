"""Indexes of a reference: exact and HNSW search among 100,000 vectors, and an IVF-PQ index of 5 million, streamed.

    python benchmarks/mapping_index.py [exact] [hnsw] [ivfpq]      # all without a name; CYTORAY_BENCH_QUICK=1: small

One JSON line each. Vectors are unit vectors of 512 dimensions: `random` ones, which have no structure that an index
could use, and `latent` ones in 32 dimensions with noise, which are more like embeddings. IVF-PQ is not part of the
product: the trial says what 33 million cells would need. Its vectors (10 GB) are drawn block by block, twice.
"""

# R vectors of the index, C queries, S dimensions, N neighbours

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import faiss

from benchmarks.common import QUICK, emit
from cytoray.tasks.mapping.index import build_index, measure_recall

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
WIDTH, LATENT, NUM_NEIGHBOURS = 512, 32, 30
NUM_VECTORS, NUM_QUERIES = (10_000, 1_000) if QUICK else (100_000, 10_000)
NUM_STREAMED, BLOCK, NUM_TRAINING = (200_000, 50_000, 20_000) if QUICK else (5_000_000, 250_000, 200_000)
NUM_LISTS, NUM_PROBES, CODE_BYTES = (256, 16, 64) if QUICK else (4_096, 64, 64)
NUM_CHECKED = 200  # queries whose neighbours are found exactly as well
NOISE = 0.05  # of each dimension of latent vectors, whose signal has the standard deviation 1 / sqrt(S)


def draw(num: int, kind: str, *, seed: int) -> Float32:
    """Draw unit vectors (R, S): equal seeds give equal vectors."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        vectors = rng.standard_normal((num, WIDTH), np.float32)
    else:
        axes = np.random.default_rng(99).standard_normal((LATENT, WIDTH), np.float32) / np.float32(WIDTH**0.5)
        vectors = rng.standard_normal((num, LATENT), np.float32) @ axes
        vectors += np.float32(NOISE / WIDTH**0.5) * rng.standard_normal((num, WIDTH), np.float32)
    faiss.normalize_L2(vectors)
    return vectors


def run_exact(kind: str) -> dict[str, Any]:
    """Search all queries exactly."""
    index = build_index(draw(NUM_VECTORS, kind, seed=0), kind="exact")
    queries = draw(NUM_QUERIES, kind, seed=1)
    before = time.process_time()
    seconds, _ = _timed(lambda: index.search(queries, NUM_NEIGHBOURS))
    cpu_s = time.process_time() - before  # on a machine with other work, half of it is what two free cores take
    goal = {"goal": "<= 10 s on 2 cores", "met": seconds <= 10}
    return {"queries": NUM_QUERIES, "seconds": seconds, "cpu_s": cpu_s, **goal}


def run_hnsw(kind: str) -> dict[str, Any]:
    """Build a graph of neighbours; compare its search with the exact one."""
    points = draw(NUM_VECTORS, kind, seed=0)
    build_s, index = _timed(lambda: build_index(points, kind="hnsw"))
    queries = draw(NUM_QUERIES, kind, seed=1)
    seconds, (found, _) = _timed(lambda: index.search(queries, NUM_NEIGHBOURS))
    _, exact = faiss.knn(queries[:NUM_CHECKED], points, NUM_NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)
    recall = _recall(found[:NUM_CHECKED], exact)
    return {
        "build_s": build_s,
        "seconds": seconds,
        "recall_own": measure_recall(index, points),
        "recall": recall,
        "goal": "recall@30 >= 0.98",
        "met": recall >= 0.98,
    }


def run_ivfpq(kind: str) -> dict[str, Any]:
    """Train on a sample, add all vectors block by block, search, and compare with an exact search of all blocks."""
    quantizer = faiss.IndexFlatIP(WIDTH)
    index = faiss.IndexIVFPQ(quantizer, WIDTH, NUM_LISTS, CODE_BYTES, 8, faiss.METRIC_INNER_PRODUCT)
    train_s, _ = _timed(lambda: index.train(draw(NUM_TRAINING, kind, seed=2)))
    started = time.perf_counter()
    for block in blocks(kind):
        index.add(block)
    add_s = time.perf_counter() - started
    queries = draw(NUM_QUERIES, kind, seed=1)
    index.nprobe = NUM_PROBES
    seconds, (_, found) = _timed(lambda: index.search(queries, NUM_NEIGHBOURS))
    exact = search_blocks(queries[:NUM_CHECKED], kind)
    return {
        "vectors": NUM_STREAMED,
        "settings": f"IVF{NUM_LISTS},PQ{CODE_BYTES}, nprobe {NUM_PROBES}",
        "train_s": train_s,
        "add_s": add_s,
        "seconds": seconds,
        "recall": _recall(found[:NUM_CHECKED], exact),
        "index_bytes": int(faiss.serialize_index(index).nbytes),
        "goal": "RSS < 6 GB",
        "met": _peak_gb() < 6,
    }


def blocks(kind: str) -> Iterator[Float32]:
    """Yield all vectors, a block at a time."""
    for number, start in enumerate(range(0, NUM_STREAMED, BLOCK)):
        yield draw(min(BLOCK, NUM_STREAMED - start), kind, seed=1_000 + number)


def search_blocks(queries_CS: Float32, kind: str) -> Int64:
    """Return the exact nearest vectors (C, N) among all blocks."""
    best = faiss.ResultHeap(len(queries_CS), NUM_NEIGHBOURS, keep_max=True)
    start = 0
    for block in blocks(kind):
        cosines, places = faiss.knn(queries_CS, block, NUM_NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(cosines, places.astype(np.int64) + start)
        start += len(block)
    best.finalize()
    found: Int64 = best.I
    return found


def main() -> None:
    """Run the trials that are named."""
    runs = {"exact": run_exact, "hnsw": run_hnsw, "ivfpq": run_ivfpq}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*runs, []], help="trials; all without a name")
    for name in parser.parse_args().names or runs:
        for kind in ("random", "latent"):
            found = {"vectors": NUM_VECTORS, "width": WIDTH, "kind": kind, "k": NUM_NEIGHBOURS, **runs[name](kind)}
            threads = faiss.omp_get_max_threads()
            emit({"name": f"mapping_index_{name}", **found, "peak_rss_gb": _peak_gb(), "threads": threads})


def _recall(found_CN: Int64, exact_CN: Int64) -> float:
    shared = [len(np.intersect1d(mine, best)) for mine, best in zip(found_CN, exact_CN, strict=True)]
    return float(np.mean(shared) / exact_CN.shape[1])


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = action()
    return time.perf_counter() - started, found


def _peak_gb() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
