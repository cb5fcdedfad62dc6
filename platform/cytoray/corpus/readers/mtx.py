"""Folders of 10x Genomics and of GEO: a MatrixMarket text, its features and its barcodes, each gzipped or not."""

# C cells, G genes

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from isal import igzip

from cytoray import storage
from cytoray.corpus.readers.ranges import open_object
from cytoray.corpus.readers.tenx import GENES, FeatureMatrix, TenxContents
from cytoray.corpus.readers.turned import STRETCH_ENTRIES, Buckets, Entries, TurnedRows, check_range, keep_buckets

_PARTS = {"matrix": ("matrix.mtx",), "features": ("features.tsv", "genes.tsv"), "barcodes": ("barcodes.tsv",)}


def is_mtx(name: str) -> bool:
    """Whether a file's name is that of a 10x matrix in text, perhaps behind a prefix as GEO has them."""
    return name.removesuffix(".gz").endswith("matrix.mtx")


def find_parts(names: list[str], prefix: str) -> dict[str, str]:
    """The three files of one matrix by their part, of the ``names`` in a folder; ValueError if one is missing."""
    found: dict[str, str] = {}
    for part, stems in _PARTS.items():
        wanted = [f"{prefix}{stem}{ending}" for stem in stems for ending in ("", ".gz")]
        there = [name for name in wanted if name in names]
        if not there:
            raise ValueError(f"there is no {prefix}{stems[0]}[.gz] in the folder")
        found[part] = there[0]
    return found


def open_mtx(files: Mapping[str, storage.ObjectInfo], info: storage.ObjectInfo) -> TenxContents:
    """The matrix of the files ``matrix``, ``features`` and ``barcodes``; ``info`` is that of all together."""
    table = _read_table(files["features"])
    features = pd.DataFrame({"name": table.iloc[:, min(1, table.shape[1] - 1)], "gene_ids": table.iloc[:, 0]})
    features["feature_types"] = table.iloc[:, 2] if table.shape[1] > 2 else GENES
    barcodes = [str(name) for name in _read_table(files["barcodes"]).iloc[:, 0]]
    rows = MtxRows(files["matrix"], (len(barcodes), len(features)), version=info.version)
    return TenxContents({"": FeatureMatrix(rows, features, barcodes)}, "10x_mtx", info)


def _read_table(info: storage.ObjectInfo) -> pd.DataFrame:
    """A table of texts without a header."""
    with _open_text(info) as file:
        if not file.peek(1):
            return pd.DataFrame({0: []}, dtype=str)
        return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)


def _open_text(info: storage.ObjectInfo) -> io.BufferedReader:
    """A file of text, inflated as it is read."""
    file: Any = open_object(info)
    unpack: Any = igzip.GzipFile
    return io.BufferedReader(unpack(fileobj=file) if info.uri.endswith(".gz") else file, 2**20)


class MtxRows(TurnedRows):
    """The matrix of a MatrixMarket file of features by cells, or of cells by features."""

    def __init__(self, info: storage.ObjectInfo, expected: tuple[int, int], *, version: str) -> None:
        """``expected`` are the cells and features that the other files tell; ValueError for another kind of file."""
        self._info = info
        with _open_text(info) as file:
            self._field, (num_rows, num_columns, num_entries), self._header_lines = _read_header(file)
        self._is_turned = (num_rows, num_columns) == expected and num_rows != num_columns
        shape = (num_rows, num_columns) if self._is_turned else (num_columns, num_rows)
        super().__init__(
            lambda: keep_buckets((info.uri, version), lambda: Buckets(self._stretches())),
            shape=shape,
            num_entries=num_entries,
        )

    def sample_values(self) -> npt.NDArray[Any]:
        """What the header tells, or the first stretch of real numbers."""
        if self._field != "real":
            return np.ones(1, np.int64)
        return next(self._tables(), pd.DataFrame({"value": [0.0]}))["value"].to_numpy()

    def _tables(self) -> Iterator[pd.DataFrame]:
        """The lines behind the header, in stretches."""
        names = ["row", "column"] if self._field == "pattern" else ["row", "column", "value"]
        kind = np.float64 if self._field == "real" else np.int64
        types = {name: kind if name == "value" else np.int64 for name in names}
        with _open_text(self._info) as file:
            for _ in range(self._header_lines):
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
            raise ValueError(f"its header tells of {self.num_entries:,} entries, but there are {seen:,}")


def _read_header(file: io.BufferedReader) -> tuple[str, tuple[int, int, int], int]:
    """Field (integer, real or pattern), the three sizes and the number of lines of a MatrixMarket header."""
    banner = file.readline(1_000).decode(errors="replace").lower().split()
    if banner[:2] != ["%%matrixmarket", "matrix"] or len(banner) != 5:
        raise ValueError("it does not begin with %%MatrixMarket matrix")
    layout, field, symmetry = banner[2:]
    if layout != "coordinate" or symmetry != "general" or field not in ("integer", "real", "pattern"):
        raise ValueError(f"a matrix of kind {layout} {field} {symmetry} holds no counts of cells")
    lines = 1
    while (line := file.readline(100_000)).startswith(b"%") or (line and not line.strip()):
        lines += 1
    sizes = [int(size) for size in line.split()]
    if len(sizes) != 3 or min(sizes) < 0:
        raise ValueError("its line of sizes does not hold three numbers")
    return field, (sizes[0], sizes[1], sizes[2]), lines + 1
