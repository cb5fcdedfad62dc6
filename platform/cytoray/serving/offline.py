"""Offline answers to the cells of files and corpora: Ray Data over row ranges, by the endpoints of the service."""

# C cells

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from cytoray import cluster, progress, storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.places import CellPlace, PlacedCells, open_places
from cytoray.corpus.readers.ranges import RangeFile
from cytoray.failpoints import failpoint
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
FindPlaces = Callable[[Sequence[SourceConfig]], Sequence[CellPlace]]
_NUM_EMPTY, _EMPTY = b"cytoray.num_empty", b"cytoray.empty_cells"  # of a table: their number, names of the first
_SHOWN = 5  # names in a warning
FORMAT = 3  # of the tables: files of another one are written again


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
    """Cells of files and corpora, the endpoint that answers them, the model, and the destination of the tables."""

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
    members: Mapping[str, Any] = field(default_factory=dict)  # of the requests, beside those that the endpoint sets
    find: FindPlaces = open_places


@dataclass(frozen=True)
class Part:
    """Rows of one place that are answered together, and the file of their answers."""

    place: CellPlace
    start: int
    stop: int
    file: str


def plan_parts(task: OfflineTask) -> list[Part]:
    """Divide the cells of all sources, in their order; raises CorpusError or StorageError if one cannot be read."""
    places = task.find(task.sources)
    return [part for number, place in enumerate(places) for part in _parts_of(task, number, place)]


