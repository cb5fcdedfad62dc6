"""Loom files: HDF5 with a dense matrix of genes by cells, further layers, and attributes of rows and columns."""

# C cells, G genes, F features of a further modality

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pandas as pd

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.frames import note_left_out
from cytoray.corpus.readers.problems import WRITE_AGAIN, UnreadableError
from cytoray.corpus.readers.rows import DenseRows, RowSource
from cytoray.corpus.readers.source import Modality, numbered

_CELL_NAMES = ("CellID", "obs_names", "cell_id", "cell_names", "barcode", "barcodes", "Cell", "cell")
_GENE_NAMES = ("Gene", "var_names", "gene_names", "gene_name", "GeneName", "gene", "Symbol", "Accession")


class LoomContents:
    """The groups of one loom file."""

    format: Format = "loom"

    def __init__(self, file: h5py.File, info: storage.ObjectInfo) -> None:
        self.num_bytes, self.version = info.num_bytes, info.version
        self.notes: list[str] = []
        self._file = file

    def matrices(self) -> dict[str, RowSource]:
        """The matrix as X, and the layers."""
        matrices: dict[str, RowSource] = {"X": DenseRows(self._file["matrix"], cell_axis=1)}
        for name, layer in self._file.get("layers", {}).items():
            matrices[f"layers/{name}"] = DenseRows(layer, cell_axis=1)
        return matrices

    def obs(self) -> pd.DataFrame:
        """The column attributes with one value per cell."""
        return self._attributes("col_attrs", self._file["matrix"].shape[1], _CELL_NAMES)

    def var(self, matrix: str) -> pd.DataFrame:
        """The row attributes with one value per gene."""
        return self._attributes("row_attrs", self._file["matrix"].shape[0], _GENE_NAMES)

    def modality_names(self) -> tuple[str, ...]:
        """The column attributes with several values per cell."""
        return tuple(
            f"obsm/{name}"
            for name, values in self._file["col_attrs"].items()
            if isinstance(values, h5py.Dataset) and values.ndim == 2 and not values.dtype.names
        )

    def modality(self, config: ModalityConfig) -> Modality:
        """One of these attributes as a matrix."""
        rows = DenseRows(self._file["col_attrs"][config.matrix.removeprefix("obsm/")])
        return Modality(rows, numbered(None, rows.shape[1], config.name))

    def _attributes(self, key: str, count: int, index_names: tuple[str, ...]) -> pd.DataFrame:
        """A table of attributes, indexed by the first that holds names, or numbered."""
        columns: dict[str, Any] = {}
        left_out = []
        for name, dataset in self._file[key].items():
            if isinstance(dataset, h5py.Group) or len(dataset.shape) != 1 or dataset.dtype.names:
                left_out.append(name)  # such as the regulons of pySCENIC, or an embedding
                continue
            if dataset.shape[0] != count:
                raise UnreadableError(
                    f"{key}/{name} has {dataset.shape[0]:,} values, but there are {count:,}", remedy=WRITE_AGAIN
                )
            values = dataset[()]
            columns[name] = values if values.dtype.kind not in "SO" else [_text(value) for value in values]
        note_left_out(left_out, key, self.notes)
        index = next((name for name in index_names if name in columns), None)
        names = [str(value) for value in columns[index]] if index else [str(number) for number in range(count)]
        return pd.DataFrame(columns, index=pd.Index(np.array(names, dtype=object)))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
