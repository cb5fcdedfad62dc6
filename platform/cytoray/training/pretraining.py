"""Pretraining as one call: corpus in, trained run and bundle out."""

from __future__ import annotations

import functools
from dataclasses import replace

from cytoray import progress
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.bundle import Attachment, ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.runs import BundleRecord
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import PretrainConfig
from cytoray.training.export import ExportSpec, export_bundles
from cytoray.training.gene_statistics import FILE, measure_genes
from cytoray.training.objectives import Objective, build_pretraining_objective
from cytoray.training.trainer import TrainingResult, TrainingSpec, run_training
from cytoray.training.validation import held_in, open_held_out
from cytoray.training.whole_cell import WholeCellObjective, whole_cell_stream


def pretrain(
    config: PretrainConfig, *, advance: progress.Advance = progress.silent
) -> tuple[TrainingResult, BundleRecord]:
    """Pretrain on a committed corpus; ``advance`` receives the steps. Returns the run and its best weights' bundle."""
    model, vocabulary = build_model(config), GeneVocabulary.load_default()
    options, objective, side_files = _build_objective(config, pad_id=vocabulary.pad_id)
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    held_out = open_held_out(options, config, like=stream)
    spec = TrainingSpec(config, stream, model, vocabulary.pad_id, objective, held_out=held_out)
    result = run_training(spec, advance=advance)
    attach = functools.partial(_attach, side_files) if side_files else None
    return result, export_bundles(config, result, ExportSpec(model, vocabulary, complete=attach))


def _build_objective(config: PretrainConfig, *, pad_id: int) -> tuple[StreamOptions, Objective, dict[str, Attachment]]:
    """Build the objective of a run, with the stream that it needs and the files that its bundle carries."""
    options, whole = stream_options(config), config.objective.whole_cell
    if whole is None:
        return options, build_pretraining_objective(config.objective, pad_id=pad_id), {}
    statistics = measure_genes(config)
    objective = WholeCellObjective(config.objective, pad_id, statistics)
    return whole_cell_stream(options, whole, statistics), objective, {FILE: Attachment(statistics.to_bytes())}


def _attach(side_files: dict[str, Attachment], bundle: ModelBundle) -> ModelBundle:
    """Return the bundle with further files."""
    return replace(bundle, attachments={**bundle.attachments, **side_files})


def build_model(config: PretrainConfig) -> ModelConfig:
    """Build the model of a run; only the generative objective needs a flag for unknown genes."""
    model = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=0)
    return model.model_copy(update={"generative": config.objective.style == "generative"})


def stream_options(config: PretrainConfig) -> StreamOptions:
    """Return the stream options of pretraining, for training and held-out cells."""
    objective, train = config.objective, config.train
    return StreamOptions(
        config.tokenizer, train.seed, train.cells_per_step, style=objective.style, ratios=objective.unknown_ratios
    )
