"""MuData (h5mu or zarr): an AnnData tree per modality; that of the genes gives the cells, others are read along."""

# C cells, F features of a further modality

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.frames import read_frame
from cytoray.corpus.readers.h5ad import AnnDataContents
from cytoray.corpus.readers.problems import UnreadableError
from cytoray.corpus.readers.rows import RawRows, RowSource
from cytoray.corpus.readers.source import Modality

_GENES = ("rna", "RNA", "gex", "GEX", "gene_expression", "Gene Expression", "gene", "transcriptome", "mrna")
_NOTHING = RawRows(np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(1, np.int64))
_ONE_EMPTY = RawRows(_NOTHING.values, _NOTHING.columns, np.zeros(2, np.int64))


class MuDataContents(AnnDataContents):
    """The tree of the genes, with the other modalities in its cells' order."""

    def __init__(self, file: Any, format: Format, info: storage.ObjectInfo) -> None:
        """``file`` is the root group, of HDF5 or zarr; UnreadableError if no modality is known to hold genes."""
        there = list(file["mod"])
        main = next((name for name in _GENES if name in there), there[0] if len(there) == 1 else None)
        if main is None:
            raise UnreadableError(
                f"it is MuData, and none of its modalities ({', '.join(there)}) is called rna",
                remedy="Save the one with the genes by itself: mdata.mod['NAME'].write_h5ad('cells.h5ad').",
            )
        super().__init__(file["mod"][main], format, info)
        self._file, self._main = file, main

    def obs(self) -> pd.DataFrame:
        """The table of the genes' modality, with the further columns of the whole file's table."""
        frame = super().obs()
        if "obs" not in self._file:
            return frame
        shared = read_frame(self._file, "obs", self.notes)
        shared = shared[[name for name in shared.columns if name not in frame and f"{self._main}:" not in str(name)]]
        return frame.join(shared.loc[~shared.index.duplicated()]) if len(shared.columns) else frame

    def modality_names(self) -> tuple[str, ...]:
        """The other modalities, and the matrices of obsm."""
        others = [name for name in self._file["mod"] if name != self._main]
        return (*(f"mod/{name}" for name in others), *super().modality_names())

    def modality(self, config: ModalityConfig) -> Modality:
        """The X of another modality, its rows put into the order of the genes' cells."""
        if not config.matrix.startswith("mod/") or config.matrix not in self._file:
            return super().modality(config)
        tree = self._file[config.matrix]
        info = storage.ObjectInfo(self._uri, self.num_bytes, self.version)
        other = AnnDataContents(tree, self.format, info)
        var = other.var("X")
        names = var.index if config.feature_names is None else var[config.feature_names]
        places = pd.Index(other.obs().index).get_indexer_for(self._cell_names())
        if len(places) != len(self._cell_names()):
            raise UnreadableError(
                "its cell names occur more than once",
                remedy="Make them unique: mdata.mod['NAME'].obs_names_make_unique().",
            )
        return Modality(ReorderedRows(other.matrices()["X"], places), [str(name) for name in names])

    def _cell_names(self) -> pd.Index:
        return super().obs().index


class ReorderedRows:
    """Rows of another matrix by number; -1 stands for a cell that it does not have, and gives an empty row."""

    def __init__(self, rows: RowSource, places: npt.NDArray[np.integer]) -> None:
        self.shape = (len(places), rows.shape[1])
        self.num_entries: int | None = None
        self._rows, self._places = rows, places

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``, each stretch of neighbours at once."""
        places = self._places[start:stop]
        cuts = np.flatnonzero((np.diff(places) != 1) | (places[1:] <= 0)) + 1
        parts = [self._stretch(stretch) for stretch in np.split(places, cuts) if len(stretch)] or [_NOTHING]
        filled = [part for part in parts if len(part.values)] or parts[:1]
        lengths = np.concatenate([np.diff(part.indptr) for part in parts])
        return RawRows(
            np.concatenate([part.values for part in filled]),
            np.concatenate([part.columns for part in filled]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def _stretch(self, places: npt.NDArray[np.integer]) -> RawRows:
        """Consecutive rows, or one empty row for a missing cell."""
        return _ONE_EMPTY if places[0] < 0 else self._rows.read(int(places[0]), int(places[-1]) + 1)

    def sample_values(self) -> None:
        """Return None: further modalities are not sampled."""
        return
