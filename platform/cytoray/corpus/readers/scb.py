"""Folders of scGPT's own format (scBank): a parquet table of lists, one row per cell, and the vocabulary beside it."""

# C cells, G genes, N stored entries

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.problems import UnreadableError
from cytoray.corpus.readers.ranges import open_object, open_parquet, read_object
from cytoray.corpus.readers.rows import RawRows, RowSource
from cytoray.corpus.readers.source import Modality

_WRITE_SCB = "Copy the whole folder that scGPT's DataBank wrote: gene_vocab.json, manifest.json and its tables."
_ROWS_AT_A_TIME = 1_024
_LISTS = ("genes", "expressions")
_NO_GENE, _NO_TOKEN = -1, -2  # columns of a special token, and of an unknown id


class ScbContents:
    """The main table of one folder."""

    format: Format = "scb"

    def __init__(
        self, files: Mapping[str, storage.ObjectInfo], info: storage.ObjectInfo, stack: contextlib.ExitStack
    ) -> None:
        """``files`` by name in the folder; raises ValueError if scGPT cannot have written them."""
        self.num_bytes, self.version = info.num_bytes, info.version
        self.notes: list[str] = []
        manifest = _read_json(files, "manifest.json") if "manifest.json" in files else {}
        if manifest.get("on_disk_format", "parquet") != "parquet":
            raise UnreadableError("its tables are JSON", remedy="Write them with on_disk_format='parquet'.")
        self._ids = _read_vocabulary(files)
        file = stack.enter_context(open_object(files[_main_table(files, manifest)]))
        self._table = stack.enter_context(open_parquet(file))
        missing = {*_LISTS} - set(self._table.schema_arrow.names)
        if missing:
            raise UnreadableError(f"its table has no column {', '.join(sorted(missing))}", remedy=_WRITE_SCB)

    def matrices(self) -> dict[str, RowSource]:
        """The main table."""
        return {"X": ListRows(self._table, self._ids)}

    def obs(self) -> pd.DataFrame:
        """The running numbers of the cells, all that scGPT keeps of them, and further columns without lists."""
        schema = self._table.schema_arrow
        plain = [field.name for field in schema if not pa.types.is_list(field.type)]
        frame = self._table.read(columns=plain).to_pandas()
        numbers = frame.pop("id") if "id" in frame else range(self._table.metadata.num_rows)
        return pd.DataFrame(frame.set_axis(pd.Index([str(number) for number in numbers], dtype=object)))

    def var(self, matrix: str) -> pd.DataFrame:
        """The tokens of the vocabulary that are genes."""
        return pd.DataFrame(index=pd.Index([token for token in self._ids if not _is_special(token)], dtype=object))

    def modality_names(self) -> tuple[str, ...]:
        """Return no name: a cell is a list of genes."""
        return ()

    def modality(self, config: ModalityConfig) -> Modality:
        """Never called: this format has no modalities."""
        raise NotImplementedError


def _read_json(files: Mapping[str, storage.ObjectInfo], name: str) -> Any:
    return json.loads(read_object(files[name]))


def _read_vocabulary(files: Mapping[str, storage.ObjectInfo]) -> dict[str, int]:
    """Tokens and their ids, ascending."""
    if "gene_vocab.json" not in files:
        raise UnreadableError("gene_vocab.json is missing in the folder", remedy=_WRITE_SCB)
    ids = _read_json(files, "gene_vocab.json")
    if not isinstance(ids, dict) or not all(isinstance(number, int) and number >= 0 for number in ids.values()):
        raise UnreadableError("gene_vocab.json is not a table of tokens and ids", remedy=_WRITE_SCB)
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _is_special(token: str) -> bool:
    """Whether it is ``<cls>`` or another token that is not a gene."""
    return token.startswith("<") and token.endswith(">")


def _main_table(files: Mapping[str, storage.ObjectInfo], manifest: Mapping[str, Any]) -> str:
    """Name of the main table's file."""
    name = f"{manifest.get('main_data') or 'X'}.datatable.parquet"
    if name in files:
        return name
    tables = [other for other in files if other.endswith(".datatable.parquet") and "/" not in other]
    if len(tables) != 1:
        there = ", ".join(tables) or "none"
        raise UnreadableError(f"the table {name} is missing in the folder (tables: {there})", remedy=_WRITE_SCB)
    return tables[0]


class ListRows:
    """Rows of a parquet table with two columns of lists: ids of the vocabulary, and values."""

    def __init__(self, table: pq.ParquetFile, ids: Mapping[str, int]) -> None:
        """``ids`` of all tokens, ascending; those that are genes are the columns."""
        genes = [number for token, number in ids.items() if not _is_special(token)]
        self.shape = (int(table.metadata.num_rows), len(genes))
        self.num_entries: int | None = None
        self._table = table
        self._column = np.full(max(ids.values(), default=0) + 1, _NO_TOKEN, np.int32)
        self._column[list(ids.values())] = _NO_GENE
        self._column[genes] = np.arange(len(genes), dtype=np.int32)
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``, of the row groups that hold them; entries of special tokens are left out."""
        columns, values, lengths = [np.empty(0, np.int32)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        for batch in self._batches(start, stop):
            genes, expressions = (batch.column(name) for name in _LISTS)
            offsets = np.asarray(genes.offsets)
            if genes.null_count or expressions.null_count or not np.array_equal(offsets, expressions.offsets):
                raise ValueError("a cell has a different number of genes and expressions")
            places = self._places(np.asarray(genes.values)[offsets[0] : offsets[-1]])
            kept = places >= 0
            columns.append(places[kept])
            values.append(np.asarray(expressions.values)[offsets[0] : offsets[-1]][kept])
            before = np.concatenate([[0], np.cumsum(kept)])
            lengths.append(np.diff(before[offsets - offsets[0]]))
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return RawRows(np.concatenate(values), np.concatenate(columns), indptr)

    def sample_values(self) -> None:
        """Return None: rows are quick to read."""
        return

    def _batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows asked for, in batches."""
        if start >= stop:
            return
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        place = int(self._starts[first])
        groups = list(range(first, last))
        for batch in self._table.iter_batches(_ROWS_AT_A_TIME, row_groups=groups, columns=list(_LISTS)):
            lower, upper = max(start, place), min(stop, place + batch.num_rows)
            if lower < upper:
                yield _plain(batch.slice(lower - place, upper - lower))
            place += batch.num_rows

    def _places(self, ids: Any) -> Any:
        """Return the columns of ids, below zero for a special token; ValueError for an unknown id."""
        known = (ids >= 0) & (ids < len(self._column))
        places = np.where(known, self._column[np.where(known, ids, 0)], _NO_TOKEN)
        if (places == _NO_TOKEN).any():
            unknown = ids[places == _NO_TOKEN][0]
            raise UnreadableError(
                f"the vocabulary has no token of id {unknown:,}",
                remedy="gene_vocab.json must be the one that the table was written with.",
            )
        return places


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with lists of the ordinary kind, checked."""
    arrays = []
    for name in _LISTS:
        array = batch.column(name)
        if not pa.types.is_list(array.type):
            array = array.cast(pa.list_(array.type.value_type))
        arrays.append(array)
    plain = pa.RecordBatch.from_arrays(arrays, names=list(_LISTS))
    plain.validate(full=True)
    return plain
