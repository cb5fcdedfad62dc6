"""Cells of which RNA and proteins were measured, and the values of proteins that are predicted."""

# C cells, G genes, P proteins, D dimensions of an embedding

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
INTEGER_TOLERANCE = 1e-3  # counts that went through floats
_CONTROL = re.compile(r"isotype|\bigg\d?(?!.*\bfc)|control|ctrl|hashtag|\bhto", re.IGNORECASE)
_SUFFIX = re.compile(r"[-_ .]+(totalseq[-_ ]?[abc]?|prot(ein)?|adt)$", re.IGNORECASE)
_PREFIX = re.compile(r"^(adt|ab|prot(ein)?|hu|anti)[-_. :]+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Proteins:
    """Proteins of C cells: counts, or values that were normalised before."""

    values: Float64  # (C, P)
    names: tuple[str, ...]  # (P,)
    are_counts: bool

    def take(self, rows: Int64) -> Proteins:
        """Return some of the cells."""
        return replace(self, values=self.values[rows])

    def select(self, columns: Sequence[int]) -> Proteins:
        """Return some of the proteins."""
        return replace(self, values=self.values[:, list(columns)], names=tuple(self.names[each] for each in columns))

    @property
    def targets(self) -> Float64:
        """Values to be predicted, (C, P): CLR of counts, log1p of the counts of a single protein, others as they are.

        CLR: log1p(c) less its mean over the proteins of the cell.
        """
        return centred_log_ratio(self.values) if self.are_counts else self.values


@dataclass(frozen=True, eq=False)
class PairedCells:
    """C cells with their RNA and proteins, and what else is known of them."""

    rna: Expression
    genes: tuple[str, ...]  # (G,)
    proteins: Proteins
    uri: str
    names: tuple[str, ...]  # (C,)
    labels: tuple[str, ...] | None = None
    batches: tuple[str, ...] | None = None
    embeddings: Float32 | None = None  # (C, D) of a transformer
    warnings: tuple[str, ...] = ()

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return self.rna.num_cells

    @property
    def digest(self) -> str:
        """SHA-256 of RNA and proteins."""
        found = hashlib.sha256("\0".join([*self.genes, *self.proteins.names]).encode())
        matrix = self.rna.values
        for array in (matrix.indptr, matrix.indices, matrix.data, self.proteins.values):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def take(self, rows: Int64) -> PairedCells:
        """Return some of the cells."""
        return replace(
            self,
            rna=self.rna.take(rows),
            proteins=self.proteins.take(rows),
            names=tuple(self.names[row] for row in rows),
            labels=None if self.labels is None else tuple(self.labels[row] for row in rows),
            batches=None if self.batches is None else tuple(self.batches[row] for row in rows),
            embeddings=None if self.embeddings is None else self.embeddings[rows],
        )


@dataclass(frozen=True)
class RnaCells:
    """Cells with RNA alone, by the names of genes."""

    rna: Expression
    genes: tuple[str, ...]
    names: tuple[str, ...]


def centred_log_ratio(counts_CP: npt.NDArray[np.number]) -> Float64:
    """Return log1p of counts less its mean over the proteins of each cell; of one protein, log1p alone."""
    logged = np.log1p(np.asarray(counts_CP, np.float64))
    return logged - logged.mean(axis=1, keepdims=True) if logged.shape[1] > 1 else logged


def build_proteins(
    values_CP: npt.NDArray[np.number], names: Sequence[str], *, uri: str, cells: Sequence[str]
) -> tuple[Proteins, list[str]]:
    """Check proteins and judge whether they are counts; returns warnings as well.

    Whole numbers that are not negative are counts. All else was normalised before and is used as it is. Isotype
    controls, and proteins with one value in all cells, are left out. Raises CorpusError for values that are not
    finite, or if no protein remains.
    """
    values = np.asarray(values_CP, np.float64)
    if not np.isfinite(values).all():
        row, column = (int(place[0]) for place in np.nonzero(~np.isfinite(values)))
        raise CorpusError(
            f"{uri}: protein {names[column]!r} of cell {cells[row]!r} is {values[row, column]:g}.",
            remedy="Replace or remove such values (a missing count is a zero).",
            cell=cells[row],
            protein=names[column],
        )
    warnings = []
    are_counts = bool((values >= 0).all() and (np.abs(values - np.rint(values)) <= INTEGER_TOLERANCE).all())
    if are_counts:
        values = np.rint(values)
    else:
        kind = "negative values" if (values < 0).any() else "values that are not whole numbers"
        warnings.append(f"the proteins have {kind}, so they are not counts: they are used as they are, without CLR")
    controls = [name for name in names if _CONTROL.search(name)]
    constant = [
        name
        for name, column in zip(names, values.T, strict=True)
        if name not in controls and (column == column[:1]).all()
    ]
    if controls:
        warnings.append(f"{_some(controls)}: controls measure no protein of the cell and were left out")
    if constant:
        warnings.append(f"{_some(constant)}: the same in all cells, left out")
    kept = [place for place, name in enumerate(names) if name not in {*controls, *constant}]
    if not kept:
        raise CorpusError(
            f"{uri}: none of its {len(names)} proteins can be predicted ({'; '.join(warnings) or 'empty matrix'}).",
            remedy="Name the raw counts of proteins with --protein-key.",
        )
    if len(kept) == 1 and are_counts:
        warnings.append("there is one protein: log1p of its counts is predicted, since its CLR is zero by definition")
    return Proteins(values, tuple(names), are_counts).select(kept), warnings


def build_rna(matrix: sparse.csr_matrix, *, uri: str, genes: Sequence[str], cells: Sequence[str]) -> Expression:
    """Check RNA (C, G); CorpusError that names the first value that is negative or not finite."""
    rows = sparse.csr_matrix(matrix)
    bad = np.flatnonzero(~(np.isfinite(rows.data) & (rows.data >= 0)))
    if len(bad):
        row = int(np.searchsorted(rows.indptr, bad[0], side="right")) - 1
        column, value = int(rows.indices[bad[0]]), float(rows.data[bad[0]])
        raise CorpusError(
            f"{uri}: gene {genes[column]!r} of cell {cells[row]!r} is {value:g}.",
            remedy="Give counts, or log-normalised expression that was not scaled.",
            cell=cells[row],
            gene=genes[column],
        )
    rows = rows.astype(np.float32)
    rows.eliminate_zeros()
    return Expression(rows, bool((np.abs(rows.data - np.rint(rows.data)) > INTEGER_TOLERANCE).any()))


def sum_columns(matrix: sparse.csr_matrix, names: Sequence[str]) -> tuple[sparse.csr_matrix, tuple[str, ...]]:
    """Sum columns of the same name; names keep the order in which they first occur."""
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) == len(names):
        return matrix, distinct
    place = {name: number for number, name in enumerate(distinct)}
    pairs = (np.ones(len(names), matrix.dtype), (np.arange(len(names)), [place[name] for name in names]))
    return sparse.csr_matrix(matrix @ sparse.csr_matrix(pairs, (len(names), len(distinct)))), distinct


def protein_word(name: str) -> str:
    """Return a protein's name without what vendors and programs add to it: CD8a_TotalSeqB is CD8A."""
    word = name.strip()
    for pattern in (_SUFFIX, _PREFIX):
        word = pattern.sub("", word) or word
    return re.sub(r"[-_ .()/]", "", word).upper()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
