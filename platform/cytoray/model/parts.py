"""A minibatch as the model computes it: packed parts of known or unknown tokens, and results put back in its shape."""

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
    """The packed tokens of some cells, all known or all unknown, with what their embeddings and decoders need."""

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
    """Packed rows in the shape of the minibatch they came from."""
    return spread(rows, getattr(batch, "padding_mask", None))


def restore_expression(expression: Expression, batch: Minibatch | PackedMinibatch) -> Expression:
    """Packed predictions in the shape of the minibatch they came from."""
    value, chance = expression
    return Expression(restore(value, batch), None if chance is None else restore(chance, batch))


def spread(rows: Tensor, padding_mask_BL: Tensor | None) -> Tensor:
    """Rows at the places that are not padding, zero elsewhere; as they are where there is no padding mask."""
    if padding_mask_BL is None:
        return rows
    spread = rows.new_zeros(*padding_mask_BL.shape, *rows.shape[1:])
    return spread.index_put((~padding_mask_BL,), rows)