def answer_sources(
    task: OfflineTask, *, parts: Sequence[Part] | None = None, advance: progress.Advance = progress.silent
) -> OfflineResult:
    """Answer all cells of all sources into ``out/part-….parquet``, one file per row range; ``advance`` counts rows.

    ``parts`` are those of ``plan_parts``, if it was called before. Row ranges already written for the same endpoint,
    model and file are kept; ``out/manifest.json`` is written last.
    Cells without any gene that the model knows have NaN or null for an answer; a warning names them. With ``h5ad`` each
    source becomes an h5ad file as well, with arrays of numbers in obsm, such as embeddings in ``obsm["X_scGPT"]``.
    """
    parts = plan_parts(task) if parts is None else parts
    identity = {
        "endpoint": task.endpoint,
        "model_digest": task.model.digest,
        "files": [part.file for part in parts],
        "h5ad": task.h5ad,
    }
    done_uri = storage.join(task.out, "manifest.json")
    if storage.exists(done_uri) and (done := json.loads(storage.read_bytes(done_uri)))["identity"] == identity:
        return _result(done, skipped=True)
    counts = _answer_parts(task, parts, advance)
    made = tuple(_write_h5ad(task, parts)) if task.h5ad else ()
    record = {
        "identity": identity,
        "num_cells": sum(count.num_cells for count in counts.values()),
        "num_empty": sum(count.num_empty for count in counts.values()),
        "empty_cells": list(chain.from_iterable(counts[part.file].empty_cells for part in parts))[:_SHOWN],
        "warnings": list(dict.fromkeys(chain.from_iterable(counts[part.file].warnings for part in parts))),
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


def _parts_of(task: OfflineTask, number: int, place: CellPlace) -> Iterator[Part]:
    """Yield the row ranges of one place; a file's name contains a digest of everything its content depends on."""
    members = json.dumps(task.members, sort_keys=True) if task.members else ""
    made_of = hashlib.sha256(
        f"{task.endpoint} {task.model.digest} {place.version} {FORMAT}{members}".encode()
    ).hexdigest()[:16]
    for start in range(0, place.num_rows, task.rows_per_file):
        stop = min(start + task.rows_per_file, place.num_rows)
        yield Part(place, start, stop, f"part-{number:05d}-{start:010d}-{stop:010d}-{made_of}.parquet")


@dataclass(frozen=True)
class _Counts:
    """Numbers of cells in one file, and the endpoint's warnings about them."""

    num_cells: int
    num_empty: int
    empty_cells: list[str]  # names of the first of them
    warnings: list[str]


def _answer_parts(task: OfflineTask, parts: Sequence[Part], advance: progress.Advance) -> dict[str, _Counts]:
    """Answer row ranges whose files are missing; return the numbers of cells, and of empty cells, by file."""
    there = {entry.uri.rpartition("/")[2]: entry for entry in storage.list_objects(task.out)}
    found = {part.file: _read_counts(there[part.file]) for part in parts if part.file in there}
    counts = {file: count for file, count in found.items() if count is not None}
    missing = [part for part in parts if part.file not in counts]
    advance(sum(part.stop - part.start for part in parts if part.file in counts), already=True)
    if missing:
        for row in _answer_missing(task, missing):
            lists = list(row["empty_cells"]), list(row["warnings"])
            counts[row["file"]] = _Counts(row["num_cells"], row["num_empty"], *lists)
            advance(row["num_rows"])
    return counts


def _answer_missing(task: OfflineTask, missing: list[Part]) -> Iterable[dict[str, Any]]:
    """Answer row ranges: in this process if there are few cells and Ray is not running, else in Ray actors."""
    numbers = [{"number": number} for number in range(len(missing))]
    if cluster.is_small(sum(part.stop - part.start for part in missing)):
        return map(_PartAnswerer(task, missing), numbers)
    cluster.start()
    dataset = ray.data.from_items(numbers, override_num_blocks=len(missing))
    compute = ray.data.ActorPoolStrategy(size=min(task.num_actors, len(missing)))
    answerer: Any = _PartAnswerer
    answered = dataset.map(
        answerer, fn_constructor_args=(task, missing), compute=compute, num_gpus=task.num_gpus or None
    )
    rows: Iterable[dict[str, Any]] = answered.iter_rows()
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


class _PartAnswerer:
    """An actor that holds the model."""

    def __init__(self, task: OfflineTask, parts: list[Part]) -> None:
        bundle = open_model(task.bundle, cache_folder=task.cache_folder).bundle
        assert bundle.digest == task.model.digest, "the bundle changed while it was in use"
        bundle.model.to(choose_reserved_device(task.num_gpus))
        self._task, self._parts = task, parts
        self._endpoint = find_endpoint(task.endpoint)
        self._served = offline_model(bundle, task.model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer one row range and write its table atomically."""
        part = self._parts[row["number"]]
        failpoint("offline.before_part")
        placed = part.place.read(part.start, part.stop, self._served.bundle.vocabulary)
        empty = np.flatnonzero(placed.cells.num_genes_per_cell == 0)
        empty_cells = [placed.names[row] for row in empty[:_SHOWN]]
        table = self._answer(placed)
        columns = {
            "cell_id": pa.array(placed.cells.cell_ids, pa.uint64()),
            "obs_name": pa.array(placed.names, pa.string()),
            "source": pa.array(placed.sources, pa.string()).dictionary_encode(),
            "row": pa.array(placed.rows, pa.int64()),
        }
        for place, (name, column) in enumerate(columns.items()):
            table = table.add_column(place, name, column)
        about = {_NUM_EMPTY: str(len(empty)), _EMPTY: json.dumps(empty_cells)}
        table = table.replace_schema_metadata({**table.schema.metadata, **about})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(storage.join(self._task.out, part.file), sink.getvalue())
        failpoint("offline.after_part")
        return {
            "file": part.file,
            "num_rows": part.stop - part.start,
            "num_cells": table.num_rows,
            "num_empty": len(empty),
            "empty_cells": empty_cells,
            "warnings": _warnings(table.schema.metadata),
        }

    def _answer(self, placed: PlacedCells) -> pa.Table:
        """Ask the endpoint about some cells, as a service would."""
        members = {**self._endpoint.offline_members, **self._task.members}
        request = self._endpoint.request.model_construct(**members)
        question = Question(request, placed.cells, placed.names, placed.measured)
        (result,) = self._endpoint.run(self._served, [question])
        table: pa.Table = self._endpoint.table.load()(self._endpoint, question, result, self._task.model)
        return table


def offline_model(bundle: ModelBundle, model: ModelInfo) -> ServedModel:
    """Return a model that answers as in a service, and takes the time that it needs."""
    return ServedModel(bundle, build_predictor(bundle, empty_cells="nan"), model, waits=True)


def _write_h5ad(task: OfflineTask, parts: Sequence[Part]) -> list[str]:
    """Write one h5ad file per file or corpus from its tables."""
    made = []
    files: dict[str, list[str]] = {}
    for part in parts:
        files.setdefault(part.place.uri, []).append(storage.join(task.out, part.file))
    for number, (uri, tables) in enumerate(files.items()):
        stem = Path(uri.rstrip("/")).name.split(".")[0]
        target = storage.join(task.out, f"{number:05d}-{stem}.h5ad")
        with tempfile.TemporaryDirectory(prefix="cytoray-answers-") as scratch:
            local = Path(scratch) / "out" / Path(target).name
            local.parent.mkdir()
            write_h5ad(local, tables, model=task.model, obsm=find_endpoint(task.endpoint).obsm)
            storage.upload_folder(local.parent, task.out)
        made.append(target)
    return made
