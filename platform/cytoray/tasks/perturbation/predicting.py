"""Predict perturbations with what was fitted, which is arrays: the effect per gene, its trust and reason, and cells."""

# Q perturbations, G genes, C cells, K covariates

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError, ModelError, RequestError
from cytoray.evaluation.perturbation.cells import make_cells
from cytoray.evaluation.perturbation.covariates import Points
from cytoray.evaluation.perturbation.effects import USUAL_CELLS
from cytoray.tasks.multiomic.paired import RnaCells
from cytoray.tasks.perturbation.covariates import check_point
from cytoray.tasks.perturbation.fitting import LEVEL, NOTHING, Predicted, TargetModel, refit_targets
from cytoray.tasks.perturbation.names import suffix_warnings
from cytoray.tokens.perturbations import Perturbation, parse_perturbation
from cytoray.tokens.vocabulary import GeneVocabulary

if TYPE_CHECKING:
    from cytoray.tasks.perturbation.generator import Generator
    from cytoray.tasks.perturbation.members import GeneratorUse

Float64 = npt.NDArray[np.float64]
FEWEST_KNOWN = 0.5  # share of the model's genes that control cells must have
NUM_TOP = 20


@dataclass(frozen=True, eq=False)
class PerturbationPrediction:
    """Predicted effects of Q perturbations on G genes."""

    names: tuple[str, ...]  # (Q,)
    genes: tuple[str, ...]  # (G,)
    deltas: Float64  # (Q, G) change of log1p of counts per 10,000
    half_width: Float64  # (Q, G) of the interval that held LEVEL of the effects that were left out
    confidence: Float64  # (Q,) 0: the mean of the known effects; near 1: like a known one
    reasons: tuple[dict[str, Any], ...]  # (Q,) the known targets that each rests on, and what they share
    warnings: tuple[str, ...] = ()
    covariates: tuple[dict[str, float], ...] = ()  # (Q,) such as dose and time; empty if none were given

    def top(self, row: int, *, num: int = NUM_TOP) -> list[dict[str, Any]]:
        """Return the genes that a perturbation changes most, with the limits of their intervals."""
        order = np.argsort(-np.abs(self.deltas[row]), kind="stable")[:num]
        return [
            {
                "gene": self.genes[gene],
                "delta": float(self.deltas[row, gene]),
                "low": float(self.deltas[row, gene] - self.half_width[row, gene]),
                "high": float(self.deltas[row, gene] + self.half_width[row, gene]),
            }
            for gene in order
        ]

    def as_dict(self, *, num_top: int = NUM_TOP) -> dict[str, Any]:
        """Return the prediction as JSON data, with the effect of each gene by name."""
        found = []
        for row, name in enumerate(self.names):
            found.append(
                {
                    "perturbation": name,
                    **({"covariates": self.covariates[row]} if self.covariates else {}),
                    "confidence": float(self.confidence[row]),
                    "reason": self.reasons[row],
                    "top_genes": self.top(row, num=num_top),
                    "delta": dict(zip(self.genes, map(float, self.deltas[row]), strict=True)),
                }
            )
        return {"level": LEVEL, "perturbations": found, "warnings": list(self.warnings)}


