"""Options of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cytoray.corpus.streaming.batches import Layout
from cytoray.corpus.streaming.members import MemberOptions, ObsColumn, ObsWeights
from cytoray.corpus.streaming.pairs import PairOptions
from cytoray.corpus.streaming.whole_cells import WholeCellOptions
from cytoray.tokens.cells import Int64
from cytoray.tokens.features import FeatureTokens
from cytoray.tokens.keys import Float64, Purpose, combine
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.translation import Translation

Style = Literal["plain", "masked", "generative"]


@dataclass(frozen=True)
class StreamOptions:
    """The cells of a stream, their steps, and their form.

    ``seed`` keys the order and what is drawn once a step; ties, samples and splits of a cell are keyed by
    ``tokenizer.seed``. Of ``ratios``, the shares of genes to be masked or held back, one is drawn each step, the same
    for all ranks. With a ``panel`` exactly that share of its genes is masked in each cell, else each gene by chance.
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
    modalities: tuple[str, ...] = ()  # further matrices to read as they are
    features: tuple[FeatureTokens, ...] = ()  # further matrices to read as tokens, by ascending ids
    hide_whole: float = 0.0  # share of cells of which one modality (the genes or another), drawn, is masked as a whole
    panel: tuple[int, ...] | None = (
        None  # every cell is these gene ids (after translation), zeros included, binned among themselves
    )
    pairs: PairOptions | None = None  # each cell also has the values of a control cell on the panel
    columns: tuple[ObsColumn, ...] = ()  # further columns of obs to code
    labels: tuple[str, ...] | None = None  # the values of label_key to number them by; cells with others are left out
    cells_per_minibatch: int | None = None  # fixed minibatches for losses that depend on which cells share one
    whole_cells: WholeCellOptions | None = None  # tokens of thinned cells, with genes of the whole cell to decode
    translation: Translation | None = None  # to the model's genes, if its vocabulary is not the default one

    def __post_init__(self) -> None:
        assert bool(self.ratios) == (self.style != "plain"), "masked and generative cells need ratios, plain ones none"
        assert self.token_budget is None or self.token_budget >= self.max_tokens, "no room for a long cell"
        if self.features:
            assert self.translation is not None, "features need an extended vocabulary"
            assert self.style != "generative", "features are not split"
            assert self.pairs is None, "pairs are of genes"
        if self.pairs is not None:
            assert self.panel is not None, "pairs share a panel"
            assert self.style != "generative", "pairs are not split"
            required = {column.name for column in self.members.columns if column.required}
            assert self.pairs.match is None or self.pairs.match in required, "pairs agree in a required column"
            if self.pairs.perturbed is not None:
                assert self.style == "plain", "all genes of perturbed cells are predicted"
                assert self.pairs.column in required, "each cell has a perturbation"
        if self.whole_cells is not None:
            assert self.panel is None, "a thinned cell has the genes that are left"
            assert not self.features, "features are not thinned"
        if self.cells_per_minibatch is not None:
            assert self.token_budget is None, "fixed minibatches have no token budget"
            assert self.cells_per_step % self.cells_per_minibatch == 0, "a step is a whole number of minibatches"

    @property
    def is_expression(self) -> bool:
        """Whether values are log-normalised expression rather than bins."""
        return self.pairs is not None and self.pairs.perturbed is not None

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens per cell."""
        return self.tokenizer.max_length + sum(features.max_tokens for features in self.features)

    @property
    def members(self) -> MemberOptions:
        """The options that select cells."""
        labels = () if self.label_key is None else (ObsColumn(self.label_key, values=self.labels),)
        others = (column for column in self.columns if column.name != self.label_key)
        return MemberOptions((*labels, *others), self.select, self.weights)

    def ratios_at(self, steps: Int64) -> Float64:
        """Return the share of genes hidden at each of the steps (T,)."""
        keys = combine(self.seed, int(Purpose.MASKING), steps)
        return np.asarray(np.array(self.ratios)[keys % np.uint64(len(self.ratios))])
