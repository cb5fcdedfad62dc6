from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.tokens import coding
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import content_keys
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
)

Cell = tuple[list[int], list[int]]
GAPS = st.one_of(st.integers(0, 40), st.sampled_from([254, 255, 256, 509, 510, 511, 65_536, 70_000]))
COUNTS = st.one_of(
    st.integers(1, 30), st.sampled_from([254, 255, 256, 65_534, 65_535, 65_536, 2**24 + 1, 2**32 - 2, 2**32 - 1])
)
ENTRIES = st.lists(st.tuples(GAPS, COUNTS), max_size=40)


def decode(packed: PackedCells) -> list[Cell]:
    """Gene ids and counts of each cell, by the description of the format, byte by byte."""
    cells = []
    for cell in range(packed.num_cells):
        genes, gap, previous = [], 0, -1
        for byte in packed.genes[packed.gene_starts[cell] : packed.gene_starts[cell + 1]].tolist():
            gap += byte
            if byte < 255:
                previous += gap + 1
                genes.append(previous)
                gap = 0
        large = iter(packed.large[packed.large_starts[cell] : packed.large_starts[cell + 1]].tolist())
        narrow = packed.values[packed.indptr[cell] : packed.indptr[cell + 1]].tolist()
        cells.append((genes, [next(large) if byte == 255 else byte for byte in narrow]))
        assert next(large, None) is None
    return cells


def as_rows(cells: list[list[tuple[int, int]]]) -> list[Cell]:
    """Cells of (gap, count) as gene ids and counts."""
    return [((np.cumsum([gap + 1 for gap, _ in cell]) - 1).tolist(), [count for _, count in cell]) for cell in cells]


def as_matrix(rows: list[Cell], dtype: Any, num_genes: int) -> sp.csr_matrix:
    indptr = np.cumsum([0, *(len(genes) for genes, _ in rows)])
    columns = np.array([gene for genes, _ in rows for gene in genes], np.int32)
    values = np.array([count for _, counts in rows for count in counts], dtype)
    return sp.csr_matrix((values, columns, indptr), shape=(len(rows), num_genes))


def pack_matrix(matrix: sp.csr_matrix, gene_ids: Any = None, *, counts: bool = True) -> PackedCells:
    ids = np.arange(matrix.shape[1]) if gene_ids is None else np.asarray(gene_ids)
    return pack_rows(matrix, ids.astype(np.int32), np.arange(matrix.shape[0], dtype=np.uint64), counts=counts)


@settings(max_examples=100, deadline=None)
@given(cells=st.lists(ENTRIES, max_size=6))
def test_any_gap_and_count_survives_and_the_bytes_are_those_described(cells):
    rows = as_rows(cells)
    num_genes = 1 + max((gene for genes, _ in rows for gene in genes), default=0)
    packed = pack_matrix(as_matrix(rows, np.int64, num_genes))
    assert decode(packed) == rows
    assert packed_gene_ids(packed).tolist() == [gene for genes, _ in rows for gene in genes]
    exact = packed_counts(packed)
    assert exact.dtype == np.uint32
    assert exact.tolist() == [count for _, counts in rows for count in counts]
    assert packed.num_genes_per_cell.tolist() == [len(genes) for genes, _ in rows]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), counts=st.booleans())
def test_sparse_cells_survive_packing(random_cells, seed: int, counts: bool):
    cells = random_cells(seed)
    if not counts:
        cells = SparseCells(cells.gene_ids, np.log1p(cells.values), cells.indptr, cells.cell_ids)
    back = unpack(pack(cells, counts=counts))
    for name in ("gene_ids", "values", "indptr", "cell_ids"):
        np.testing.assert_array_equal(getattr(back, name), getattr(cells, name))
        assert getattr(back, name).dtype == getattr(cells, name).dtype
    np.testing.assert_array_equal(content_hashes(pack(cells, counts=counts)), content_keys(cells))


def test_large_counts_have_the_hashes_of_their_values(build_cells):
    cells = build_cells([[1, 254, 255, 256, 65_536], [300, 7], []], cell_ids=[1, 2, 3])
    np.testing.assert_array_equal(content_hashes(pack(cells)), content_keys(cells))
    np.testing.assert_array_equal(content_hashes(pack(cells)), content_hashes(pack(cells, counts=False)))


TYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(TYPES), wide=st.booleans(), shuffled=st.booleans())
def test_rows_of_any_matrix_are_mapped_summed_and_sorted(seed: int, dtype: str, wide: bool, shuffled: bool):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.5, (8, 90))
    dense = np.minimum(dense, 1) if dtype == "bool" else dense
    gene_ids = np.where(rng.random(90) < 0.2, -1, rng.choice(70_000, 90, replace=False))
    gene_ids = np.sort(gene_ids) if rng.random() < 0.3 else gene_ids
    gene_ids[rng.integers(0, 90, 5)] = gene_ids[0]  # several columns of one gene
    matrix = sp.csr_matrix(dense.astype(dtype))
    matrix.data[rng.integers(0, matrix.nnz, 10)] = 0  # zeros that are stored
    if shuffled:
        for row in range(8):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            order = rng.permutation(part.stop - part.start)
            matrix.data[part], matrix.indices[part] = matrix.data[part][order], matrix.indices[part][order]
    expected = np.zeros((8, 70_000), np.int64)
    for row, column in zip(*matrix.nonzero(), strict=True):
        if gene_ids[column] >= 0:
            expected[row, gene_ids[column]] += int(matrix[row, column])
    if wide:
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    packed = pack_matrix(matrix, gene_ids)
    assert decode(packed) == [(np.flatnonzero(row).tolist(), row[row > 0].tolist()) for row in expected]
    expression = pack_matrix(matrix, gene_ids, counts=False)
    np.testing.assert_array_equal(packed_counts(expression), packed_counts(packed))
    np.testing.assert_array_equal(packed_gene_ids(expression), packed_gene_ids(packed))


