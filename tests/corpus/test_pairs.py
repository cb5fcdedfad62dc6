"""A paired view: each cell comes with a control cell of its batch, the same for any number of ranks."""

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
from cytoray.errors import CorpusError
from cytoray.tokens.tokenizer import TokenizerConfig

NUM_CELLS, PANEL = 80, tuple(range(0, 60, 2))
KINDS = ["ctrl", "A", "B", "ctrl"] * 20
BATCHES = ["one", "two", "two", "two", "one"] * 16
OPTIONS = StreamOptions(
    TokenizerConfig(), 3, 20, panel=PANEL, select="kind != 'ctrl'", columns=(ObsColumn("batch"),),
    pairs=PairOptions("kind", "ctrl", match="batch"),
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("store"))
    counts = np.random.default_rng(0).poisson(1.0, (NUM_CELLS, 60)).astype(np.float32)
    write_corpus(folder, counts, np.arange(60), {"kind": KINDS, "batch": BATCHES})
    return folder


def pairs_of(batches: list[StepBatch]) -> dict[tuple[int, int], tuple[int, tuple[float, ...]]]:
    """By cell and epoch: its control and that control's values."""
    rows = [(batch, row) for batch in batches for row in range(batch.num_cells)]
    return {
        (int(batch.cell_ids[row]), int(batch.epochs[row])): (
            int(batch.source_cell_ids[row]),
            tuple(batch.source_values[row].tolist()),
        )
        for batch, row in rows
    }


def read(stream: CorpusStream, *, world_size: int = 1) -> list[StepBatch]:
    return [batch for rank in range(world_size) for batch in stream.read_steps(0, 20, rank=rank, world_size=world_size)]


def test_each_cell_comes_with_a_control_of_its_batch_that_has_its_own_tokens(store: str) -> None:
    batches = read(open_stream(store, "cells", OPTIONS))
    plain = open_stream(store, "cells", replace(OPTIONS, select=None, pairs=None))
    own = {
        (int(batch.cell_ids[row]), int(batch.epochs[row])): tuple(batch.values[row].tolist())
        for batch in plain.read_steps(0, 45)
        for row in range(batch.num_cells)
    }
    found = pairs_of(batches)
    assert len(found) == 400
    for (cell, epoch), (control, values) in found.items():
        assert KINDS[cell] != "ctrl"
        assert (KINDS[control], BATCHES[control]) == ("ctrl", BATCHES[cell])
        assert values == own[control, epoch]
    controls = {row for row, kind in enumerate(KINDS) if kind == "ctrl"}
    assert {control for control, _ in found.values()} == controls, "each control is drawn by some cell"
    drawn = [len({found[cell, epoch][0] for epoch in range(10)}) for cell, kind in enumerate(KINDS) if kind != "ctrl"]
    assert min(drawn) > 3, "another control in each epoch"


def test_pairs_do_not_depend_on_ranks_and_micro_batches(store: str) -> None:
    stream = open_stream(store, "cells", OPTIONS)
    whole = pairs_of(read(stream))
    assert pairs_of(read(stream, world_size=3)) == whole
    assert pairs_of([part for batch in read(stream, world_size=2) for part in batch.split(4)]) == whole


def test_controls_may_be_any_cell_or_some(store: str) -> None:
    anywhere = replace(OPTIONS, pairs=PairOptions("kind", "ctrl", select="batch == 'one'"))
    controls = {control for control, _ in pairs_of(read(open_stream(store, "cells", anywhere))).values()}
    assert {BATCHES[control] for control in controls} == {"one"}
    with pytest.raises(CorpusError, match=r"no control cell .* has these values of 'batch': two"):
        open_stream(store, "cells", replace(OPTIONS, pairs=replace(anywhere.pairs, match="batch")))
    with pytest.raises(CorpusError, match="no selected cell has one of the values control in 'kind'"):
        open_stream(store, "cells", replace(OPTIONS, pairs=PairOptions("kind", "control")))
