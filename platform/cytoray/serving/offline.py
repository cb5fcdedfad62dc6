"""Embeddings and labels of many cells, offline: Ray Data over row ranges, by the predictor that also serves."""

# C cells, K labels, D width

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from cytoray import cluster, progress, storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import SourceDescription
from cytoray.corpus.readers.finding import expand_sources
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.readers.ranges import RangeFile
from cytoray.corpus.reading import read_cells
from cytoray.model.device import choose_reserved_device
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.registry.opening import CACHE_FOLDER, open_model
from cytoray.serving.embedding_files import write_h5ad
from cytoray.serving.schemas import ModelInfo
from cytoray.serving.service import Predictor
from cytoray.tokens.cells import SparseCells, UInt64

logger = logging.getLogger(__name__)
_NUM_EMPTY = b"cytoray.num_empty"


def embed_cells(predictor: Predictor, batches: Iterable[SparseCells], *, model: ModelInfo) -> Iterator[pa.Table]:
    """Predict each batch and yield it as a table, in order, with the columns of ``table_schema``."""
    for cells in batches:
        yield to_table(predictor.predict(cells), cell_ids=cells.cell_ids, model=model)


def table_schema(width: int, *, model: ModelInfo) -> pa.Schema:
    """Columns of the result; the metadata name the model, without which an embedding means nothing."""
    fields = [
        pa.field("cell_id", pa.uint64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), width), nullable=False),
        pa.field("label", pa.string()),  # null, as probability, where the model has no labels
        pa.field("probability", pa.float32()),
    ]
    return pa.schema(fields, metadata={f"cytoray.model_{key}": value for key, value in model.model_dump().items()})


def to_table(predictions: Predictions, *, cell_ids: UInt64, model: ModelInfo) -> pa.Table:
    """The predictions for C cells as a table of C rows."""
    num_cells, width = predictions.embeddings.shape
    labels: list[str | None] = [None] * num_cells
    best = pa.nulls(num_cells, pa.float32())
    if predictions.probabilities is not None:
        known = np.isfinite(predictions.embeddings[:, 0])
        names = [predictions.labels[column] for column in predictions.probabilities.argmax(axis=1)]
        labels = [name if there else None for name, there in zip(names, known, strict=True)]
        best = pa.array(predictions.probabilities.max(axis=1), mask=~known)
    columns = [
        pa.array(cell_ids, pa.uint64()),
        pa.FixedSizeListArray.from_arrays(pa.array(predictions.embeddings.ravel(), pa.float32()), width),
        pa.array(labels, pa.string()),
        best,
    ]
    return pa.Table.from_arrays(columns, schema=table_schema(width, model=model))


@dataclass(frozen=True)
class EmbedResult:
    """Summary of the files that an offline embedding wrote."""

    num_cells: int
    num_empty: int  # cells without any gene that the model knows: their embeddings are NaN
    num_files: int
    skipped: bool
    h5ad: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbedTask:
    """Which cells are embedded by what, and where the tables go."""

    sources: tuple[SourceConfig, ...]
    bundle: str  # URI of the bundle's folder, readable from every worker
    model: ModelInfo
    out: str
    rows_per_file: int = 4_096
    num_actors: int = 1
    num_gpus: float = 0.0  # of each actor; 0: it computes on the CPU
    h5ad: bool = False
    cache_folder: str = CACHE_FOLDER  # on each machine, for a bundle that is not local


def embed_sources(task: EmbedTask, *, advance: progress.Advance = progress.silent) -> EmbedResult:
    """Embed all cells of all sources into ``out/part-….parquet``, one file a row range; ``advance`` counts rows.

    Row ranges that were written before for the same model and file are kept; ``out/manifest.json`` comes last. Cells
    without any gene that the model knows have NaN for an embedding. With ``h5ad`` each source becomes an h5ad file as
    well, with the embeddings in ``obsm["X_scGPT"]``.
    """
    opened = [_describe(source) for source in expand_sources(task.sources)]
    ranges = [item for number, (source, about) in enumerate(opened) for item in _ranges(task, number, source, about)]
    identity = {"model_digest": task.model.digest, "files": [item.file for item in ranges], "h5ad": task.h5ad}
    done_uri = storage.join(task.out, "manifest.json")
    if storage.exists(done_uri) and (done := json.loads(storage.read_bytes(done_uri)))["identity"] == identity:
        num_files, made = len(done["files"]), tuple(done["h5ad"])
        return EmbedResult(done["num_cells"], done["num_empty"], num_files, skipped=True, h5ad=made)
    counts = _embed_ranges(task, ranges, advance)
    made = tuple(_write_h5ad(task, opened, ranges)) if task.h5ad else ()
    num_cells, num_empty = (sum(count[place] for count in counts.values()) for place in (0, 1))
    files = {file: count[0] for file, count in sorted(counts.items())}
    record = {"identity": identity, "num_cells": num_cells, "num_empty": num_empty, "files": files, "h5ad": made}
    storage.write_bytes(done_uri, json.dumps(record, indent=1).encode())
    return EmbedResult(num_cells, num_empty, len(files), skipped=False, h5ad=made)


@dataclass(frozen=True)
class _Range:
    """Rows of one source that become one file."""

    source: SourceConfig
    start: int
    stop: int
    file: str


