"""Whole-cell decoding: targets, losses that fall, and runs that do not depend on breaks or workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_training import train
from small_corpus import write_corpus

from cytoray.corpus.manifest import commit_manifest, corpus_uri, load_manifest
from cytoray.corpus.stream import CorpusStream, load_cells, open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.whole_cells import QUERIES
from cytoray.errors import CorpusError
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import (
    GenerativeConfig,
    OptimizerConfig,
    PretrainConfig,
    ShapeConfig,
    TrainConfig,
    ValidationConfig,
    WholeCellConfig,
)
from cytoray.training.gene_statistics import gene_statistics, measure_genes
from cytoray.training.pretraining import stream_options
from cytoray.training.validation import held_in, open_held_out
from cytoray.training.whole_cell import WholeCellObjective, whole_cell_stream

PAD_ID = GeneVocabulary.load_default().pad_id
NUM_GENES, NUM_CELLS = 60, 96
WHOLE = WholeCellConfig(num_queries=24, min_share=0.02)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A tiny run over 96 cells of three planted types and two donors, one of which is held out."""
    store = tmp_path_factory.mktemp("whole") / "store"
    rng = np.random.default_rng(0)
    kinds, donors = rng.integers(0, 3, NUM_CELLS), np.arange(NUM_CELLS) % 4 == 0
    rates = np.exp(rng.normal(0, 1.5, (3, NUM_GENES)))[kinds] * rng.uniform(1, 4, (NUM_CELLS, 1))
    obs: dict[str, list[str | None]] = {
        "kind": [f"type {kind}" for kind in kinds],
        "donor": ["held out" if donor else "D1" for donor in donors],
    }
    write_corpus(str(store), rng.poisson(rates).astype(np.float32), np.arange(NUM_GENES) + 100, obs)
    return PretrainConfig(
        store=str(store),
        run="whole",
        corpus="cells",
        model=ShapeConfig(width=16, num_heads=2, feedforward_width=16, num_layers=1, dropout=0.0),
        tokenizer=TokenizerConfig(max_length=NUM_GENES + 1),
        objective=GenerativeConfig(unknown_ratios=(0.25, 0.5), whole_cell=WHOLE),
        train=TrainConfig(num_steps=40, cells_per_step=24),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        validation=ValidationConfig(select="donor == 'held out'"),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
    )


@pytest.fixture(scope="module")
def objective(config: PretrainConfig) -> WholeCellObjective:
    return WholeCellObjective(config.objective, PAD_ID, measure_genes(config))


@pytest.fixture(scope="module")
def stream(config: PretrainConfig, objective: WholeCellObjective) -> CorpusStream:
    options = whole_cell_stream(stream_options(config), WHOLE, objective.statistics)
    return open_stream(config.store, "cells", held_in(options, config))


@pytest.fixture
def build_model(config: PretrainConfig) -> Callable[[], ScGPT]:
    def build() -> ScGPT:
        torch.manual_seed(0)
        shape = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=0)
        return ScGPT(shape, pad_id=PAD_ID)

    return build


@pytest.fixture(scope="module")
def cells(stream: CorpusStream) -> dict[int, np.ndarray]:
    """The counts of each cell of the corpus by its id."""
    everything = load_cells(stream.store, stream.manifest)
    table = np.zeros((everything.num_cells, 100 + NUM_GENES))
    table[np.repeat(np.arange(len(table)), everything.num_genes_per_cell), everything.gene_ids] = everything.values
    return dict(zip(everything.cell_ids.tolist(), table, strict=True))


def test_statistics_are_those_of_the_training_cells(config: PretrainConfig, cells: dict[int, np.ndarray]) -> None:
    found = measure_genes(config)
    kept = np.stack([row for number, row in cells.items() if number % 4])
    logs = np.log1p(1e4 * kept / kept.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.mean[: logs.shape[1]], logs.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.deviation[: logs.shape[1]], logs.std(axis=0), rtol=1e-4, atol=1e-4)
    assert set(found.panel(0.0)) <= set(range(100, 100 + NUM_GENES))
    assert found.panel(0.5) == tuple(np.flatnonzero((kept > 0).mean(axis=0) >= 0.5).tolist())
    flat = gene_statistics(SparseCells(*_one_gene()), vocabulary_size=4)
    assert flat.panel(0.0) == (), "a gene that does not vary is not decoded"


def _one_gene() -> tuple[np.ndarray, ...]:
    return (
        np.array([2, 2], np.int32),
        np.array([5, 9], np.float32),
        np.array([0, 1, 2]),
        np.array([1, 2], np.uint64),
    )


