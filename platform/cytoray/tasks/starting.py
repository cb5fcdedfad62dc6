"""Start a task's training from any model: its tokenizer is inherited, genes of the corpus become its genes."""

from __future__ import annotations

import logging

from cytoray.errors import ConfigError
from cytoray.registry.opening import OpenedModel
from cytoray.tasks.config import FromModelConfig
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)
# What a value means to the weights; max_length, seed and ties may differ.
TRAINED_KEYS = ("n_bins", "cls_value", "pad_value", "mask_value", "values", "depth_token")


def inherited_tokenizer(config: FromModelConfig, parent: TokenizerConfig) -> TokenizerConfig:
    """Return the tokenizer of the model that is fine-tuned, with the keys that ``config`` sets and the model allows.

    Raises ConfigError for bins and special values that are not those the weights were trained with.
    """
    own = {key: getattr(config.tokenizer, key) for key in config.tokenizer.model_fields_set}
    for key in TRAINED_KEYS:
        if key in own and own[key] != getattr(parent, key):
            raise ConfigError(
                f"tokenizer.{key} is {own[key]}, but {config.initial_uri!r} was trained with {getattr(parent, key)}.",
                remedy=f"Leave tokenizer.{key} out: it is inherited from the initial model.",
                key=f"tokenizer.{key}",
            )
    return parent.model_copy(update=own)


def over_genes_of(vocabulary: GeneVocabulary, cells: SparseCells) -> SparseCells:
    """Return cells of a corpus with their genes numbered as in ``vocabulary``; other genes are left out."""
    translation = Translation.to(vocabulary)
    return cells if translation is None else translation.apply_sparse(cells)


def translate_corpus(opened: OpenedModel) -> Translation | None:
    """Return the translation from the corpus's genes to the model's; None if both have the default vocabulary."""
    translation = Translation.to(opened.bundle.vocabulary)
    if translation is not None:
        logger.info(
            "%s has a vocabulary of its own, with %s of the %s genes that corpora are stored over; others are left out",
            opened.uri, f"{translation.num_genes:,}", f"{len(translation.table):,}",
        )  # fmt: skip
    return translation
