"""Build the profile of a source while its rows are checked; costly parts use a sample drawn by cell id."""

# C cells, N non-zero entries

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.checking.profile import (
    NUM_DEPTH_BINS,
    NUM_GENE_BINS,
    NUM_VALUE_BINS,
    GeneOverlap,
    SourceProfile,
    column_values,
    count_labels,
    describing_columns,
    log2_histogram,
)
from cytoray.corpus.checking.scan import add_columns, count_genes
from cytoray.corpus.readers.base import CellReader
from cytoray.tokens.cells import Int64
from cytoray.tokens.mapping import GeneMapping
from cytoray.tokens.packed import PackedCells, packed_counts, take
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

SAMPLED_ONE_IN = 16  # cells that are binned for the report: at 11 us each this adds less than 1 us a cell


@dataclass(frozen=True, eq=False)
class KeptCells:
    """Cells of some neighbouring rows that passed the rules."""

    cells: PackedCells
    rows: Int64  # (C,) in the file
    sums: npt.NDArray[np.float64]  # (C,) of all values of each cell, genes outside the vocabulary included
    matrix: sparse.csr_matrix  # all of those rows, over the genes of the file
    first: int  # row in the file of the first of them


class Observer:
    """Collects the profile of a range of rows, slab by slab."""

    def __init__(self, reader: CellReader, mapping: GeneMapping, findings: Mapping[str, str]) -> None:
        self._reader, self._mapping, self._findings = reader, mapping, dict(findings)
        self._num_read = self._num_rounded = self._num_binned = 0
        self._dropped: Counter[str] = Counter()
        self._warned: Counter[str] = Counter()
        self._rows: list[Int64] = []
        self._depth = np.zeros(NUM_DEPTH_BINS, np.int64)
        self._genes_per_cell = np.zeros(NUM_GENE_BINS, np.int64)
        self._bins = np.zeros(NUM_VALUE_BINS, np.int64)
        self._columns = np.zeros(len(mapping.ids), np.float64)
        self._gene_cells = np.zeros(int(mapping.ids.max(initial=-1)) + 1, np.int64)

    def count(self, *, read: int, dropped: Mapping[str, int], warned: Mapping[str, int], rounded: int) -> None:
        """Count ``read`` rows and those that each rule dropped or warned of."""
        self._num_read += read
        self._num_rounded += rounded
        self._dropped.update(dropped)
        self._warned.update(warned)

    def add(self, kept: KeptCells) -> None:
        """Count kept cells."""
        cells = kept.cells
        self._rows.append(kept.rows)
        self._depth += log2_histogram(kept.sums, NUM_DEPTH_BINS)
        add_columns(kept.matrix, kept.rows - kept.first, self._columns)
        self._genes_per_cell += log2_histogram(cells.num_genes_per_cell, NUM_GENE_BINS)
        self._gene_cells += count_genes(cells, len(self._gene_cells))
        bins, num_binned = _sampled_bins(cells)
        self._bins += bins
        self._num_binned += num_binned

    def profile(self) -> SourceProfile:
        """The profile of all cells so far."""
        rows = np.concatenate([np.empty(0, np.int64), *self._rows])
        columns = describing_columns(self._reader.obs)
        labels = count_labels(self._reader.obs[list(columns)].iloc[rows], columns)
        return SourceProfile(
            num_read=self._num_read,
            num_kept=len(rows),
            dropped={rule: count for rule, count in sorted(self._dropped.items()) if count},
            warned={rule: count for rule, count in sorted(self._warned.items()) if count},
            findings=self._findings,
            num_rounded=self._num_rounded,
            depth=self._depth,
            genes_per_cell=self._genes_per_cell,
            bins=self._bins,
            num_binned=self._num_binned,
            gene_cells=self._gene_cells,
            labels=labels,
            genes=GeneOverlap.of(self._mapping, self._reader.gene_names),
            sum_values=float(self._columns.sum()),
            lost_values=float(self._columns[self._mapping.ids < 0].sum()),
            column_values=column_values(self._mapping, self._columns),
        )


def profile_packed(
    cells: PackedCells, *, sums: npt.NDArray[np.float64], labels: Mapping[str, Mapping[str, int]]
) -> SourceProfile:
    """The profile of C kept cells without their file; ``sums`` (C,) as in ``KeptCells``, ``labels`` as counted.

    The values of single columns of the file are missing in it.
    """
    known = packed_counts(cells).sum(dtype=np.float64)  # values of the columns that are not left out
    bins, num_binned = _sampled_bins(cells)
    return SourceProfile(
        num_kept=cells.num_cells,
        depth=log2_histogram(sums, NUM_DEPTH_BINS),
        genes_per_cell=log2_histogram(cells.num_genes_per_cell, NUM_GENE_BINS),
        bins=bins,
        num_binned=num_binned,
        gene_cells=count_genes(cells, _tokenizer().vocabulary.size),
        labels=labels,
        sum_values=float(sums.sum()),
        lost_values=max(0.0, float(sums.sum() - known)),
    )


def _sampled_bins(cells: PackedCells) -> tuple[Int64, int]:
    """Entries by bin in a sample of the cells, and the number of cells in it."""
    sampled = np.flatnonzero(cells.cell_ids % np.uint64(SAMPLED_ONE_IN) == 0)
    return np.bincount(_tokenizer().bin_cells(take(cells, sampled)), minlength=NUM_VALUE_BINS), len(sampled)


@functools.cache
def _tokenizer() -> CellTokenizer:
    """Bins as a training with the defaults would see them."""
    return CellTokenizer(GeneVocabulary.load_default(), TokenizerConfig(n_bins=NUM_VALUE_BINS))
