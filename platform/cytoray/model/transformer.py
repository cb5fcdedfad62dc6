"""scGPT: gene and value embeddings, a post-norm transformer and its heads, with the released parameter names.

Everything is computed on packed tokens: padding that a minibatch has is dropped first, and results come back in the
minibatch's own shape.
"""

# B cells, L tokens of a padded cell, T packed tokens (known ones first), U unknown ones of them, D width, K labels

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytoray.model.attention import SelfAttention
from cytoray.model.encoders import CategoryEncoder, DomainBatchNorm, GeneEncoder, ValueEncoder, batch_norm
from cytoray.model.heads import (
    AffineExpressionDecoder,
    BatchDiscriminator,
    CellClassifier,
    CellConditionedDecoder,
    Expression,
    ExpressionDecoder,
)
from cytoray.model.layout import Layout, Segments
from cytoray.model.parts import Part, known_part, restore, restore_expression, spread, unknown_part

if TYPE_CHECKING:
    from cytoray.model.config import ModelConfig, Pooling
    from cytoray.tokens.collator import (
        GenerativeMinibatch,
        Minibatch,
        PackedGenerativeMinibatch,
        PackedMinibatch,
    )


@dataclass(frozen=True)
class GenerativeOutput:
    """Predictions of the generative forward for the unknown genes, and the cell embeddings.

    The shape of the predictions is that of the minibatch's unknown genes: (B, G), zero at padding, or packed (U,).
    """

    expression: Tensor  # from the unknown tokens' hidden states
    cell_conditioned: Tensor | None  # from the cell embedding and the gene's identity alone
    cells_BD: Tensor  # cell embeddings, not normalised


@dataclass(frozen=True)
class ModelOutput:
    """Results of a forward pass; per token in the shape of the minibatch, None for missing heads."""

    cells_BD: Tensor  # cell embeddings, not normalised
    expression: Expression  # (B, L), zero at padding, or (T,)
    cell_conditioned: Expression | None  # likewise
    labels_BK: Tensor | None  # logits of the cell's label
    batches_BK: Tensor | None  # logits of its batch label, through a reversed gradient


class EncoderLayer(nn.Module):
    """One post-norm transformer layer: attention, then a ReLU feed-forward, each added and normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = SelfAttention(
            width,
            num_heads=config.num_heads,
            unknown_out_proj=config.unknown_out_proj,
            dropout=config.attention_dropout,
            backend=config.attention_backend,
        )
        self.linear1 = nn.Linear(width, config.feedforward_width)
        self.linear2 = nn.Linear(config.feedforward_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_TD: Tensor, *, layout: Layout, cls_only: bool = False) -> Tensor:
        """Return (T, D), or with ``cls_only`` the rows ``layout.cls_rows`` alone."""
        attended_QD: Tensor = self.self_attn(hidden_TD, layout=layout, cls_only=cls_only)
        if cls_only:
            hidden_TD = hidden_TD.index_select(0, layout.cls_rows)
        hidden_QD = self.norm1(hidden_TD + self.dropout(attended_QD))
        forwarded_QD = self.linear2(self.dropout(F.relu(self.linear1(hidden_QD), inplace=True)))
        out_QD: Tensor = self.norm2(hidden_QD + self.dropout(forwarded_QD))
        return out_QD


class Transformer(nn.Module):
    """The stack of layers; each ends with its own norm, so none follows the last."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Each layer is initialised on its own; the original starts all of them as copies of the first.
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(self, hidden_TD: Tensor, *, layout: Layout, cls_only: bool = False) -> Tensor:
        """Return (T, D); with ``cls_only`` the last layer does no work for rows other than ``layout.cls_rows``."""
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            hidden_TD = layer(hidden_TD, layout=layout, cls_only=cls_only and number == last)
        return hidden_TD


