"""Numbering genes among those that occur changes nothing but the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cytoray.corpus.checking.scan import count_genes
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import (
    PackedCells,
    concatenate,
    content_hashes,
    pack,
    pack_rows,
    packed_counts,
    packed_gene_ids,
    take,
    unpack,
    with_bins,
    with_table,
    without_table,
)
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary


def build(*cells: list[int], first: int = 0) -> SparseCells:
    ids = [gene for cell in cells for gene in cell]
    values = 1 + np.arange(len(ids)) * 7 % 300
    indptr = np.cumsum([0, *map(len, cells)]).astype(np.int64)
    return SparseCells(
        np.array(ids, np.int32),
        values.astype(np.float32),
        indptr,
        np.arange(first, first + len(cells), dtype=np.uint64),
    )


CELLS = ([3, 700, 701], [], [0, 254, 255, 60_000], [60_000], [5, 6, 7, 5000])


def same(one: PackedCells, other: PackedCells) -> None:
    for name in ("genes", "values", "large", "gene_starts", "indptr", "large_starts", "cell_ids"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("cells", [CELLS, ([],), (), ([300_000, 2_000_000],)])
def test_numbered_and_named_again_they_are_the_same(cells):
    packed = pack(build(*cells))
    numbered = with_table(packed)
    assert numbered.table.tolist() == sorted({gene for cell in cells for gene in cell})
    same(without_table(numbered), packed)
    same(with_table(numbered), numbered)
    assert np.array_equal(packed_gene_ids(numbered), packed_gene_ids(packed))
    assert np.array_equal(content_hashes(numbered), content_hashes(packed))
    assert len(numbered.genes) <= len(packed.genes)


def test_what_is_done_with_cells_sees_no_difference():
    packed, other = pack(build(*CELLS)), pack(build([1, 2], [60_001], first=9))
    numbered = with_table(packed)
    rows = np.array([4, 0, 0, 2])
    same(without_table(take(numbered, rows)), take(packed, rows))
    for joined in (concatenate([numbered, other]), concatenate([numbered, with_table(other)])):
        same(without_table(joined), concatenate([packed, other]))
    assert concatenate([numbered, numbered]).table is numbered.table
    assert np.array_equal(unpack(numbered).gene_ids, unpack(packed).gene_ids)
    assert np.array_equal(packed_counts(numbered), packed_counts(packed))


def test_rows_can_be_packed_into_a_table_of_more_genes_at_once():
    genes, table = np.array([700, -1, 5, 60_000], np.int32), np.array([3, 5, 9, 700, 701, 60_000], np.int32)
    matrix = sparse.csr_matrix(np.array([[2.0, 9, 300, 0], [0, 7, 0, 0], [0, 0, 1, 4]]))
    ids = np.arange(3, dtype=np.uint64)
    numbered, packed = (pack_rows(matrix, genes, ids, counts=True, table=one) for one in (table, None))
    assert numbered.table is table
    assert packed_gene_ids(numbered).tolist() == [5, 700, 5, 60_000]
    assert np.array_equal(packed_counts(numbered), packed_counts(packed))
    same(without_table(numbered), packed)
    assert np.array_equal(content_hashes(numbered), content_hashes(packed))
    assert np.array_equal(count_genes(numbered, 60_001), count_genes(packed, 60_001))
    tight = with_table(numbered)
    assert tight.table.tolist() == [5, 700, 60_000]
    same(without_table(tight), packed)
    assert with_table(tight) is tight


@pytest.mark.parametrize("stored", [False, True])
def test_tokens_are_the_same(stored: bool):
    rng = np.random.default_rng(0)
    cells = [np.sort(rng.choice(60_000, rng.integers(0, 400), replace=False)).tolist() for _ in range(50)]
    packed = pack(build(*cells))
    if stored:
        packed = with_bins(packed, rng.integers(1, 51, len(packed.values)))
    tokenizer = CellTokenizer(GeneVocabulary.load_default(), TokenizerConfig(max_length=100))
    for epoch in (0, 3):
        one, other = tokenizer(packed, epoch=epoch), tokenizer(with_table(packed), epoch=epoch)
        assert np.array_equal(one.gene_ids, other.gene_ids)
        assert np.array_equal(one.values, other.values)
