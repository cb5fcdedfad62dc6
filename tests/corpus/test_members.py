from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cytoray import storage
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.members import MemberOptions, Members, ObsColumn, ObsWeights, find_members
from cytoray.corpus.streaming.obs import Coder, _widened
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import CorpusError
from cytoray.tokens.tokenizer import TokenizerConfig


def find(written, **options) -> Members:
    return find_members(written.store, written.manifest, MemberOptions(**options), seed=2)


def ids_of_epoch(written, epoch: int, **options) -> Counter[int]:
    """The cells of an epoch, with the number of times each comes."""
    stream = open_stream(
        written.store, "cells", StreamOptions(TokenizerConfig(max_length=9), seed=2, cells_per_step=1, **options)
    )
    size = stream.num_cells
    batches = stream.read_steps(epoch * size, (epoch + 1) * size)
    return Counter(cell for batch in batches for cell in batch.cell_ids.tolist())


@pytest.fixture(scope="module")
def kinds(corpus) -> dict[int, str | None]:
    return dict(zip(corpus.cells.cell_ids.tolist(), corpus.labels, strict=True))


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_selection_is_those_cells_and_no_others(corpus, kinds, epoch: int):
    chosen = ids_of_epoch(corpus, epoch, select="kind == 'type 1'")
    assert chosen == Counter({cell: 1 for cell, kind in kinds.items() if kind == "type 1"})


def test_labels_are_those_of_the_selected_cells(corpus):
    members = find(corpus, columns=(ObsColumn("kind"),), select="kind in ['type 0', 'type 2']")
    assert members.columns["kind"].values == ("type 0", "type 2")
    assert not members.keeps_all


def test_a_column_of_numbers_is_selected_by_the_texts_of_its_labels(corpus):
    members = find(corpus, columns=(ObsColumn("batch"),), select="batch in ['1']")
    assert members.columns["batch"].values == ("1",)
    assert members.counts.tolist() == find(corpus, select="batch == 1").counts.tolist()


def test_a_column_has_the_same_labels_whatever_type_it_is_stored_in():
    columns = {
        "int64": [0, 1, None, 1],
        "double": [0.0, 1.0, None, 1.0],
        "string": ["0", "1", None, "1"],
    }
    for kind, values in columns.items():
        coder = Coder()
        coder.add(pa.chunked_array([pa.array(values, pa.type_for_alias(kind))]))
        names, codes = coder.finish()
        assert (kind, names, codes.tolist()) == (kind, ("0", "1"), [0, 1, -1, 1])


def test_a_selection_of_all_cells_is_the_corpus(corpus):
    members = find(corpus, select="batch == 1")
    assert members.keeps_all
    assert members.counts.tolist() == find(corpus).counts.tolist() == [70, 41, 0, 59]


def test_balanced_weights_bring_every_value_equally_often_in_an_epoch_of_the_same_length(corpus, kinds):
    counts = Counter(kind for kind in kinds.values() if kind is not None)
    drawn = Counter()
    for epoch in range(6):
        cells = ids_of_epoch(corpus, epoch, weights=ObsWeights("kind"))
        drawn.update(dict.fromkeys(counts, 0))
        for cell, times in cells.items():
            weight = sum(counts.values()) / (len(counts) * counts[kinds[cell]])
            assert np.floor(weight * 0.93) <= times <= np.ceil(weight * 1.07)
            drawn[kinds[cell]] += times
        assert sum(cells.values()) == sum(counts.values())
    for times in drawn.values():
        assert times == pytest.approx(2 * sum(counts.values()), rel=0.05)


def test_given_weights_are_the_mean_number_of_times_a_cell_comes(corpus, kinds):
    weights = {"type 0": 2.5, "type 1": 0.0}  # type 2 comes once
    drawn: Counter[str | None] = Counter()
    for epoch in range(8):
        cells = ids_of_epoch(corpus, epoch, weights=ObsWeights("kind", weights))
        for cell, times in cells.items():
            drawn[kinds[cell]] += times
            if kinds[cell] == "type 0":
                assert times in (2, 3)
    counts = Counter(kinds.values())
    assert drawn["type 1"] == drawn[None] == 0
    assert drawn["type 0"] / counts["type 0"] / 8 == pytest.approx(2.5, rel=0.03)
    assert drawn["type 2"] / counts["type 2"] / 8 == pytest.approx(1, rel=0.06)


def test_which_cells_repeat_changes_from_epoch_to_epoch_but_not_from_reading_to_reading(corpus):
    weights = ObsWeights("kind", {"type 0": 1.5})
    first, second = (ids_of_epoch(corpus, epoch, weights=weights) for epoch in range(2))
    assert first != second
    assert first == ids_of_epoch(corpus, 0, weights=weights)


