"""Proteins and peaks as tokens of a stream: after the genes of their cell, ranked and sampled among themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from reference_tokens import choose, draw
from small_corpus import write_corpus

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.features import extend_vocabulary, find_features, modality_codes
from cytoray.tokens.keys import combine
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_CELLS, NUM_GENES, UNMEASURED = 60, 25, 7
PROTEINS, PEAKS = ("CD3", "CD19", "CD4"), tuple(f"chr1:{n}-{n + 1}" for n in range(70_000))
MAX_PEAKS = 12
BASE = GeneVocabulary.load_default()
VOCABULARY = extend_vocabulary(BASE, {"protein": PROTEINS, "peaks": PEAKS})
FEATURES = find_features(VOCABULARY, {"peaks": PEAKS, "protein": PROTEINS}, {"protein": 10, "peaks": MAX_PEAKS})
CONFIG = TokenizerConfig(max_length=NUM_GENES + 1, seed=5)


@dataclass(frozen=True)
class Written:
    store: str
    counts: dict[str, np.ndarray]  # genes, protein, peaks


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Cells of which the first ones have neither proteins nor peaks."""
    rng = np.random.default_rng(0)
    genes = rng.poisson(1.2, (NUM_CELLS, NUM_GENES))
    proteins = rng.poisson(3.0, (NUM_CELLS, 3))
    proteins[:, 0] += 1
    peaks = np.zeros((NUM_CELLS, len(PEAKS)), np.int64)
    for row in range(NUM_CELLS):
        peaks[row, rng.choice(len(PEAKS), rng.integers(5, 40), replace=False)] = rng.integers(1, 4)
    proteins[:UNMEASURED] = peaks[:UNMEASURED] = 0
    store = str(tmp_path_factory.mktemp("store"))
    names = {"protein": (proteins, PROTEINS), "peaks": (peaks, PEAKS)}
    write_corpus(store, genes, np.arange(100, 100 + NUM_GENES), {"donor": ["a"] * NUM_CELLS}, names)
    return Written(store, {"genes": genes, "protein": proteins, "peaks": peaks})


def options(**changes: Any) -> StreamOptions:
    plain = StreamOptions(CONFIG, 3, 20, features=FEATURES, translation=Translation.to(VOCABULARY))
    return replace(plain, **changes)


def masked(**changes: Any) -> StreamOptions:
    return options(style="masked", ratios=(0.4,), panel=tuple(range(100, 100 + NUM_GENES)), **changes)


def cells_of(batches: list[StepBatch]) -> Iterator[tuple[int, int, dict[str, list[float]]]]:
    """Id and epoch of each cell, and its tokens without padding."""
    for batch in batches:
        for row, length in enumerate(batch.lengths.tolist()):
            tokens = {"ids": batch.gene_ids[row], "values": batch.values[row]}
            if batch.masked is not None:
                tokens["masked"] = batch.masked[row]
            assert (batch.gene_ids[row, length:] == VOCABULARY.pad_id).all()
            assert (batch.values[row, length:] == CONFIG.pad_value).all()
            cell, epoch = int(batch.cell_ids[row]), int(batch.epochs[row])
            yield cell, epoch, {name: array[:length].tolist() for name, array in tokens.items()}


def read(stream: CorpusStream, *, num_steps: int = 6, world_size: int = 1) -> list[StepBatch]:
    return [
        batch
        for rank in range(world_size)
        for batch in stream.read_steps(0, num_steps, rank=rank, world_size=world_size)
    ]


def test_features_have_ids_beyond_the_genes():
    assert VOCABULARY.tokens[: BASE.size] == BASE.tokens
    assert [tokens.modality for tokens in FEATURES] == ["protein", "peaks"]
    assert [tokens.first_id for tokens in FEATURES] == [BASE.size, BASE.size + 3]
    assert VOCABULARY.tokens[BASE.size + 1] == "protein:CD19"
    ids = np.array([BASE.cls_id, 100, BASE.size - 1, BASE.size, BASE.size + 2, BASE.size + 3, VOCABULARY.size - 1])
    codes = modality_codes(ids, [tokens.first_id for tokens in FEATURES], cls_id=BASE.cls_id)
    assert codes.tolist() == [0, 1, 1, 2, 2, 3, 3]


