"""The same minibatches through Ray Data to one consumer: ``python -m benchmarks.ray_stream``.

A read task takes two windows; four work at a time on two CPUs (others continue while one ends and the next begins), and
their blocks of several steps go through an object store of 1.5 GiB, read in order by this process. In turn with scGPT's
Hugging Face path and with our own direct reader; timed from the moment the pipeline has delivered for four seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.anchors import scgpt_path
from benchmarks.stored import stored_corpus
from benchmarks.stream import BATCH_CELLS, ROUNDS, SECONDS, measure_direct, open_masked
from cytoray.cluster import connected
from cytoray.corpus.stream import CorpusStream

RAMP_S = 1 if common.QUICK else 4
STORE_BYTES = 3 * 2**29
NUM_STEPS = 200_000  # more than are read


def main() -> None:
    """Print the JSON lines of the goals for Ray Data."""
    files = common.synthetic_files(20_000 if common.QUICK else 200_000)
    stored_corpus()
    stream = open_masked(BATCH_CELLS)
    settings = {"batch": BATCH_CELLS, "cpus": 2, "tasks": 4, "output": "uint16/int8/int8"}
    with connected(num_cpus=2, object_store_bytes=STORE_BYTES):
        through_ray = make_measurement(stream)
        pairs = common.alternate(through_ray, lambda: measure_direct(stream, seconds=SECONDS), rounds=ROUNDS)
        common.report("ray_direct", value=pairs.value, baseline=pairs.baseline, settings=settings)

        def scgpt() -> float:
            record = scgpt_path(files, seconds=SECONDS)
            return 0.0 if record is None else float(record["cells_per_s"])

        anchored = common.alternate(through_ray, scgpt, rounds=ROUNDS)
        common.report("ray_scgpt", value=anchored.value, baseline=anchored.baseline or None, settings=settings)


def make_measurement(stream: CorpusStream) -> Callable[[], float]:
    """A function that starts a pipeline, lets it ramp up, and returns the cells a second that arrive then."""
    from cytoray.corpus.deal import DealtSteps, iterate_steps, steps_dataset  # imports Ray

    def measure() -> float:
        import time

        dealt = DealtSteps(stream, task_cpus=0.5, num_tasks=4)
        (iterators,) = dealt.configure({"train": steps_dataset(stream, 0, NUM_STEPS)}, 1)
        batches = iterate_steps(iterators["train"])
        next(batches)
        ramp = time.perf_counter() + RAMP_S
        while time.perf_counter() < ramp:
            next(batches)
        figures = common.drain(batches, lambda batch: batch.num_cells, seconds=SECONDS, warm_up=0)
        batches.close()  # type: ignore[attr-defined]
        return float(figures["cells_per_s"])

    return measure


if __name__ == "__main__":
    main()
