"""Feature-barcode matrices of 10x Genomics, and their HDF5 files, of Cell Ranger 2 or of 3 and later."""

# C cells, G genes, F features of a further modality

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.hdf5 import H5Array
from cytoray.corpus.readers.problems import NOT_CELLS, UnreadableError
from cytoray.corpus.readers.rows import CompressedRows, RawRows, RowSource, SelectedColumns, tidy_rows
from cytoray.corpus.readers.source import Modality

GENES = "Gene Expression"
# The other types of features that Cell Ranger knows.
_OTHER_TYPES = (
    "antibody capture", "antigen capture", "crispr guide capture", "multiplexing capture", "peaks",
    "chromatin accessibility", "vdj", "custom", "adt", "hto", "protein",
)  # fmt: skip


class FeatureMatrix:
    """Rows over all features of a 10x matrix; its genes are X, every other type of feature a modality."""

    def __init__(self, rows: RowSource, features: pd.DataFrame, barcodes: list[str]) -> None:
        """``features`` has the columns gene_ids, name and feature_types; ValueError if the shapes disagree.

        A type that is empty counts as genes; if no type is one of Cell Ranger's (biotypes, a genome), all are genes.
        """
        if rows.shape != (len(barcodes), len(features)):
            raise UnreadableError(
                f"the matrix is {rows.shape[0]:,} cells by {rows.shape[1]:,} features, but there are "
                f"{len(barcodes):,} barcodes and {len(features):,} features",
                remedy="Matrix, features and barcodes must come from the same run: copy all of them again.",
            )
        self.barcodes, self.rows, self.features = barcodes, rows, features
        self._by_name = features.set_index("name")
        self._types = feature_types([str(name).strip() for name in features["feature_types"]])

    @property
    def types(self) -> tuple[str, ...]:
        """Types of features other than genes."""
        return tuple(sorted({str(name) for name in self._types} - {GENES}))

    def genes(self) -> RowSource:
        """Rows over the genes; UnreadableError if all features are of other types."""
        if len(self._types) and not (self._types == GENES).any():
            raise UnreadableError(
                f"none of its {len(self._types):,} features is of type {GENES} (types: {', '.join(self.types)})",
                remedy="Give the matrix of gene expression; other types are read beside genes, as sources.modalities.",
                rule=NOT_CELLS,
            )
        return self._of(GENES)

    def var(self) -> pd.DataFrame:
        """The table of genes."""
        return pd.DataFrame(self._by_name[self._types == GENES])

    def modality(self, name: str) -> Modality:
        """Rows over the features of another type."""
        return Modality(self._of(name), [str(feature) for feature in self._by_name.index[self._types == name]])

    def _of(self, name: str) -> RowSource:
        places = np.flatnonzero(self._types == name)
        return self.rows if len(places) == len(self._types) else SelectedColumns(self.rows, places)


class JoinedRows:
    """Several matrices side by side: a row of each, or nothing, for each cell."""

    def __init__(self, parts: Sequence[RowSource], places: Sequence[npt.NDArray[np.int64]]) -> None:
        """``places`` are the rows (C,) of the cells in each part, -1 for a cell that the part does not have."""
        self.shape = (len(places[0]), sum(part.shape[1] for part in parts))
        self.num_entries: int | None = None
        self._parts, self._places = parts, places

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``."""
        pairs = zip(self._parts, self._places, strict=True)
        joined = sparse.hstack([_read_places(part, places[start:stop]) for part, places in pairs], format="csr")
        return RawRows(joined.data, joined.indices, joined.indptr.astype(np.int64))

    def sample_values(self) -> None:
        """Rows are cheap here."""
        return


def _read_places(rows: RowSource, places: npt.NDArray[np.int64]) -> sparse.csr_matrix:
    """The rows at ``places`` (C,), an empty one for -1."""
    there = places[places >= 0]
    first, last = (int(there.min()), int(there.max()) + 1) if len(there) else (0, 0)
    matrix, _ = tidy_rows(rows.read(first, last), rows.shape[1])
    empty = sparse.csr_matrix((1, rows.shape[1]), dtype=matrix.dtype)
    return sparse.vstack([matrix, empty], format="csr")[np.where(places >= 0, places - first, last - first)]


def join_genomes(matrices: Mapping[str, FeatureMatrix]) -> FeatureMatrix:
    """One matrix of the cells of all genomes; a barcode that only some of them list has nothing of the others."""
    for genome, matrix in matrices.items():
        if len(set(matrix.barcodes)) < len(matrix.barcodes):
            raise ValueError(f"genome {genome} lists a barcode more than once")
    barcodes = list(dict.fromkeys(name for matrix in matrices.values() for name in matrix.barcodes))
    places = [
        pd.Index(matrix.barcodes).get_indexer(pd.Index(barcodes)).astype(np.int64) for matrix in matrices.values()
    ]
    rows = JoinedRows([matrix.rows for matrix in matrices.values()], places)
    return FeatureMatrix(rows, pd.concat([matrix.features for matrix in matrices.values()]), barcodes)


def feature_types(names: list[str]) -> npt.NDArray[Any]:
    """Return the type of each feature, Gene Expression in Cell Ranger's spelling; unknown types count as genes."""
    plain = {name: name.lower() for name in set(names)}
    is_known = any(text == GENES.lower() or text in _OTHER_TYPES for text in plain.values())
    spelt = {name: name if is_known and text not in ("", GENES.lower()) else GENES for name, text in plain.items()}
    return np.array([spelt[name] for name in names], dtype=object)


