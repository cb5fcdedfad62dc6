"""Offline answers to the cells of files: Ray Data over row ranges, by the endpoints that the service uses."""

# C cells

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
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
from cytoray.corpus.reading import NamedCells, read_cells
from cytoray.model.bundle import ModelBundle
from cytoray.model.device import choose_reserved_device
from cytoray.registry.opening import CACHE_FOLDER, open_model
from cytoray.serving.answer_files import write_h5ad
from cytoray.tasks import find_endpoint
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.embedding.table import to_table
from cytoray.tasks.endpoint import Predictor, Question, ServedModel
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.tables import HEADER
from cytoray.tokens.cells import SparseCells

logger = logging.getLogger(__name__)
_NUM_EMPTY, _EMPTY = b"cytoray.num_empty", b"cytoray.empty_cells"  # of a table: their number, names of the first
_SHOWN = 5  # names in a warning
FORMAT = 2  # of the tables: files of another one are written again


def embed_cells(predictor: Predictor, batches: Iterable[SparseCells], *, model: ModelInfo) -> Iterator[pa.Table]:
    """Predict each batch and yield it as a table, in order, with the columns of ``table_schema``."""
    for cells in batches:
        yield to_table(predictor.predict(cells), cell_ids=cells.cell_ids, model=model)


@dataclass(frozen=True)
class OfflineResult:
    """Summary of the files that were written."""

    num_cells: int
    num_empty: int  # cells without any gene that the model knows: they have no answer
    num_files: int
    skipped: bool
    h5ad: tuple[str, ...] = ()
    empty_cells: tuple[str, ...] = ()  # names of the first of them
    warnings: tuple[str, ...] = ()  # of the endpoint, each once


@dataclass(frozen=True)
class OfflineTask:
    """Cells of files, the endpoint that answers them, the model, and the destination of the tables."""

    sources: tuple[SourceConfig, ...]
    bundle: str  # URI of the bundle's folder, readable from every worker
    model: ModelInfo
    out: str
    endpoint: str = "embed"
    rows_per_file: int = 4_096
    num_actors: int = 1
    num_gpus: float = 0.0  # of each actor; 0: it uses the CPU
    h5ad: bool = False
    cache_folder: str = CACHE_FOLDER  # on each machine, for a bundle that is not local


def answer_sources(task: OfflineTask, *, advance: progress.Advance = progress.silent) -> OfflineResult:
    """Answer all cells of all sources into ``out/part-….parquet``, one file per row range; ``advance`` counts rows.

    Row ranges already written for the same endpoint, model and file are kept; ``out/manifest.json`` is written last.
    Cells without any gene that the model knows have NaN or null for an answer; a warning names them. With ``h5ad`` each
    source becomes an h5ad file as well, with arrays of numbers in obsm, such as embeddings in ``obsm["X_scGPT"]``.
    """
    opened = [_describe(source) for source in expand_sources(task.sources)]
    ranges = [item for number, (source, about) in enumerate(opened) for item in _ranges(task, number, source, about)]
    identity = {
        "endpoint": task.endpoint,
        "model_digest": task.model.digest,
        "files": [item.file for item in ranges],
        "h5ad": task.h5ad,
    }
    done_uri = storage.join(task.out, "manifest.json")
    if storage.exists(done_uri) and (done := json.loads(storage.read_bytes(done_uri)))["identity"] == identity:
        return _result(done, skipped=True)
    counts = _answer_ranges(task, ranges, advance)
    made = tuple(_write_h5ad(task, opened, ranges)) if task.h5ad else ()
    record = {
        "identity": identity,
        "num_cells": sum(count.num_cells for count in counts.values()),
        "num_empty": sum(count.num_empty for count in counts.values()),
        "empty_cells": list(chain.from_iterable(counts[item.file].empty_cells for item in ranges))[:_SHOWN],
        "warnings": list(dict.fromkeys(chain.from_iterable(counts[item.file].warnings for item in ranges))),
        "files": {file: count.num_cells for file, count in sorted(counts.items())},
        "h5ad": made,
    }
    storage.write_bytes(done_uri, json.dumps(record, indent=1).encode())
    return _result(record, skipped=False)


