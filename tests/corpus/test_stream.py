from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from cytoray import storage
from cytoray.corpus.manifest import corpus_uri
from cytoray.corpus.shards import encode_shard
from cytoray.corpus.stream import CorpusStream, load_cells, open_stream, sample_labelled_cells
from cytoray.corpus.streaming.batches import StepBatch, StepChunk
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import CorpusError, DigestError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_CELLS = 170


def open_cells(written, *, cells_per_step: int = 24, seed: int = 3, **options) -> CorpusStream:
    tokenizer = options.pop("tokenizer", TokenizerConfig())
    options = StreamOptions(tokenizer=tokenizer, seed=seed, cells_per_step=cells_per_step, **options)
    return open_stream(written.store, "cells", options)


def cells_of(batch: StepBatch) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """Each cell as (id, its known tokens)."""
    rows = zip(batch.cell_ids.tolist(), batch.gene_ids, batch.values, batch.lengths.tolist(), strict=True)
    return [(cell, tuple(zip(genes[:n].tolist(), values[:n].tolist(), strict=True))) for cell, genes, values, n in rows]


def read(stream: CorpusStream, step: int, world_size: int = 1) -> list[StepBatch]:
    return [stream.read_step(step, rank=rank, world_size=world_size) for rank in range(world_size)]


def ids_of(stream: CorpusStream, steps: Sequence[int]) -> list[int]:
    return [cell for step in steps for cell in read(stream, step)[0].cell_ids.tolist()]


