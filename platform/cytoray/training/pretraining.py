"""Pretraining as one call: corpus in, trained run and bundle out."""

from __future__ import annotations

from cytoray import progress
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import PretrainConfig
from cytoray.training.export import BundleRecord, export_bundle
from cytoray.training.objectives import GenerativeObjective
from cytoray.training.trainer import TrainingResult, TrainingSpec, run_training


def pretrain(
    config: PretrainConfig, *, advance: progress.Advance = progress.silent
) -> tuple[TrainingResult, BundleRecord]:
    """Pretrain on a committed corpus with the generative objective; ``advance`` is told of steps."""
    ratios = config.objective.unknown_ratios
    options = StreamOptions(
        config.tokenizer, config.train.seed, config.train.cells_per_step, style="generative", ratios=ratios
    )
    stream = open_stream(config.store, config.corpus, options)
    vocabulary = GeneVocabulary.load_default()
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0)
    objective = GenerativeObjective(config.objective, vocabulary.pad_id)
    result = run_training(TrainingSpec(config, stream, model, vocabulary.pad_id, objective), advance=advance)
    return result, export_bundle(config, result, model=model, labels=())
