"""Evidence of the edges of a network: of all cells, and of two halves of them, by which its reliability is judged."""

# T transcription factors, G targets, B targets of a block, H two halves of the cells

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cytoray.evaluation.networks.cells import Float32, Float64
from cytoray.evaluation.networks.ranking import Bool, reliabilities, score_evidence
from cytoray.tasks.networks.candidates import CORRELATION, POOLED

Kinds = dict[str, Float32]
Block = dict[str, Kinds]  # of a block of targets: evidence of all cells (T, B), and of halves (H, T, B), by kind
WHOLE, HALVES = "whole", "halves"
BY_SIZE = (CORRELATION, POOLED)  # signed evidence that counts by its size


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence of every pair of a factor and a target."""

    values: Kinds  # (T, G) per kind
    halves: Kinds = field(default_factory=dict)  # (H, T, G) per kind that depends on the cells

    def reliability(self, valid: Bool) -> dict[str, Float64]:
        """Return how reliable each kind of evidence is for each factor, (T,) from 0 to 1, by halves of the cells."""
        return {kind: reliabilities(_sizes(kind, both), valid) for kind, both in self.halves.items()}

    def scores(self, valid: Bool) -> Kinds:
        """Return all evidence as normal scores times their reliability, (T, G) per kind."""
        return score_kinds(self.values, self.reliability(valid), valid)

    def with_kinds(self, values: Mapping[str, Float32], halves: Mapping[str, Float32] | None = None) -> Evidence:
        """Return this evidence and more of other kinds."""
        return Evidence({**self.values, **values}, {**self.halves, **(halves or {})})


def score_kinds(values: Mapping[str, Float32], reliability: Mapping[str, Float64], valid: Bool) -> Kinds:
    """Return evidence as normal scores times their reliability; a correlation counts by its size."""
    return score_evidence({kind: _sizes(kind, each) for kind, each in values.items()}, reliability, valid)


def join_blocks(blocks: Sequence[Block]) -> Evidence:
    """Join the evidence of blocks of targets; of a kind without evidence of all cells it is the mean of the halves."""
    joined = [
        {kind: np.concatenate([block[part][kind] for block in blocks], axis=-1) for kind in blocks[0][part]}
        for part in (WHOLE, HALVES)
    ]
    means = {kind: both.mean(axis=0, dtype=np.float32) for kind, both in joined[1].items() if kind not in joined[0]}
    return Evidence({**joined[0], **means}, joined[1])


def _sizes(kind: str, values: Float32) -> Float32:
    return np.abs(values) if kind in BY_SIZE else values
