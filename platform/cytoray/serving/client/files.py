"""Ask a service about the cells of a file, and write the answers: ``cytoray query``."""

# C cells, D columns of an array

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.drafts import draft_of
from cytoray.errors import ConfigError
from cytoray.progress import Advance, silent
from cytoray.serving.client.asking import Asker, Received
from cytoray.serving.client.chunks import IncompleteError
from cytoray.serving.client.connection import Connection
from cytoray.serving.client.folder import FolderKept
from cytoray.serving.client.frames import UNS, columns_of, fill_arrays, plain_columns, provenance
from cytoray.serving.client.questions import Asked, ask_endpoint
from cytoray.serving.client.settings import Settings
from cytoray.serving.h5ad_files import is_plain_h5ad, put_column, put_element, require_mapping
from cytoray.serving.sending import FileCells, GeneNames
from cytoray.tasks import task_endpoints
from cytoray.tasks.messages import CellsRequest, ModelInfo
from cytoray.tasks.tables import HEADER, model_metadata

KINDS = (".h5ad", ".parquet", ".csv")
_NAME = "obs_name"


Display = Callable[[int], AbstractContextManager[Advance]]  # of the progress through so many cells


def no_display(num_cells: int) -> AbstractContextManager[Advance]:
    """Show no progress."""
    return nullcontext(silent)


@dataclass(frozen=True)
class FileQuery:
    """A file of cells, the task, and the file for its answers."""

    source: SourceConfig
    task: str
    out: Path
    members: dict[str, Any] = field(default_factory=dict)  # further members of the requests


@dataclass(frozen=True)
class QueryResult:
    """Summary of a query."""

    out: Path
    num_cells: int
    num_empty: int  # cells without a gene that the model knows
    num_kept: int  # cells that an earlier, interrupted query had asked about
    model: ModelInfo
    warnings: tuple[str, ...] = ()


async def query_file(query: FileQuery, settings: Settings, *, display: Display = no_display) -> QueryResult:
    """Ask about all cells of a file and write the answers to ``out``, which appears when it is complete.

    Answers are kept beside ``out`` meanwhile: the same query again asks about the other cells only. Raises ConfigError
    if ``out`` exists or is of another kind, CorpusError for a file that cannot be read, RequestError and ServingError
    of the service.
    """
    _check_out(query.out)
    _check_task(query.task)
    with open_source(query.source) as reader:
        reader.describe()
        asked = ask_endpoint(query.task, _cells(reader), dict(query.members), model=settings.model)
        identity = {"uri": query.source.uri, "version": reader.version, "asked": asked.identity}
        kept = FolderKept(query.out.parent / f".{query.out.name}.answers", identity)
        num_kept = sum(len(chunk.rows) for chunk in kept.chunks())
        names = [str(name) for name in reader.obs.index]
        with display(len(names)) as advance:
            advance(num_kept, already=True)
            received = await _ask(asked, settings, kept, advance)
    with draft_of(query.out) as draft:
        _WRITERS[query.out.suffix](draft, query, received, names)
    kept.delete()
    return _summary(query, received, num_kept=num_kept)


def _check_out(out: Path) -> None:
    if out.suffix not in KINDS:
        raise ConfigError(
            f"{out} is not a file that answers are written to.", remedy=f"Name one of {', '.join(KINDS)}."
        )
    if out.exists():
        raise ConfigError(f"{out} already exists.", remedy="Choose another file, or delete it.")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a folder.", remedy="Make it, or choose another one.")


def _check_task(task: str) -> None:
    tasks = [name for name, endpoint in task_endpoints().items() if issubclass(endpoint.request, CellsRequest)]
    if task not in tasks:
        raise ConfigError(f"{task!r} is not a task about cells.", remedy=f"Tasks are {', '.join(tasks)}.")


def _cells(reader: CellReader) -> FileCells:
    """Return the cells of a file; its counts, if it has any, are preferred to other matrices by the reader."""
    named = GeneNames.of_columns(reader.gene_names, reader.ensembl_ids, reader.genomes)
    return FileCells(named, [str(name) for name in reader.obs.index], reader.read_rows)


async def _ask(asked: Asked, settings: Settings, kept: FolderKept, advance: Advance) -> Received:
    """Ask about the cells without an answer; an error says that the query can be continued."""
    done = sum(len(chunk.rows) for chunk in kept.chunks())

    def progress(answered: int, _: int) -> None:
        """Report the cells answered since the last time."""
        nonlocal done
        advance(answered - done)
        done = answered

    connection = Connection(settings)
    try:
        return await Asker(connection).ask(asked, keeper=kept, progress=progress)
    except IncompleteError as error:
        cause = error.cause
        remedy = f"{cause.remedy} {len(error.partial.rows):,} of {error.partial.num_cells:,} cells were answered: the "
        cause.remedy = f"{remedy}same command again asks about the others.".strip()
        raise cause from error
    finally:
        await connection.close()


