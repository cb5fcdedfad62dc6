"""Parquet and Arrow tables with one entry per row: a cell, a gene, a count."""

# N entries

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.problems import NOT_CELLS, UnreadableError
from cytoray.corpus.readers.ranges import open_object, open_parquet
from cytoray.corpus.readers.rows import RowSource
from cytoray.corpus.readers.source import Modality
from cytoray.corpus.readers.turned import STRETCH_ENTRIES, Buckets, Entries, TurnedRows, keep_buckets

# The usual names of the three columns, in lower case and without _ and blanks; the best first.
_CELL = (
    "cell", "cellid", "cellbarcode", "barcode", "cellname", "cb", "obs", "obsname", "obsid", "cellindex", "celljoinid",
    "somadim0", "row", "i",
)  # fmt: skip
_GENE = (
    "gene", "geneid", "genename", "genesymbol", "symbol", "feature", "featurename", "featureid", "ensemblid",
    "ensemblgeneid", "var", "varname", "geneindex", "somadim1", "col", "column", "j",
)  # fmt: skip
_COUNT = ("count", "counts", "umicount", "umis", "umi", "numumis", "readcount", "reads", "value", "expression",
          "somadata", "data", "n", "x", "v")  # fmt: skip


class Names:
    """Numbers for names, in order of first occurrence."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def number(self, column: pa.Array) -> npt.NDArray[np.int64]:
        """Return the number of each of N names."""
        if column.null_count:
            raise UnreadableError("a cell or a gene is missing (null)", remedy="Remove the rows without a name.")
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        names, codes = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
        used, first = np.unique(codes, return_index=True)
        numbers = np.full(len(names), -1, np.int64)
        for code in used[np.argsort(first)].tolist():
            numbers[code] = self._numbers.setdefault(names[code], len(self._numbers))
        return np.asarray(numbers[codes])

    def texts(self) -> list[str]:
        """All names, by number."""
        return [str(name) for name in self._numbers]


class Triples(Buckets):
    """The entries of a table, sorted into a file by row, and the names of cells and genes."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.cells, self.genes = Names(), Names()
        super().__init__(self._entries(batches))

    def _entries(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Entries]:
        for batch in batches:
            cells, genes, counts = batch.columns
            if counts.null_count:
                raise UnreadableError("a count is missing (null)", remedy="Remove these rows, or set the counts to 0.")
            yield Entries(self.cells.number(cells), self.genes.number(genes), counts.to_numpy(zero_copy_only=False))


class TriplesContents:
    """One table; it must be read once before the number of cells is known."""

    format: Format = "triples"

    def __init__(self, info: storage.ObjectInfo, stack: contextlib.ExitStack) -> None:
        """Raises ValueError if the table lacks one of the three columns."""
        self.num_bytes, self.version = info.num_bytes, info.version
        self.notes = ["a table of entries: it was read once to sort them by cell"]
        self._info = info
        file = stack.enter_context(open_object(info))
        schema, self._batches = _open_table(file)
        self._columns = find_columns(schema.names)

    def matrices(self) -> dict[str, RowSource]:
        """The table as a matrix of all its cells by all its genes."""
        triples = self._triples()
        shape = (len(triples.cells.texts()), len(triples.genes.texts()))
        return {"X": TurnedRows(self._triples, shape=shape, num_entries=triples.num_entries)}

    def obs(self) -> pd.DataFrame:
        """The names of the cells."""
        return pd.DataFrame(index=pd.Index(self._triples().cells.texts(), dtype=object))

    def var(self, matrix: str) -> pd.DataFrame:
        """The names of the genes."""
        return pd.DataFrame(index=pd.Index(self._triples().genes.texts(), dtype=object))

    def modality_names(self) -> tuple[str, ...]:
        """Return no name: the table has genes only."""
        return ()

    def modality(self, config: ModalityConfig) -> Modality:
        """Never called: this format has no modalities."""
        raise NotImplementedError

    def _triples(self) -> Triples:
        made = keep_buckets((self._info.uri, self._info.version), lambda: Triples(self._batches(self._columns)))
        assert isinstance(made, Triples)
        return made


def find_columns(names: list[str]) -> list[str]:
    """Return the columns of cell, gene and count; ValueError lists the columns if one is missing."""
    plain = {name.lower().replace("_", "").replace(" ", ""): name for name in reversed(names)}
    found = []
    for what, usual in (("cell", _CELL), ("gene", _GENE), ("count", _COUNT)):
        column = next((plain[name] for name in usual if name in plain), None)
        if column is None:
            raise UnreadableError(
                f"no column looks like that of the {what}; columns there: {', '.join(names)}",
                remedy="Such a table has a row per count: name its columns cell, gene and count.",
                rule=NOT_CELLS,
            )
        found.append(column)
    return found


def _open_table(file: Any) -> tuple[pa.Schema, Callable[[list[str]], Iterator[pa.RecordBatch]]]:
    """The schema of a parquet file, an Arrow file (feather) or an Arrow stream, and a function that reads columns."""
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PAR1":
        table = open_parquet(file)
        return table.schema_arrow, lambda columns: _selected(
            table.iter_batches(STRETCH_ENTRIES, columns=columns), columns
        )
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return reader.schema, lambda columns: _selected(batches, columns)
    stream = pa.ipc.open_stream(file)
    return stream.schema, lambda columns: _selected(stream, columns)


def _selected(batches: Any, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of the three columns, in their order."""
    for batch in batches:
        chosen = batch.select(columns)
        chosen.validate(full=True)  # pyarrow's compiled code would follow a wrong code or offset out of memory
        yield chosen
