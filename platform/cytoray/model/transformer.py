"""scGPT: gene and value embeddings, a post-norm transformer and its heads, with the released parameter names."""

# B cells, L known tokens (<cls> first), G unknown tokens, T = L + G tokens, D width, K labels

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytoray.model.attention import SelfAttention
from cytoray.model.config import ModelConfig
from cytoray.model.heads import CellClassifier, CellConditionedDecoder, ExpressionDecoder
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch

MAX_VALUE = 512.0


@dataclass(frozen=True)
class GenerativeOutput:
    """What the generative forward predicts for the unknown genes, and the cells it saw them through."""

    expression_BG: Tensor  # from the unknown tokens' hidden states
    cell_conditioned_BG: Tensor  # from the cell embedding and the gene's identity alone
    cells_BD: Tensor  # cell embeddings, not normalised


class GeneEncoder(nn.Module):
    """Embedding of a gene's identity, layer-normalised."""

    def __init__(self, vocabulary_size: int, *, width: int, pad_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=pad_id)
        # The padding row too, as in the original; it never receives a gradient.
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, gene_ids_BL: Tensor) -> Tensor:
        """Return (B, L, D)."""
        genes_BLD: Tensor = self.enc_norm(self.embedding(gene_ids_BL))
        return genes_BLD


class ValueEncoder(nn.Module):
    """Embedding of a continuous value (a bin, or a marker such as -1 for masked and -2 for <cls>)."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values_BL: Tensor) -> Tensor:
        """Return (B, L, D); values are clamped to at most 512."""
        values_BL1 = values_BL.clamp(max=MAX_VALUE).unsqueeze(-1).to(self.linear1.weight.dtype)
        embedded_BLD: Tensor = self.dropout(self.norm(self.linear2(F.relu(self.linear1(values_BL1)))))
        return embedded_BLD


class EncoderLayer(nn.Module):
    """One post-norm transformer layer: attention, then a ReLU feed-forward, each added and normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = SelfAttention(width, num_heads=config.num_heads, unknown_out_proj=config.unknown_out_proj)
        self.linear1 = nn.Linear(width, config.feedforward_width)
        self.linear2 = nn.Linear(config.feedforward_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, *, known_BL: Tensor) -> Tensor:
        """Return (B, T, D); the first L tokens are known, ``known_BL`` is False at padding."""
        attended_BTD = self.self_attn(hidden_BTD, known_BL=known_BL)
        hidden_BTD = self.norm1(hidden_BTD + self.dropout(attended_BTD))
        forwarded_BTD = self.linear2(self.dropout(F.relu(self.linear1(hidden_BTD))))
        hidden_BTD = self.norm2(hidden_BTD + self.dropout(forwarded_BTD))
        return hidden_BTD


class Transformer(nn.Module):
    """The stack of layers; no norm after the last one, since each ends with its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Each layer is initialised on its own; the original starts all of them as copies of the first.
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(self, hidden_BTD: Tensor, *, padding_mask_BL: Tensor) -> Tensor:
        """Return (B, T, D); the first L tokens are known, ``padding_mask_BL`` is True at padding among them."""
        known_BL = ~padding_mask_BL
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, known_BL=known_BL)
        return hidden_BTD


class ScGPT(nn.Module):
    """The scGPT model; its ``state_dict`` keys are the released ones, plus ``cls_decoder`` where there are labels."""

    def __init__(self, config: ModelConfig, *, pad_id: int) -> None:
        super().__init__()
        assert 0 <= pad_id < config.vocabulary_size, "pad_id must be a row of the gene table"
        self.config = config
        self.pad_id = pad_id
        self.encoder = GeneEncoder(config.vocabulary_size, width=config.width, pad_id=pad_id)
        self.flag_encoder = nn.Embedding(2, config.width)  # row 1 marks unknown tokens; row 0 is never read
        self.value_encoder = ValueEncoder(config.width, dropout=config.dropout)
        self.transformer_encoder = Transformer(config)
        self.decoder = ExpressionDecoder(config.width)
        self.mvc_decoder = CellConditionedDecoder(config.width)
        self.cls_decoder = (
            CellClassifier(config.width, num_labels=config.num_labels, num_layers=config.num_classifier_layers)
            if config.num_labels
            else None
        )

    def encode(self, batch: Minibatch) -> Tensor:
        """Return hidden states (B, L, D); those of padding are finite and mean nothing."""
        tokens_BLD = self.encoder(batch.gene_ids) + self.value_encoder(batch.values)
        hidden_BLD: Tensor = self.transformer_encoder(tokens_BLD, padding_mask_BL=batch.padding_mask)
        return hidden_BLD

    def embed(self, batch: Minibatch) -> Tensor:
        """Return cell embeddings (B, D), not normalised."""
        return self._cells(self.encode(batch), padding_mask_BL=batch.padding_mask)

    def classify(self, cells_BD: Tensor) -> Tensor:
        """Return logits (B, K) of cell embeddings as ``embed`` gives them; the model must have labels."""
        assert self.cls_decoder is not None, "this model was built without labels"
        logits_BK: Tensor = self.cls_decoder(cells_BD)
        return logits_BK

    def predict_expression(self, batch: Minibatch) -> Tensor:
        """Return each token's predicted expression (B, L); hide a gene by giving it the mask value."""
        expression_BL: Tensor = self.decoder(self.encode(batch))
        return expression_BL

    def forward_generative(
        self, batch: GenerativeMinibatch, *, cell_embedding_BD: Tensor | None = None
    ) -> GenerativeOutput:
        """Predict the unknown genes of each cell from its known ones.

        With ``cell_embedding_BD`` (the second pass) it takes the place of the embedded ``<cls>`` token; detach it
        first to train as the original does.
        """
        known, num_known = batch.known, batch.known.gene_ids.shape[1]
        known_BLD = self.encoder(known.gene_ids) + self.value_encoder(known.values)
        if cell_embedding_BD is not None:
            known_BLD = torch.cat([cell_embedding_BD.unsqueeze(1), known_BLD[:, 1:]], dim=1)
        genes_BGD = self.encoder(batch.unknown_gene_ids)
        tokens_BTD = torch.cat([known_BLD, genes_BGD + self.flag_encoder.weight[1]], dim=1)
        hidden_BTD = self.transformer_encoder(tokens_BTD, padding_mask_BL=known.padding_mask)
        cells_BD = self._cells(hidden_BTD[:, :num_known], padding_mask_BL=known.padding_mask)
        return GenerativeOutput(
            expression_BG=self.decoder(hidden_BTD[:, num_known:]),
            cell_conditioned_BG=self.mvc_decoder(cells_BD, genes_BLD=genes_BGD),
            cells_BD=cells_BD,
        )

    def _cells(self, hidden_BLD: Tensor, *, padding_mask_BL: Tensor) -> Tensor:
        """Pool hidden states into cell embeddings (B, D)."""
        if self.config.cell_embedding == "cls":
            return hidden_BLD[:, 0]
        genes_BL1 = ~padding_mask_BL[:, 1:].unsqueeze(-1)
        summed_BD = torch.where(genes_BL1, hidden_BLD[:, 1:], 0.0).sum(dim=1)
        return summed_BD / genes_BL1.sum(dim=1).clamp(min=1)
