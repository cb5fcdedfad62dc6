from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from cytoray.corpus.stream import CorpusStream, StepBatch, StreamOptions, load_cells, open_stream, read_obs
from cytoray.errors import CorpusError, DigestError
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig

NUM_CELLS = 170


def open_cells(written, *, cells_per_step: int = 24, seed: int = 3, **options) -> CorpusStream:
    tokenizer = options.pop("tokenizer", TokenizerConfig())
    options = StreamOptions(tokenizer=tokenizer, seed=seed, cells_per_step=cells_per_step, **options)
    return open_stream(written.store, "cells", options)


def cells_of(batch: StepBatch) -> list[tuple[int, tuple[tuple[int, float], ...]]]:
    """Each cell as (id, its tokens)."""
    tokens = batch.tokens
    ranges = zip(tokens.indptr[:-1], tokens.indptr[1:], strict=True)
    pairs = [tuple(zip(tokens.gene_ids[a:b].tolist(), tokens.values[a:b].tolist(), strict=True)) for a, b in ranges]
    return list(zip(tokens.cell_ids.tolist(), pairs, strict=True))


def read(stream: CorpusStream, step: int, world_size: int = 1) -> list[StepBatch]:
    return [stream.read_step(step, rank=rank, world_size=world_size) for rank in range(world_size)]


def ids_of(stream: CorpusStream, steps: Sequence[int]) -> list[int]:
    return [cell for step in steps for cell in read(stream, step)[0].tokens.cell_ids.tolist()]


