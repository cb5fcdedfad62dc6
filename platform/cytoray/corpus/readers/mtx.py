"""MatrixMarket texts with their tables of features and barcodes, as Cell Ranger, GEO, Parse and kb write them."""

# C cells, G genes

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import storage
from cytoray.corpus.readers.problems import FETCH_AGAIN, UnreadableError
from cytoray.corpus.readers.tenx import GENES, FeatureMatrix, TenxContents
from cytoray.corpus.readers.turned import STRETCH_ENTRIES, Buckets, Entries, TurnedRows, check_range, keep_buckets
from cytoray.corpus.readers.unpacking import open_inflated, without_packing

# First words of a table that are those of a header line, in lower case.
_HEADER_WORDS = (
    "x", "v1", "id", "name", "index", "gene", "genes", "gene_id", "geneid", "gene_ids", "gene_name", "gene_names",
    "gene_symbol", "gene_symbols", "symbol", "symbols", "ensembl", "ensembl_id", "ensembl_gene_id", "feature",
    "features", "feature_id", "feature_name", "feature_type", "barcode", "barcodes", "bc_wells", "cell", "cells",
    "cell_id", "cellid", "cell_name", "cell_barcode", "cell_barcodes", "cb",
)  # fmt: skip
_FIELDS = {"integer": "integer", "unsigned-integer": "integer", "real": "real", "double": "real", "pattern": "pattern"}


def open_mtx(files: Mapping[str, storage.ObjectInfo], info: storage.ObjectInfo) -> TenxContents:
    """The matrix of the files ``matrix``, ``features`` and ``barcodes``; ``info`` is that of all together."""
    with open_inflated(files["matrix"]) as file:
        header = _read_header(file)
    sizes = header.sizes[:2]
    tables = {part: _read_table(files[part]) for part in ("features", "barcodes")}
    for part, table in tables.items():
        if len(table) not in sizes and len(table) - 1 in sizes and _is_header(table):
            tables[part] = table.iloc[1:].reset_index(drop=True)
    table = tables["features"]
    features = pd.DataFrame({"name": table.iloc[:, min(1, table.shape[1] - 1)], "gene_ids": table.iloc[:, 0]})
    features["feature_types"] = table.iloc[:, 2] if table.shape[1] > 2 else GENES
    barcodes = [str(name) for name in tables["barcodes"].iloc[:, 0]]
    expected = (len(barcodes), len(features))
    if sizes not in (expected, expected[::-1]):
        raise UnreadableError(
            f"the matrix is {sizes[0]:,} by {sizes[1]:,}, but {_name(files['features'])} has {len(features):,} lines "
            f"and {_name(files['barcodes'])} has {len(barcodes):,}",
            remedy="The three files must belong together: one line per gene and one per cell, without a header line.",
        )
    rows = MtxRows(files["matrix"], header, is_turned=sizes == expected != expected[::-1], version=info.version)
    return TenxContents({"": FeatureMatrix(rows, features, barcodes)}, "10x_mtx", info)


def _name(info: storage.ObjectInfo) -> str:
    return info.uri.rpartition("/")[2]


def _read_table(info: storage.ObjectInfo) -> pd.DataFrame:
    """A table of texts with all its lines."""
    separator = "," if without_packing(info.uri).endswith(".csv") else "\t"
    quoting: Any = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    with open_inflated(info) as file:
        if not file.peek(1):
            return pd.DataFrame({0: []}, dtype=str)
        table = pd.read_csv(file, sep=separator, header=None, dtype=str, keep_default_na=False, quoting=quoting)
        return pd.DataFrame(table)


def _is_header(table: pd.DataFrame) -> bool:
    """Whether the first line of a table names its columns."""
    return any(str(word).strip().strip('"').lower() in _HEADER_WORDS for word in table.iloc[0])


