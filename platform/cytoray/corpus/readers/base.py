"""The interface that the readers of all file formats share."""

# C cells (rows read), G genes (columns of the file), F features of a further modality

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

import pandas as pd
from scipy import sparse

from cytoray.corpus.config import SourceConfig

Format = Literal["h5ad", "h5mu", "zarr", "10x_h5", "10x_mtx", "loom", "scb", "triples"]
ValueKind = Literal["counts", "near_counts", "recoverable", "expression", "negative"]


@dataclass(frozen=True)
class SourceDescription:
    """Contents of a source, known before any cell is read."""

    uri: str
    num_bytes: int
    version: str  # ETag, or size and mtime; of a folder, a digest over those of its files
    format: Format
    matrix: str
    value_kind: ValueKind
    num_cells: int
    num_genes: int
    num_entries: int | None  # stored non-zero values, None if the format does not say without reading
    id_type: str  # of the genes: symbol, ensembl, mixed, unknown
    species: str
    label_columns: tuple[str, ...]  # columns of obs with 2 to 1,000 distinct texts
    modalities: tuple[str, ...]  # names of the further matrices that are read along
    notes: tuple[str, ...] = ()  # remarks for the user: unsorted indices, an old encoding, ...


class CellReader(Protocol):
    """One open source of cells; a context manager."""

    source: SourceConfig
    num_unsorted_rows: int  # of those read so far: columns not in order, or an entry twice

    @property
    def version(self) -> str:
        """Version of the object as it was opened; see ``SourceDescription.version``."""

    @property
    def obs(self) -> pd.DataFrame:
        """Table of cells, indexed by their names."""

    @property
    def gene_names(self) -> list[str]:
        """Names of the G genes."""

    @property
    def gene_column(self) -> str | None:
        """Column of var that the names come from, None for the index."""

    @property
    def var_columns(self) -> tuple[str, ...]:
        """Columns of var."""

    @property
    def ensembl_ids(self) -> list[str] | None:
        """Ensembl ids of the G genes (empty for a gene without one), None if the file has none."""

    @property
    def genomes(self) -> list[str] | None:
        """Assembly or species of the G genes, if the file has a column of them (empty text where a gene has none)."""

    @property
    def matrix(self) -> str:
        """Name of the matrix that is read: X, raw.X or layers/NAME."""

    @property
    def other_matrices(self) -> str:
        """If a matrix was chosen, what else there was, as the end of a sentence; else empty."""

    @property
    def value_kind(self) -> ValueKind:
        """Kind of its values, judged from a sample of rows spread over the matrix."""

    def describe(self) -> SourceDescription:
        """Describe shape, values, genes and labels; CorpusError if the parts disagree or hold no cells."""

    def labels(self, key: str) -> list[str | None]:
        """Return one label per cell from a column of obs; None where it is missing."""

    def read_rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``start`` to ``stop`` in the file's number type, shape (C, G): checked, sorted, without zeros."""

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names of the further matrices of the file: obsm/NAME, mod/NAME."""

    def modality_features(self, name: str) -> list[str]:
        """Return the names of the F features of a further modality."""

    def read_modality(self, name: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``start`` to ``stop`` of a further modality, shape (C, F)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
