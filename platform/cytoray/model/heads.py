"""What is read off the transformer: expression per gene, expression from the cell alone, and the cell's class."""

# B cells, L tokens, D width, K labels

from __future__ import annotations

from torch import Tensor, nn


class ExpressionDecoder(nn.Module):
    """Expression of each token from its hidden state (GEP)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1)
        )

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return predicted expression (B, L), in bins."""
        expression_BL1: Tensor = self.fc(hidden_BLD)
        return expression_BL1.squeeze(-1)


class CellConditionedDecoder(nn.Module):
    """Expression of a gene from the cell embedding and the gene's identity alone (GEPC or MVC, inner product)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gene2query = nn.Linear(width, width)
        self.W = nn.Linear(width, width, bias=False)

    def forward(self, cells_BD: Tensor, *, genes_BLD: Tensor) -> Tensor:
        """Return predicted expression (B, L); ``genes_BLD`` are gene embeddings before any value is added."""
        query_BLD = self.gene2query(genes_BLD).sigmoid()
        # (W query) . cell = query . (W^T cell): one product with W a cell instead of one a token.
        cells_BD1 = (cells_BD @ self.W.weight).unsqueeze(-1)
        expression_BL1: Tensor = query_BLD @ cells_BD1
        return expression_BL1.squeeze(-1)


class CellClassifier(nn.Module):
    """Logits of the cell's label from the cell embedding (CLS)."""

    def __init__(self, width: int, *, num_labels: int, num_layers: int) -> None:
        super().__init__()
        blocks = ((nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)) for _ in range(num_layers - 1))
        self._decoder = nn.Sequential(*(module for block in blocks for module in block))
        self.out_layer = nn.Linear(width, num_labels)

    def forward(self, cells_BD: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits_BK: Tensor = self.out_layer(self._decoder(cells_BD))
        return logits_BK