def _describe(source: SourceConfig) -> tuple[SourceConfig, SourceDescription]:
    with open_source(source) as reader:
        return source, reader.describe()


def _ranges(task: EmbedTask, number: int, source: SourceConfig, about: SourceDescription) -> Iterator[_Range]:
    """The row ranges of one source; a file's name contains everything that its content depends on."""
    made_of = hashlib.sha256(f"{task.model.digest} {about.version} {source.fingerprint()}".encode()).hexdigest()[:16]
    for start in range(0, about.num_cells, task.rows_per_file):
        stop = min(start + task.rows_per_file, about.num_cells)
        yield _Range(source, start, stop, f"part-{number:05d}-{start:010d}-{stop:010d}-{made_of}.parquet")


def _embed_ranges(task: EmbedTask, ranges: list[_Range], advance: progress.Advance) -> dict[str, tuple[int, int]]:
    """Cells, and those of them without genes, by file; what is there already is only counted."""
    there = {entry.uri.rpartition("/")[2]: entry for entry in storage.list_objects(task.out)}
    found = {item.file: _read_counts(there[item.file]) for item in ranges if item.file in there}
    counts = {file: count for file, count in found.items() if count is not None}
    missing = [item for item in ranges if item.file not in counts]
    advance(sum(item.stop - item.start for item in ranges if item.file in counts))
    if missing:
        for row in _embed_missing(task, missing):
            counts[row["file"]] = row["num_cells"], row["num_empty"]
            advance(row["num_rows"])
    return counts


def _embed_missing(task: EmbedTask, missing: list[_Range]) -> Iterable[dict[str, Any]]:
    """Embed row ranges: few cells in this process if Ray is not running, else by Ray's actors."""
    numbers = [{"number": number} for number in range(len(missing))]
    if cluster.is_small(sum(item.stop - item.start for item in missing)):
        return map(_RangeEmbedder(task, missing), numbers)
    cluster.start()
    dataset = ray.data.from_items(numbers, override_num_blocks=len(missing))
    compute = ray.data.ActorPoolStrategy(size=min(task.num_actors, len(missing)))
    embedder: Any = _RangeEmbedder
    embedded = dataset.map(
        embedder, fn_constructor_args=(task, missing), compute=compute, num_gpus=task.num_gpus or None
    )
    rows: Iterable[dict[str, Any]] = embedded.iter_rows()
    return rows


def _read_counts(entry: storage.ObjectInfo) -> tuple[int, int] | None:
    """Read the numbers of cells from a table's footer; None, with a warning, if the file is damaged."""
    try:
        metadata = pq.read_metadata(RangeFile(entry.uri, entry.num_bytes))
        return metadata.num_rows, int(metadata.metadata[_NUM_EMPTY])
    except (pa.ArrowInvalid, KeyError, TypeError):
        logger.warning("%s is damaged and is made again", entry.uri)
        return None


class _RangeEmbedder:
    """An actor that holds the model."""

    def __init__(self, task: EmbedTask, ranges: list[_Range]) -> None:
        self._bundle = open_model(task.bundle, cache_folder=task.cache_folder).bundle
        assert self._bundle.digest == task.model.digest, "the bundle changed while it was in use"
        self._bundle.model.to(choose_reserved_device(task.num_gpus))
        self._task, self._ranges = task, ranges
        self._predictor = CellPredictor(self._bundle, empty_cells="nan")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed one row range and write its table, whole or not at all."""
        item = self._ranges[row["number"]]
        vocabulary = self._bundle.vocabulary
        named = read_cells(item.source, start=item.start, stop=item.stop, vocabulary=vocabulary, keep_empty=True)
        predictions = self._predictor.predict(named.cells)
        num_empty = int((named.cells.num_genes_per_cell == 0).sum())
        table = to_table(predictions, cell_ids=named.cells.cell_ids, model=self._task.model)
        source = pa.array([item.source.identity] * table.num_rows, pa.string()).dictionary_encode()
        table = table.add_column(1, "obs_name", pa.array(named.names, pa.string())).add_column(2, "source", source)
        table = table.replace_schema_metadata({**table.schema.metadata, _NUM_EMPTY: str(num_empty)})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(storage.join(self._task.out, item.file), sink.getvalue())
        return {
            "file": item.file,
            "num_rows": item.stop - item.start,
            "num_cells": table.num_rows,
            "num_empty": num_empty,
        }


def _write_h5ad(
    task: EmbedTask, opened: list[tuple[SourceConfig, SourceDescription]], ranges: list[_Range]
) -> list[str]:
    """One h5ad a source, made of its tables."""
    made = []
    for number, (source, _) in enumerate(opened):
        stem = Path(source.uri.rstrip("/")).name.split(".")[0]
        target = storage.join(task.out, f"{number:05d}-{stem}.h5ad")
        files = [storage.join(task.out, item.file) for item in ranges if item.source == source]
        with tempfile.TemporaryDirectory(prefix="cytoray-embed-") as scratch:
            local = Path(scratch) / "out" / Path(target).name
            local.parent.mkdir()
            write_h5ad(local, files, model=task.model)
            storage.upload_folder(local.parent, task.out)
        made.append(target)
    return made