def _summary(query: FileQuery, received: Received, *, num_kept: int) -> QueryResult:
    heads = [chunk.head for chunk in received.chunks]
    details = [one["detail"] for head in heads for one in head["warnings"] if one["code"] != "empty_cells"]
    return QueryResult(
        out=query.out,
        num_cells=sum(len(chunk.rows) for chunk in received.chunks),
        num_empty=sum(len(chunk.empty_cells) for chunk in received.chunks),
        num_kept=num_kept,
        model=ModelInfo(**heads[0]["model"]),
        warnings=tuple(dict.fromkeys(details)),
    )


def _write_h5ad(path: Path, query: FileQuery, received: Received, names: list[str]) -> None:
    """Write a copy of the file with the answers; a file of another format becomes an h5ad without its matrix."""
    endpoint, chunks = received.asked.endpoint, received.chunks
    if is_plain_h5ad(query.source.uri):
        shutil.copyfile(query.source.uri, path)
    else:
        empty = sparse.csr_matrix((len(names), 0), dtype=np.float32)
        anndata.AnnData(empty, obs=pd.DataFrame(index=pd.Index(names, dtype=object))).write_h5ad(path)
    with h5py.File(path, "a") as file:
        for name, column in plain_columns(endpoint, [chunk.table for chunk in chunks]).items():
            put_column(file["obs"], name, _as_obs(column))
        obsm, uns = (require_mapping(file, name) for name in ("obsm", "uns"))

        def create(key: str, width: int) -> h5py.Dataset:
            """Make an array of obsm."""
            put_element(obsm, key, np.zeros((0, width), np.float32))
            about = dict(obsm[key].attrs)
            del obsm[key]
            made = obsm.create_dataset(key, (len(names), width), np.float32, fillvalue=np.nan)
            made.attrs.update(about)
            return made

        for key, texts in fill_arrays(endpoint, chunks, create).items():
            put_element(uns, f"{key}_names", np.array(texts, dtype=object))
        about = require_mapping(uns, UNS)
        put_element(about, endpoint.name, provenance(received.asked, [chunk.head for chunk in chunks]))


def _as_obs(column: pa.ChunkedArray) -> Any:
    return pd.Categorical(column.to_pylist()) if pa.types.is_string(column.type) else column.to_numpy()


def _write_parquet(path: Path, query: FileQuery, received: Received, names: list[str]) -> None:
    """Write a row per cell, with everything that was answered, also what is nested."""
    tables = [chunk.table for chunk in received.chunks]
    schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive").remove_metadata()
    head = received.chunks[0].head
    metadata = model_metadata(ModelInfo(**head["model"]))
    metadata |= {HEADER: json.dumps(head["header"])} if "header" in head else {}
    kept = [field for field in schema if field.name not in ("id", "cell_id")]
    whole = pa.schema([pa.field(_NAME, pa.string()), *kept], metadata=metadata)
    with pq.ParquetWriter(path, whole, compression="zstd") as writer:
        for chunk, table in zip(received.chunks, tables, strict=True):
            part = pa.concat_tables([schema.empty_table(), table], promote_options="permissive")
            columns = [pa.array(names[chunk.rows.start : chunk.rows.stop]), *(part[field.name] for field in kept)]
            writer.write_table(pa.table(columns, schema=whole))


def _write_csv(path: Path, query: FileQuery, received: Received, names: list[str]) -> None:
    """Write a row per cell; arrays and probabilities have a column per number."""
    types: dict[str, pa.DataType] = {}
    for _, columns in _flat(received):
        types |= {name: column.type for name, column in columns.items()}
    schema = pa.schema([(_NAME, pa.string()), *types.items()])
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for rows, columns in _flat(received):
            part = [columns.get(name, pa.nulls(len(rows), kind)) for name, kind in types.items()]
            writer.write_table(pa.table([pa.array(names[rows.start : rows.stop]), *part], schema=schema))


def _flat(received: Received) -> Iterator[tuple[range, dict[str, Any]]]:
    for chunk in received.chunks:
        yield chunk.rows, dict(columns_of(chunk.table))


_WRITERS = {".h5ad": _write_h5ad, ".parquet": _write_parquet, ".csv": _write_csv}
