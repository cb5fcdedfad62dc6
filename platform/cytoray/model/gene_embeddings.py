"""Vectors that a model has for genes, independent of any cell, and the genes nearest to one."""

# G genes, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from cytoray.model.bundle import ModelBundle

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_AT_A_TIME = 8_192
SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class GeneEmbeddings:
    """Vectors of G genes."""

    names: tuple[str, ...]  # (G,)
    values: Float32  # (G, D)

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each gene."""
        return {name: row for row, name in enumerate(self.names)}

    def nearest(self, row: int, num: int) -> list[tuple[str, float]]:
        """Return the ``num`` genes of the largest cosine with that of ``row``, after removing the mean of all genes.

        The mean is what all genes share; without it even unrelated genes have a large cosine.
        """
        asked = self.values[row].astype(np.float64) - self._mean
        inner = self.values @ asked.astype(np.float32) - float(self._mean @ asked)
        cosines = inner / (self._lengths * max(float(np.linalg.norm(asked)), SMALLEST))
        order = np.argsort(-cosines, kind="stable")
        return [(self.names[other], float(cosines[other])) for other in order[: num + 1] if other != row][:num]

    @cached_property
    def _mean(self) -> Float64:
        mean: Float64 = self.values.mean(axis=0, dtype=np.float64)
        return mean

    @cached_property
    def _lengths(self) -> Float64:
        """Lengths (G,) of the vectors without their mean, computed without a second copy of the vectors."""
        starts = range(0, len(self.values), _AT_A_TIME)
        parts = [np.linalg.norm(self.values[start : start + _AT_A_TIME] - self._mean, axis=1) for start in starts]
        lengths: Float64 = np.maximum(np.concatenate([np.empty(0), *parts]), SMALLEST)
        return lengths


def static_gene_embeddings(bundle: ModelBundle, tokens: Sequence[int] | None = None) -> GeneEmbeddings:
    """Return the encoding of genes by the model's first layer, by default of all but the special tokens."""
    model, names = bundle.model.eval(), bundle.vocabulary.tokens
    if tokens is None:
        tokens = [token for token in range(bundle.vocabulary.size) if not names[token].startswith("<")]
    parts = [np.empty((0, model.config.width), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(tokens), _AT_A_TIME):
            ids = torch.tensor(tokens[start : start + _AT_A_TIME], device=model.device)
            parts.append(model.encoder(ids).float().cpu().numpy())
    return GeneEmbeddings(tuple(names[token] for token in tokens), np.concatenate(parts))
