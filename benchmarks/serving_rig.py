"""What ``benchmarks/serve.py`` measures with: models, cells, the service and its offline counterpart.

The model's process has core 0 and one thread in both runs. Ray, the HTTP server, the controller and the load generator
share the other cores, so that they do not take time from the model.
"""

# C cells, N entries

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import scipy.sparse as sp

from benchmarks import common
from benchmarks.serving_load import Body
from cytoray.serving.payloads.media import ARROW, JSON
from cytoray.serving.sending import Cells, encode_cells, encode_stream

CORES = sorted(os.sched_getaffinity(0))
MODEL_CORE, OTHER_CORES = CORES[0], CORES[1:] or CORES
NUM_GENES = 2_000  # that every request names
MEAN, SIGMA, SHORTEST, LONGEST = 5.8, 0.7, 30, 1_199  # of the lognormal numbers of expressed genes
START_S = 600.0  # also on a busy machine
REPLICA = "ServeReplica"
CYTORAY = "from cytoray.cli import main; main()"


@dataclass(frozen=True)
class Shape:
    """The size of a model with random weights, and the cells that it is asked about."""

    width: int
    heads: int
    layers: int
    num_cells: int
    mean: float = MEAN


SHAPES = {
    "none": Shape(16, 1, 1, 256, mean=2.0),  # the shortest cells: next to no work for the model
    "small": Shape(64, 4, 2, 4_096),
    "large": Shape(256, 8, 4, 1_024),
}


def build_model(name: str) -> Path:
    """Return the folder of a bundle, which is made once."""
    import torch

    from cytoray.model.bundle import ModelBundle, save_bundle
    from cytoray.model.config import ModelConfig
    from cytoray.model.transformer import ScGPT
    from cytoray.tokens.tokenizer import TokenizerConfig
    from cytoray.tokens.vocabulary import GeneVocabulary

    shape, vocabulary = SHAPES[name], GeneVocabulary.load_default()
    folder = common.CACHE / f"serve-{name}-{shape.width}-{shape.layers}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        config = ModelConfig(
            vocabulary_size=vocabulary.size,
            width=shape.width,
            num_heads=shape.heads,
            feedforward_width=shape.width,
            num_layers=shape.layers,
            dropout=0.0,
        )
        model = ScGPT(config, pad_id=vocabulary.pad_id).eval()
        save_bundle(ModelBundle(model, vocabulary, TokenizerConfig()), folder)
    return folder


def draw_cells(name: str) -> Cells:
    """Return cells with lognormal numbers of expressed genes."""
    from cytoray.corpus.synthetic import gene_names

    shape, rng = SHAPES[name], np.random.default_rng(0)
    lengths = rng.lognormal(shape.mean, SIGMA, shape.num_cells).clip(1 if shape.mean < MEAN else SHORTEST, LONGEST)
    starts = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
    columns = [np.sort(rng.permutation(NUM_GENES)[:count]) for count in np.diff(starts)]
    values = 1 + rng.poisson(1.5, starts[-1]).astype(np.float32)
    return Cells(gene_names(NUM_GENES), None, sp.csr_matrix((values, np.concatenate(columns), starts)))


def make_bodies(cells: Cells, *, size: int, wire: str) -> list[Body]:
    """Return all cells as requests of ``size`` cells each, the last few of them left out."""
    encode, media_type = (encode_stream, ARROW) if wire == "arrow" else (encode_cells, JSON)
    starts = range(0, cells.counts_CG.shape[0] - size + 1, size)
    return [Body(start, encode(cells, range(start, start + size)), size, media_type) for start in starts]


class Offline:
    """A process on the model's core that computes the same cells without HTTP."""

    def __init__(self, folder: Path, cells: Cells) -> None:
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_load,
            initargs=(folder, cells, MODEL_CORE),
        )

    def predict(self) -> npt.NDArray[np.float32]:
        """Return the embeddings of all cells."""
        found: npt.NDArray[np.float32] = self._pool.submit(_predict).result()
        return found

    def rates(self, *, seconds: float, size: int) -> dict[str, float]:
        """Return cells/s of a loop over cells sorted by length, and of the batcher with requests of ``size`` cells."""
        return self._pool.submit(_rates, seconds, size).result()

    def one_cell_ms(self, num: int) -> list[float]:
        """Return the milliseconds of single cells, one after another."""
        return self._pool.submit(_one_cell_ms, num).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_held: dict[str, Any] = {}  # of the offline process


