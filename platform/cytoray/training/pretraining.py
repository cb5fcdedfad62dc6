"""Pretraining as one call: corpus in, trained run and bundle out."""

from __future__ import annotations

from cytoray import progress
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.config import ModelConfig
from cytoray.runs import BundleRecord
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import PretrainConfig
from cytoray.training.export import ExportSpec, export_bundles
from cytoray.training.objectives import build_pretraining_objective
from cytoray.training.trainer import TrainingResult, TrainingSpec, run_training
from cytoray.training.validation import held_in, open_held_out


def pretrain(
    config: PretrainConfig, *, advance: progress.Advance = progress.silent
) -> tuple[TrainingResult, BundleRecord]:
    """Pretrain on a committed corpus; ``advance`` receives the steps. Returns the run and its best weights' bundle."""
    stream = open_stream(config.store, config.corpus, held_in(stream_options(config), config))
    model, vocabulary = build_model(config), GeneVocabulary.load_default()
    spec = TrainingSpec(
        config,
        stream,
        model,
        vocabulary.pad_id,
        build_pretraining_objective(config.objective, pad_id=vocabulary.pad_id),
        held_out=open_held_out(stream_options(config), config),
    )
    result = run_training(spec, advance=advance)
    return result, export_bundles(config, result, ExportSpec(model, vocabulary))


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
