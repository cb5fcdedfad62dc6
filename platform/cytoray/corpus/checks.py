"""The data rules: rows of a file become cells of the corpus, and whatever is refused is counted under its name."""

# C cells, G genes

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.config import CheckConfig
from cytoray.corpus.counts import recover_counts
from cytoray.corpus.readers import INTEGER_TOLERANCE, H5adReader, ValueKind
from cytoray.errors import CorpusError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import Purpose, cell_id, combine, uniform
from cytoray.tokens.vocabulary import GeneMapping, GeneVocabulary

HELD_OUT_SHARE = 0.2
SHOWN = 10  # offenders named in an error


@dataclass(frozen=True)
class CheckedCells:
    """Cells that passed, the rows of the file they came from, and what happened to the rest by rule."""

    cells: SparseCells
    rows: npt.NDArray[np.int64]  # (C,) row of each kept cell in its file
    dropped: dict[str, int]


def map_source_genes(reader: H5adReader, vocabulary: GeneVocabulary, checks: CheckConfig) -> GeneMapping:
    """Map a file's genes to the vocabulary; CorpusError when too few are known."""
    names = reader.gene_names
    mapping = vocabulary.map_genes(names, ensembl_ids=reader.ensembl_ids)
    matched = int((mapping.ids >= 0).sum())
    if matched >= min(checks.min_matched_genes, len(names)) and matched > 0:
        return mapping
    remedy = "Known are human gene symbols and Ensembl ids (ENSG…): name the right column of var with gene_column."
    if mapping.species not in ("human", "unknown"):
        remedy = f"These look like {mapping.species} genes; the vocabulary is human: map them to human orthologs first."
    raise CorpusError(
        f"{reader.source.uri}: {matched} of {len(names):,} genes are in the vocabulary. "
        f"The first of theirs: {', '.join(names[:SHOWN])}.",
        remedy=remedy,
        uri=reader.source.uri,
        matched=matched,
        unknown=list(mapping.unknown[:SHOWN]),
    )


def check_rows(reader: H5adReader, mapping: GeneMapping, checks: CheckConfig, *, start: int, stop: int) -> CheckedCells:
    """Read rows ``start`` to ``stop``, refuse what is no count or expression, drop what is no cell."""
    matrix = reader.read_rows(start, stop)
    _refuse_bad_values(reader, matrix, start)
    dropped: Counter[str] = Counter()
    matrix, keep = _as_counts(matrix, reader.value_kind)
    dropped["counts_not_recoverable"] = int((~keep).sum())
    if keep.mean() < checks.min_recoverable:
        raise CorpusError(
            f"{reader.source.uri}: rows {start:,} to {stop:,}: only {keep.mean():.0%} of these log-normalised "
            "cells give exact counts back.",
            remedy="Name the matrix of raw counts with `matrix: layers/NAME`, or lower checks.min_recoverable.",
            uri=reader.source.uri,
        )
    rows = np.arange(start, stop, dtype=np.int64)
    obs_names = [str(name) for name in reader.obs.index[start:stop]]
    selected = split_mask(obs_names, reader.source.rows)
    dropped["other_side_of_split"] = int((keep & ~selected).sum())
    keep = keep & selected
    names = [f"{row}\0{name}" for row, name in zip(rows, obs_names, strict=True)]
    cells = mapping.apply(matrix.data, matrix.indices, matrix.indptr, cell_id(reader.source.identity, names))
    empty = cells.num_genes_per_cell == 0
    few = (cells.num_genes_per_cell < checks.min_genes) & ~empty
    dropped["empty_cell"] = int((empty & keep).sum())
    dropped["too_few_genes"] = int((few & keep).sum())
    kept = np.flatnonzero(keep & ~empty & ~few)
    return CheckedCells(cells.take(kept), rows[kept], dict(dropped))


def split_mask(names: Sequence[str], rows: Literal["all", "train", "held_out"]) -> npt.NDArray[np.bool_]:
    """Which cells (C,) belong to one side of the split by cell name: it is the same in every file and for ever."""
    held_out = uniform(combine(int(Purpose.SPLIT), cell_id("", names))) < HELD_OUT_SHARE
    return {"all": np.ones(len(names), dtype=bool), "train": ~held_out, "held_out": held_out}[rows]


def _refuse_bad_values(reader: H5adReader, matrix: sparse.csr_matrix, start: int) -> None:
    """CorpusError naming the first cell and gene whose value is NaN, infinite, negative, or no integer among counts."""
    bad = ~np.isfinite(matrix.data) | (matrix.data < 0)
    if reader.value_kind == "counts":  # judged from a sample of the rows: the others may prove it wrong
        whole = np.rint(np.nan_to_num(matrix.data))
        bad |= np.abs(np.nan_to_num(matrix.data) - whole) > INTEGER_TOLERANCE
    if not bad.any():
        return
    entry = int(np.flatnonzero(bad)[0])
    row = start + int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
    value = float(matrix.data[entry])
    gene, cell = reader.gene_names[matrix.indices[entry]], reader.obs.index[row]
    remedy = "Negative values are no expression (scaled data?): name the counts with `matrix: layers/NAME` or raw.X."
    if not np.isfinite(value):
        remedy = "Replace or remove such values; a missing count is a zero."
    elif value > 0:
        remedy = "Most values here are counts, but not all: name the raw counts with `matrix: layers/NAME` or raw.X."
    raise CorpusError(
        f"{reader.source.uri}: {reader.matrix} holds {int(bad.sum()):,} bad value(s) in rows from {start:,}; "
        f"the first is {value} in cell {cell!r} (row {row:,}), gene {gene!r}.",
        remedy=remedy,
        uri=reader.source.uri,
        cell=str(cell),
        gene=gene,
    )


def _as_counts(matrix: sparse.csr_matrix, kind: ValueKind) -> tuple[sparse.csr_matrix, npt.NDArray[np.bool_]]:
    """Turn values into exact counts where the file's kind allows it; the mask (C,) tells which cells are good."""
    everything = np.ones(matrix.shape[0], dtype=bool)
    if kind == "counts":
        rounded = matrix.copy()
        rounded.data = np.rint(rounded.data)
        return rounded, everything
    if kind == "recoverable":
        return recover_counts(matrix)
    return matrix, everything