def test_repeated_cells_are_tokenised_anew(corpus):
    options = StreamOptions(
        TokenizerConfig(max_length=9), seed=2, cells_per_step=600, weights=ObsWeights("kind", {"type 0": 3.0})
    )
    stream = open_stream(corpus.store, "cells", options)
    tokens: dict[int, set[bytes]] = {}
    batch = stream.read_step(0, rank=0, world_size=1)
    times = Counter(zip(batch.cell_ids.tolist(), batch.epochs.tolist(), strict=True))
    for row, key in enumerate(zip(batch.cell_ids.tolist(), batch.epochs.tolist(), strict=True)):
        tokens.setdefault(key, set()).add(batch.gene_ids[row].tobytes())
    repeated = [key for key, number in times.items() if number == 3 and batch.lengths.max() == 9]
    assert repeated
    assert np.mean([len(tokens[key]) == 3 for key in repeated]) > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "kind == 'type 7'"}, "no cell is selected"),
        ({"weights": ObsWeights("kind", {"type 7": 1.0})}, "has no value 'type 7'"),
        ({"weights": ObsWeights("kind", {"type 1": -1.0})}, "negative weight"),
        ({"weights": ObsWeights("tissue")}, "no column 'tissue'"),
        ({"select": "tissue == 'blood'"}, "tissue"),
    ],
)
def test_what_cannot_be_selected_is_answered_with_what_is_there(corpus, options, message: str):
    with pytest.raises(CorpusError, match=message) as caught:
        find(corpus, **options)
    assert caught.value.remedy


def test_a_column_without_any_label_is_refused(corpus):
    with pytest.raises(CorpusError, match="no selected cell has a value in 'kind'"):
        find(corpus, columns=(ObsColumn("kind"),), select="kind.isna()")
    with pytest.raises(CorpusError, match="no selected cell has one of the values type 8, type 9 in 'kind'"):
        find(corpus, columns=(ObsColumn("kind", values=("type 8", "type 9")),))


@pytest.mark.parametrize(
    ("kind", "values", "texts"), [("double", [0.0, None], ["0", None]), ("bool", [True], ["True"])]
)
def test_a_column_that_later_became_text_keeps_its_labels(kind, values, texts):
    stored = pa.chunked_array([pa.array(values, pa.type_for_alias(kind))])
    assert _widened(stored, "string").to_pylist() == texts


def test_a_corpus_that_turned_numbers_into_text_is_read_by_their_labels(corpus):
    columns = {**corpus.manifest.obs_columns, "batch": "string"}
    manifest = corpus.manifest.model_copy(update={"obs_columns": columns})
    members = find_members(corpus.store, manifest, MemberOptions((ObsColumn("batch"),), select="batch == '1'"), seed=2)
    assert members.columns["batch"].values == ("1",)


def test_several_columns_are_coded_from_one_reading_of_obs(corpus, kinds, monkeypatch):
    read, really = [], storage.read_bytes

    def note(uri: str, **options: object) -> bytes:
        read.append(uri)
        return really(uri, **options)

    monkeypatch.setattr(storage, "read_bytes", note)
    columns = (ObsColumn("batch"), ObsColumn("kind", required=False))
    members = find(corpus, columns=columns, select="batch == 1")
    assert sorted(Path(uri).name for uri in read) == [f"obs-{number}" for number in range(4)]
    assert members.keeps_all, "a cell without a kind stays"
    assert [members.columns[name].values for name in ("batch", "kind")] == [("1",), ("type 0", "type 1", "type 2")]


def test_columns_come_as_codes_with_each_cell_and_survive_micro_batches(corpus, kinds):
    trained = StreamOptions(
        TokenizerConfig(max_length=9), 2, 40, columns=(ObsColumn("batch"), ObsColumn("kind", required=False))
    )
    stream = open_stream(corpus.store, "cells", trained)
    seen = set()
    for batch in stream.read_steps(0, 5):
        for part in batch.split(7):
            for cell, kind, code in zip(
                part.cell_ids.tolist(), part.columns["kind"].tolist(), part.columns["batch"].tolist(), strict=True
            ):
                assert (kinds[cell], code) == (None if kind < 0 else stream.values("kind")[kind], 0)
                seen.add(kind)
    assert seen == {-1, 0, 1, 2}
    assert batch.labels.size == 0


@pytest.mark.parametrize("required", [True, False])
def test_other_cells_get_the_codes_of_the_training_stream(corpus, kinds, required: bool):
    columns = (ObsColumn("kind", required=required),)
    options = StreamOptions(TokenizerConfig(max_length=9), 2, 1, label_key="batch", columns=columns)
    training = open_stream(corpus.store, "cells", replace(options, select="kind in ['type 0', 'type 2']"))
    held_out = open_stream(corpus.store, "cells", training.coded(options))
    assert training.labels == held_out.labels == ("1",)
    assert held_out.values("kind") == ("type 0", "type 2")
    known = {"type 0": 0, "type 2": 1}
    wanted = {cell: known.get(kind, -1) for cell, kind in kinds.items() if not required or kind in known}
    batches = list(held_out.read_steps(0, held_out.num_cells))
    assert {int(batch.cell_ids[0]): int(batch.columns["kind"][0]) for batch in batches} == wanted


def test_a_cell_must_have_a_value_in_each_required_column(corpus):
    both = (ObsColumn("kind", values=("type 1", "type 0")), ObsColumn("batch"))
    members = find(corpus, columns=both)
    assert members.columns["kind"].values == ("type 1", "type 0")
    assert members.counts.sum() == sum(kind in ("type 0", "type 1") for kind in corpus.labels)
