"""Effects of perturbations: the mean expression of perturbed cells less that of control cells of the same batch.

    effects = measure_effects(PerturbedCells(expression, codes, names, batches))
    effects.deltas, effects.reliability  # (P, G) and (P,)

An effect of few cells is noisy: its weight is n / (n + n0), where n0 is the number of cells at which noise and the
spread of effects are equal.
"""

# C cells, G genes, P perturbations, B batches

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
CONTROL = -1  # code of control cells
FEWEST_IN_BATCH = 5  # cells of a perturbation in a batch; fewer are left out if other batches have enough
LEAST_CELLS, MOST_CELLS = 10.0, 1000.0  # limits of n0
USUAL_CELLS = 50.0  # n0 if it cannot be estimated
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class PerturbedCells:
    """C cells of P perturbations and of controls."""

    expression: sparse.csr_matrix  # (C, G) log1p of counts per 10,000
    codes: Int64  # (C,) into ``names``; CONTROL for control cells
    names: tuple[str, ...]  # (P,)
    batches: Int64 | None = None  # (C,) codes, None if cells are not matched by batch

    def take(self, rows: Int64) -> PerturbedCells:
        """Return some of the cells; perturbations keep their codes."""
        batches = None if self.batches is None else self.batches[rows]
        return replace(self, expression=self.expression[rows], codes=self.codes[rows], batches=batches)

    @property
    def present(self) -> Int64:
        """Codes of the perturbations that have cells, ascending."""
        return np.unique(self.codes[self.codes != CONTROL])

    def without_empty(self) -> PerturbedCells:
        """Return the same cells, named by the perturbations that have cells, in the same order."""
        codes = np.where(self.codes == CONTROL, CONTROL, np.searchsorted(self.present, self.codes))
        return replace(self, codes=codes, names=tuple(self.names[code] for code in self.present))

    def joined_with(self, other: PerturbedCells) -> PerturbedCells:
        """Return these cells and those of ``other``, which has the same genes, names and batches."""
        batches = None if self.batches is None else np.concatenate([self.groups, other.groups])
        expression = sparse.csr_matrix(sparse.vstack([self.expression, other.expression]))
        return PerturbedCells(expression, np.concatenate([self.codes, other.codes]), self.names, batches)

    @property
    def groups(self) -> Int64:
        """Batch of each cell (C,), all 0 without batches."""
        return self.batches if self.batches is not None else np.zeros(len(self.codes), np.int64)


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of P perturbations, and what they were computed from."""

    names: tuple[str, ...]  # (P,)
    deltas: Float64  # (P, G)
    controls: Float64  # (P, G) mean of the matched control cells
    variances: Float64  # (P, G) of the perturbed cells, within batches
    num_cells: Int64  # (P,) used
    num_controls: int
    control_variance: Float64  # (G,) within batches
    equal_cells: float = USUAL_CELLS  # n0

    @property
    def reliability(self) -> Float64:
        """Weight n / (n + n0) of each effect (P,)."""
        found: Float64 = self.num_cells / (self.num_cells + self.equal_cells)
        return found

    def take(self, rows: Int64) -> Effects:
        """Return the effects of some perturbations, as they are, with n0 estimated from these alone."""
        some = replace(
            self,
            names=tuple(self.names[row] for row in rows),
            deltas=self.deltas[rows],
            controls=self.controls[rows],
            variances=self.variances[rows],
            num_cells=self.num_cells[rows],
        )
        return replace(some, equal_cells=estimate_equal_cells(some))

    def select(self, genes: Int64) -> Effects:
        """Return the effects on some genes."""
        return replace(
            self,
            deltas=self.deltas[:, genes],
            controls=self.controls[:, genes],
            variances=self.variances[:, genes],
            control_variance=self.control_variance[genes],
        )


def measure_effects(cells: PerturbedCells) -> Effects:
    """Return the effect of each perturbation, matched by batch: a batch without controls is matched by all controls.

    Every perturbation must have a cell, and there must be a control cell.
    """
    groups, is_control = cells.groups, cells.codes == CONTROL
    num_batches = int(groups.max()) + 1
    control_cells = cells.expression[is_control]
    control_groups = groups[is_control]
    means_BG, missing_B = _means(control_cells, control_groups, num_batches)
    overall = np.asarray(control_cells.mean(axis=0), np.float64).ravel()
    means_BG[missing_B] = overall
    used = _used(cells, num_batches)
    perturbed = cells.take(np.flatnonzero(used))
    counts_PB = np.zeros((len(cells.names), num_batches))
    np.add.at(counts_PB, (perturbed.codes, perturbed.groups), 1)
    num_cells = counts_PB.sum(axis=1)
    assert (num_cells > 0).all(), "every perturbation needs a cell"
    shares_PB = counts_PB / num_cells[:, None]
    means_PG, _ = _means(perturbed.expression, perturbed.codes, len(cells.names))
    controls = shares_PB @ means_BG
    variances = _variances(perturbed.expression, perturbed.codes, means_PG)
    control_variance = _within(control_cells, control_groups, means_BG)
    found = Effects(
        names=cells.names,
        deltas=means_PG - controls,
        controls=controls,
        variances=variances,
        num_cells=num_cells.astype(np.int64),
        num_controls=int(is_control.sum()),
        control_variance=control_variance,
    )
    return replace(found, equal_cells=estimate_equal_cells(found))


def estimate_equal_cells(effects: Effects) -> float:
    """Return n0: the variance of one cell divided by that of true effects between perturbations, within limits."""
    if len(effects.names) < 3:
        return USUAL_CELLS
    noise = float(effects.variances.mean())
    spread = float(effects.deltas.var(axis=0, ddof=1).mean())
    true_spread = spread - noise * float(np.mean(1 / effects.num_cells))
    if true_spread <= _TINY:
        return MOST_CELLS
    return float(np.clip(noise / true_spread, LEAST_CELLS, MOST_CELLS))


def split_halves(cells: PerturbedCells, *, seed: int) -> tuple[Int64, Int64]:
    """Return the rows of two random halves of the cells, each with half of every perturbation and batch."""
    order = np.random.default_rng(seed).permutation(len(cells.codes))
    keys = cells.codes[order] * (int(cells.groups.max()) + 1) + cells.groups[order]
    by_key = np.argsort(keys, kind="stable")
    first = np.zeros(len(order), bool)
    first[order[by_key]] = np.arange(len(order)) % 2 == 0
    return np.flatnonzero(first), np.flatnonzero(~first)


def _used(cells: PerturbedCells, num_batches: int) -> npt.NDArray[np.bool_]:
    """Whether each cell counts as perturbed: not control, and not one of a few of its perturbation in its batch."""
    perturbed = cells.codes != CONTROL
    pairs = cells.codes * num_batches + cells.groups
    counts = np.bincount(pairs[perturbed], minlength=len(cells.names) * num_batches).reshape(-1, num_batches)
    few_PB = counts < FEWEST_IN_BATCH
    few_PB[(few_PB | (counts == 0)).all(axis=1)] = False
    found: npt.NDArray[np.bool_] = perturbed & ~few_PB[np.maximum(cells.codes, 0), cells.groups]
    return found


def _means(values: sparse.csr_matrix, codes: Int64, num: int) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """Mean of the rows of each code (num, G), and which codes have no row."""
    counts = np.bincount(codes, minlength=num)
    one_hot = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), (num, len(codes)))
    sums = np.asarray((one_hot @ values).todense(), np.float64)
    return sums / np.maximum(counts, 1)[:, None], counts == 0


def _variances(values: sparse.csr_matrix, codes: Int64, means: Float64) -> Float64:
    """Variance of the rows of each code (num, G); of a single row, 0."""
    counts = np.bincount(codes, minlength=len(means))[:, None]
    squares, _ = _means(values.multiply(values).tocsr(), codes, len(means))
    return np.maximum(squares - means**2, 0) * counts / np.maximum(counts - 1, 1)


def _within(values: sparse.csr_matrix, codes: Int64, means: Float64) -> Float64:
    """Variance within codes (G,), pooled."""
    counts = np.bincount(codes, minlength=len(means))[:, None]
    variances = _variances(values, codes, means) * np.maximum(counts - 1, 0)
    found: Float64 = variances.sum(axis=0) / max(int((counts - 1)[counts[:, 0] > 0].sum()), 1)
    return found
