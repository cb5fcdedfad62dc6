"""Packed parts of a minibatch, known or unknown tokens, and the way back to the minibatch's shape."""

# B cells, L tokens of a padded cell, T packed tokens

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cytoray.model.heads import Expression
from cytoray.model.layout import Segments

if TYPE_CHECKING:
    from cytoray.tokens.collator import GenerativeMinibatch, Minibatch, PackedGenerativeMinibatch, PackedMinibatch


@dataclass(frozen=True)
class Part:
    """The packed tokens of some cells, all known or all unknown, with the inputs of embeddings and decoders."""

    gene_ids_T: Tensor
    segments: Segments
    values_T: Tensor | None = None  # None: unknown
    batch_labels_B: Tensor | None = None
    modalities_T: Tensor | None = None
    perturbations_T: Tensor | None = None


def known_part(batch: Minibatch | PackedMinibatch) -> Part:
    """The tokens of a minibatch, without padding."""
    packed = batch.packed()
    return Part(
        packed.gene_ids,
        Segments(packed.lengths, packed.gene_ids.device),
        packed.values,
        packed.batch_labels,
        packed.modalities,
        packed.perturbations,
    )


def unknown_part(batch: GenerativeMinibatch | PackedGenerativeMinibatch) -> Part:
    """The unknown genes of a minibatch, without padding."""
    packed = batch.packed()
    segments = Segments(packed.unknown_lengths, packed.unknown_gene_ids.device)
    return Part(packed.unknown_gene_ids, segments, batch_labels_B=packed.known.batch_labels)


def restore(rows: Tensor, batch: Minibatch | PackedMinibatch) -> Tensor:
    """Put packed rows into the shape of their minibatch."""
    return spread(rows, getattr(batch, "padding_mask", None))


def restore_expression(expression: Expression, batch: Minibatch | PackedMinibatch) -> Expression:
    """Put packed predictions into the shape of their minibatch."""
    value, chance = expression
    return Expression(restore(value, batch), None if chance is None else restore(chance, batch))


def spread(rows: Tensor, padding_mask_BL: Tensor | None) -> Tensor:
    """Put rows at the positions that are not padding, zero elsewhere; without a padding mask return them unchanged."""
    if padding_mask_BL is None:
        return rows
    spread = rows.new_zeros(*padding_mask_BL.shape, *rows.shape[1:])
    return spread.index_put((~padding_mask_BL,), rows)