def test_expression_is_summed_in_double_precision():
    matrix = sp.csr_matrix(np.array([[0.1, 0.2, 0.7], [0.0, 0.5, 0.25]], np.float32))
    packed = pack_matrix(matrix, [3, 3, 1], counts=False)
    assert packed.values.dtype == np.float32
    total = np.float32(np.float64(np.float32(0.1)) + np.float64(np.float32(0.2)))
    assert packed_counts(packed).tolist() == [np.float32(0.7), total, 0.25, 0.5]
    assert len(packed.large) == 0


@pytest.mark.parametrize("gene_ids", [[0, 1, 2], [2, 1, 0]])  # ascending rows are copied, others sorted
@pytest.mark.parametrize("bad", [2.0**32, 1.5, -1.0, np.nan, np.inf, 0.25])
def test_what_is_no_count_is_refused_by_its_row(gene_ids: list[int], bad: float):
    matrix = sp.csr_matrix(np.array([[1.0, 2**32 - 1, 0], [0, 1, 2], [3, bad, 4]]))
    with pytest.raises(ValueError, match=r"row 2 .* 4,294,967,295"):
        pack_matrix(matrix, gene_ids)
    assert decode(pack_matrix(matrix[:2], [0, 1, 2]))[0] == ([0, 1], [1, 2**32 - 1])


def test_a_sum_beyond_the_largest_count_is_refused():
    matrix = sp.csr_matrix(np.array([[2**32 - 1, 1]], np.int64))
    with pytest.raises(ValueError, match="row 0"):
        pack_matrix(matrix, [5, 5])
    assert decode(pack_matrix(sp.csr_matrix(np.array([[2**32 - 2, 1]], np.int64)), [5, 5])) == [([5], [2**32 - 1])]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), counts=st.booleans())
def test_take_and_concatenate_move_whole_cells(random_cells, seed: int, counts: bool):
    cells = random_cells(seed)
    cells.values[::7] += 300
    rows = np.random.default_rng(seed).integers(0, 12, 20)
    packed = pack(cells, counts=counts)
    for ours, expected in (
        (take(packed, rows), cells.take(rows)),
        (concatenate([take(packed, rows[:5]), packed]), SparseCells.concatenate([cells.take(rows[:5]), cells])),
        (take(packed, rows[:0]), cells.take(rows[:0])),
    ):
        back = unpack(ours)
        for name in ("gene_ids", "values", "indptr", "cell_ids"):
            np.testing.assert_array_equal(getattr(back, name), getattr(expected, name))


def test_no_cells_and_cells_without_genes():
    none = pack_matrix(sp.csr_matrix((0, 5)))
    assert (none.num_cells, len(content_hashes(none)), unpack(none).num_cells) == (0, 0, 0)
    empty = pack_matrix(sp.csr_matrix((3, 5), dtype=np.float32), [-1] * 5)
    assert decode(empty) == [([], [])] * 3
    assert len(np.unique(content_hashes(empty))) == 1


def test_read_only_and_unaligned_inputs_compile_nothing_anew(random_cells):
    packed = pack(random_cells(0))
    expected = unpack(packed), content_hashes(packed)
    compiled = [len(kernel.signatures) for kernel in (coding.decode_genes, coding.copy_parts, coding.sum_entry_hashes)]
    arrays = {}
    for name in ("genes", "values", "large", "gene_starts", "indptr", "large_starts", "cell_ids"):
        array = getattr(packed, name)
        arrays[name] = np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1)  # as Arrow and files give them
    copy = PackedCells(**arrays)
    np.testing.assert_array_equal(unpack(copy).values, expected[0].values)
    np.testing.assert_array_equal(content_hashes(copy), expected[1])
    np.testing.assert_array_equal(unpack(take(copy, np.arange(12))).gene_ids, expected[0].gene_ids)
    after = [len(kernel.signatures) for kernel in (coding.decode_genes, coding.copy_parts, coding.sum_entry_hashes)]
    assert after[0] == compiled[0]
    assert after[2] == compiled[2]


def test_streams_that_disagree_are_noticed(random_cells):
    packed = pack(random_cells(1))
    shifted = PackedCells(
        packed.genes, packed.values, packed.large, packed.gene_starts, packed.indptr[::-1], packed.large_starts,
        packed.cell_ids,
    )  # fmt: skip
    with pytest.raises(AssertionError, match="disagree"):
        packed_gene_ids(shifted)
