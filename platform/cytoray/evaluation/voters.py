"""The cheap annotators: multinomial logistic regressions over several views of the genes.

    voters, held_out = fit_voters(cells, codes, num_labels=K, rounds=[Round(folds)])
    voters["genes"].log_probabilities(other_cells)  # (C, K)

``genes`` alone, tuned, is the logistic regression that people use, and the baseline. The others see principal
components of the most variable genes, of expression or of ranks within a cell, linearly or through radial functions of
the distance to some training cells. All that is learned is arrays: a fitted voter needs no library but numpy and scipy.
"""

# C cells, V genes of the vocabulary, F chosen genes, P features, M landmarks, R radial features, K labels

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.errors import CorpusError
from cytoray.evaluation.splits import Split
from cytoray.evaluation.variable_genes import most_variable, standardised_variances

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
View = Literal["expression", "ranks"]

COUNTS_PER_CELL = 10_000.0
NUM_GENES, NUM_COMPONENT_GENES = 1500, 2000
NUM_COMPONENTS, NUM_RADIAL_COMPONENTS = 30, 20
NUM_LANDMARKS, NUM_RADIAL = 1000, 300
LIMIT = 10.0  # standard deviations at which standardised values are clipped, as Seurat does
SMALLEST = 1e-4  # probability of a label that a voter has not seen, or deems impossible
MAX_ITERATIONS = 300
STRENGTHS = {"genes": (0.2, 1.0, 5.0), "components": (0.1, 1.0, 10.0), "radial": (1.0, 10.0, 100.0)}


@dataclass(frozen=True, eq=False)
class Expression:
    """C cells over V genes: raw counts, or expression that is normalised and logged already.

    A gene that was not measured is not a gene that is off: features take it at its usual value, and ``depth`` is the
    part of 10,000 counts that a usual cell has in the measured genes.
    """

    values: sparse.csr_matrix  # (C, V)
    log_normalised: bool = False
    measured: npt.NDArray[np.bool_] | None = None  # (V,), None if all genes were
    depth: float = COUNTS_PER_CELL

    @classmethod
    def of(cls, values: sparse.csr_matrix) -> Expression:
        """Return cells of which some may be counts, others normalised and logged: those with fractions."""
        values = sparse.csr_matrix(values, dtype=np.float32)
        cells = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
        logged = np.bincount(cells, values.data != np.round(values.data), minlength=values.shape[0]) > 0
        found = cls(values, bool(logged.all()) and len(logged) > 0)
        if logged.any() and not found.log_normalised:
            expression = cls(values).expression
            expression.data = np.where(logged[cells], values.data, expression.data)
            found.__dict__["expression"] = expression
        return found

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return int(self.values.shape[0])

    @cached_property
    def expression(self) -> sparse.csr_matrix:
        """log1p of counts per 10,000 (per ``depth``), (C, V)."""
        if self.log_normalised:
            return sparse.csr_matrix(self.values, dtype=np.float32)
        totals = np.asarray(self.values.sum(axis=1, dtype=np.float64)).ravel()
        factors = np.divide(self.depth, totals, out=np.zeros_like(totals), where=totals > 0)
        return (sparse.diags_array(factors.astype(np.float32)) @ self.values).tocsr().astype(np.float32).log1p()

    @cached_property
    def ranks(self) -> sparse.csr_matrix:
        """Mean rank of each value among its cell's values above zero, as a share: the largest has about 1; (C, V)."""
        matrix = sparse.csr_matrix(self.values, dtype=np.float32, copy=True)
        matrix.eliminate_zeros()
        cells = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        order = np.lexsort((matrix.data, cells))
        place = np.arange(1, len(order) + 1) - matrix.indptr[cells]
        new = np.ones(len(order), bool)  # whether a value differs from the one before it
        new[1:] = (np.diff(matrix.data[order]) != 0) | (np.diff(cells) != 0)
        tie = np.cumsum(new) - 1
        means = np.bincount(tie, place) / np.bincount(tie) if len(order) else np.empty(0)
        lengths = np.diff(matrix.indptr)[cells]
        matrix.data[order] = (means[tie] / lengths).astype(np.float32)
        return matrix

    @cached_property
    def variability(self) -> Float64:
        """How variable each gene is, (V,): given its mean if the cells are counts."""
        return _variances(self.expression) if self.log_normalised else standardised_variances(self.values)

    def take(self, rows: Int64) -> Expression:
        """Return some of the cells; views that have been computed are kept."""
        some = replace(self, values=self.values[rows])
        for name in ("expression", "ranks"):
            if name in self.__dict__:
                some.__dict__[name] = self.__dict__[name][rows]
        return some

    def view(self, view: View) -> sparse.csr_matrix:
        """Return the cells as ``view``, (C, V)."""
        return self.expression if view == "expression" else self.ranks


