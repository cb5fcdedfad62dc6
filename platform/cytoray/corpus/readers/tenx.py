"""Feature-barcode matrices of 10x Genomics, and their HDF5 files, of Cell Ranger 2 or of 3 and later."""

# C cells, G genes, F features of a further modality

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.hdf5 import H5Array
from cytoray.corpus.readers.problems import NOT_CELLS, UnreadableError
from cytoray.corpus.readers.rows import CompressedRows, RowSource, SelectedColumns
from cytoray.corpus.readers.source import Modality

GENES = "Gene Expression"
# The other types of features that Cell Ranger knows.
_OTHER_TYPES = (
    "antibody capture", "antigen capture", "crispr guide capture", "multiplexing capture", "peaks",
    "chromatin accessibility", "vdj", "custom", "adt", "hto", "protein",
)  # fmt: skip
_HUMAN = re.compile(r"GRCh3\d|hg\d\d|human", re.IGNORECASE)


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
        self.barcodes = barcodes
        self._rows, self._features = rows, features.set_index("name")
        self._types = _feature_types([str(name).strip() for name in features["feature_types"]])

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
        return pd.DataFrame(self._features[self._types == GENES])

    def modality(self, name: str) -> Modality:
        """Rows over the features of another type."""
        return Modality(self._of(name), [str(feature) for feature in self._features.index[self._types == name]])

    def _of(self, name: str) -> RowSource:
        places = np.flatnonzero(self._types == name)
        return self._rows if len(places) == len(self._types) else SelectedColumns(self._rows, places)


def _feature_types(names: list[str]) -> npt.NDArray[Any]:
    """The type of each feature, Gene Expression in Cell Ranger's spelling."""
    plain = {name: name.lower() for name in set(names)}
    is_known = any(text == GENES.lower() or text in _OTHER_TYPES for text in plain.values())
    spelt = {name: name if is_known and text not in ("", GENES.lower()) else GENES for name, text in plain.items()}
    return np.array([spelt[name] for name in names], dtype=object)


class TenxContents:
    """The 10x matrix of a source, or one matrix per genome."""

    def __init__(self, matrices: Mapping[str, FeatureMatrix], format: Format, info: storage.ObjectInfo) -> None:
        """``matrices`` by the name of their genome."""
        self.format = format
        self.num_bytes, self.version = info.num_bytes, info.version
        self.notes: list[str] = []
        if not matrices:
            raise ValueError("it holds no 10x matrix")
        genomes = sorted(matrices, key=lambda name: (not _HUMAN.search(name), name))  # human first
        self._matrices = {"X": matrices[genomes[0]]}
        if len(genomes) > 1:
            self._matrices = {f"layers/{name}": matrices[name] for name in genomes}
            self.notes.append(f"matrices of {len(genomes)} genomes: {', '.join(genomes)}")

    def matrices(self) -> dict[str, RowSource]:
        """X; of several genomes, one layer per genome."""
        return {name: matrix.genes() for name, matrix in self._matrices.items()}

    def obs(self) -> pd.DataFrame:
        """The barcodes."""
        return pd.DataFrame(index=pd.Index(self._first.barcodes, dtype=object))

    def var(self, matrix: str) -> pd.DataFrame:
        """The table of genes."""
        return self._matrices[matrix].var()

    def modality_names(self) -> tuple[str, ...]:
        """The other types of features, such as mod/Antibody Capture."""
        return tuple(f"mod/{name}" for name in self._first.types)

    def modality(self, config: ModalityConfig) -> Modality:
        """The rows of one of these types."""
        return self._first.modality(config.matrix.removeprefix("mod/"))

    @property
    def _first(self) -> FeatureMatrix:
        return next(iter(self._matrices.values()))


def is_tenx(file: h5py.File) -> bool:
    """Whether an HDF5 file is one of Cell Ranger."""
    return any(isinstance(group, h5py.Group) and {"barcodes", "indptr"} <= set(group) for group in file.values())


def open_tenx_h5(file: h5py.File, info: storage.ObjectInfo) -> TenxContents:
    """A .h5 of Cell Ranger: one group ``matrix`` since version 3, one per genome before."""
    groups = {name: group for name, group in file.items() if isinstance(group, h5py.Group) and "indptr" in group}
    return TenxContents({name: _read_group(group) for name, group in groups.items()}, "10x_h5", info)


def _read_group(group: h5py.Group) -> FeatureMatrix:
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
        features["feature_types"] = [GENES] * len(features["name"])
    arrays = (H5Array(group[name]) for name in ("data", "indices", "indptr"))
    # Features by cells, compressed by column: that is cells by features, compressed by row.
    rows = CompressedRows(*arrays, shape=(num_cells, num_features))
    return FeatureMatrix(rows, pd.DataFrame(features), _texts(group["barcodes"]))


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[()]]