class ScGPT(nn.Module):
    """The scGPT model; its ``state_dict`` has the released names, and only the tensors of the heads it has."""

    def __init__(self, config: ModelConfig, *, pad_id: int) -> None:
        super().__init__()
        assert 0 <= pad_id < config.vocabulary_size, "pad_id must be a row of the gene table"
        self.config = config
        self.pad_id = pad_id
        width, batches = config.width, config.num_batch_labels
        self.encoder = GeneEncoder(config.vocabulary_size, width=width, pad_id=pad_id)
        # Row 1 marks unknown tokens; row 0 is never read.
        self.flag_encoder = nn.Embedding(2, width) if config.generative else None
        self.value_encoder = _build_value_encoder(config)
        self.pert_encoder = nn.Embedding(flags, width, 0) if (flags := config.num_perturbation_flags) else None
        self.batch_encoder = CategoryEncoder(batches, width=width) if config.decoders_see_batch else None
        self.mod_encoder = CategoryEncoder(config.num_modalities, width=width) if config.num_modalities else None
        self.bn = batch_norm(width) if config.token_norm == "batch" else None
        self.dsbn = DomainBatchNorm(width, num_domains=batches) if config.token_norm == "domain" else None
        self.transformer_encoder = Transformer(config)
        self.decoder = _build_decoder(config)
        self.mvc_decoder = _build_cell_conditioned_decoder(config)
        self.cls_decoder = (
            CellClassifier(width, num_labels=config.num_labels, num_layers=config.num_classifier_layers)
            if config.num_labels
            else None
        )
        self.grad_reverse_discriminator = (
            BatchDiscriminator(width, num_labels=batches, num_layers=config.num_discriminator_layers)
            if config.batch_discriminator
            else None
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.encoder.embedding.weight.device

    def encode(self, batch: Minibatch | PackedMinibatch) -> Tensor:
        """Return hidden states (B, L, D), zero at padding, or (T, D) of a packed minibatch."""
        part = known_part(batch)
        return restore(self._encode(part, batch), batch)

    def embed(self, batch: Minibatch | PackedMinibatch, *, pooling: Pooling | None = None) -> Tensor:
        """Return cell embeddings (B, D), not normalised, by the model's own ``cell_embedding`` or another pooling."""
        part = known_part(batch)
        if (pooling or self.config.cell_embedding) != "cls":
            return self._pool(self._encode(part, batch), part, batch, pooling=pooling)
        tokens_TD = self._embed_tokens(part, batch)
        cells_BD: Tensor = self.transformer_encoder(tokens_TD, layout=Layout(part.segments), cls_only=True)
        return cells_BD

    def forward(self, batch: Minibatch | PackedMinibatch) -> ModelOutput:
        """Return the results of all heads for a minibatch; hide a gene by giving it the mask value."""
        part = known_part(batch)
        genes_TD = self.encoder(part.gene_ids_T)
        hidden_TD = self._encode(part, batch, genes_TD)
        cells_BD = self._pool(hidden_TD, part, batch)
        conditioned = self._decode_cells(cells_BD, part, genes_TD)
        return ModelOutput(
            cells_BD,
            restore_expression(self._decode(hidden_TD, part), batch),
            None if conditioned is None else restore_expression(conditioned, batch),
            None if self.cls_decoder is None else self.cls_decoder(cells_BD),
            None if self.grad_reverse_discriminator is None else self.grad_reverse_discriminator(cells_BD),
        )

    def classify(self, cells_BD: Tensor) -> Tensor:
        """Return logits (B, K) of cell embeddings as ``embed`` gives them; the model must have labels."""
        assert self.cls_decoder is not None, "this model was built without labels"
        logits_BK: Tensor = self.cls_decoder(cells_BD)
        return logits_BK

    def predict_expression(self, batch: Minibatch | PackedMinibatch) -> Tensor:
        """Return each token's predicted expression (B, L) or (T,); hide a gene by giving it the mask value."""
        part = known_part(batch)
        return restore(self._decode(self._encode(part, batch), part).value, batch)

    def decode_cells(self, cells_BD: Tensor, gene_ids_U: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return the expression (U,) of genes from cell embeddings alone; ``lengths`` (B,) are genes per cell."""
        part = Part(gene_ids_U, Segments(lengths, gene_ids_U.device))
        conditioned = self._decode_cells(cells_BD, part, self.encoder(gene_ids_U))
        assert conditioned is not None, "this model has no decoder of genes from the cell embedding"
        return conditioned.value

    def generate(
        self, cells_BD: Tensor, batch: Minibatch | PackedMinibatch, *, with_values: bool = False
    ) -> Expression:
        """Predict expression (B, L) or (T,) of the genes of ``batch`` for cells with these embeddings.

        The embedding replaces each cell's first token; the batch's values are used ``with_values`` only.
        """
        part = known_part(batch)
        tokens_TD = self._embed_tokens(part if with_values else replace(part, values_T=None), batch, flagged=False)
        tokens_TD = tokens_TD.index_copy(0, part.segments.starts, cells_BD.to(tokens_TD.dtype))
        hidden_TD = self.transformer_encoder(tokens_TD, layout=Layout(part.segments))
        return restore_expression(self._decode(hidden_TD, part), batch)

    def forward_generative(
        self, batch: GenerativeMinibatch | PackedGenerativeMinibatch, *, cell_embedding_BD: Tensor | None = None
    ) -> GenerativeOutput:
        """Predict the unknown genes of each cell from its known ones.

        ``cell_embedding_BD`` (the second pass) replaces the embedded ``<cls>`` token; detach it first to train as
        the original does.
        """
        known, unknown = known_part(batch.known), unknown_part(batch)
        layout = Layout(known.segments, unknown.segments)
        known_TD = self._embed_tokens(known, batch.known)
        if cell_embedding_BD is not None:
            known_TD = known_TD.index_copy(0, known.segments.starts, cell_embedding_BD.to(known_TD.dtype))
        genes_UD = self.encoder(unknown.gene_ids_T)
        tokens_TD = torch.cat([known_TD, self._normed(self._sum(unknown, genes_UD), unknown)])
        by_cls = self.config.cell_embedding == "cls"
        hidden_QD = self.transformer_encoder(tokens_TD, layout=layout, cls_only=by_cls)
        known_QD, unknown_UD = hidden_QD.split([len(hidden_QD) - len(genes_UD), len(genes_UD)])
        cells_BD = known_QD if by_cls else self._pool(known_QD, known, batch.known)
        expression = self._decode(unknown_UD, unknown).value
        conditioned = self._decode_cells(cells_BD, unknown, genes_UD)
        mask = getattr(batch, "unknown_padding_mask", None)
        return GenerativeOutput(
            spread(expression, mask), None if conditioned is None else spread(conditioned.value, mask), cells_BD
        )

    def attention(self, batch: Minibatch | PackedMinibatch, *, layer: int = -1) -> list[Tensor]:
        """Return attention weights (H, L, L) of each cell in one layer: row = query, column = key."""
        part = known_part(batch)
        layout, tokens_TD = Layout(part.segments), self._embed_tokens(part, batch)
        layers = list(self.transformer_encoder.layers)
        number = range(len(layers))[layer]
        for before in layers[:number]:
            tokens_TD = before(tokens_TD, layout=layout)
        attention = layers[number].self_attn
        assert isinstance(attention, SelfAttention)
        return [attention.weights(rows_LD) for rows_LD in tokens_TD.split(part.segments.lengths)]

    def _encode(self, part: Part, batch: Minibatch | PackedMinibatch, genes_TD: Tensor | None = None) -> Tensor:
        """Hidden states (T, D) of known tokens."""
        tokens_TD = self._embed_tokens(part, batch, genes_TD=genes_TD)
        hidden_TD: Tensor = self.transformer_encoder(tokens_TD, layout=Layout(part.segments))
        return hidden_TD

    def _embed_tokens(
        self,
        part: Part,
        batch: Minibatch | PackedMinibatch,
        *,
        genes_TD: Tensor | None = None,
        flagged: bool = True,
    ) -> Tensor:
        """Input of the transformer, (T, D)."""
        mask = getattr(batch, "padding_mask", None)
        if self.config.norm_counts_padding and self.training and mask is not None:
            everything = known_part(batch.unmasked())
            tokens = self._sum(everything, self.encoder(everything.gene_ids_T), flagged=flagged)
            return self._normed(tokens, everything)[~mask.flatten()]
        genes_TD = self.encoder(part.gene_ids_T) if genes_TD is None else genes_TD
        return self._normed(self._sum(part, genes_TD, flagged=flagged), part)

    def _sum(self, part: Part, genes_TD: Tensor, *, flagged: bool = True) -> Tensor:
        """Sum the embeddings of gene, value or flag, and perturbation of each token."""
        if part.values_T is None:
            assert self.flag_encoder is not None or not flagged, "this model has no flag for unknown genes"
            tokens_TD = (
                genes_TD + self.flag_encoder.weight[1] if flagged and self.flag_encoder is not None else genes_TD
            )
        elif self.value_encoder is None:
            tokens_TD = genes_TD * part.values_T.unsqueeze(-1).to(genes_TD.dtype)
        else:
            tokens_TD = genes_TD + self.value_encoder(part.values_T)
        if self.pert_encoder is not None:
            assert part.perturbations_T is not None, "this model needs perturbation flags"
            tokens_TD = tokens_TD + self.pert_encoder(part.perturbations_T)
        return tokens_TD

    def _normed(self, tokens_TD: Tensor, part: Part) -> Tensor:
        """Apply the batch norm, if the model has one."""
        if self.bn is not None:
            normed_TD: Tensor = self.bn(tokens_TD)
            return normed_TD
        if self.dsbn is None:
            return tokens_TD
        assert part.batch_labels_B is not None, "this model needs batch labels"
        domains_TD: Tensor = self.dsbn(tokens_TD, domains_T=part.batch_labels_B[part.segments.cells])
        return domains_TD

    def _decode(self, hidden_TD: Tensor, part: Part) -> Expression:
        """Expression of each token from its hidden state."""
        if isinstance(self.decoder, AffineExpressionDecoder):
            assert part.values_T is not None, "the affine decoder needs values"
            values_T, segments = part.values_T, part.segments
            counts_B = segments.pad((values_T != 0).to(values_T.dtype)).sum(dim=1)
            means_B = segments.pad(values_T).sum(dim=1) / counts_B.clamp(min=1)
            affine: Expression = self.decoder(hidden_TD, values_T=values_T, cell_means_T=means_B[segments.cells])
            return affine
        conditions_TD = self._token_conditions(part)
        inputs_TE = hidden_TD if conditions_TD is None else torch.cat([hidden_TD, conditions_TD], dim=-1)
        decoded: Expression = self.decoder(inputs_TE)
        return decoded

    def _decode_cells(self, cells_BD: Tensor, part: Part, genes_TD: Tensor) -> Expression | None:
        """Expression of each gene from its cell's embedding."""
        if self.mvc_decoder is None:
            return None
        conditions_TD = self._token_conditions(part)
        if conditions_TD is not None:
            cells_BD = torch.cat([cells_BD, conditions_TD[part.segments.starts]], dim=-1)
            if self.mod_encoder is not None:
                genes_TD = torch.cat([genes_TD, conditions_TD], dim=-1)
        conditioned: Expression = self.mvc_decoder(cells_BD, genes_TE=genes_TD, cell_of_T=part.segments.cells)
        return conditioned

    def _token_conditions(self, part: Part) -> Tensor | None:
        """Inputs of the decoders for each token beside its hidden state, (T, D)."""
        conditions_TD = None
        if self.batch_encoder is not None:
            assert part.batch_labels_B is not None, "this model needs batch labels"
            conditions_TD = self.batch_encoder(part.batch_labels_B)[part.segments.cells]
        if self.mod_encoder is not None:
            assert part.modalities_T is not None, "this model needs the modality of each token"
            modalities_TD = self.mod_encoder(part.modalities_T)
            conditions_TD = modalities_TD if conditions_TD is None else conditions_TD + modalities_TD
        return conditions_TD

    def _pool(
        self, hidden_TD: Tensor, part: Part, batch: Minibatch | PackedMinibatch, *, pooling: Pooling | None = None
    ) -> Tensor:
        """Pool hidden states into cell embeddings (B, D)."""
        segments, config = part.segments, self.config
        pooling = pooling or config.cell_embedding
        if pooling == "cls":
            return hidden_TD.index_select(0, segments.starts)
        counts_B = (segments.counts - 1).clamp(min=1)
        is_gene_T = torch.ones(segments.total, dtype=torch.bool, device=hidden_TD.device)
        if config.pooling_counts_padding:
            counts_B = torch.full_like(counts_B, batch.gene_ids.shape[-1])
        else:
            is_gene_T[segments.starts] = False
        weights_T = is_gene_T.to(hidden_TD.dtype)
        if pooling == "mean":
            return segments.pad(hidden_TD * weights_T[:, None]).sum(dim=1) / counts_B[:, None]
        assert part.values_T is not None, "cells are pooled over known genes"
        return F.normalize(segments.pad(hidden_TD * (weights_T * part.values_T)[:, None]).sum(dim=1), dim=-1)


def _build_value_encoder(config: ModelConfig) -> nn.Module | None:
    """The encoder of values; None if a value is a factor."""
    if config.value_style == "continuous":
        return ValueEncoder(config.width, dropout=config.dropout)
    return CategoryEncoder(config.num_value_bins, width=config.width) if config.value_style == "category" else None


def _build_decoder(config: ModelConfig) -> ExpressionDecoder | AffineExpressionDecoder:
    if config.expression_decoder == "affine":
        return AffineExpressionDecoder(
            config.width,
            adaptive_bias=config.adaptive_bias,
            activation=config.decoder_activation,
            zero_probability=config.zero_probability,
        )
    return ExpressionDecoder(config.width, input_width=config.condition_width, zero_probability=config.zero_probability)


def _build_cell_conditioned_decoder(config: ModelConfig) -> CellConditionedDecoder | None:
    if config.cell_conditioned_decoder == "none":
        return None
    return CellConditionedDecoder(
        config.width,
        query_width=config.condition_width if config.num_modalities else config.width,
        cell_width=config.condition_width,
        style=config.cell_conditioned_decoder,
        zero_probability=config.zero_probability,
    )