@dataclass(frozen=True, eq=False)
class GeneFeatures:
    """Standardised values of chosen genes and, with ``axes``, their principal components."""

    view: View
    genes: Int64  # (F,)
    centre: Float32  # (F,)
    scale: Float32  # (F,)
    axes: Float32 | None = None  # (F, P); their first component has unit variance over the training cells
    usual: Float32 | None = None  # (F,) mean over the training cells, the value of a gene that was not measured

    def transform(self, cells: Expression) -> Float32:
        """Return the features of cells, (C, F) or (C, P)."""
        values = cells.view(self.view)[:, self.genes].toarray()
        if cells.measured is not None and self.usual is not None:
            missing = ~cells.measured[self.genes]
            values[:, missing] = self.usual[missing]
        values -= self.centre
        values /= self.scale
        np.clip(values, -LIMIT, LIMIT, out=values)
        features: Float32 = values if self.axes is None else values @ self.axes
        return features


@dataclass(frozen=True, eq=False)
class RadialFeatures:
    """Radial functions of the distances to landmarks, made orthogonal (Nystroem features of the Gaussian kernel)."""

    landmarks: Float32  # (M, P), of the first P features
    sharpness: np.float32
    mixing: Float32  # (M, R)

    def transform(self, features: Float32) -> Float32:
        """Return radial features (C, R) of features of which the first P are used."""
        near = features[:, : self.landmarks.shape[1]]
        radial: Float32 = np.exp(-self.sharpness * _squared_distances(near, self.landmarks)) @ self.mixing
        return radial


@dataclass(frozen=True, eq=False)
class Voter:
    """A fitted multinomial logistic regression over features of the genes."""

    features: GeneFeatures
    radial: RadialFeatures | None
    weights: Float32  # (P or R, K)
    intercept: Float32  # (K,); -inf for labels without a training cell
    strength: float  # inverse of the penalty, as scikit-learn's C

    def log_probabilities(self, cells: Expression) -> Float64:
        """Return the log-probability of each label, (C, K); none is below log of 1e-4 over K."""
        features = self.features.transform(cells)
        if self.radial is not None:
            features = self.radial.transform(features)
        return _bounded(features @ self.weights + self.intercept)


@dataclass(frozen=True)
class _Recipe:
    view: View
    kind: Literal["genes", "components", "radial"]


RECIPES: Mapping[str, _Recipe] = {
    "genes": _Recipe("expression", "genes"),
    "components": _Recipe("expression", "components"),
    "radial": _Recipe("expression", "radial"),
    "rank components": _Recipe("ranks", "components"),
    "rank radial": _Recipe("ranks", "radial"),
}


@dataclass(frozen=True)
class Round:
    """Folds of the training cells; with ``is_disturbed`` the cells not seen look like those of another experiment."""

    folds: tuple[Split, ...]
    is_disturbed: bool = False


def disturb(cells: Expression, *, seed: int) -> Expression:
    """Return cells as a shallower experiment with other genes would have them.

    Each cell keeps 25 to 75 % of its counts (binomial), all of them lose 20 % of the genes. Expression that is
    normalised only loses the genes.
    """
    rng = np.random.default_rng(seed)
    matrix = sparse.csr_matrix(cells.values, copy=True)
    if not cells.log_normalised:
        shares = np.repeat(rng.uniform(0.25, 0.75, matrix.shape[0]), np.diff(matrix.indptr))
        matrix.data = rng.binomial(matrix.data.astype(np.int64), shares).astype(matrix.dtype)
    matrix.data *= (rng.random(matrix.shape[1]) >= 0.2)[matrix.indices]
    matrix.eliminate_zeros()
    return Expression(matrix, cells.log_normalised)