class _Header:
    """The first lines of a MatrixMarket file."""

    def __init__(self, field: str, sizes: tuple[int, int, int], num_lines: int) -> None:
        self.field = field  # integer, real or pattern
        self.sizes = sizes  # rows, columns, entries
        self.num_lines = num_lines


class MtxRows(TurnedRows):
    """The matrix of a MatrixMarket file of features by cells or, ``is_turned``, of cells by features."""

    def __init__(self, info: storage.ObjectInfo, header: _Header, *, is_turned: bool, version: str) -> None:
        self._info, self._header, self._is_turned = info, header, is_turned
        num_rows, num_columns, num_entries = header.sizes
        super().__init__(
            lambda: keep_buckets((info.uri, version), lambda: Buckets(self._stretches())),
            shape=(num_rows, num_columns) if is_turned else (num_columns, num_rows),
            num_entries=num_entries,
        )

    def sample_values(self) -> npt.NDArray[Any]:
        """A one if the header says that all are integers, else the first stretch of values."""
        if self._header.field != "real":
            return np.ones(1, np.int64)
        return next(self._tables(), pd.DataFrame({"value": [0.0]}))["value"].to_numpy()

    def _tables(self) -> Iterator[pd.DataFrame]:
        """The lines behind the header, in stretches."""
        names = ["row", "column"] if self._header.field == "pattern" else ["row", "column", "value"]
        kind = np.float64 if self._header.field == "real" else np.int64
        types = {name: kind if name == "value" else np.int64 for name in names}
        with open_inflated(self._info) as file:
            for _ in range(self._header.num_lines):
                file.readline()
            if not self.num_entries:
                return
            with pd.read_csv(
                file, sep=r"\s+", header=None, names=names, dtype=types, chunksize=STRETCH_ENTRIES, index_col=False
            ) as tables:
                yield from tables

    def _stretches(self) -> Iterator[Entries]:
        seen = 0
        for table in self._tables():
            first, second = table["row"].to_numpy() - 1, table["column"].to_numpy() - 1
            cells, features = (first, second) if self._is_turned else (second, first)
            check_range(cells, self.shape[0], "cell")
            check_range(features, self.shape[1], "feature")
            seen += len(table)
            values = table["value"].to_numpy() if "value" in table else np.ones(len(table), np.uint8)
            yield Entries(cells, features, values)
        if seen != self.num_entries:
            raise UnreadableError(
                f"its header announces {self.num_entries:,} entries, but there are {seen:,}", remedy=FETCH_AGAIN
            )


def _read_header(file: io.BufferedReader) -> _Header:
    """Read a MatrixMarket header as far as the line of sizes."""
    banner = file.readline(1_000).decode(errors="replace").lower().split()
    if banner[:2] != ["%%matrixmarket", "matrix"] or len(banner) != 5:
        raise UnreadableError(
            "it does not begin with %%MatrixMarket matrix",
            remedy="Look at its first line: if it is a web page or empty, download the file again.",
        )
    layout, field, symmetry = banner[2:]
    if layout != "coordinate":
        raise UnreadableError(
            f"the MatrixMarket file is dense ({layout}), not sparse (coordinate)",
            remedy="Write it again as sparse: scipy.io.mmwrite(path, scipy.sparse.coo_matrix(scipy.io.mmread(path))).",
        )
    if symmetry != "general" or field not in _FIELDS:
        raise UnreadableError(
            f"a MatrixMarket matrix of kind {field} {symmetry} does not hold counts of cells",
            remedy="Expected is 'coordinate integer general' (or real): write the counts again with scipy.io.mmwrite.",
        )
    lines = 1
    while (line := file.readline(100_000)).startswith(b"%") or (line and not line.strip()):
        lines += 1
    sizes = [int(size) for size in line.split()]
    if len(sizes) != 3 or min(sizes) < 0:
        raise ValueError("its line of sizes does not hold three numbers")
    return _Header(_FIELDS[field], (sizes[0], sizes[1], sizes[2]), lines + 1)