class TenxContents:
    """A 10x matrix as a source; those of several genomes (Cell Ranger 2) are put side by side."""

    def __init__(self, matrices: Mapping[str, FeatureMatrix], format: Format, info: storage.ObjectInfo) -> None:
        """``matrices`` by the name of their genome."""
        self.format = format
        self.num_bytes, self.version = info.num_bytes, info.version
        self.notes: list[str] = []
        if not matrices:
            raise ValueError("it holds no 10x matrix")
        self._matrix = next(iter(matrices.values()))
        if len(matrices) > 1:
            self._matrix = join_genomes(matrices)
            self.notes.append(f"matrices of {len(matrices)} genomes, read side by side: {', '.join(matrices)}")

    def matrices(self) -> dict[str, RowSource]:
        """Only X."""
        return {"X": self._matrix.genes()}

    def obs(self) -> pd.DataFrame:
        """The barcodes."""
        return pd.DataFrame(index=pd.Index(self._matrix.barcodes, dtype=object))

    def var(self, matrix: str) -> pd.DataFrame:
        """The table of genes."""
        return self._matrix.var()

    def modality_names(self) -> tuple[str, ...]:
        """The other types of features, such as mod/Antibody Capture."""
        return tuple(f"mod/{name}" for name in self._matrix.types)

    def modality(self, config: ModalityConfig) -> Modality:
        """The rows of one of these types."""
        return self._matrix.modality(config.matrix.removeprefix("mod/"))


def is_tenx(file: h5py.File) -> bool:
    """Whether an HDF5 file is one of Cell Ranger."""
    return any(isinstance(group, h5py.Group) and {"barcodes", "indptr"} <= set(group) for group in file.values())


def open_tenx_h5(file: h5py.File, info: storage.ObjectInfo) -> TenxContents:
    """A .h5 of Cell Ranger: one group ``matrix`` since version 3, one per genome before."""
    groups = {name: group for name, group in file.items() if isinstance(group, h5py.Group) and "indptr" in group}
    return TenxContents({name: _read_group(group, name) for name, group in groups.items()}, "10x_h5", info)


def _read_group(group: h5py.Group, name: str) -> FeatureMatrix:
    """The matrix of a group; before Cell Ranger 3 its name is that of the genome."""
    num_features, num_cells = (int(size) for size in group["shape"][()])
    if "features" in group:
        features = {
            "name": _texts(group["features/name"]),
            "gene_ids": _texts(group["features/id"]),
            "feature_types": _texts(group["features/feature_type"]),
        }
        if "genome" in group["features"]:
            features["genome"] = _texts(group["features/genome"])
    else:
        features = {"name": _texts(group["gene_names"]), "gene_ids": _texts(group["genes"])}
        features["feature_types"] = [GENES] * num_features
        features["genome"] = [name] * num_features
    arrays = (H5Array(group[name]) for name in ("data", "indices", "indptr"))
    # Features by cells, compressed by column: that is cells by features, compressed by row.
    rows = CompressedRows(*arrays, shape=(num_cells, num_features))
    return FeatureMatrix(rows, pd.DataFrame(features), _texts(group["barcodes"]))


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[()]]
