"""What every reader of a file of cells offers, whatever the file's format."""

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
    """What a source holds, told before any cell is read."""

    uri: str
    num_bytes: int
    version: str  # ETag, or size and mtime; of a folder, a digest over those of its files
    format: Format
    matrix: str
    value_kind: ValueKind
    num_cells: int
    num_genes: int
    num_entries: int | None  # stored non-zero values, None where the format does not tell without reading
    id_type: str  # of the genes: symbol, ensembl, mixed, unknown
    species: str
    label_columns: tuple[str, ...]  # columns of obs with 2 to 1,000 distinct texts
    modalities: tuple[str, ...]  # names of the further matrices that are read along
    notes: tuple[str, ...] = ()  # what a user should know: unsorted indices, an old encoding, ...


class CellReader(Protocol):
    """One open source of cells; a context manager."""

    source: SourceConfig
    num_unsorted_rows: int  # of those read so far: columns not in order, or an entry twice

    @property
    def version(self) -> str:
        """As in ``SourceDescription.version``, of the object as it was opened."""

    @property
    def obs(self) -> pd.DataFrame:
        """The table of cells, index = cell names."""

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
        """Ensembl ids of the G genes, where the file has them (empty text where a gene has none)."""

    @property
    def genomes(self) -> list[str] | None:
        """Assembly or species of the G genes, if the file has a column of them (empty text where a gene has none)."""

    @property
    def matrix(self) -> str:
        """Name of the matrix that is read."""

    @property
    def other_matrices(self) -> str:
        """If a matrix was chosen, what else there was, as the end of a sentence; else empty."""

    @property
    def value_kind(self) -> ValueKind:
        """What its values are, judged from a spread sample of its rows."""

    def describe(self) -> SourceDescription:
        """Size, shape, kind of values, genes and labels; CorpusError where the parts disagree."""

    def labels(self, key: str) -> list[str | None]:
        """One label a cell from a column of obs; None where it is missing."""

    def read_rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop`` in the file's own number type, shape (C, G): checked, sorted, no zeros stored."""

    def modality_features(self, name: str) -> list[str]:
        """Names of the F features of a further modality."""

    def read_modality(self, name: str, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop`` of a further modality, shape (C, F)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