def fit_voters(
    cells: Expression, codes: Int64, *, num_labels: int, rounds: Sequence[Round], seed: int = 0
) -> tuple[dict[str, Voter], dict[str, Float64]]:
    """Fit every voter on C cells with label codes, and return them with their answers on cells they have not seen.

    The strength of each penalty is that of the greatest likelihood over all rounds. The second result has, by voter,
    held-out log-probabilities (rounds, C, K), from regressions, genes and components of the other folds alone.
    """
    with threadpool_limits(1):  # small products: two threads on busy cores took ten times as long
        answers = {
            name: np.full((len(_strengths(name)), len(rounds), len(codes), num_labels), -np.log(num_labels))
            for name in RECIPES
        }
        for number, round_ in enumerate(rounds):
            for place, fold in enumerate(round_.folds):
                unseen = cells.take(fold.test)
                if round_.is_disturbed:
                    unseen = disturb(unseen, seed=seed + place)
                views = _Views(cells.take(fold.train), seed, unseen)
                for name, tried in answers.items():
                    for option, strength in enumerate(_strengths(name)):
                        weights, intercept = _fit(views.seen(name), codes[fold.train], num_labels, strength)
                        tried[option, number, fold.test] = _bounded(views.unseen(name) @ weights + intercept)
        views = _Views(cells, seed)
        voters, held_out = {}, {}
        for name, tried in answers.items():
            best = int(tried[:, :, np.arange(len(codes)), codes].mean(axis=(1, 2)).argmax())
            voters[name] = views.fit(name, codes, num_labels, _strengths(name)[best])
            held_out[name] = tried[best]
    return voters, held_out


def _strengths(name: str) -> tuple[float, ...]:
    return STRENGTHS[RECIPES[name].kind]


@dataclass(frozen=True, eq=False)
class _Made:
    """Features, and their values for the training cells and for the others."""

    features: GeneFeatures
    radial: RadialFeatures | None
    seen: Float32
    unseen: Float32 | None


class _Views:
    """The features of some training cells, and of others by what was learned from these, each computed once."""

    def __init__(self, cells: Expression, seed: int, others: Expression | None = None) -> None:
        self._cells, self._seed, self._others = cells, seed, others
        self._made: dict[tuple[View, str], _Made] = {}

    def fit(self, name: str, codes: Int64, num_labels: int, strength: float) -> Voter:
        """Fit one voter on the training cells."""
        made = self._make(RECIPES[name].view, RECIPES[name].kind)
        weights, intercept = _fit(made.seen, codes, num_labels, strength)
        return Voter(made.features, made.radial, weights, intercept, strength)

    def seen(self, name: str) -> Float32:
        """Return the features of the training cells."""
        return self._make(RECIPES[name].view, RECIPES[name].kind).seen

    def unseen(self, name: str) -> Float32:
        """Return the features of the other cells."""
        unseen = self._make(RECIPES[name].view, RECIPES[name].kind).unseen
        assert unseen is not None, "there are no other cells"
        return unseen

    def _make(self, view: View, kind: str) -> _Made:
        if (view, kind) not in self._made:
            self._made[view, kind] = self._build(view, kind)
        return self._made[view, kind]

    def _build(self, view: View, kind: str) -> _Made:
        if kind == "radial":
            made = self._make(view, "components")
            radial = _radial(made.seen, self._seed)
            unseen = None if made.unseen is None else radial.transform(made.unseen)
            return _Made(made.features, radial, radial.transform(made.seen), unseen)
        features = (
            _scaled_genes(self._cells) if kind == "genes" else fit_components(self._cells, view=view, seed=self._seed)
        )
        unseen = None if self._others is None else features.transform(self._others)
        return _Made(features, None, features.transform(self._cells), unseen)


