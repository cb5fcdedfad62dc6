"""The obs tables of a corpus, read shard by shard."""

# C cells

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, ShardRecord, corpus_uri
from cytoray.errors import CorpusError
from cytoray.tokens.labels import label_texts

Codes = npt.NDArray[np.int32]
READERS = 8  # tables read at a time: on an object store the time to the first byte dominates
AHEAD = 4 * READERS


def read_tables(store: str, manifest: CorpusManifest, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read the named columns of obs, one table per shard, aligned with its cells; CorpusError if a column is missing.

    Shards older than an append may lack a column, whose values are then missing, or have it in a narrower type.
    """
    with ThreadPoolExecutor(READERS, "obs") as pool:
        # A few tables ahead, not all of them: 33 million rows of obs do not fit.
        ahead = [pool.submit(_read_table, store, manifest, shard, columns) for shard in manifest.shards[:AHEAD]]
        for number in range(len(manifest.shards)):
            table = ahead.pop(0).result()
            following = manifest.shards[number + AHEAD : number + AHEAD + 1]
            ahead += [pool.submit(_read_table, store, manifest, shard, columns) for shard in following]
            yield table


def _read_table(store: str, manifest: CorpusManifest, shard: ShardRecord, columns: Sequence[str]) -> pa.Table:
    uri = storage.join(corpus_uri(store, manifest.name), shard.obs.key)
    file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri, sha256=shard.obs.sha256)))
    there = file.schema_arrow.names
    known = [*there, *(name for name in manifest.obs_columns if name not in there)]
    for column in columns:
        if column not in known:
            raise CorpusError(
                f"Corpus {manifest.name!r}: obs has no column {column!r}.",
                remedy=f"Columns there: {', '.join(known)}.",
                columns=known,
            )
    table = file.read(columns=[column for column in columns if column in there], use_threads=False)
    for place, column in enumerate(columns):
        kind = manifest.obs_columns.get(column)
        if column not in there:
            table = table.add_column(place, column, pa.nulls(shard.num_cells, pa.type_for_alias(kind)))
        elif kind is not None and table.column(place).type != pa.type_for_alias(kind):
            table = table.set_column(place, column, _widened(table.column(place), kind))
    return table


def _widened(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """A column of an earlier version in the type that the corpus has now."""
    if kind != "string":
        return column.cast(pa.type_for_alias(kind))
    return pa.chunked_array([label_texts(chunk.to_pylist()) for chunk in column.chunks], pa.string())


class Coder:
    """Integer codes for the texts of a column that comes in pieces."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._pieces: list[npt.NDArray[np.signedinteger]] = []

    def add(self, column: pa.ChunkedArray) -> Codes:
        """Add a piece and return its codes (C,), -1 for a missing value. ``finish`` may number them differently."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        encoded = pa.chunked_array(column.chunks, column.type).combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        texts = label_texts(encoded.dictionary.to_pylist())
        here = [-1 if text is None else self._numbers.setdefault(text, len(self._numbers)) for text in texts]
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        codes: Codes = np.array([*here, -1], np.int32)[indices]
        self._pieces.append(codes.astype(_code_type(len(self._numbers))))  # 33 million cells: a byte each, not four
        return codes

    def present(self, values: Sequence[str] | None = None) -> npt.NDArray[np.bool_]:
        """Whether each cell (C,) has a value, or one of ``values``."""
        wanted = self._numbers.keys() if values is None else frozenset(values)
        known = np.array([*(name in wanted for name in self._numbers), False], bool)
        return np.concatenate([np.empty(0, bool), *(known[piece] for piece in self._pieces)])

    def finish(
        self, keep: npt.NDArray[np.bool_] | None = None, *, values: Sequence[str] | None = None
    ) -> tuple[tuple[str, ...], npt.NDArray[np.signedinteger]]:
        """Return ``values``, or the sorted texts of the cells in ``keep`` (C,), and every cell's code in them.

        The code of a cell with a missing or another text is -1.
        """
        names = self._names(keep) if values is None else tuple(values)
        order = {name: code for code, name in enumerate(names)}
        dtype = _code_type(len(order))
        table = np.array([*(order.get(name, -1) for name in self._numbers), -1], dtype)
        return names, np.concatenate([np.empty(0, dtype), *(table[piece] for piece in self._pieces)])

    def _names(self, keep: npt.NDArray[np.bool_] | None) -> tuple[str, ...]:
        """Return the sorted texts of the cells in ``keep``."""
        counts = np.zeros(len(self._numbers) + 1, np.int64)
        start = 0
        for piece in self._pieces:
            here = piece if keep is None else piece[keep[start : start + len(piece)]]
            counts += np.bincount(here.astype(np.int64) + 1, minlength=len(counts))
            start += len(piece)
        return tuple(sorted(name for name, number in self._numbers.items() if counts[number + 1]))


def _code_type(num_codes: int) -> np.dtype[np.signedinteger]:
    """The narrowest type that holds the codes below ``num_codes`` and -1."""
    return np.min_scalar_type(-max(1, num_codes))
