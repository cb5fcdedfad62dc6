"""Count the floating-point operations that a model needs for given cells, to compare speed with a machine's peak.

Matrix products only, a multiply-add being two operations; real tokens only; attention as its rule needs it: a known
token's row of scores over the known tokens of its cell, an unknown one's over these and itself.
"""

# B cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytoray.model.config import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass, by part."""

    layers: int  # linear layers of the transformer
    attention: int  # scores and their products with values
    embedding: int  # of values
    heads: int

    @property
    def total(self) -> int:
        """All of them; a training step takes three times as many."""
        return self.layers + self.attention + self.embedding + self.heads


def embedding_flops(config: ModelConfig, lengths: Sequence[int]) -> Flops:
    """Count the operations to embed B cells with these numbers of tokens; of the last layer only ``<cls>``."""
    tokens, cells = sum(lengths), len(lengths)
    asked = cells if config.cell_embedding == "cls" else tokens
    scores = sum(length * length for length in lengths)
    last = tokens if config.cell_embedding == "cls" else scores
    return Flops(
        layers=(config.num_layers - 1) * _layer(config, tokens, tokens) + _layer(config, tokens, asked),
        attention=4 * config.width * ((config.num_layers - 1) * scores + last),
        embedding=_values(config, tokens),
        heads=0,
    )


def generative_flops(config: ModelConfig, known: Sequence[int], unknown: Sequence[int]) -> Flops:
    """Count the operations of a generative forward of B cells with these known and unknown tokens, decoders included.

    The last layer is needed for ``<cls>`` and the unknown tokens only. A second pass needs the same, less the
    cell-conditioned decoder.
    """
    num_known, num_unknown, cells, width = sum(known), sum(unknown), len(known), config.width
    scores = sum(k * k + u * (k + 1) for k, u in zip(known, unknown, strict=True))
    last = sum(k + u * (k + 1) for k, u in zip(known, unknown, strict=True))
    tokens = num_known + num_unknown
    layers = (config.num_layers - 1) * _layer(config, tokens, tokens) + _layer(config, tokens, cells + num_unknown)
    if not config.unknown_out_proj:
        layers -= 2 * width * width * config.num_layers * num_unknown
    return Flops(
        layers=layers,
        attention=4 * width * ((config.num_layers - 1) * scores + last),
        embedding=_values(config, num_known),
        heads=_decoders(config, num_unknown, cells),
    )


def _layer(config: ModelConfig, tokens: int, asked: int) -> int:
    """Keys and values of all tokens; queries, projection and feed-forward of those asked for."""
    width, hidden = config.width, config.feedforward_width
    return 2 * (2 * width * width * tokens + (2 * width * width + 2 * width * hidden) * asked)


def _values(config: ModelConfig, tokens: int) -> int:
    """The small network on continuous values; tables need no product."""
    return 2 * tokens * (config.width + config.width**2) if config.value_style == "continuous" else 0


def _decoders(config: ModelConfig, tokens: int, cells: int) -> int:
    """The expression decoder, and the queries of the cell-conditioned one with one product of W per cell."""
    width = config.width
    expression = 2 * tokens * (2 * width * width + width)
    if config.cell_conditioned_decoder == "none":
        return expression
    return expression + 2 * tokens * width * width + 2 * cells * width * width