def test_the_encoder_sees_thinned_cells_and_decodes_whole_ones(
    stream: CorpusStream, objective: WholeCellObjective, cells: dict[int, np.ndarray]
) -> None:
    batch, statistics = stream.read_step(0, rank=0, world_size=1), objective.statistics
    prepared = objective.prepare(batch)
    start, fewer = 0, 0
    for place, (cell, length) in enumerate(zip(batch.cell_ids.tolist(), prepared.lengths, strict=True)):
        counts, ids = cells[cell], prepared.gene_ids[start : start + length].numpy()
        logs = np.log1p(1e4 * counts / counts.sum())[ids]
        wanted = np.clip((logs - statistics.mean[ids]) / statistics.deviation[ids], -5, 5)
        np.testing.assert_allclose(prepared.targets[start : start + length], wanted, rtol=1e-4, atol=1e-5)
        assert length <= 24
        start += length
        seen = int(batch.lengths[place] - 1 + batch.unknown_lengths[place])
        assert seen <= (counts > 0).sum()
        fewer += seen < (counts > 0).sum()
    assert start == len(prepared.targets)
    assert fewer > 0.8 * batch.num_cells


def test_losses_fall_and_only_the_asked_ones_are_there(
    config: PretrainConfig, stream: CorpusStream, objective: WholeCellObjective, build_model: Callable[[], ScGPT]
) -> None:
    alone = replace(
        objective,
        config=config.objective.model_copy(update={"whole_cell": WHOLE.model_copy(update={"masked_weight": 0.0})}),
    )
    for chosen, names in ((objective, {"whole_cell", "masked"}), (alone, {"whole_cell"})):
        history = train(build_model(), chosen, stream, config, 40)
        assert all(losses.keys() == names for losses in history)
        for name in names:
            first, last = (np.mean([losses[name] for losses in part]) for part in (history[:4], history[-4:]))
            assert last < 0.9 * first, (name, first, last)
        batch = stream.read_step(0, rank=0, world_size=1)
        losses = chosen.losses(build_model(), chosen.prepare(batch), 0)
        assert {name: int(loss.count) for name, loss in losses.items()} == chosen.counts(batch)


def test_held_out_cells_are_seen_at_full_depth(
    config: PretrainConfig,
    stream: CorpusStream,
    objective: WholeCellObjective,
    build_model: Callable[[], ScGPT],
    cells: dict[int, np.ndarray],
) -> None:
    options = whole_cell_stream(stream_options(config), WHOLE, objective.statistics)
    held_out = open_held_out(options, config, like=stream)
    assert held_out is not None
    batch = held_out.read_step(0, rank=0, world_size=1)
    assert batch.unknown_lengths is not None
    seen = (batch.lengths - 1 + batch.unknown_lengths).tolist()
    assert seen == [(cells[cell] > 0).sum() for cell in batch.cell_ids.tolist()]
    figures = objective.judge(build_model(), objective.prepare(batch))
    assert next(iter(figures)) == "whole_cell", "the first one selects the best checkpoint"
    assert 0.5 < float(figures["whole_cell_of_mean"].mean) < 2, "targets are standardised"


def test_a_cell_has_the_same_draws_whatever_the_start_and_the_number_of_workers(stream: CorpusStream) -> None:
    whole = _by_cell([stream.read_step(step, rank=0, world_size=1) for step in range(6)])
    later = _by_cell([list(stream.read_steps(4, 6))[1]])
    halves = _by_cell([stream.read_step(step, rank=rank, world_size=2) for step in range(6) for rank in (0, 1)])
    assert halves.keys() == whole.keys()
    assert later.keys() < whole.keys()
    for found in (halves, later):
        for key, tokens in found.items():
            assert all(np.array_equal(a, b) for a, b in zip(tokens, whole[key], strict=True))
    first, second = ({cell: tokens for (cell, epoch), tokens in whole.items() if epoch == n} for n in (0, 1))
    both = first.keys() & second.keys()
    assert sum(np.array_equal(first[cell][0], second[cell][0]) for cell in both) < 0.1 * len(both)


def _by_cell(batches: list[StepBatch]) -> dict[tuple[int, int], list[np.ndarray]]:
    """Tokens and queries of each cell by (id, epoch)."""
    found = {}
    for batch in batches:
        assert batch.modalities is not None
        queries = batch.modalities[QUERIES]
        ends = np.concatenate([[0], np.cumsum(queries["lengths"])])
        for place, key in enumerate(zip(batch.cell_ids.tolist(), batch.epochs.tolist(), strict=True)):
            part = slice(ends[place], ends[place + 1])
            tokens = [batch.values[place, : batch.lengths[place]]]
            found[key] = tokens + [queries[name][part] for name in ("feature_ids", "values", "weights")]
    return found


def test_cells_without_counts_are_refused(
    config: PretrainConfig, objective: WholeCellObjective, tmp_path: Path
) -> None:
    options = whole_cell_stream(stream_options(config), WHOLE, objective.statistics)
    manifest = load_manifest(config.store, "cells").model_copy(update={"values": "expression"})
    commit_manifest(corpus_uri(str(tmp_path), "cells"), manifest)
    with pytest.raises(CorpusError, match="cannot be thinned"):
        open_stream(str(tmp_path), "cells", options)
