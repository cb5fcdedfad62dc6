"""Pairs for a perturbation model: expression of a cell and of a control on the same genes, perturbed ones flagged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_corpus import write_corpus

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.members import ObsColumn
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.pairs import PairOptions
from cytoray.tokens.tokenizer import TokenizerConfig

NUM_CELLS, NUM_GENES = 80, 60
KINDS = ["ctrl", "A", "B+C", "ctrl"] * 20
BATCHES = ["one", "two", "two", "two", "one"] * 16
PANEL = (*range(0, NUM_GENES, 2), 500)  # gene 500 was not measured
HIT = {"ctrl": (), "A": (4,), "B+C": (10, 500)}
Row = tuple[int, tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, (NUM_CELLS, NUM_GENES)).astype(np.float32)


@pytest.fixture(scope="module")
def store(counts: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("store"))
    write_corpus(folder, counts, np.arange(NUM_GENES), {"kind": KINDS, "batch": BATCHES})
    return folder


def options(max_tokens: int = 100) -> StreamOptions:
    return StreamOptions(
        TokenizerConfig(max_length=max_tokens), 3, 20, panel=PANEL, select="kind != 'ctrl'",
        columns=(ObsColumn("kind", values=tuple(HIT)), ObsColumn("batch")),
        pairs=PairOptions("kind", "ctrl", match="batch", perturbed=HIT),
    )  # fmt: skip


def read(stream: CorpusStream, *, world_size: int = 1) -> dict[tuple[int, int], Row]:
    """By cell and epoch: its control, genes, values, values of the control, and flags."""
    found = {}
    for rank in range(world_size):
        for batch in stream.read_steps(0, 6, rank=rank, world_size=world_size):
            for part in batch.split(2):
                found.update(dict(rows_of(part)))
    return found


def rows_of(batch: StepBatch) -> list[tuple[tuple[int, int], Row]]:
    assert batch.source_values is not None
    assert batch.source_cell_ids is not None
    assert batch.perturbations is not None
    arrays = (batch.gene_ids, batch.values, batch.source_values, batch.perturbations)
    return [
        (
            (int(batch.cell_ids[row]), int(batch.epochs[row])),
            (int(batch.source_cell_ids[row]), *(tuple(array[row].tolist()) for array in arrays)),
        )
        for row in range(batch.num_cells)
    ]


def test_cell_and_control_have_log_normalised_values_of_the_panel(store: str, counts: np.ndarray) -> None:
    whole = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    expected = np.zeros((NUM_CELLS, 501))
    expected[:, :NUM_GENES] = whole
    found = read(open_stream(store, "cells", options()))
    assert len(found) == 120
    for (cell, _), (control, genes, values, source, flags) in found.items():
        assert genes == PANEL
        assert (KINDS[control], BATCHES[control]) == ("ctrl", BATCHES[cell])
        np.testing.assert_allclose(values, expected[cell, list(PANEL)], rtol=1e-5)
        np.testing.assert_allclose(source, expected[control, list(PANEL)], rtol=1e-5)
        assert {gene for gene, flag in zip(genes, flags, strict=True) if flag} == set(HIT[KINDS[cell]])


def test_perturbed_genes_are_never_sampled_away(store: str) -> None:
    whole = read(open_stream(store, "cells", options()))
    found = read(open_stream(store, "cells", options(max_tokens=4)))
    kept: dict[int, set[int]] = {}
    for (cell, epoch), (control, genes, values, source, flags) in found.items():
        assert len(set(genes)) == 4
        assert {gene for gene, flag in zip(genes, flags, strict=True) if flag} == set(HIT[KINDS[cell]])
        same = dict(
            zip(whole[cell, epoch][1], zip(whole[cell, epoch][2], whole[cell, epoch][3], strict=True), strict=True)
        )
        assert [same[gene] for gene in genes] == list(zip(values, source, strict=True))
        assert control == whole[cell, epoch][0]
        kept.setdefault(cell, set()).update(genes)
    assert np.mean([len(genes) for genes in kept.values()]) > 6, "another sample in each epoch"


@pytest.mark.parametrize("max_tokens", [4, 100])
def test_tokens_do_not_depend_on_ranks_and_start(store: str, max_tokens: int) -> None:
    stream = open_stream(store, "cells", options(max_tokens))
    whole = read(stream)
    assert read(stream, world_size=3) == whole
    later = [rows_of(batch) for batch in stream.read_steps(4, 6)]
    assert all(whole[key] == row for rows in later for key, row in rows)
    packed = open_stream(store, "cells", replace(options(max_tokens), token_budget=130))
    assert {key: row for batch in packed.read_steps(0, 6) for key, row in rows_of(batch)} == whole
