"""Heads of the transformer: expression per gene, expression from the cell alone, the cell's class and batch."""

# B cells, T packed tokens, D width, E width of conditions included (D or 2 D), K labels

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cytoray.model.config import DecoderActivation

QueryStyle = Literal["inner product", "inner product, detach", "concat query", "sum query"]
_HIDDEN_WIDTH = 64  # of the concat and sum styles


class Expression(NamedTuple):
    """Predicted expression of each token and, if the model predicts it, the probability of not being zero."""

    value: Tensor  # (T,)
    nonzero_probability: Tensor | None = None  # (T,)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample expression (T,), zero by chance (the original's ``do_sample``); or the value without a probability."""
        if self.nonzero_probability is None:
            return self.value
        return self.value * torch.bernoulli(self.nonzero_probability, generator=generator)


class ExpressionDecoder(nn.Module):
    """Expression of each token from its hidden state and its conditions, if any (GEP)."""

    def __init__(self, width: int, *, input_width: int | None = None, zero_probability: bool = False) -> None:
        super().__init__()
        self.fc = _tower(width, input_width or width)
        self.zero_logit = _tower(width, input_width or width) if zero_probability else None

    def forward(self, hidden_TE: Tensor) -> Expression:
        """Return predicted expression, in bins."""
        value_T = self.fc(hidden_TE).squeeze(-1)
        if self.zero_logit is None:
            return Expression(value_T)
        return Expression(value_T, self.zero_logit(hidden_TE).squeeze(-1).sigmoid())


class AffineExpressionDecoder(nn.Module):
    """Expression as factor times the token's own value plus offset, for perturbed cells seen from control cells."""

    def __init__(
        self,
        width: int,
        *,
        adaptive_bias: bool = False,
        activation: DecoderActivation | None = None,
        zero_probability: bool = False,
    ) -> None:
        super().__init__()
        self.adaptive_bias = adaptive_bias
        self.activation: nn.Module = nn.Identity() if activation is None else getattr(nn, activation)()
        self.coeff_decoder = ExpressionDecoder(width, zero_probability=zero_probability)
        self.bias_decoder = ExpressionDecoder(width, zero_probability=zero_probability)

    def forward(self, hidden_TD: Tensor, *, values_T: Tensor, cell_means_T: Tensor) -> Expression:
        """Return predicted expression; ``cell_means_T`` is the mean value above zero of each token's cell."""
        factor, offset = self.coeff_decoder(hidden_TD), self.bias_decoder(hidden_TD)
        factor_T, shift_T = self.activation(factor.value), self.activation(offset.value)
        if self.adaptive_bias:
            shift_T = shift_T * cell_means_T
        return Expression(factor_T * values_T + shift_T, factor.nonzero_probability)


class CellConditionedDecoder(nn.Module):
    """Expression of a gene from the cell embedding and the gene's identity alone (GEPC or MVC).

    ``query_width`` is D, or 2 D with the gene's modality; ``cell_width`` likewise for the cell.
    """

    def __init__(
        self,
        width: int,
        *,
        query_width: int | None = None,
        cell_width: int | None = None,
        style: QueryStyle = "inner product",
        zero_probability: bool = False,
    ) -> None:
        super().__init__()
        query_width, cell_width = query_width or width, cell_width or width
        self.style: QueryStyle = style
        self.W_zero_logit: nn.Linear | None = None
        if style in ("inner product", "inner product, detach"):
            self.gene2query = nn.Linear(query_width, query_width)
            self.W = nn.Linear(query_width, cell_width, bias=False)
            self.W_zero_logit = nn.Linear(query_width, cell_width) if zero_probability else None
            return
        assert not zero_probability, "only the inner product styles predict a probability of zero"
        gene_width = _HIDDEN_WIDTH if style == "concat query" else cell_width
        self.gene2query = nn.Linear(query_width, gene_width)
        joined_width = cell_width + gene_width if style == "concat query" else cell_width
        self.fc1 = nn.Linear(joined_width, _HIDDEN_WIDTH)
        self.hidden_activation = nn.PReLU()
        self.fc2 = nn.Linear(_HIDDEN_WIDTH, 1)

    def forward(self, cells_BE: Tensor, *, genes_TE: Tensor, cell_of_T: Tensor) -> Expression:
        """Return predicted expression; ``genes_TE`` are gene embeddings before any value is added."""
        if self.style == "inner product, detach":
            genes_TE = genes_TE.detach()
        query_TE = self.gene2query(genes_TE).sigmoid()
        if self.style == "concat query":
            return self._by_network(torch.cat([cells_BE[cell_of_T], query_TE], dim=-1))
        if self.style == "sum query":
            return self._by_network(cells_BE[cell_of_T] + query_TE)
        # (W query) . cell = query . (W^T cell): one product with W per cell instead of one per token.
        value_T = _dot(query_TE, (cells_BE @ self.W.weight)[cell_of_T])
        if self.W_zero_logit is None:
            return Expression(value_T)
        logit_T = _dot(query_TE, (cells_BE @ self.W_zero_logit.weight)[cell_of_T])
        logit_T = logit_T + (cells_BE @ self.W_zero_logit.bias)[cell_of_T]
        return Expression(value_T, logit_T.sigmoid())

    def _by_network(self, joined_TE: Tensor) -> Expression:
        return Expression(self.fc2(self.hidden_activation(self.fc1(joined_TE))).squeeze(-1))


class CellClassifier(nn.Module):
    """Logits of the cell's label from the cell embedding (CLS)."""

    def __init__(self, width: int, *, num_labels: int, num_layers: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        blocks = ((nn.Linear(width, width), activation(), nn.LayerNorm(width)) for _ in range(num_layers - 1))
        self._decoder = nn.Sequential(*(module for block in blocks for module in block))
        self.out_layer = nn.Linear(width, num_labels)

    def forward(self, cells_BD: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits_BK: Tensor = self.out_layer(self._decoder(cells_BD))
        return logits_BK


class BatchDiscriminator(CellClassifier):
    """Logits of the cell's batch label through a reversed gradient, so that cells lose it (DAB)."""

    def __init__(self, width: int, *, num_labels: int, num_layers: int) -> None:
        super().__init__(width, num_labels=num_labels, num_layers=num_layers, activation=nn.LeakyReLU)

    def forward(self, cells_BD: Tensor) -> Tensor:
        """Return logits (B, K); the gradient that reaches ``cells_BD`` is negated."""
        reversed_BD: Tensor = _ReverseGradient.apply(cells_BD)  # type: ignore[no-untyped-call]
        return super().forward(reversed_BD)


class _ReverseGradient(torch.autograd.Function):
    """Identity forwards, minus identity backwards."""

    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        """Return the input."""
        return inputs.view_as(inputs)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the reversed gradient."""
        return -gradient


def _tower(width: int, input_width: int) -> nn.Sequential:
    """Three linear layers down to one number."""
    return nn.Sequential(
        nn.Linear(input_width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1)
    )


def _dot(left_TE: Tensor, right_TE: Tensor) -> Tensor:
    """Row by row, (T,)."""
    return (left_TE * right_TE).sum(-1)