def _result(record: dict[str, Any], *, skipped: bool) -> OfflineResult:
    """The summary of what ``manifest.json`` records; logs its warnings, and that about cells without genes."""
    warnings = tuple(record.get("warnings", ()))
    for warning in warnings:
        logger.warning(warning)
    num_cells, num_empty, empty = record["num_cells"], record["num_empty"], tuple(record.get("empty_cells", ()))
    if num_empty:
        names = ", ".join([*empty, "…"] if num_empty > len(empty) else empty)
        logger.warning(
            "%s of %s cells have no gene that the model knows: %s. Their embeddings are NaN, other answers null.",
            f"{num_empty:,}", f"{num_cells:,}", names,
        )  # fmt: skip
    return OfflineResult(num_cells, num_empty, len(record["files"]), skipped, tuple(record["h5ad"]), empty, warnings)


@dataclass(frozen=True)
class _Range:
    """Rows of one source that are written to one file."""

    source: SourceConfig
    start: int
    stop: int
    file: str


def _describe(source: SourceConfig) -> tuple[SourceConfig, SourceDescription]:
    with open_source(source) as reader:
        return source, reader.describe()


def _ranges(task: OfflineTask, number: int, source: SourceConfig, about: SourceDescription) -> Iterator[_Range]:
    """Yield the row ranges of one source; a file's name contains a digest of everything its content depends on."""
    made_of = hashlib.sha256(
        f"{task.endpoint} {task.model.digest} {about.version} {source.fingerprint()} {FORMAT}".encode()
    ).hexdigest()[:16]
    for start in range(0, about.num_cells, task.rows_per_file):
        stop = min(start + task.rows_per_file, about.num_cells)
        yield _Range(source, start, stop, f"part-{number:05d}-{start:010d}-{stop:010d}-{made_of}.parquet")


@dataclass(frozen=True)
class _Counts:
    """Numbers of cells in one file, and the endpoint's warnings about them."""

    num_cells: int
    num_empty: int
    empty_cells: list[str]  # names of the first of them
    warnings: list[str]


def _answer_ranges(task: OfflineTask, ranges: list[_Range], advance: progress.Advance) -> dict[str, _Counts]:
    """Answer row ranges whose files are missing; return the numbers of cells, and of empty cells, by file."""
    there = {entry.uri.rpartition("/")[2]: entry for entry in storage.list_objects(task.out)}
    found = {item.file: _read_counts(there[item.file]) for item in ranges if item.file in there}
    counts = {file: count for file, count in found.items() if count is not None}
    missing = [item for item in ranges if item.file not in counts]
    advance(sum(item.stop - item.start for item in ranges if item.file in counts))
    if missing:
        for row in _answer_missing(task, missing):
            lists = list(row["empty_cells"]), list(row["warnings"])
            counts[row["file"]] = _Counts(row["num_cells"], row["num_empty"], *lists)
            advance(row["num_rows"])
    return counts


def _answer_missing(task: OfflineTask, missing: list[_Range]) -> Iterable[dict[str, Any]]:
    """Answer row ranges: in this process if there are few cells and Ray is not running, else in Ray actors."""
    numbers = [{"number": number} for number in range(len(missing))]
    if cluster.is_small(sum(item.stop - item.start for item in missing)):
        return map(_RangeAnswerer(task, missing), numbers)
    cluster.start()
    dataset = ray.data.from_items(numbers, override_num_blocks=len(missing))
    compute = ray.data.ActorPoolStrategy(size=min(task.num_actors, len(missing)))
    embedder: Any = _RangeAnswerer
    embedded = dataset.map(
        embedder, fn_constructor_args=(task, missing), compute=compute, num_gpus=task.num_gpus or None
    )
    rows: Iterable[dict[str, Any]] = embedded.iter_rows()
    return rows


