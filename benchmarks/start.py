"""The first minibatch of a corpus of 1,000 shards, and the restart at a step: ``python benchmarks/start.py``.

A training worker's way through Ray Data: manifest, order, pipeline, first read task, first minibatch in this process.
The cluster is up; the page cache is warm. Restart: the same process resumes at another step with a new pipeline. Beside
it the direct reader in a fresh interpreter, imports included.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow as pa

from benchmarks import common
from benchmarks.stream import open_masked
from cytoray import storage
from cytoray.cluster import connected
from cytoray.corpus.ingesting.obs_tables import to_parquet
from cytoray.corpus.manifest import CorpusManifest, FileRecord, ShardRecord, commit_manifest, corpus_uri, find_manifest
from cytoray.corpus.shards import encode_shard
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.packed import PackedCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_SHARDS = 100 if common.QUICK else 1_000
NUM_FILES = 8
STORE = str(common.CACHE / "store-start")
CORPUS = f"shards-{NUM_SHARDS}"
NUM_STEPS, BATCH_CELLS = 60_000, 32
DIRECT = (
    "from cytoray.corpus.streaming.options import StreamOptions; from cytoray.corpus.stream import open_stream; "
    "from cytoray.tokens.tokenizer import TokenizerConfig; "
    f"next(open_stream({STORE!r}, {CORPUS!r}, StreamOptions(TokenizerConfig(), 1, {BATCH_CELLS})).read_steps(0, 9))"
)


def main() -> None:
    """Print the JSON lines of the starting goals."""
    write_many_shards()
    subprocess.run([sys.executable, "-c", DIRECT], check=True)  # compiles, and warms the page cache
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", DIRECT], check=True)
    direct = time.perf_counter() - started
    with connected(num_cpus=2):
        first = _time_first(0)
        restarts = [_time_first(step) for step in (1_000, 40_000, 7, 50_000, 12_345)]
    settings = {"shards": NUM_SHARDS, "direct_from_new_process_s": round(direct, 2)}
    common.report("first_batch", value=first, settings=settings, note="a fresh cluster: its workers start as well")
    common.report("restart", value=statistics.median(restarts), settings={**settings, "runs": len(restarts)})


def _time_first(step: int) -> float:
    """Seconds from opening the corpus to holding the minibatch of ``step``."""
    import ray

    from cytoray.corpus.deal import DealtSteps, iterate_steps, steps_dataset

    started = time.perf_counter()
    stream = open_stream(STORE, CORPUS, StreamOptions(TokenizerConfig(), 1, BATCH_CELLS))
    dealt = DealtSteps(stream, task_cpus=1)
    (iterators,) = dealt.configure({"train": steps_dataset(stream, step, step + NUM_STEPS)}, 1)
    batches = iterate_steps(iterators["train"])
    batch = next(batches)
    elapsed = time.perf_counter() - started
    assert batch.step == step, "another step than asked for"
    # As Ray Train does before it starts a run's workers again: otherwise Ray kills the tasks' processes, warm ones.
    ray.get(iterators["train"]._coord_actor.shutdown_executor.remote())
    batches.close()  # type: ignore[attr-defined]
    return elapsed


def write_many_shards() -> None:
    """A committed corpus of many shards of one row group each: eight files under many names."""
    if find_manifest(STORE, CORPUS) is not None:
        return
    stream, uri = open_masked(BATCH_CELLS), corpus_uri(STORE, CORPUS)
    shards = [_write_shard(uri, number, stream.read_unit(number).cells) for number in range(NUM_FILES)]
    for number in range(NUM_FILES, NUM_SHARDS):
        twin = shards[number % NUM_FILES]
        key, obs_key = f"shards/{number:06d}.parquet", f"obs/{number:06d}.parquet"
        for old, new in ((twin.key, key), (twin.obs.key, obs_key)):
            Path(storage.join(uri, new)).hardlink_to(storage.join(uri, old))
        obs = twin.obs.model_copy(update={"key": obs_key})
        shards.append(twin.model_copy(update={"key": key, "obs": obs}))
    manifest = CorpusManifest(
        name=CORPUS,
        vocabulary_digest=GeneVocabulary.load_default().digest(),
        values="counts",
        binning="on_read",
        n_bins=51,
        seed=0,
        sources=(),
        shards=tuple(shards),
    )
    commit_manifest(uri, manifest)


def _write_shard(uri: str, number: int, cells: PackedCells) -> ShardRecord:
    """One shard with its obs."""
    encoded, obs = encode_shard(cells, values="counts"), to_parquet(pa.table({"_cell_id": cells.cell_ids}))
    record = encoded.record(f"shards/{number:06d}.parquet")
    storage.write_bytes(storage.join(uri, record.key), encoded.data)
    digest = storage.write_digested(storage.join(uri, f"obs/{number:06d}.parquet"), obs)
    table = FileRecord(key=f"obs/{number:06d}.parquet", sha256=digest, num_bytes=len(obs))
    cell_id_sum = int(cells.cell_ids.sum(dtype=np.uint64))
    return ShardRecord(**record.model_dump(), obs=table, cell_id_sum=cell_id_sum)


if __name__ == "__main__":
    main()
