from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cytoray.tokens.keys import Purpose, cell_id, combine, content_keys, mix64, uniform


def test_mix64_is_the_published_splitmix64_finaliser():
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * golden) % 2**64 for step in (1, 2, 3)], np.uint64)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("varied", ["seed", "epoch", "cell", "gene"])
def test_uniforms_are_uniform_and_uncorrelated_along_every_part(varied: str):
    parts = {"seed": 7, "epoch": 3, "cell": 11, "gene": 42} | {varied: np.arange(200_000)}
    numbers = uniform(combine(*parts.values()))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.chisquare(np.histogram(numbers, 100, (0, 1))[0]).pvalue > 1e-3
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 0.01


def test_keys_of_a_million_cell_gene_pairs_do_not_collide():
    keys = combine(0, 5, np.arange(1000)[:, None], Purpose.TIES, np.arange(1000)[None, :])
    assert len(np.unique(keys)) == 10**6


def test_order_and_number_of_the_parts_count():
    keys = {int(combine(*parts)) for parts in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (0, 1)]}
    assert len(keys) == 6


def test_combine_broadcasts_and_takes_any_integer():
    grid = combine(np.arange(3)[:, None], np.arange(4))
    assert grid.shape == (3, 4)
    assert grid[2, 3] == combine(2, 3)
    assert combine(-1) == combine(2**64 - 1) == combine(np.array(-1))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_content_key_ignores_order_of_genes_neighbours_and_cell_id(build_cells, random_cells, seed: int):
    cells = random_cells(seed, num_cells=5, num_genes=40)
    expected = content_keys(cells)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(5)
    genes, values = [], []
    for row in rows:
        entries = rng.permutation(np.arange(cells.indptr[row], cells.indptr[row + 1]))
        genes.append(cells.gene_ids[entries])
        values.append(cells.values[entries])
    shuffled = build_cells([[], *values], gene_ids=[[], *genes])
    assert content_keys(shuffled)[1:].tolist() == expected[rows].tolist()


def test_content_key_tells_apart_genes_values_and_their_pairing(build_cells):
    rows = [[1, 2], [2, 1], [1, 2], [1, 2.0000002], [1], [], [1, 2, 3]]
    genes = [[0, 1], [0, 1], [0, 2], [0, 1], [0], [], [0, 1, 2]]
    assert len(np.unique(content_keys(build_cells(rows, gene_ids=genes)))) == len(rows)


def test_cell_id_is_blake2b_of_dataset_and_name():
    names = ["AAAC-1", "Zürich", ""]
    expected = [
        int.from_bytes(hashlib.blake2b(b"pbmc\0" + name.encode(), digest_size=8).digest(), "little") for name in names
    ]
    assert cell_id("pbmc", names).tolist() == expected
    assert cell_id("other", names).tolist() != expected
    assert cell_id("pbmc", []).shape == (0,)