def _scaled_genes(cells: Expression) -> GeneFeatures:
    """The most variable genes of log-normalised expression, each divided by its largest value."""
    values = cells.expression
    genes = most_variable(_variances(values), NUM_GENES)
    if not len(genes):
        raise CorpusError("No gene differs between the training cells.", remedy="Give cells of raw counts.")
    largest = np.asarray(values[:, genes].max(axis=0).todense(), np.float32).ravel()
    scale = np.where(largest > 0, largest, np.float32(1))
    usual = np.asarray(values[:, genes].mean(axis=0), np.float32).ravel()
    return GeneFeatures("expression", genes, np.zeros(len(genes), np.float32), scale, usual=usual)


def fit_components(
    cells: Expression,
    *,
    view: View = "expression",
    num_components: int = NUM_COMPONENTS,
    num_genes: int = NUM_COMPONENT_GENES,
    seed: int,
) -> GeneFeatures:
    """Fit principal components of standardised genes, the most variable ones given their mean."""
    from sklearn.utils.extmath import randomized_svd

    genes = most_variable(cells.variability, num_genes)
    values = cells.view(view)[:, genes].toarray()
    centre, scale = values.mean(axis=0), values.std(axis=0) + np.float32(1e-3)
    plain = GeneFeatures(view, genes, centre, scale)
    standardised = plain.transform(cells)
    num = max(1, min(num_components, len(standardised) - 1, len(genes)))
    _, _, axes = randomized_svd(standardised, num, random_state=seed)
    spread = float(np.std(standardised @ axes[0])) or 1.0
    return GeneFeatures(view, genes, centre, scale, np.ascontiguousarray(axes.T / spread, np.float32), usual=centre)


def _radial(values: Float32, seed: int) -> RadialFeatures:
    """Landmarks among the training cells, and functions as wide as the cells are spread."""
    near = values[:, :NUM_RADIAL_COMPONENTS]
    chosen = np.random.default_rng(seed).permutation(len(near))[:NUM_LANDMARKS]
    landmarks = near[np.sort(chosen)]
    spread = float(near.var(axis=0).sum())
    sharpness = np.float32(1 / (3 * spread) if spread > 0 else 1.0)
    kernel = np.exp(-sharpness * _squared_distances(landmarks, landmarks)).astype(np.float64)
    sizes, vectors = np.linalg.eigh(kernel)
    kept = slice(-min(NUM_RADIAL, len(sizes)), None)
    mixing = vectors[:, kept] / np.sqrt(np.maximum(sizes[kept], 1e-6))
    return RadialFeatures(landmarks, sharpness, mixing.astype(np.float32))


def _fit(values: Float32, codes: Int64, num_labels: int, strength: float) -> tuple[Float32, Float32]:
    """Return weights (P, K) and intercept (K,) of an L2-penalised multinomial logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(codes)
    weights = np.zeros((values.shape[1], num_labels), np.float32)
    intercept = np.full(num_labels, -np.inf, np.float32)
    if len(present) == 1:
        intercept[present] = 0
        return weights, intercept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an early stop is a stronger penalty, judged like others
        fitted = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-3).fit(values, codes)
    coefficients, offsets = fitted.coef_, fitted.intercept_
    if len(present) == 2:  # scikit-learn gives one row then
        coefficients, offsets = np.vstack([0 * coefficients, coefficients]), np.append(0 * offsets, offsets)
    weights[:, present], intercept[present] = coefficients.T, offsets
    return weights, intercept


def _bounded(logits_CK: npt.NDArray[np.floating]) -> Float64:
    """Log-probabilities, mixed with a small uniform share."""
    logits = np.asarray(logits_CK, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    logged: Float64 = np.log((1 - SMALLEST) * shares + SMALLEST / logits.shape[1])
    return logged


def _variances(values: sparse.csr_matrix) -> Float64:
    """Variance of each gene (V,), zeros included."""
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    variances: Float64 = np.asarray(values.power(2).mean(axis=0, dtype=np.float64)).ravel() - mean**2
    return variances


def _squared_distances(first: Float32, second: Float32) -> Float32:
    """Squared Euclidean distances of all pairs, not below 0."""
    distances: Float32 = first @ second.T
    distances *= -2
    distances += (first**2).sum(axis=1)[:, None]
    distances += (second**2).sum(axis=1)
    return np.maximum(distances, 0, out=distances)