def _load(folder: Path, cells: Cells, core: int) -> None:
    os.sched_setaffinity(0, {core})
    import torch

    from cytoray.model.bundle import load_bundle
    from cytoray.model.predictor import CellPredictor
    from cytoray.serving.batching.config import BatchingConfig
    from cytoray.serving.config import Limits
    from cytoray.serving.service import CellService
    from cytoray.tasks.endpoint import ServedModel
    from cytoray.tasks.messages import ModelInfo

    torch.set_num_threads(1)
    bundle = load_bundle(folder)
    predictor = CellPredictor(bundle)
    served = ServedModel(bundle, predictor, ModelInfo(name="offline", version="0", digest="0" * 64))
    limits, batching = Limits(deadline_s=1e6), BatchingConfig(max_backlog_s=1e6, max_queued_tokens=2**40)
    counts = cells.counts_CG
    mapped = bundle.vocabulary.map_genes(cells.genes).apply(
        counts.data, counts.indices, counts.indptr, np.arange(counts.shape[0], dtype=np.uint64)
    )
    service = CellService(served, limits=limits, batching=batching)
    _held.update(predictor=predictor, cells=mapped, service=service, runner=asyncio.Runner())


def _predict() -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = _held["predictor"].predict(_held["cells"]).embeddings
    return found


def _rates(seconds: float, size: int) -> dict[str, float]:
    """Alternate between the two ways for about twice ``seconds``."""
    num = min(_held["cells"].num_cells, max(size, int(seconds * _held.setdefault("rate", 100.0))))
    cells = _held["cells"].take(np.arange(num))
    found = {
        "sorted": common.rate(num, lambda: _held["predictor"].predict(cells)),
        "batcher": common.rate(num, lambda: _held["runner"].run(_ask_batcher(cells, size))),
    }
    if num < seconds * max(found.values()) / 3 and num < _held["cells"].num_cells:  # the first time: it was not known
        _held["rate"] = max(found.values())
        return _rates(seconds, size)
    return found


async def _ask_batcher(cells: Any, size: int) -> None:
    """Queue all cells at once."""
    from cytoray.tasks import find_endpoint
    from cytoray.tasks.embedding.answers import EmbedRequest
    from cytoray.tasks.endpoint import Question

    endpoint, request = find_endpoint("embed"), EmbedRequest.model_construct()
    parts = [cells.take(np.arange(at, min(at + size, cells.num_cells))) for at in range(0, cells.num_cells, size)]
    await asyncio.gather(*(_held["service"].ask(endpoint, Question(request, part)) for part in parts))


def _one_cell_ms(num: int) -> list[float]:
    found = []
    for row in range(num):
        cell = _held["cells"].take(np.array([row % _held["cells"].num_cells]))
        started = time.perf_counter()
        _held["predictor"].predict(cell)
        found.append(1e3 * (time.perf_counter() - started))
    return found


@contextlib.contextmanager
def serving(folder: Path, **keys: Any) -> Iterator[str]:
    """Run `cytoray serve` with a bundle in the block, its replica on the model's core; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {
        "kind": "serve",
        "model_uri": str(folder),
        "port": port,
        "max_replicas": 1,
        "start_timeout_s": START_S,
        **keys,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "serve.yaml"
        path.write_text(json.dumps(settings))  # JSON is YAML
        command = [sys.executable, "-c", CYTORAY, "serve", "--config", str(path)]
        with (Path(scratch) / "log").open("w+") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: os.sched_setaffinity(0, OTHER_CORES),
            )
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(process, url, log=Path(scratch) / "log")
                _pin(process.pid)
                yield url
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, *, log: Path) -> None:
    """Wait until the service is ready."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"The service did not start: {log.read_text()[-2000:]}")


def _pin(pid: int) -> None:
    """Move the threads of the replica to the model's core."""
    replicas = [each for each in psutil.Process(pid).children(recursive=True) if REPLICA in " ".join(each.cmdline())]
    assert replicas, "the service has a replica"
    for replica in replicas:
        for thread in replica.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, {MODEL_CORE})


def largest_error(answers: dict[int, bytes], offline: npt.NDArray[np.float32], *, wire: str) -> float:
    """Return the largest difference between embeddings in answers and offline ones; every answer is compared."""
    from cytoray.serving.payloads.answering import read_answer

    worst = 0.0
    for start, content in answers.items():
        answer = read_answer(content) if wire == "arrow" else json.loads(content)
        found = np.array([cell["embedding"] for cell in answer["cells"]], np.float32)
        worst = max(worst, float(np.abs(found - offline[start : start + len(found)]).max()))
    return worst
