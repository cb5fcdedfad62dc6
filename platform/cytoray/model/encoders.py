"""Embeddings of a token's gene, value and conditions, and the norm on their sum."""

# T packed tokens (or any other leading shape), D width

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_VALUE = 512.0
_EPS, _MOMENTUM = 6.1e-5, 0.1  # of the batch norms, as in the original


class GeneEncoder(nn.Module):
    """Embedding of a gene's identity, layer-normalised."""

    def __init__(self, vocabulary_size: int, *, width: int, pad_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=pad_id)
        # The padding row too, as in the original; it never receives a gradient.
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, gene_ids_T: Tensor) -> Tensor:
        """Return (T, D)."""
        genes_TD: Tensor = self.enc_norm(self.embedding(gene_ids_T))
        return genes_TD


class ValueEncoder(nn.Module):
    """Embedding of a continuous value (a bin, or a marker such as -1 for masked and -2 for <cls>)."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values_T: Tensor) -> Tensor:
        """Return (T, D); values are clamped to at most 512."""
        values_T1 = values_T.clamp(max=MAX_VALUE).unsqueeze(-1).to(self.linear1.weight.dtype)
        embedded_TD: Tensor = self.dropout(self.norm(self.linear2(F.relu(self.linear1(values_T1)))))
        return embedded_TD


class CategoryEncoder(nn.Module):
    """Embedding of one of a few categories, layer-normalised: a bin, a batch label or a modality."""

    def __init__(self, num_categories: int, *, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_categories, width)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, categories_T: Tensor) -> Tensor:
        """Return (T, D)."""
        embedded_TD: Tensor = self.enc_norm(self.embedding(categories_T.long()))
        return embedded_TD


class DomainBatchNorm(nn.Module):
    """One batch norm without weights for each batch label (DSBN); tokens are normalised by that of their cell."""

    def __init__(self, width: int, *, num_domains: int) -> None:
        super().__init__()
        norms = (nn.BatchNorm1d(width, eps=_EPS, momentum=_MOMENTUM, affine=False) for _ in range(num_domains))
        self.bns = nn.ModuleList(norms)

    def forward(self, tokens_TD: Tensor, *, domains_T: Tensor) -> Tensor:
        """Return (T, D)."""
        present = domains_T.unique().tolist()
        if len(present) == 1:
            normed_TD: Tensor = self.bns[present[0]](tokens_TD)
            return normed_TD
        normed_TD = torch.empty_like(tokens_TD)
        for domain in present:
            rows = (domains_T == domain).nonzero().squeeze(1)
            normed_TD = normed_TD.index_copy(0, rows, self.bns[domain](tokens_TD[rows]))
        return normed_TD


def batch_norm(width: int) -> nn.BatchNorm1d:
    """The batch norm that all cells share."""
    return nn.BatchNorm1d(width, eps=_EPS, momentum=_MOMENTUM)
