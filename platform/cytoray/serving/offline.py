"""Embeddings and labels of many cells, offline: Ray Data over a file's rows, by the predictor that also serves."""

# C cells, K labels, D width

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from cytoray import progress, storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.reading import read_cells
from cytoray.model.bundle import load_bundle
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.serving.schemas import ModelInfo
from cytoray.serving.service import Predictor
from cytoray.tokens.cells import SparseCells, UInt64


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
    labels: list[str] | list[None] = [None] * num_cells
    best = pa.nulls(num_cells, pa.float32())
    if predictions.probabilities is not None:
        labels = [predictions.labels[column] for column in predictions.probabilities.argmax(axis=1)]
        best = pa.array(predictions.probabilities.max(axis=1))
    columns = [
        pa.array(cell_ids, pa.uint64()),
        pa.FixedSizeListArray.from_arrays(pa.array(predictions.embeddings.ravel(), pa.float32()), width),
        pa.array(labels, pa.string()),
        best,
    ]
    return pa.Table.from_arrays(columns, schema=table_schema(width, model=model))


@dataclass(frozen=True)
class EmbedResult:
    """What an offline embedding wrote."""

    num_cells: int
    num_files: int
    skipped: bool


@dataclass(frozen=True)
class EmbedTask:
    """Which cells are embedded by what, and where the tables go."""

    source: SourceConfig
    bundle: str  # URI of the bundle's folder, readable from every worker
    model: ModelInfo
    out: str
    rows_per_file: int = 4_096
    num_actors: int = 1


def embed_source(task: EmbedTask, *, advance: progress.Advance = progress.silent) -> EmbedResult:
    """Embed all cells of one file into ``out/part-….parquet``, one file a row range; ``advance`` counts rows.

    Ranges already written for the same model and source are skipped; ``out/manifest.json`` comes last.
    """
    with open_source(task.source) as reader:
        description = reader.describe()
    identity = {"model_digest": task.model.digest, "source": task.source.uri, "source_version": description.version}
    done_uri = storage.join(task.out, "manifest.json")
    if storage.exists(done_uri):
        done = json.loads(storage.read_bytes(done_uri))
        if done["identity"] == identity:
            return EmbedResult(done["num_cells"], len(done["files"]), skipped=True)
    starts = range(0, description.num_cells, task.rows_per_file)
    items = [{"start": start, "stop": min(start + task.rows_per_file, description.num_cells)} for start in starts]
    work = functools.partial(_embed_rows, task=task, version=description.version)
    compute = ray.data.TaskPoolStrategy(size=min(task.num_actors, len(items)))
    files: dict[str, int] = {}
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(work, compute=compute).iter_rows():
        files[row["file"]] = row["num_cells"]
        advance(row["stop"] - row["start"])
    num_cells = sum(files.values())
    record = {"identity": identity, "num_cells": num_cells, "files": dict(sorted(files.items()))}
    storage.write_bytes(done_uri, json.dumps(record, indent=1).encode())
    return EmbedResult(num_cells, len(files), skipped=False)


@functools.lru_cache(maxsize=1)
def _load_predictor(bundle: str, digest: str) -> CellPredictor:
    """The predictor of a bundle in the store; kept by the worker process from one range to the next."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cytoray-embed-") as scratch:
        storage.download_folder(bundle, Path(scratch) / "bundle")
        loaded = load_bundle(Path(scratch) / "bundle")
    assert loaded.digest == digest, "the bundle changed while it was in use"
    return CellPredictor(loaded)


def _embed_rows(item: dict[str, Any], *, task: EmbedTask, version: str) -> dict[str, Any]:
    """Embed one row range and write its table."""
    file = f"part-{item['start']:010d}-{task.model.digest[:12]}-{version[:12]}.parquet"
    named = read_cells(task.source, start=item["start"], stop=item["stop"])
    table = to_table(
        _load_predictor(task.bundle, task.model.digest).predict(named.cells),
        cell_ids=named.cells.cell_ids,
        model=task.model,
    ).add_column(1, pa.field("obs_name", pa.string()), pa.array(named.names))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.join(task.out, file), sink.getvalue())
    return {**item, "file": file, "num_cells": table.num_rows}
