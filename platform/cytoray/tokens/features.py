"""Proteins and peaks as tokens: features of further modalities have ids beyond the genes, and bins of their own.

A vocabulary is extended by one token per feature, MODALITY:NAME, modality by modality. Values are ranked within the
modality of their cell, as in scGPT's multi-omic recipe. Modality 0 is that of special tokens, 1 that of the genes.
"""

# C cells, F features of a modality, T tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Int64
from cytoray.tokens.inference import DRAWN, InferenceConfig
from cytoray.tokens.packed import PackedCells, with_genes
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

SPECIAL, GENES = 0, 1  # modalities that every model has; further ones count on
RNA = "rna"  # name of the modality of genes, which no further one may have


@dataclass(frozen=True)
class FeatureTokens:
    """The features of a further modality as tokens of a vocabulary that was extended by them."""

    modality: str
    first_id: int  # of its features, which have consecutive ids
    num_features: int
    max_tokens: int  # per cell

    @property
    def includes_zeros(self) -> bool:
        """Whether a cell has all features, zeros included, rather than a sample of those above zero."""
        return self.num_features <= self.max_tokens

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """Token id of each feature, (F,)."""
        return np.arange(self.first_id, self.first_id + self.num_features, dtype=np.int32)

    def place(self, cells: PackedCells) -> PackedCells:
        """Return cells over the features 0 to F - 1 as cells over token ids."""
        return with_genes(cells, self.ids)

    def tokenizer(
        self, vocabulary: GeneVocabulary, config: TokenizerConfig, inference: InferenceConfig = DRAWN
    ) -> CellTokenizer:
        """Return the tokenizer of this modality alone; its ``<cls>`` is not part of a cell's tokens."""
        limit = {"max_length": self.max_tokens + 1}
        own = config.model_copy(update={**limit, "depth_token": None})
        panel = tuple(self.ids.tolist()) if self.includes_zeros else None
        return CellTokenizer(vocabulary, own, inference.model_copy(update=limit), panel)

    def num_tokens(self, num_values: Int64) -> Int64:
        """Return the number of tokens of cells with so many values above zero; none if nothing was measured."""
        if self.includes_zeros:
            return np.where(num_values > 0, self.num_features, 0)
        return np.minimum(num_values, self.max_tokens)


def feature_token(modality: str, feature: str) -> str:
    """Return the token of a feature."""
    return f"{modality}:{feature}"


def extend_vocabulary(vocabulary: GeneVocabulary, features: Mapping[str, Sequence[str]]) -> GeneVocabulary:
    """Return a vocabulary that also has a token for each feature; the ids of the others stay."""
    added = [feature_token(modality, name) for modality, names in features.items() for name in names]
    return GeneVocabulary((*vocabulary.tokens, *added))


def find_features(
    vocabulary: GeneVocabulary, features: Mapping[str, Sequence[str]], max_tokens: Mapping[str, int]
) -> tuple[FeatureTokens, ...]:
    """Return the modalities of an extended vocabulary in the order of their ids."""
    found = [
        FeatureTokens(modality, vocabulary.index[feature_token(modality, names[0])], len(names), max_tokens[modality])
        for modality, names in features.items()
    ]
    return tuple(sorted(found, key=lambda tokens: tokens.first_id))


def modality_codes(
    token_ids: npt.NDArray[np.integer], first_ids: Sequence[int], *, cls_id: int
) -> npt.NDArray[np.int64]:
    """Return the modality of each token (T,): 0 of ``<cls>``, 1 of genes, 2 and on of features.

    ``first_ids`` are the first ids of the further modalities, ascending.
    """
    codes = GENES + np.searchsorted(np.asarray(first_ids, np.int64), token_ids, side="right")
    codes[token_ids == cls_id] = SPECIAL
    return codes.astype(np.int64)
