"""Rows of a table of packed cells are gathered as Arrow itself would take them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cytoray.corpus.ingesting.gathering import gather


def make_table(sizes: list[int]) -> pa.Table:
    """A table in chunks of these sizes; some values of its streams are empty."""
    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.uint64()), ("name", pa.string()), ("stream", pa.large_binary())])
    batches = []
    for size in sizes:
        streams = [rng.bytes(int(length)) for length in rng.integers(0, 50, size + 3)]
        names = [None if number % 7 == 0 else f"cell {number}" for number in range(size + 3)]
        whole = pa.record_batch([rng.integers(0, 99, size + 3).astype(np.uint64), names, streams], schema=schema)
        batches.append(whole.slice(2, size))  # offsets that do not start at zero
    return pa.Table.from_batches(batches, schema)


@pytest.mark.parametrize("sizes", [[300], [120, 0, 1, 179], [0], []])
def test_rows_come_in_the_order_asked_for(sizes):
    table = make_table(sizes)
    order = np.random.default_rng(1).permutation(table.num_rows)
    for rows in (order, order[: len(order) // 3], np.flatnonzero(order % 2 == 0), order[:0]):
        taken = gather(table, rows)
        taken.validate(full=True)
        assert taken.equals(table.take(pa.array(rows, pa.int64())))
        assert all(column.num_chunks == 1 for column in taken.columns)
