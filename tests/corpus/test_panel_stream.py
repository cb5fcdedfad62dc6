"""A panel view: exactly the panel's genes of each cell, zeros included, binned among themselves."""

from __future__ import annotations

import numpy as np
import pytest
from reference_tokens import choose, draw

from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import combine
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig

CONFIG = TokenizerConfig(max_length=4001, seed=5)
PANEL = tuple(np.random.default_rng(3).choice(60_000, 4000, replace=False).tolist())


def expected(cells: SparseCells, row: int, epoch: int, *, seed: int) -> tuple[np.ndarray, list[int]]:
    """Values of the panel's genes in ascending order of id, and the places that are masked at a ratio of 0.4."""
    panel, key = np.sort(PANEL), (seed, epoch, int(cells.cell_ids[row]))
    part = slice(cells.indptr[row], cells.indptr[row + 1])
    there = dict(zip(cells.gene_ids[part].tolist(), cells.values[part].tolist(), strict=True))
    counts = np.array([there.get(gene, 0.0) for gene in panel.tolist()])
    values, nonzero = np.zeros(len(panel)), np.flatnonzero(counts)
    if len(nonzero):
        drawn = draw(panel[nonzero], counts[nonzero], key, n_bins=51, max_genes=10**6)
        values[nonzero] = drawn.bins
    words = combine(*key, panel).tolist()
    return values, choose([word >> 44 for word in words], int(len(panel) * 0.4))


@pytest.mark.parametrize("binning", ["on_read", "stored"])
def test_every_cell_is_the_panel_with_its_zeros(corpus, write_corpus, binning: str):
    written = corpus if binning == "on_read" else write_corpus(binning="stored", seed=CONFIG.seed)
    rows = {cell: row for row, cell in enumerate(written.cells.cell_ids.tolist())}
    options = StreamOptions(CONFIG, 3, 60, style="masked", ratios=(0.4,), panel=PANEL)
    stream = open_stream(written.store, "cells", options)
    numbers_of_nonzeros = set()
    for rank in (0, 1):
        for batch in stream.read_steps(1, 4, rank=rank, world_size=2):
            assert batch.gene_ids.shape == (30, 4001)
            assert (batch.gene_ids[:, 1:] == np.sort(PANEL)).all()
            assert (batch.gene_ids[:, 0] == stream.filler.tokenizer.vocabulary.cls_id).all()
            assert batch.lengths.tolist() == [4001] * 30
            for number, cell in enumerate(batch.cell_ids.tolist()):
                values, hidden = expected(written.cells, rows[cell], int(batch.epochs[number]), seed=CONFIG.seed)
                assert batch.values[number, 1:].tolist() == values.tolist()
                masked = values.copy()
                masked[hidden] = CONFIG.mask_value
                assert batch.masked[number, 1:].tolist() == masked.tolist()
                numbers_of_nonzeros.add(int((values > 0).sum()))
    assert {0, 1} < numbers_of_nonzeros, "cells without a gene of the panel, with one, and with more"


def test_a_panel_is_split_into_known_and_unknown_genes(corpus):
    options = StreamOptions(CONFIG, 3, 10, style="generative", ratios=(0.25,), panel=PANEL)
    plain = StreamOptions(CONFIG, 3, 10, panel=PANEL)
    batch = open_stream(corpus.store, "cells", options).read_step(0, rank=0, world_size=1)
    whole = open_stream(corpus.store, "cells", plain).read_step(0, rank=0, world_size=1)
    assert (batch.lengths.tolist(), batch.unknown_lengths.tolist()) == ([3001] * 10, [1000] * 10)
    cells = {cell: row for row, cell in enumerate(whole.cell_ids.tolist())}
    for row, cell in enumerate(batch.cell_ids.tolist()):
        genes = np.concatenate([batch.gene_ids[row, 1:], batch.unknown_gene_ids[row]])
        values = np.concatenate([batch.values[row, 1:], batch.unknown_values[row]])
        assert values[np.argsort(genes)].tolist() == whole.values[cells[cell], 1:].tolist()


def test_a_tokenizer_with_a_panel_answers_without_a_stream(corpus, vocabulary):
    tokenizer = CellTokenizer(vocabulary, CONFIG, panel=PANEL)
    tokens = tokenizer(corpus.cells, epoch=2)
    assert tokens.lengths.tolist() == [4001] * corpus.cells.num_cells
    for row in (0, 7, 100):
        values, _ = expected(corpus.cells, row, 2, seed=CONFIG.seed)
        assert tokens.values[tokens.indptr[row] + 1 : tokens.indptr[row + 1]].tolist() == values.tolist()
