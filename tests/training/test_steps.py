"""Micro-batches: as few as the token budget allows, none over it, cells in their order."""

from __future__ import annotations

import numpy as np
import pytest

from cytoray.corpus.streaming.batches import StepBatch


def _batch(lengths: list[int]) -> StepBatch:
    """Cells of these lengths."""
    width = max(lengths)
    ids = np.zeros((len(lengths), width), np.uint16)
    cells = np.arange(len(lengths), dtype=np.uint64)
    nothing = np.zeros(0, np.int32)
    return StepBatch(0, 0, 1, ids, ids.astype(np.int16), np.array(lengths, np.int32), cells, nothing, nothing)


@pytest.mark.parametrize("seed", range(20))
def test_no_micro_batch_exceeds_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = _batch(sorted(rng.integers(1, 1200, rng.integers(1, 60)).tolist()))
    budget = int(rng.integers(1200, 5000))
    fewest = batch.count_parts(budget)
    for num_parts in {fewest, min(fewest + 1, batch.num_cells), batch.num_cells}:
        parts = batch.split(num_parts)
        assert len(parts) == num_parts
        assert all(part.num_cells for part in parts)
        assert max(part.num_tokens for part in parts) <= budget
        assert np.concatenate([part.cell_ids for part in parts]).tolist() == list(range(batch.num_cells))
    if fewest > 1:
        assert max(part.num_tokens for part in batch.split(fewest - 1)) > budget, "fewer would not do"


def test_a_cell_over_the_budget_stands_alone() -> None:
    batch = _batch([400, 400, 1200, 1200])
    assert batch.count_parts(1000) == 3
    assert [part.lengths.tolist() for part in batch.split(3)] == [[400, 400], [1200], [1200]]


def test_parts_are_as_even_as_can_be() -> None:
    assert [part.num_tokens for part in _batch([500] * 4 + [400]).split(2)] == [1000, 1400]
    assert [part.lengths.tolist() for part in _batch([1, 1, 8]).split(3)] == [[1], [1], [8]]
