"""Fine-tune a model of genes on cells of several modalities, through the distributed loop."""

# C cells, V genes of the default vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cytoray.corpus.manifest import CorpusManifest, load_manifest
from cytoray.corpus.stream import open_stream, sample_cells
from cytoray.errors import CorpusError
from cytoray.evaluation.variable_genes import most_variable, standardised_variances
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import OpenedModel
from cytoray.tasks.learning import Learning, open_initial, run_learning
from cytoray.tasks.multiomic.coding_genes import coding_gene
from cytoray.tasks.multiomic.config import FinetuneMultiomicConfig
from cytoray.tasks.multiomic.paired import protein_word
from cytoray.tasks.starting import inherited_tokenizer, translate_corpus
from cytoray.tokens.features import extend_vocabulary, find_features
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.export import ExportSpec
from cytoray.training.initial import InitialModel
from cytoray.training.multiomic import MultiomicObjective, MultiomicTokens, multiomic_model, multiomic_stream
from cytoray.training.trainer import TrainingSpec
from cytoray.training.validation import held_in, open_held_out

TASK = "multiomic"


def run_finetuning(config: FinetuneMultiomicConfig) -> dict[str, Any]:
    """Fine-tune as a stage; returns the result of the run, its bundle and its card as JSON data."""
    return run_learning(config, prepare)


def prepare(config: FinetuneMultiomicConfig) -> Learning:
    """Prepare to fine-tune the model that ``config.initial`` names on the modalities of a corpus.

    The bundle lists panel, features and batches in its conditions. Raises CorpusError for a modality that the corpus
    does not have, ModelError for a model whose tokens need more than genes and values.
    """
    opened = open_initial(config)
    base, recipe = opened.bundle, config.multiomic
    features = features_of(load_manifest(config.store, config.corpus), config)
    context = {modality.name: modality.max_tokens for modality in recipe.modalities}
    vocabulary = extend_vocabulary(base.vocabulary, features)
    panel = choose_panel(config, opened, features)
    tokens = MultiomicTokens(vocabulary, panel, find_features(vocabulary, features, context))
    tokenizer = inherited_tokenizer(config, base.tokenizer_config)
    config = config.model_copy(update={"tokenizer": tokenizer.model_copy(update={"max_length": len(panel) + 1})})
    options = multiomic_stream(recipe, tokens, tokenizer=config.tokenizer, train=config.train)
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    batches = {} if recipe.batch_key is None else {recipe.batch_key: stream.values(recipe.batch_key)}
    model = multiomic_model(base.model.config, tokens, num_batch_labels=sum(map(len, batches.values())))
    training = TrainingSpec(
        config,
        stream,
        model,
        vocabulary.pad_id,
        MultiomicObjective.of(recipe, tokens),
        initial_weights(opened, model, features, seed=config.train.seed),
        open_held_out(options, config, like=stream),
    )
    genes = tuple(vocabulary.tokens[gene] for gene in panel)
    conditions = Conditions(task=TASK, columns=batches, features=features, context=context, panel=genes)
    export = ExportSpec(model, vocabulary, parent=opened.digest, conditions=conditions)
    return Learning(training, export)


def features_of(manifest: CorpusManifest, config: FinetuneMultiomicConfig) -> dict[str, tuple[str, ...]]:
    """Return the features of the modalities that ``config`` names; CorpusError that lists those there are."""
    found = {}
    for modality in config.multiomic.modalities:
        if modality.name not in manifest.modalities:
            raise CorpusError(
                f"Corpus {config.corpus!r} has no modality {modality.name!r}.",
                remedy=f"Modalities there: {', '.join(manifest.modalities) or 'none'}; sources.modalities of an ingest "
                "names them.",
                key="multiomic.modalities",
            )
        found[modality.name] = manifest.modalities[modality.name]
    return found


def choose_panel(
    config: FinetuneMultiomicConfig, opened: OpenedModel, features: Mapping[str, Sequence[str]]
) -> tuple[int, ...]:
    """Return the ids, in the model's vocabulary, of the most variable genes and of those that code for the features."""
    manifest = load_manifest(config.store, config.corpus)
    select = None if config.validation is None else f"not ({config.validation.select})"
    cells = sample_cells(
        config.store, manifest, select=select, max_cells=config.max_panel_cells, seed=config.train.seed
    )
    shape = (cells.num_cells, GeneVocabulary.load_default().size)
    values = sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), shape=shape)
    translation = translate_corpus(opened)
    table = np.arange(shape[1]) if translation is None else translation.table
    known = np.flatnonzero(table >= 0)
    expressed = known[np.asarray(values[:, known].sum(axis=0)).ravel() > 0]
    variable = expressed[most_variable(standardised_variances(values[:, expressed]), config.num_genes)]
    coding = [coding_id(opened, name) for names in features.values() for name in names]
    there = set(table[expressed].tolist())
    panel = {*table[variable].tolist(), *(gene for gene in coding if gene in there)}
    if len(panel) < 2:
        raise CorpusError(
            f"Corpus {config.corpus!r}: {len(panel)} genes that {opened.uri} knows vary over its cells.",
            remedy="Give cells of raw counts, with genes that the model knows.",
        )
    return tuple(sorted(panel))


def coding_id(opened: OpenedModel, feature: str) -> int | None:
    """Return the id of the gene that codes for a protein; None if it is unknown, or the feature is not a protein."""
    index = opened.bundle.vocabulary.index
    return index.get(coding_gene(feature) or protein_word(feature))


def initial_weights(
    opened: OpenedModel, model: ModelConfig, features: Mapping[str, Sequence[str]], *, seed: int
) -> InitialModel:
    """Return the weights to start from: the initial model's, and seeded ones for the parts that it does not have.

    A protein starts as the gene that codes for it plus one vector of its modality. Decoders, which now also see
    modality and batch, start as the old ones.
    """
    torch.manual_seed(seed)
    weights = ScGPT(model, pad_id=opened.bundle.vocabulary.pad_id).state_dict()
    for name, tensor in opened.bundle.model.state_dict().items():
        if name in weights:
            weights[name] = _grown(name, tensor, weights[name])
    table = weights["encoder.embedding.weight"]
    row, spread = opened.bundle.vocabulary.size, float(table[: opened.bundle.vocabulary.size].std())
    for names in features.values():
        shift = torch.randn(table.shape[1]) * spread
        for name in names:
            gene = coding_id(opened, name)
            own = torch.randn(table.shape[1]) * spread if gene is None else table[gene]
            table[row] = own + shift
            row += 1
    return InitialModel(opened.uri, opened.digest, weights)


def _grown(name: str, old: Tensor, new: Tensor) -> Tensor:
    """Return ``old``, in the corner of zeros if a larger tensor is needed; ``new`` if it does not fit at all.

    New queries of the cell-conditioned decoder keep their random start: equal ones would stay equal.
    """
    if old.shape == new.shape:
        return old
    if old.ndim != new.ndim or any(have > want for have, want in zip(old.shape, new.shape, strict=True)):
        return new
    grown = torch.zeros_like(new)
    if name.startswith(("mvc_decoder.gene2query", "encoder.")):
        grown[len(old) :] = new[len(old) :]
    grown[tuple(slice(0, have) for have in old.shape)] = old
    return grown
