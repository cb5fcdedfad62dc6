"""Predict proteins from RNA with what was fitted, which is arrays: a service answers without training libraries."""

# C cells, G genes, P proteins

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.multiomic.blending import Blend
from cytoray.tasks.multiomic.members import Member
from cytoray.tasks.multiomic.paired import Float64, Int64, RnaCells
from cytoray.tasks.multiomic.views import Views

LEVEL = 0.9  # of intervals
FEWEST_KNOWN = 0.5  # share of the model's genes that cells must have


@dataclass(frozen=True, eq=False)
class ProteinPrediction:
    """Proteins predicted for C cells, and how far to trust them."""

    values: Float64  # (C, P): CLR, if the model was fitted on counts
    names: tuple[str, ...]  # (P,)
    cells: tuple[str, ...]  # (C,)
    confidence: Float64  # (P,) correlation with the measured protein on cells that were held out
    half_width: Float64  # (P,) of the interval that held the measured value of LEVEL of the cells held out
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ProteinPredictor:
    """Predictors of P proteins and their blend, over the genes that they use."""

    genes: tuple[str, ...]  # (G,)
    proteins: tuple[str, ...]  # (P,)
    views: Views  # over these genes
    members: Mapping[str, Member]  # those that the blend uses
    blend: Blend
    confidence: Float64  # (P,)
    half_width: Float64  # (P,)
    facts: Mapping[str, Any]  # number of cells, choice, its reason, whether proteins were counts; plain JSON

    def predict_rna(self, cells: RnaCells) -> ProteinPrediction:
        """Predict the proteins of cells with named genes."""
        matched, missing = self._match(cells.rna, cells.genes)
        warnings = []
        if missing.any():
            some = ", ".join(np.array(self.genes)[missing][:5])
            warnings.append(
                f"{int(missing.sum()):,} of the model's {len(self.genes):,} genes are missing ({some}); their training "
                "mean was used"
            )
        inputs = self.views.without(missing).transform(matched)
        values = self.blend.combine({name: member.predict(inputs) for name, member in self.members.items()})
        return ProteinPrediction(values, self.proteins, cells.names, self.confidence, self.half_width, tuple(warnings))

    def _match(self, rna: Expression, genes: Sequence[str]) -> tuple[Expression, npt.NDArray[np.bool_]]:
        """The cells over the model's genes, normalised over all of their own, and which genes they lack."""
        exact = {name: place for place, name in reversed(list(enumerate(genes)))}
        plain = {name.upper(): place for name, place in exact.items()}
        places = np.array([exact.get(name, plain.get(name.upper(), -1)) for name in self.genes], np.int64)
        missing = places < 0
        if missing.mean() > 1 - FEWEST_KNOWN:
            raise CorpusError(
                f"{int((~missing).sum()):,} of the model's {len(self.genes):,} genes are among the {len(genes):,} "
                f"genes of these cells (the model's: {', '.join(self.genes[:3])}; the cells': {', '.join(genes[:3])}).",
                remedy="Name genes as the cells that the model was fitted on do.",
            )
        return _over(rna, places), missing


def _over(rna: Expression, places_G: Int64) -> Expression:
    """Cells over other columns (-1: empty), with expression and ranks computed over all genes that they have."""
    known = places_G >= 0
    picks = sparse.csr_matrix(
        (np.ones(int(known.sum()), np.float32), (places_G[known], np.flatnonzero(known))),
        (rna.values.shape[1], len(places_G)),
    )
    found = Expression(sparse.csr_matrix(rna.values @ picks), rna.log_normalised)
    for view in ("expression", "ranks"):
        found.__dict__[view] = sparse.csr_matrix(getattr(rna, view) @ picks)
    return found
