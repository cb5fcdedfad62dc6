"""Options of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cytoray.corpus.streaming.batches import Layout
from cytoray.corpus.streaming.members import MemberOptions, ObsWeights
from cytoray.tokens.cells import Int64
from cytoray.tokens.keys import Float64, Purpose, combine
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.translation import Translation

Style = Literal["plain", "masked", "generative"]


@dataclass(frozen=True)
class StreamOptions:
    """The cells of a stream, their steps, and their form.

    ``seed`` keys the order and what is drawn once a step; ties, samples and splits of a cell are keyed by
    ``tokenizer.seed``. Of ``ratios``, the shares of genes to be masked or held back, one is drawn each step, the same
    for all ranks.
    """

    tokenizer: TokenizerConfig
    seed: int
    cells_per_step: int  # over all ranks
    label_key: str | None = None  # column of obs with the labels; cells without one are left out
    select: str | None = None  # expression over obs, such as "tissue == 'blood'"
    weights: ObsWeights | None = None
    style: Style = "plain"
    ratios: tuple[float, ...] = ()
    layout: Layout = "padded"
    pad_to_multiple: int = 1  # widths are rounded up to it
    token_budget: int | None = None  # maximum tokens per micro-batch, padding included
    modalities: tuple[str, ...] = ()  # further matrices to read
    translation: Translation | None = None  # to the model's genes, if its vocabulary is not the default one

    def __post_init__(self) -> None:
        assert bool(self.ratios) == (self.style != "plain"), "masked and generative cells need ratios, plain ones none"
        assert self.token_budget is None or self.token_budget >= self.tokenizer.max_length, "no room for a long cell"

    @property
    def members(self) -> MemberOptions:
        """The options that select cells."""
        return MemberOptions(self.label_key, self.select, self.weights)

    def ratios_at(self, steps: Int64) -> Float64:
        """Return the share of genes hidden at each of the steps (T,)."""
        keys = combine(self.seed, int(Purpose.MASKING), steps)
        return np.asarray(np.array(self.ratios)[keys % np.uint64(len(self.ratios))])