@pytest.mark.parametrize("label_key", [None, "kind"])
def test_a_step_holds_the_same_cells_for_any_number_of_ranks(corpus, label_key: str | None):
    stream = open_cells(corpus, label_key=label_key)
    for step in (0, 1, 6, 7, 17, 40):  # step 7 straddles two epochs
        alone = sorted(cells_of(read(stream, step)[0]))
        assert len(alone) == 24
        for world_size in (2, 3, 8):
            shares = read(stream, step, world_size)
            assert sorted(cell for share in shares for cell in cells_of(share)) == alone
            assert {share.num_cells for share in shares} <= {24 // world_size, -(-24 // world_size)}
            assert {share.step for share in shares} == {step}


def test_a_share_stands_in_the_order_of_its_lengths(corpus):
    for batch in open_cells(corpus).read_steps(0, 20):
        assert (np.diff(batch.lengths) >= 0).all()
        assert batch.gene_ids.shape == batch.values.shape == (24, batch.lengths.max())


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("cells_per_step", [10, 24, 170, 400])
def test_every_cell_comes_once_an_epoch(corpus, cells_per_step: int, threads: int):
    stream = open_cells(corpus, cells_per_step=cells_per_step)
    assert stream.num_cells == NUM_CELLS
    num_steps = -(-3 * NUM_CELLS // cells_per_step)
    seen = Counter()
    for batch in stream.read_steps(0, num_steps, threads=threads):
        seen.update(zip(batch.epochs.tolist(), batch.cell_ids.tolist(), strict=True))
    expected = set(corpus.cells.cell_ids.tolist())
    for epoch in range(3):
        assert {cell: times for (e, cell), times in seen.items() if e == epoch} == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_run_that_starts_at_step_n_goes_on_where_it_stopped(corpus, threads: int):
    passed = [cells_of(batch) for batch in open_cells(corpus).read_steps(0, 30, rank=1, world_size=2, threads=threads)]
    for start in (0, 5, 7, 11, 29):
        fresh = open_cells(corpus)  # nothing remembered but the step
        steps = fresh.read_steps(start, 30, rank=1, world_size=2, threads=2 - threads)
        assert [cells_of(batch) for batch in steps] == passed[start:]


def test_tokens_are_those_of_the_tokenizer_in_the_epoch_of_each_cell(corpus, vocabulary):
    """In the step that straddles two epochs, too: each cell's ties and samples are keyed by its own epoch."""
    config = TokenizerConfig(max_length=30, seed=9)
    tokenizer = CellTokenizer(vocabulary, config)
    expected = {}
    for epoch in range(4):
        tokens = tokenizer(corpus.cells, epoch=epoch)
        for row, cell in enumerate(tokens.cell_ids.tolist()):
            part = slice(tokens.indptr[row], tokens.indptr[row + 1])
            pairs = zip(tokens.gene_ids[part].tolist(), tokens.values[part].tolist(), strict=True)
            expected[epoch, cell] = tuple(pairs)
    epochs = [{0}, {0, 1}, {1}, {1, 2}, {2}, {2, 3}]  # 170 cells an epoch, 100 a step
    for batch in open_cells(corpus, cells_per_step=100, tokenizer=config).read_steps(0, 6):
        assert set(batch.epochs.tolist()) == epochs[batch.step]
        for epoch, (cell, pairs) in zip(batch.epochs.tolist(), cells_of(batch), strict=True):
            assert pairs == expected[epoch, cell]
        padding = np.arange(batch.gene_ids.shape[1]) >= batch.lengths[:, None]
        assert (batch.gene_ids[padding] == vocabulary.pad_id).all()
        assert (batch.values[padding] == config.pad_value).all()


def test_the_genes_of_a_generative_cell_are_known_or_unknown_by_the_share_of_the_step(corpus, vocabulary):
    plain = {cell: pairs for batch in open_cells(corpus).read_steps(0, 8) for cell, pairs in cells_of(batch)}
    stream = open_cells(corpus, style="generative", ratios=(0.25, 0.5, 0.75))
    for step in range(8):
        ratio = stream.options.ratios_at(np.array([step]))[0]
        whole = {}
        for world_size in (1, 3):
            for batch in read(stream, step, world_size):
                for row, (cell, known) in enumerate(cells_of(batch)):
                    hidden = int(batch.unknown_lengths[row])
                    genes, values = batch.unknown_gene_ids[row], batch.unknown_values[row]
                    unknown = tuple(zip(genes[:hidden].tolist(), values[:hidden].tolist(), strict=True))
                    assert hidden == int((len(known) + hidden - 1) * ratio)
                    assert (genes[hidden:] == vocabulary.pad_id).all()
                    assert known[0] == plain_cell(plain, cell)[0]  # <cls> is never hidden
                    assert [gene for gene, _ in sorted((*known[1:], *unknown))] == [
                        g for g, _ in plain_cell(plain, cell)[1:]
                    ]
                    assert whole.setdefault(cell, (known, unknown)) == (known, unknown)  # whatever the number of ranks
    assert len(set(stream.options.ratios_at(np.arange(30)))) == 3


def plain_cell(plain, cell):
    return plain[cell]


def test_the_values_of_a_masked_cell_are_hidden_by_the_share_of_the_step(corpus):
    hidden = total = 0
    for batch in open_cells(corpus, style="masked", ratios=(0.4,)).read_steps(0, 30):
        real = np.arange(batch.gene_ids.shape[1]) < batch.lengths[:, None]
        changed = batch.masked != batch.values
        assert (batch.masked[changed] == -1).all()
        assert not changed[~real].any()
        assert not changed[:, 0].any()
        hidden, total = hidden + changed.sum(), total + real[:, 1:].sum()
    assert hidden / total == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("style", ["plain", "masked", "generative"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_no_micro_batch_exceeds_the_token_budget_and_none_loses_a_cell(corpus, layout: str, style: str):
    ratios = () if style == "plain" else (0.3, 0.6)
    tokenizer = TokenizerConfig(max_length=60)
    forms = {"layout": layout, "style": style, "ratios": ratios, "tokenizer": tokenizer, "pad_to_multiple": 4}
    stream = open_cells(corpus, token_budget=240, **forms)
    plain = {
        (b.step, cell)
        for b in open_cells(corpus, tokenizer=tokenizer).read_steps(0, 12)
        for cell in b.cell_ids.tolist()
    }
    seen, parts = [], Counter()
    for batch in stream.read_steps(0, 12):
        tokens = batch.gene_ids.size + (0 if batch.unknown_gene_ids is None else batch.unknown_gene_ids.size)
        assert 0 < tokens <= 240
        if layout == "packed":
            assert batch.indptr[-1] == len(batch.gene_ids)
            assert (batch.gene_ids[batch.indptr[:-1]] == stream.filler.tokenizer.vocabulary.cls_id).all()
        else:
            assert batch.gene_ids.shape[1] % 4 == 0
            assert batch.gene_ids.shape[1] - batch.lengths.max() < 4
        assert batch.part == parts[batch.step] < batch.num_parts
        parts[batch.step] += 1
        seen += [(batch.step, cell) for cell in batch.cell_ids.tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) == plain
    # A packed micro-batch is filled to within one cell.
    if layout == "packed":
        most = sum(batch.lengths.sum() + (0 if batch.unknown_lengths is None else batch.unknown_lengths.sum())
                   for batch in stream.read_steps(0, 12))  # fmt: skip
        assert sum(parts.values()) <= 12 + most / (240 - 60)


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
            assert [stream.labels[code] for code in share.labels] == [truth[cell] for cell in share.cell_ids.tolist()]
            seen |= set(share.cell_ids.tolist())
    assert seen == labelled


def test_without_a_label_key_there_are_no_labels(corpus):
    stream = open_cells(corpus)
    assert stream.labels == ()
    assert read(stream, 0)[0].labels.tolist() == []


def test_an_absent_label_column_is_answered_with_those_there(corpus):
    with pytest.raises(CorpusError, match="obs has no column 'cell_type'") as caught:
        open_cells(corpus, label_key="cell_type")
    assert "kind, batch" in caught.value.remedy


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
    with pytest.raises(CorpusError, match="stores 51 bins; the configuration has 31"):
        open_cells(corpus, tokenizer=TokenizerConfig(n_bins=31))


def test_a_corpus_of_another_vocabulary_is_refused(write_corpus, monkeypatch, vocabulary):
    corpus = write_corpus([4])
    monkeypatch.setattr(type(vocabulary), "digest", lambda self: "another")
    with pytest.raises(CorpusError, match="another gene vocabulary"):
        open_cells(corpus)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_shard_stops_the_stream_where_its_cells_would_come(write_corpus, threads: int):
    corpus = write_corpus([30])
    path = f"{corpus.store}/corpora/cells/shard-0"
    with open(path, "r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    stream = open_cells(corpus)
    with pytest.raises(DigestError, match="shard-0"):
        next(stream.read_steps(0, 9, threads=threads))


def test_a_stream_crosses_to_another_process_and_a_chunk_through_arrow(corpus):
    stream = open_cells(corpus, label_key="kind", style="generative", ratios=(0.5,))
    there = pickle.loads(pickle.dumps(stream))  # noqa: S301 - our own
    here = list(stream.read_steps(5, 30, rank=1, world_size=2))
    chunks = there.read_chunks(range(5, 30), rank=1, world_size=2)
    other = [batch for chunk in chunks for back in StepChunk.from_table(chunk.to_table()) for batch in back.batches()]
    assert_same(here, other)
    assert [batch.step for batch in here] == list(range(5, 30))


def assert_same(batches: Sequence[StepBatch], others: Sequence[StepBatch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert (batch.step, batch.part, batch.num_parts) == (other.step, other.part, other.num_parts)
        for name, array in vars(batch).items():
            if isinstance(array, np.ndarray):
                assert array.dtype == getattr(other, name).dtype
                assert np.array_equal(array, getattr(other, name)), name


def test_a_share_is_cut_into_parts_of_as_many_tokens(corpus):
    batch = read(open_cells(corpus, style="generative", ratios=(0.5,)), 2)[0]
    parts = batch.split(5)
    tokens = [part.num_tokens for part in parts]
    longest = int((batch.lengths + batch.unknown_lengths).max())
    assert all(abs(part - sum(tokens) / 5) <= longest for part in tokens)
    assert all(part.num_cells == 1 for part in batch.split(batch.num_cells))
    assert [cell for part in parts for cell in cells_of(part)] == cells_of(batch)
    assert all(part.gene_ids.shape[1] == part.lengths.max() for part in parts)
    assert all(part.unknown_gene_ids.shape[1] == part.unknown_lengths.max() for part in parts)


def test_a_stream_that_is_left_stops_its_threads_and_reads_no_further(corpus, monkeypatch):
    stream = open_cells(corpus)
    reads = []
    monkeypatch.setattr(
        CorpusStream,
        "read_unit",
        lambda self, unit, plain=CorpusStream.read_unit: reads.append(unit) or plain(self, unit),
    )
    steps = stream.read_steps(0, 10**6)
    next(steps)
    assert any(thread.name.startswith("corpus-") for thread in threading.enumerate())
    steps.close()
    wait_until(lambda: not any(thread.name.startswith("corpus-") for thread in threading.enumerate()))
    assert len(reads) < 60


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_all_cells_come_in_the_order_of_the_shards(corpus):
    cells = load_cells(corpus.store, corpus.manifest)
    for name in ("gene_ids", "values", "indptr", "cell_ids"):
        assert np.array_equal(getattr(cells, name), getattr(corpus.cells, name))


def test_further_modalities_come_beside_the_genes_of_their_cells(corpus):
    uri, shards, proteins = corpus_uri(corpus.store, "cells"), [], {}
    start = 0
    for number, shard in enumerate(corpus.manifest.shards):
        cells = corpus.cells.take(np.arange(start, start + shard.num_cells))
        start += shard.num_cells
        counts = np.arange(shard.num_cells) % 4  # proteins a cell: 0 to 3
        ids = np.concatenate([np.empty(0, np.int64), *(np.arange(n) + number for n in counts)]).astype(np.int32)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        values = (ids * 100 + 1).astype(np.float32)
        encoded = encode_shard(pack(SparseCells(ids, values, indptr, cells.cell_ids)), values="counts")
        record = encoded.record(f"protein-{number}")
        storage.write_bytes(f"{uri}/protein-{number}", encoded.data)
        shards.append(shard.model_copy(update={"modalities": {"protein": record}}))
        for row, cell in enumerate(cells.cell_ids.tolist()):
            part = slice(indptr[row], indptr[row + 1])
            proteins[cell] = list(zip(ids[part].tolist(), values[part].tolist(), strict=True))
    manifest = corpus.manifest.model_copy(update={"modalities": {"protein": tuple("ABCDEFG")}, "shards": tuple(shards)})
    options = StreamOptions(TokenizerConfig(), 3, 24, modalities=("protein",))
    plain = open_cells(corpus)
    stream = CorpusStream(corpus.store, manifest, options, plain.members)
    seen = {}
    shares = [batch for rank in (0, 1) for batch in stream.read_steps(0, 8, rank=rank, world_size=2)]
    micro_batches = [part for batch in shares for part in batch.split(5)]
    assert len({part.num_cells for part in micro_batches}) > 1
    for batch in [*shares, *micro_batches]:
        protein = batch.modalities["protein"]
        ends = np.cumsum(protein["lengths"])
        assert len(protein["feature_ids"]) == len(protein["values"]) == protein["lengths"].sum()
        for cell, length, end in zip(batch.cell_ids.tolist(), protein["lengths"], ends, strict=True):
            part = slice(end - length, end)
            found = list(zip(protein["feature_ids"][part].tolist(), protein["values"][part].tolist(), strict=True))
            assert seen.setdefault(cell, found) == found
    assert len(seen) > 120
    assert seen == {cell: proteins[cell] for cell in seen}
    with pytest.raises(CorpusError, match="not all cells have the modality 'protein'"):
        open_cells(corpus, modalities=("protein",))


def test_a_sample_of_labelled_cells_is_random_bounded_and_reads_no_more_than_it_needs(write_corpus, monkeypatch):
    written = write_corpus((3_000, 2_500, 2_100))
    whole = sample_labelled_cells(written.store, written.manifest, "kind", max_cells=10_000)
    labelled = [row for row, label in enumerate(written.labels) if label is not None]
    assert (whole.num_labelled, whole.is_sample) == (len(labelled), False)
    assert list(whole.labels) == [written.labels[row] for row in labelled]
    assert whole.cells.cell_ids.tolist() == written.cells.cell_ids[labelled].tolist()
    reads = []
    real = CorpusStream.read_unit
    monkeypatch.setattr(CorpusStream, "read_unit", lambda self, unit: (reads.append(unit), real(self, unit))[1])
    truth = dict(zip(written.cells.cell_ids.tolist(), written.labels, strict=True))
    drawn = set()
    for seed in range(6):
        reads.clear()
        sample = sample_labelled_cells(written.store, written.manifest, "kind", max_cells=300, seed=seed)
        assert (len(sample.labels), sample.num_labelled, sample.is_sample) == (300, len(labelled), True)
        assert [truth[cell] for cell in sample.cells.cell_ids.tolist()] == list(sample.labels)
        assert len(reads) <= 3, "of six row groups"
        drawn |= set(reads)
    assert len(drawn) > 2
    selected = "kind != 'type 1'"
    some = sample_labelled_cells(written.store, written.manifest, "kind", select=selected, max_cells=10_000)
    assert some.labels == tuple(label for label in whole.labels if label != "type 1")
    assert len(some.labels) < len(whole.labels)
    with pytest.raises(CorpusError, match="no column 'type'"):
        sample_labelled_cells(written.store, written.manifest, "type", max_cells=300)


def test_baselines_learn_from_a_sample_of_a_large_corpus_and_warn(corpus, monkeypatch, caplog):
    from cytoray.tasks.annotation import evaluation

    baseline = evaluation.Baseline(corpus.store, "cells", "kind")
    whole = baseline.load()
    assert not caplog.records
    assert len(whole.labels) == whole.num_labelled == sum(label is not None for label in corpus.labels)
    monkeypatch.setattr(evaluation, "MAX_BASELINE_CELLS", 60)
    sample = baseline.load()
    assert len(sample.labels) == 60
    assert f"a random sample: 60 of {whole.num_labelled} labelled cells" in caplog.text
    answers = baseline.predict(sample.cells, training=sample)
    assert {name: len(labels) for name, labels in answers.items()} == {"logistic regression": 60, "majority class": 60}


@pytest.mark.parametrize("style", ["plain", "generative"])
def test_a_model_with_another_vocabulary_is_given_the_cells_over_its_own_genes(corpus, style: str):
    default = GeneVocabulary.load_default()
    used = sorted(set(corpus.cells.gene_ids.tolist()))
    vocabulary = GeneVocabulary(["<pad>", "<cls>", "<eoc>", *(default.tokens[gene] for gene in used[::-2])])
    translation = Translation.to(vocabulary)
    ratios = {} if style == "plain" else {"style": style, "ratios": (0.5,)}
    stream = open_cells(corpus, translation=translation, **ratios)
    tokenizer = CellTokenizer(vocabulary, TokenizerConfig())
    cells = translation.apply_sparse(corpus.cells)
    rows = {cell: row for row, cell in enumerate(cells.cell_ids.tolist())}
    seen = set()
    for batch in stream.read_steps(0, 7):
        for place, cell in enumerate(batch.cell_ids.tolist()):
            wanted = tokenizer(cells.take(np.array([rows[cell]])), epoch=int(batch.epochs[place]))
            found = dict(cells_of(batch))[cell]
            if style == "generative":
                hidden = int(batch.unknown_lengths[place])
                genes, values = batch.unknown_gene_ids[place, :hidden], batch.unknown_values[place, :hidden]
                found = (*found, *zip(genes.tolist(), values.tolist(), strict=True))
            assert sorted(found) == sorted(zip(wanted.gene_ids.tolist(), wanted.values.tolist(), strict=True))
            seen.add(cell)
    assert len(seen) > 100


def test_baselines_learn_over_the_genes_of_the_model(corpus):
    from cytoray.tasks.annotation import evaluation

    vocabulary = GeneVocabulary(list(reversed(GeneVocabulary.load_default().tokens)))
    baseline = evaluation.Baseline(corpus.store, "cells", "kind")
    sample = baseline.load()
    wanted = baseline.predict(sample.cells, training=sample)
    cells = Translation.to(vocabulary).apply_sparse(sample.cells)
    assert baseline.predict(cells, training=sample, vocabulary=vocabulary) == wanted
