"""Fine-tune a model for batch integration by scGPT's recipe, through the distributed loop."""

# C cells, V genes of the default vocabulary

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.stream import open_stream, sample_labelled_cells
from cytoray.errors import CorpusError
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import OpenedModel
from cytoray.tasks.integration.config import FinetuneIntegrationConfig
from cytoray.tasks.integration.features import variable_in_batches
from cytoray.tasks.learning import Learning, open_initial, run_learning
from cytoray.tasks.starting import inherited_tokenizer, translate_corpus
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.export import ExportSpec
from cytoray.training.initial import InitialModel
from cytoray.training.integration import IntegrationObjective, integration_model, integration_stream
from cytoray.training.trainer import TrainingSpec
from cytoray.training.validation import held_in, open_held_out

TASK = "integration"


def run_finetuning(config: FinetuneIntegrationConfig) -> dict[str, Any]:
    """Fine-tune as a stage; returns the result of the run, its bundle and its card as JSON data."""
    return run_learning(config, prepare)


def prepare(config: FinetuneIntegrationConfig) -> Learning:
    """Prepare to fine-tune the model that ``config.initial`` names on the batches of a corpus.

    The bundle lists batches and panel in its conditions. Raises CorpusError for a corpus of one batch, ModelError for a
    model whose tokens need more than genes and values.
    """
    opened = open_initial(config)
    base = opened.bundle
    panel = choose_panel(config, opened)
    tokenizer = inherited_tokenizer(config, base.tokenizer_config)
    config = config.model_copy(update={"tokenizer": tokenizer.model_copy(update={"max_length": len(panel) + 1})})
    recipe = config.integration
    options = integration_stream(recipe, tokenizer=config.tokenizer, train=config.train, panel=panel)
    options = replace(options, translation=translate_corpus(opened))
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    names = stream.values(recipe.batch_key)
    if len(names) < 2:
        raise CorpusError(
            f"Corpus {config.corpus!r}: {recipe.batch_key!r} has only the batch {names[0]!r}.",
            remedy="Set integration.batch_key to a column with at least two batches.",
        )
    plain = base.model.config.model_copy(update={"num_labels": 0})
    model = integration_model(plain, num_batch_labels=len(names))
    pad_id = base.vocabulary.pad_id
    training = TrainingSpec(
        config,
        stream,
        model,
        pad_id,
        IntegrationObjective(recipe, pad_id, config.train.num_steps),
        initial_weights(opened, model, seed=config.train.seed),
        open_held_out(options, config, like=stream),
    )
    genes = tuple(base.vocabulary.tokens[gene] for gene in panel)
    conditions = Conditions(task=TASK, columns={recipe.batch_key: names}, panel=genes)
    export = ExportSpec(model, base.vocabulary, parent=opened.digest, conditions=conditions)
    return Learning(training, export)


def choose_panel(config: FinetuneIntegrationConfig, opened: OpenedModel) -> tuple[int, ...]:
    """Return the ids, in the model's vocabulary, of the genes that vary most within batches of the corpus."""
    manifest = load_manifest(config.store, config.corpus)
    select = None if config.validation is None else f"not ({config.validation.select})"
    sample = sample_labelled_cells(
        config.store,
        manifest,
        config.integration.batch_key,
        select=select,
        max_cells=config.max_panel_cells,
        seed=config.train.seed,
    )
    shape = (sample.cells.num_cells, GeneVocabulary.load_default().size)
    values = sparse.csr_matrix((sample.cells.values, sample.cells.gene_ids, sample.cells.indptr), shape=shape)
    translation = translate_corpus(opened)
    table = np.arange(shape[1]) if translation is None else translation.table
    known = np.flatnonzero(table >= 0)
    genes = variable_in_batches(values[:, known], sample.labels, num_genes=config.num_genes)
    return tuple(np.unique(table[known[genes]]).tolist())


def initial_weights(opened: OpenedModel, model: ModelConfig, *, seed: int) -> InitialModel:
    """Return the weights to start from: the initial model's, and seeded ones for the parts that it does not have.

    A layer that sees the batch beside its old inputs has zeros for it, so that it starts as the old layer.
    """
    torch.manual_seed(seed)
    weights = ScGPT(model, pad_id=opened.bundle.vocabulary.pad_id).state_dict()
    for name, tensor in opened.bundle.model.state_dict().items():
        if name in weights:
            weights[name] = _widened(tensor, weights[name])
    return InitialModel(opened.uri, opened.digest, weights)


def _widened(tensor: Tensor, wanted: Tensor) -> Tensor:
    """Return the tensor, or it with columns of zeros if more are wanted; ``wanted`` if it does not fit at all."""
    if tensor.shape == wanted.shape:
        return tensor
    if tensor.ndim != 2 or tensor.shape[0] != wanted.shape[0] or tensor.shape[1] > wanted.shape[1]:
        return wanted
    wide = torch.zeros_like(wanted)
    wide[:, : tensor.shape[1]] = tensor
    return wide
