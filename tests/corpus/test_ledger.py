from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytoray.corpus.ledger import Ledger, LedgerEntries, load_ledger, prove_epochs
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.members import ObsWeights
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig


def open_cells(written, **options) -> CorpusStream:
    return open_stream(written.store, "cells", StreamOptions(TokenizerConfig(), seed=1, cells_per_step=17, **options))


def keep(
    stream: CorpusStream, start: int, stop: int, *, world_size: int = 1, save_to: Path | None = None
) -> LedgerEntries:
    """What the ranks note of some steps."""
    parts = []
    for rank in range(world_size):
        ledger = Ledger()
        for batch in stream.read_steps(start, stop, rank=rank, world_size=world_size):
            ledger.record(batch)
        parts.append(ledger.entries())
        if save_to is not None:
            ledger.save(str(save_to), start=start, stop=stop, rank=rank, world_size=world_size)
    return LedgerEntries.join(parts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_key": "kind"},
        {"select": "kind == 'type 1' or kind == 'type 2'"},
        {"token_budget": 1200, "layout": "packed"},
    ],
    ids=["all cells", "labelled cells", "a selection", "micro-batches"],
)
def test_whole_epochs_hold_every_cell_exactly_once(corpus, options):
    stream = open_cells(corpus, **options)
    num_steps = 2 * stream.num_cells // 17
    first, second, *_ = prove_epochs(keep(stream, 0, num_steps, world_size=3), stream)
    assert first.exactly_once
    assert first.num_cells == first.num_expected == stream.num_cells
    assert second.exactly_once == (2 * stream.num_cells % 17 == 0)


def test_a_lost_a_doubled_and_an_exchanged_cell_are_told(corpus):
    stream = open_cells(corpus)
    entries = keep(stream, 0, 10)
    assert [proof.exactly_once for proof in prove_epochs(entries, stream)] == [True]
    lost = LedgerEntries(entries.steps[1:], entries.epochs[1:], entries.cell_ids[1:])
    doubled, exchanged = entries.cell_ids.copy(), entries.cell_ids.copy()
    doubled[5], exchanged[5] = doubled[6], exchanged[5] + np.uint64(1)
    for wrong in (
        lost,
        LedgerEntries(entries.steps, entries.epochs, doubled),
        LedgerEntries(entries.steps, entries.epochs, exchanged),
    ):
        assert [proof.exactly_once for proof in prove_epochs(wrong, stream)] == [False]


def test_weighted_epochs_are_complete_though_cells_repeat(corpus):
    stream = open_cells(corpus, weights=ObsWeights("kind", {"type 0": 2.5}))
    entries = keep(stream, 0, -(-stream.num_cells // 17))
    proof = prove_epochs(entries, stream)[0]
    assert proof.complete
    assert not proof.exactly_once


def test_the_ledger_of_a_run_that_was_killed_and_went_on_with_other_ranks_counts_each_step_once(corpus, tmp_path):
    stream = open_cells(corpus)
    keep(stream, 0, 4, world_size=2, save_to=tmp_path)
    keep(stream, 4, 8, world_size=2, save_to=tmp_path)  # was not committed: the run goes on from step 4
    keep(stream, 4, 6, world_size=1, save_to=tmp_path)
    keep(stream, 6, 10, world_size=3, save_to=tmp_path)
    next(tmp_path.glob("steps-000000004-000000008-rank-1*")).unlink()  # one rank died before it wrote
    entries = load_ledger(str(tmp_path))
    assert np.bincount(entries.steps).tolist() == [17] * 10
    assert prove_epochs(entries, stream)[0].exactly_once