def _read_counts(entry: storage.ObjectInfo) -> _Counts | None:
    """Read the numbers of cells from a table's footer; None, with a warning, if the file is damaged."""
    try:
        metadata = pq.read_metadata(RangeFile(entry.uri, entry.num_bytes))
        empty_cells = json.loads(metadata.metadata.get(_EMPTY, b"[]"))
        num_empty = int(metadata.metadata[_NUM_EMPTY])
        return _Counts(metadata.num_rows, num_empty, empty_cells, _warnings(metadata.metadata))
    except (pa.ArrowInvalid, KeyError, TypeError):
        logger.warning("%s is damaged and will be written again", entry.uri)
        return None


def _warnings(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Return the warnings in the header of a table; empty if the endpoint writes none."""
    warnings: list[str] = json.loads(metadata.get(HEADER, b"{}")).get("warnings", [])
    return warnings


class _RangeAnswerer:
    """An actor that holds the model."""

    def __init__(self, task: OfflineTask, ranges: list[_Range]) -> None:
        bundle = open_model(task.bundle, cache_folder=task.cache_folder).bundle
        assert bundle.digest == task.model.digest, "the bundle changed while it was in use"
        bundle.model.to(choose_reserved_device(task.num_gpus))
        self._task, self._ranges = task, ranges
        self._endpoint = find_endpoint(task.endpoint)
        self._served = offline_model(bundle, task.model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer one row range and write its table atomically."""
        item = self._ranges[row["number"]]
        vocabulary = self._served.bundle.vocabulary
        named = read_cells(item.source, start=item.start, stop=item.stop, vocabulary=vocabulary, keep_empty=True)
        empty = np.flatnonzero(named.cells.num_genes_per_cell == 0)
        empty_cells = [named.names[row] for row in empty[:_SHOWN]]
        table = self._answer(named)
        source = pa.array([item.source.identity] * table.num_rows, pa.string()).dictionary_encode()
        columns = {
            "cell_id": pa.array(named.cells.cell_ids, pa.uint64()),
            "obs_name": pa.array(named.names, pa.string()),
        }
        for place, (name, column) in enumerate({**columns, "source": source}.items()):
            table = table.add_column(place, name, column)
        about = {_NUM_EMPTY: str(len(empty)), _EMPTY: json.dumps(empty_cells)}
        table = table.replace_schema_metadata({**table.schema.metadata, **about})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(storage.join(self._task.out, item.file), sink.getvalue())
        return {
            "file": item.file,
            "num_rows": item.stop - item.start,
            "num_cells": table.num_rows,
            "num_empty": len(empty),
            "empty_cells": empty_cells,
            "warnings": _warnings(table.schema.metadata),
        }

    def _answer(self, named: NamedCells) -> pa.Table:
        """Ask the endpoint about some cells, as a service would."""
        assert named.measured is not None, "read from a file"
        request = self._endpoint.request.model_construct(**self._endpoint.offline_members)
        question = Question(request, named.cells, named.names, named.measured)
        (result,) = self._endpoint.run(self._served, [question])
        table: pa.Table = self._endpoint.table.load()(self._endpoint, question, result, self._task.model)
        return table


def offline_model(bundle: ModelBundle, model: ModelInfo) -> ServedModel:
    """Return a model that answers as in a service, and takes the time that it needs."""
    return ServedModel(bundle, build_predictor(bundle, empty_cells="nan"), model, waits=True)


def _write_h5ad(
    task: OfflineTask, opened: list[tuple[SourceConfig, SourceDescription]], ranges: list[_Range]
) -> list[str]:
    """Write one h5ad file per source from its tables."""
    made = []
    for number, (source, _) in enumerate(opened):
        stem = Path(source.uri.rstrip("/")).name.split(".")[0]
        target = storage.join(task.out, f"{number:05d}-{stem}.h5ad")
        files = [storage.join(task.out, item.file) for item in ranges if item.source == source]
        with tempfile.TemporaryDirectory(prefix="cytoray-answers-") as scratch:
            local = Path(scratch) / "out" / Path(target).name
            local.parent.mkdir()
            write_h5ad(local, files, model=task.model, obsm=find_endpoint(task.endpoint).obsm)
            storage.upload_folder(local.parent, task.out)
        made.append(target)
    return made