@pytest.mark.parametrize("label_key", [None, "kind"])
def test_a_step_holds_the_same_cells_for_any_number_of_ranks(corpus, label_key: str | None):
    stream = open_cells(corpus, label_key=label_key)
    for step in (0, 1, 6, 7, 40):  # step 7 straddles two epochs
        alone = sorted(cells_of(read(stream, step)[0]))
        assert len(alone) == 24
        for world_size in (2, 3, 8):
            shares = read(stream, step, world_size)
            assert sorted(cell for share in shares for cell in cells_of(share)) == alone
            assert {share.tokens.num_cells for share in shares} <= {24 // world_size, -(-24 // world_size)}
            assert len({(share.step, share.epoch) for share in shares}) == 1


def test_ranks_get_cells_of_like_lengths(corpus):
    stream = open_cells(corpus)
    for step in range(5):
        tokens = [share.tokens.lengths.sum() for share in read(stream, step, 2)]
        longest = max(share.tokens.lengths.max() for share in read(stream, step, 2))
        assert abs(int(tokens[0]) - int(tokens[1])) <= longest


@pytest.mark.parametrize("cells_per_step", [10, 24, 170, 400])
def test_every_cell_comes_once_an_epoch(corpus, cells_per_step: int):
    stream = open_cells(corpus, cells_per_step=cells_per_step)
    assert stream.num_cells == NUM_CELLS
    num_steps = -(-3 * NUM_CELLS // cells_per_step)
    expected = Counter(corpus.cells.cell_ids.tolist())
    positions = []
    for step in range(num_steps):
        for epoch, shard, places in stream.step_cells(step):
            positions += [(epoch, shard, place) for place in places.tolist()]
    for epoch in range(3):
        mine = positions[epoch * NUM_CELLS : (epoch + 1) * NUM_CELLS]
        assert {one[0] for one in mine} == {epoch}
        assert len(set(mine)) == NUM_CELLS
        assert Counter(shard for _, shard, _ in mine) == {0: 70, 1: 41, 3: 59}
    read_cells = Counter(ids_of(stream, range(num_steps)))
    whole, rest = divmod(num_steps * cells_per_step, NUM_CELLS)
    assert set(read_cells) == set(expected)
    assert set(read_cells.values()) <= ({whole, whole + 1} if rest else {whole})


def test_the_order_is_another_in_each_epoch_and_for_each_seed(corpus):
    stream = open_cells(corpus, cells_per_step=10)
    epochs = [ids_of(stream, range(17 * epoch, 17 * (epoch + 1))) for epoch in range(3)]
    other = ids_of(open_cells(corpus, cells_per_step=10, seed=4), range(17))
    orders = [*epochs, other, corpus.cells.cell_ids.tolist()]
    assert len({tuple(order) for order in orders}) == 5
    assert len({tuple(sorted(order)) for order in orders}) == 1
    # Shards are permuted as well as the cells in them.
    shard_of = dict(zip(corpus.cells.cell_ids.tolist(), np.repeat([0, 1, 3], [70, 41, 59]).tolist(), strict=True))
    blocks = {tuple(dict.fromkeys(s for _, s, _ in open_cells(corpus, seed=i).step_cells(0))) for i in range(12)}
    assert len(blocks) >= 3
    within = [[cell for cell in epoch if shard_of[cell] == 0] for epoch in epochs]
    assert within[0] != within[1] != within[2]


def test_a_run_that_starts_at_step_n_goes_on_where_it_stopped(corpus):
    stream = open_cells(corpus)
    passed = [cells_of(read(stream, step, 2)[1]) for step in range(12)]
    for start in (0, 5, 7, 11):
        fresh = open_cells(corpus)  # nothing remembered but the step
        assert [cells_of(read(fresh, step, 2)[1]) for step in range(start, 12)] == passed[start:]


def test_tokens_are_those_of_the_tokenizer_in_the_epoch_of_each_cell(corpus, vocabulary):
    """In the step that straddles two epochs, too: each cell's ties and samples are keyed by its own epoch."""
    config = TokenizerConfig(max_length=30, seed=9)
    stream = open_cells(corpus, cells_per_step=100, tokenizer=config)
    expected = {
        epoch: dict(
            cells_of(StepBatch(0, 0, CellTokenizer(vocabulary, config)(corpus.cells, epoch=epoch), np.empty(0)))
        )
        for epoch in range(4)
    }
    assert expected[0] != expected[1]
    epochs_of_steps = [{0}, {0, 1}, {1}, {1, 2}, {2}, {2, 3}]  # 170 cells an epoch, 100 a step
    for step, epochs in enumerate(epochs_of_steps):
        parts = stream.step_cells(step)
        assert {epoch for epoch, _, _ in parts} == epochs
        starts = {0: 0, 1: 70, 3: 111}
        wanted = Counter()
        for epoch, shard, places in parts:
            ids = corpus.cells.cell_ids[starts[shard] + places].tolist()
            wanted.update((cell, expected[epoch][cell]) for cell in ids)
        assert Counter(cells_of(read(stream, step)[0])) == wanted


def test_only_labelled_cells_come_and_each_with_its_label(corpus):
    stream = open_cells(corpus, label_key="kind")
    truth = dict(zip(corpus.cells.cell_ids.tolist(), corpus.labels, strict=True))
    labelled = {cell for cell, label in truth.items() if label is not None}
    assert 0 < len(labelled) < NUM_CELLS
    assert stream.num_cells == len(labelled)
    assert stream.labels == ("type 0", "type 1", "type 2")
    seen = set()
    for step in range(-(-len(labelled) // 24)):
        for share in read(stream, step, 3):
            assert share.labels.dtype == np.int32
            names = [stream.labels[code] for code in share.labels]
            assert names == [truth[cell] for cell in share.tokens.cell_ids.tolist()]
            seen |= set(share.tokens.cell_ids.tolist())
    assert seen == labelled


def test_without_a_label_key_there_are_no_labels(corpus):
    stream = open_cells(corpus)
    assert stream.labels == ()
    assert read(stream, 0)[0].labels.tolist() == []


def test_an_absent_label_column_is_answered_with_those_there(corpus):
    with pytest.raises(CorpusError, match="obs has no column 'cell_type'") as caught:
        open_cells(corpus, label_key="cell_type")
    assert "kind, batch" in caught.value.remedy


def test_a_column_without_any_label_is_refused(write_corpus, monkeypatch):
    corpus = write_corpus([4, 3])
    monkeypatch.setattr("cytoray.corpus.stream.read_obs", lambda *_: [[None] * 4, [None] * 3])
    with pytest.raises(CorpusError, match="no cell has a label in 'kind'"):
        open_cells(corpus, label_key="kind")


def test_stored_bins_are_those_of_the_first_epoch_and_stay(write_corpus):
    tokenizer = TokenizerConfig(seed=5)
    on_read = open_cells(write_corpus(seed=5), tokenizer=tokenizer, cells_per_step=17)
    stored = open_cells(write_corpus(binning="stored", seed=5), tokenizer=tokenizer, cells_per_step=17)
    for step in range(10):
        assert cells_of(read(stored, step)[0]) == cells_of(read(on_read, step)[0])
    first, later = (
        dict(cell for step in steps for cell in cells_of(read(stored, step)[0])) for steps in (range(10), range(10, 20))
    )
    assert first == later
    redrawn = dict(cell for step in range(10, 20) for cell in cells_of(read(on_read, step)[0]))
    assert redrawn != first
    assert redrawn.keys() == first.keys()


def test_stored_bins_of_another_number_are_refused(write_corpus):
    corpus = write_corpus([4], binning="stored")
    with pytest.raises(CorpusError, match="stores 51 bins; 31 are asked for"):
        open_cells(corpus, tokenizer=TokenizerConfig(n_bins=31))


def test_a_corpus_of_another_vocabulary_is_refused(write_corpus, monkeypatch, vocabulary):
    corpus = write_corpus([4])
    monkeypatch.setattr(type(vocabulary), "digest", lambda self: "another")
    with pytest.raises(CorpusError, match="another gene vocabulary"):
        open_cells(corpus)


def test_a_damaged_shard_stops_the_stream(write_corpus):
    corpus = write_corpus([30])
    path = f"{corpus.store}/corpora/cells/shard-0"
    with open(path, "r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    stream = open_cells(corpus)
    with pytest.raises(DigestError, match="shard-0"):
        stream.read_step(0, rank=0, world_size=1)


def test_a_stream_crosses_to_another_process_and_a_minibatch_through_ray_data(corpus):
    stream = open_cells(corpus, label_key="kind")
    batch = stream.read_step(5, rank=1, world_size=2)
    there = pickle.loads(pickle.dumps(stream)).read_step(5, rank=1, world_size=2)  # noqa: S301 - our own
    for other in (there, StepBatch.from_row(copy.deepcopy(batch.to_row()))):
        assert cells_of(other) == cells_of(batch)
        assert other.labels.tolist() == batch.labels.tolist()
        assert (other.step, other.epoch) == (batch.step, batch.epoch) == (5, 0)


def test_all_cells_and_obs_come_in_the_order_of_the_shards(corpus):
    cells = load_cells(corpus.store, corpus.manifest)
    for name in ("gene_ids", "values", "indptr", "cell_ids"):
        assert np.array_equal(getattr(cells, name), getattr(corpus.cells, name))
    kinds = read_obs(corpus.store, corpus.manifest, "kind")
    assert [len(part) for part in kinds] == [70, 41, 0, 59]
    assert [kind for part in kinds for kind in part] == corpus.labels
