"""Evaluate how well a pretrained model predicts hidden genes of held-out cells, compared with simple baselines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import ModelError
from cytoray.evaluation.expression import BinnedCells, HiddenBinScore, judge_baselines, score_bins
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.runs import BundleRecord
from cytoray.training.config import PretrainConfig
from cytoray.training.objectives import GenerativeObjective
from cytoray.training.pretraining import stream_options
from cytoray.training.validation import held_in, open_held_out

TRAINING_CELLS = 20_000  # maximum that baselines learn from
CELLS_AT_A_TIME = 16


def judge_pretraining(config: PretrainConfig, record: BundleRecord) -> dict[str, dict[str, float]]:
    """Return errors, in bins, of the bundle and of three baselines on the cells that ``config.validation`` holds out.

    All see the same known genes and predict the same hidden ones. Runs of the masked style return no rows: their model
    does not predict the genes that are hidden here.
    """
    if config.objective.style != "generative":
        return {}
    plain = _with_whole_bins(config)
    batch, binned = _held_out(config), _held_out(plain)
    known, unknown = _known(binned), _unknown(binned)
    bundle = open_model(record.uri).bundle
    objective = GenerativeObjective(config.objective, bundle.vocabulary.pad_id)
    predicted = _predict(bundle.model, objective, batch)
    baselines = judge_baselines(_training_cells(plain), known=known, unknown=unknown)
    return {
        "cytoray": _row(score_bins(predicted, unknown.bins)),
        "global mean bin": _row(baselines.global_mean),
        "per-gene mean bin": _row(baselines.gene_mean),
        "kNN in PCA space": _row(baselines.neighbours),
    }


def _with_whole_bins(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with the same genes of each cell, but hard bins and no token for its depth."""
    tokenizer = config.tokenizer
    fewer = {"values": "hard", "depth_token": None, "max_length": tokenizer.max_length + 1 - tokenizer.num_special}
    return config.model_copy(update={"tokenizer": tokenizer.model_copy(update=fewer)})


def _held_out(config: PretrainConfig) -> StepBatch:
    """Return all cells that are held out, whatever the tokenizer with the same genes hidden."""
    stream = open_held_out(stream_options(config), config)
    if stream is None:
        raise ModelError("This run holds no cells out.", remedy="Give the configuration a section `validation`.")
    return stream.read_step(0, rank=0, world_size=1)


@torch.no_grad()
def _predict(model: ScGPT, objective: GenerativeObjective, batch: StepBatch) -> np.ndarray:
    """Predict the bins (U,) of hidden genes."""
    model.eval()
    parts = batch.split(-(-batch.num_cells // CELLS_AT_A_TIME))
    predicted = [model.forward_generative(objective.prepare(part)).expression for part in parts]
    found: np.ndarray = torch.cat(predicted).float().numpy()
    return found


def _training_cells(config: PretrainConfig) -> BinnedCells:
    """Whole cells of the training stream, the first of its order."""
    plain = replace(held_in(stream_options(config), config), style="plain", ratios=())
    stream = open_stream(config.store, config.corpus, plain)
    steps = max(1, min(stream.num_cells, TRAINING_CELLS) // plain.cells_per_step)
    return _join([_known(batch) for batch in stream.read_steps(0, steps)])


def _known(batch: StepBatch) -> BinnedCells:
    """The known genes of each cell, without <cls>."""
    return _rows(batch.gene_ids[:, 1:], batch.values[:, 1:], batch.lengths - 1)


def _unknown(batch: StepBatch) -> BinnedCells:
    """The hidden genes of each cell."""
    assert batch.unknown_gene_ids is not None, "the stream must be generative"
    assert batch.unknown_values is not None, "the stream must be generative"
    assert batch.unknown_lengths is not None, "the stream must be generative"
    return _rows(batch.unknown_gene_ids, batch.unknown_values, batch.unknown_lengths)


def _rows(gene_ids: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> BinnedCells:
    """Padded rows, which are filled from the left, as ragged ones."""
    real = np.arange(gene_ids.shape[1]) < lengths[:, None]
    return BinnedCells(gene_ids[real], values[real], np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _join(parts: list[BinnedCells]) -> BinnedCells:
    """All cells, one part after the other."""
    sizes = np.concatenate([np.diff(part.indptr) for part in parts])
    return BinnedCells(
        np.concatenate([part.gene_ids for part in parts]),
        np.concatenate([part.bins for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]),
    )


def _row(score: HiddenBinScore) -> dict[str, float]:
    return {
        "mse": score.mean_squared_error,
        "mae": score.mean_absolute_error,
        "mre": score.mean_relative_error,
        "num_genes": float(score.num_genes),
    }