@dataclass(frozen=True, eq=False)
class PerturbationPredictor:
    """A fitted model of a screen over G genes."""

    genes: tuple[str, ...]  # (G,) as the screen names them
    targets: TargetModel
    control: str
    perturbation_key: str
    facts: Mapping[str, Any]  # number of cells, choice and its reason; plain JSON
    generator: Generator | None = None  # if ``targets`` is blended with one
    covariates: tuple[str, ...] = ()  # (K,)
    points: Points | None = None  # measured at values of the covariates

    def with_generator(self, find: Callable[[GeneratorUse], Generator | None]) -> Self:
        """Return the predictor with the generator that ``find`` returns, if it needs one.

        Raises ModelError if that is None or not the generator of the fit.
        """
        use = self.targets.generator
        if use is None:
            return self
        found = find(use)
        if found is None or found.weights != use.weights:
            raise ModelError(
                f"This perturbation model predicts with the generator {use.uri}"
                + ("." if found is None else f", which {found.uri} is not: their digests differ."),
                remedy="Give that generator, attach the model to its bundle, or fit the model again.",
            )
        return replace(self, generator=found)

    def predict_names(self, names: Sequence[str], at: Sequence[Mapping[str, float]] = ()) -> PerturbationPrediction:
        """Predict perturbations by name: ``STAT1``, or ``STAT1+IRF1``; a known one of the screen has its own effect.

        ``at`` are points at which all of them are predicted, such as ``{"dose": 0.5, "time": 6}``; without, the effect
        is the mean over all cells. A gene that no view knows is predicted as the mean of the known effects, with a
        warning. Raises RequestError for a name that is neither a gene nor a known condition, and for wrong points.
        """
        named, points = self.parse(names, at)
        parsed = [tuple(sorted({*each.genes, *each.others})) for each in named]
        warnings = suffix_warnings(named, "the request")
        if self.covariates and not points:
            warnings.append(
                f"{' and '.join(self.covariates)} not given: effects are means over the cells of all values"
            )
        if points:
            found = [self._predict(self._targets_at(point), parsed) for point in points]
            warnings += [*self._beyond(points), *self._unknown(parsed, NOTHING)]
        else:
            generated = self._generated(parsed)
            found = [self._predict(self.targets, parsed, generated)]
            warnings += self._unknown(parsed, generated)
        return PerturbationPrediction(
            tuple("+".join(parts) for parts in parsed) * len(found),
            self.genes,
            np.concatenate([each.deltas for each in found]),
            np.concatenate([each.half_width for each in found]),
            np.concatenate([each.confidence for each in found]),
            tuple(reason for each in found for reason in each.reasons),
            tuple(warnings),
            tuple(dict(point) for point in at for _ in parsed),
        )

    def parse(
        self, names: Sequence[str], at: Sequence[Mapping[str, float]] = ()
    ) -> tuple[list[Perturbation], list[Float64]]:
        """Return the parts of perturbations and the values (K,) of points; raises RequestError for unknown ones."""
        if not names:
            raise RequestError("No perturbation was named.", remedy="Name genes, such as STAT1 or STAT1+IRF1.")
        vocabulary = GeneVocabulary.load_default()
        points = [check_point(point, self.covariates) for point in at]
        return [self._parse(name, vocabulary) for name in names], points

    def make_cells(
        self, predicted: PerturbationPrediction, controls: RnaCells, *, num_cells: int, seed: int = 0
    ) -> tuple[list[sparse.csr_matrix], list[str]]:
        """Make cells of each predicted perturbation from control cells, over the genes of these; returns warnings.

        Raises CorpusError if the controls lack more than half of the model's genes.
        """
        columns, warnings = self._match(controls)
        known = columns >= 0
        expression = controls.rna.expression.astype(np.float64)
        made = []
        for row in range(len(predicted.names)):
            delta = np.zeros(len(controls.genes))
            delta[columns[known]] = predicted.deltas[row, known]
            made.append(make_cells(expression, delta, num_cells=num_cells, seed=seed + row))
        return made, warnings

    @property
    def _known(self) -> frozenset[str]:
        return frozenset(part for parts in self.targets.parts for part in parts)

    def _generated(self, parsed: Sequence[tuple[str, ...]]) -> dict[str, Float64]:
        """The generator's effects of the targets that it must predict."""
        targets, use = self.targets.needs_generator(parsed), self.targets.generator
        if not targets or use is None:
            return {}
        assert self.generator is not None, "opened with the model"
        return self.generator.effects(use, self.targets.symbols, targets)

    def _predict(
        self, targets: TargetModel, parsed: Sequence[tuple[str, ...]], generated: Mapping[str, Float64] = NOTHING
    ) -> Predicted:
        """Predict perturbations; combinations that the screen has are drawn to their measured effects."""
        found = targets.predict(parsed, generated)
        for row, parts in enumerate(parsed):
            if len(parts) > 1 and parts in targets.parts:
                place = targets.parts.index(parts)
                num = float(targets.effects.num_cells[place])
                weight = num / (num + USUAL_CELLS)
                found.deltas[row] += weight * (targets.effects.deltas[place] - found.deltas[row])
                found.confidence[row] = max(found.confidence[row], weight)
        return found

    def _targets_at(self, point: Float64) -> TargetModel:
        """The model with the effects at a point (K,)."""
        assert self.points is not None, "a model with covariates has points"
        return refit_targets(self.targets, self.points.at(point, names=self.targets.effects.names))

    def _beyond(self, points: Sequence[Float64]) -> list[str]:
        """Warnings about values that are beyond the measured ones."""
        assert self.points is not None
        found = []
        for k, (name, (low, high)) in enumerate(zip(self.covariates, self.points.ranges.tolist(), strict=True)):
            beyond = sorted({float(point[k]) for point in points if not low <= point[k] <= high})
            if beyond:
                listed = ", ".join(f"{value:g}" for value in beyond)
                found.append(
                    f"{name} {listed}: beyond the measured {low:g} to {high:g}, so the nearest of these counts"
                )
        return found

    def _unknown(self, parsed: Sequence[tuple[str, ...]], generated: Mapping[str, Float64]) -> list[str]:
        """Warnings about targets that are predicted as the mean."""
        alone = [
            part
            for part in sorted({part for parts in parsed for part in parts})
            if not any(view.knows(part) for view in self.targets.views.values())
            and part not in self._known
            and part not in generated
        ]
        if not alone:
            return []
        return [f"{', '.join(alone)}: no view knows it, so the mean of the known effects is predicted"]

    def _parse(self, name: str, vocabulary: GeneVocabulary) -> Perturbation:
        """The parts of a perturbation, each a gene or a known condition."""
        if name in self._known:
            return Perturbation(name, (name,))
        found = parse_perturbation(name, vocabulary=vocabulary, control=self.control, measured=self.genes)
        unknown = [part for part in found.others if part not in self._known]
        if unknown or not (found.genes or found.others):
            near = difflib.get_close_matches(unknown[0] if unknown else name, sorted(self._known), n=3, cutoff=0.4)
            raise RequestError(
                f"{', '.join(map(repr, unknown or [name]))}: not a gene, nor a condition of the screen.",
                remedy=f"Nearest in the screen: {', '.join(near) or 'none'}.",
                code="unknown_perturbations",
                unknown=unknown or [name],
            )
        return found

    def _match(self, controls: RnaCells) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Columns of the model's genes among those of control cells, -1 for missing ones."""
        place = {gene.upper(): column for column, gene in reversed(list(enumerate(controls.genes)))}
        columns = np.array([place.get(gene.upper(), -1) for gene in self.genes], np.int64)
        missing = columns < 0
        if missing.mean() > 1 - FEWEST_KNOWN:
            raise CorpusError(
                f"{int((~missing).sum()):,} of the model's {len(self.genes):,} genes are among those of the control "
                f"cells (the model's: {', '.join(self.genes[:3])}; theirs: {', '.join(controls.genes[:3])}).",
                remedy="Name genes as the screen does.",
            )
        if not missing.any():
            return columns, []
        return columns, [f"the control cells lack {int(missing.sum()):,} of the model's {len(self.genes):,} genes"]