def expected(written: Written, cell: int, epoch: int) -> tuple[list[int], list[float]]:
    """Ids and values of a cell's tokens by the definition: expressed genes, all proteins, a sample of the peaks."""
    key, ids, values = (CONFIG.seed, epoch, cell), [VOCABULARY.cls_id], [CONFIG.cls_value]
    first = {"genes": 100, **{tokens.modality: tokens.first_id for tokens in FEATURES}}
    for name in ("genes", "protein", "peaks"):
        counts = written.counts[name][cell].astype(float)
        there = np.flatnonzero(counts)
        if not len(there):
            continue
        limit = MAX_PEAKS if name == "peaks" else 10**6
        drawn = draw(there + first[name], counts[there], key, n_bins=51, max_genes=limit)
        bins = dict(zip((there + first[name]).tolist(), drawn.bins.tolist(), strict=True))
        tokens = [int(there[place]) + first[name] for place in drawn.kept]
        if name == "protein":
            tokens = list(range(first[name], first[name] + 3))
        ids += tokens
        values += [bins.get(token, 0) for token in tokens]
    return ids, values


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_modality_is_ranked_and_sampled_in_its_cell(written: Written, world_size: int):
    batches = read(open_stream(written.store, "cells", options()), world_size=world_size)
    assert batches[0].gene_ids.dtype == np.int32, "more tokens than uint16 holds"
    lengths, seen = set(), []
    for cell, epoch, tokens in cells_of(batches):
        assert (tokens["ids"], tokens["values"]) == expected(written, cell, epoch)
        seen.append((cell, epoch))
        lengths.add(len(tokens["ids"]))
    assert sorted(seen) == [(cell, epoch) for cell in range(NUM_CELLS) for epoch in (0, 1)]
    assert len(lengths) > 5


def test_samples_of_peaks_are_drawn_anew_in_each_epoch(written: Written):
    found: dict[int, list[list[float]]] = {}
    for cell, _, tokens in cells_of(read(open_stream(written.store, "cells", options()))):
        found.setdefault(cell, []).append([token for token in tokens["ids"] if token >= FEATURES[1].first_id])
    assert all(not any(pair) for cell, pair in found.items() if cell < UNMEASURED)
    assert all(any(pair) for cell, pair in found.items() if cell >= UNMEASURED)
    assert sum(first != second for first, second in found.values()) > 20


def test_the_same_share_of_each_modality_is_masked(written: Written):
    for cell, epoch, tokens in cells_of(read(open_stream(written.store, "cells", masked()))):
        ids, values, shown = (np.array(tokens[name]) for name in ("ids", "values", "masked"))
        hidden = shown != values
        assert (shown[hidden] == CONFIG.mask_value).all()
        assert hidden[ids < BASE.size].sum() == int(NUM_GENES * 0.4)
        proteins = (ids >= BASE.size) & (ids < BASE.size + 3)
        assert proteins.sum() == (0 if cell < UNMEASURED else 3)
        words = combine(CONFIG.seed, epoch, cell, ids[proteins]).tolist()
        assert np.flatnonzero(hidden[proteins]).tolist() == choose([word >> 44 for word in words], 1)[: proteins.sum()]


def test_one_modality_of_some_cells_is_hidden_whole(written: Written):
    stream = open_stream(written.store, "cells", masked(hide_whole=0.6))
    counted = np.zeros(4, int)
    whole: dict[tuple[int, int], list[bool]] = {}
    for cell, epoch, tokens in cells_of(read(stream, num_steps=30)):
        ids, hidden = np.array(tokens["ids"]), np.array(tokens["masked"]) == CONFIG.mask_value
        codes = modality_codes(ids, [part.first_id for part in FEATURES], cls_id=BASE.cls_id)
        gone = [bool((codes == code).any() and hidden[codes == code].all()) for code in (1, 2, 3)]
        assert sum(gone) <= 1
        assert not hidden[0]
        if cell < UNMEASURED:
            assert not any(gone), "the genes are all that such a cell has"
        else:
            counted += [*gone, 1]
        whole[cell, epoch] = gone
    shares = counted[:3] / counted[3]
    assert (np.abs(shares - 0.2) < 0.06).all(), shares
    for cell, epoch, tokens in cells_of(read(stream, num_steps=30, world_size=2)):
        hidden = np.array(tokens["masked"]) == CONFIG.mask_value
        genes = np.array(tokens["ids"])[1:] < BASE.size
        assert hidden[1:][genes].all() == whole[cell, epoch][0], "whatever the number of ranks"


def test_micro_batches_keep_within_their_budget(written: Written):
    budget = 200
    stream = open_stream(written.store, "cells", options(token_budget=budget))
    batches = read(stream)
    assert max(batch.gene_ids.size for batch in batches) <= budget
    assert sum(batch.num_cells for batch in batches) == 6 * 20
    for cell, epoch, tokens in cells_of(batches):
        assert tokens["ids"] == expected(written, cell, epoch)[0]
