"""A perturbation screen: expression of cells, the perturbation of each, with counts of cells left out, and warnings."""

# C cells, G genes, P perturbations, K covariates

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError
from cytoray.evaluation.perturbation.covariates import point_codes
from cytoray.evaluation.perturbation.effects import CONTROL, PerturbedCells
from cytoray.tasks.multiomic.paired import RnaCells
from cytoray.tasks.perturbation.covariates import (
    matched_batches,
    point_text,
    without_missing,
    without_rare_points,
)
from cytoray.tasks.perturbation.names import name_perturbations, symbols_of

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
FEWEST_CONTROLS, FEWEST_CELLS, FEWEST_GENES = 10, 5, 5
FEW_GENES = 100
_SHOWN = 8


@dataclass(frozen=True)
class Columns:
    """Where a data set has its perturbations."""

    perturbation: str
    control: str
    batch: str | None = None
    cell_type: str | None = None
    covariates: tuple[str, ...] = ()  # numbers, such as dose and time


@dataclass(frozen=True, eq=False)
class Screen:
    """C cells of P perturbations and controls."""

    cells: PerturbedCells
    genes: tuple[str, ...]  # (G,) as the data set names them
    symbols: tuple[str, ...]  # (G,)
    parts: tuple[tuple[str, ...], ...]  # (P,) genes or conditions of each perturbation
    known_genes: frozenset[str]  # of the parts, those that are genes
    uri: str
    control: str
    cell_types: tuple[str, ...] | None = None  # (C,)
    covariates: tuple[str, ...] = ()  # (K,)
    values: Float64 | None = None  # (C, K) of the covariates; NaN in some control cells
    warnings: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the perturbations (P,)."""
        return self.cells.names

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.cells.codes)

    @property
    def digest(self) -> str:
        """SHA-256 of expression and perturbations."""
        found = hashlib.sha256("\0".join([*self.genes, "", *self.names]).encode())
        matrix = self.cells.expression
        values = [] if self.values is None else [self.values]
        for array in (matrix.indptr, matrix.indices, matrix.data, self.cells.codes, self.cells.groups, *values):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    @property
    def targets(self) -> tuple[str, ...]:
        """All genes and conditions that occur in perturbations, sorted."""
        return tuple(sorted({part for parts in self.parts for part in parts}))

    def own_columns(self, parts: Sequence[str]) -> list[int]:
        """Return the columns of the genes of a perturbation that were measured."""
        wanted = {part.upper() for part in parts}
        return [column for column, symbol in enumerate(self.symbols) if symbol.upper() in wanted]

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return which genes count for each perturbation (P, G): all but those that it perturbs."""
        found = np.ones((len(self.names), len(self.genes)), bool)
        for row, parts in enumerate(self.parts):
            found[row, self.own_columns(parts)] = False
        return found

    def take(self, rows: Int64) -> Screen:
        """Return some of the cells; perturbations keep their codes."""
        types = None if self.cell_types is None else tuple(self.cell_types[row] for row in rows)
        values = None if self.values is None else self.values[rows]
        return replace(self, cells=self.cells.take(rows), cell_types=types, values=values)

    def by_point(self) -> Screen:
        """Return the screen whose perturbations are those of this one at each dose or time, such as ``A (dose 1)``."""
        if self.values is None:
            return self
        codes, owners, points = point_codes(self.cells, self.values)
        names = tuple(
            f"{self.names[owner]} ({point_text(self.covariates, point)})"
            for owner, point in zip(owners, points, strict=True)
        )
        cells = replace(self.cells, codes=codes, names=names)
        return replace(self, cells=cells, parts=tuple(self.parts[owner] for owner in owners))


@dataclass(frozen=True, eq=False)
class ScreenColumns:
    """The values that C cells have in the columns of a screen."""

    perturbations: Sequence[str | None]
    batches: Sequence[str] | None = None
    cell_types: Sequence[str] | None = None
    covariates: Float64 | None = None  # (C, K)


def build_screen(rna: RnaCells, values: ScreenColumns, columns: Columns, *, uri: str) -> Screen:
    """Build a screen from cells and their values in its columns.

    Cells are matched with controls of their batch and, for covariates of which controls have several values, of the
    same value. Cells without a known perturbation are left out and counted, as are perturbations of fewer than
    FEWEST_CELLS cells. Raises CorpusError for data that cannot be used.
    """
    where, notes, batches = f"{uri}, {columns.perturbation}", list[str](), values.batches
    if len(rna.genes) < FEWEST_GENES:
        raise CorpusError(f"{uri} has {len(rna.genes)} genes; at least {FEWEST_GENES} are needed.", remedy="Add genes.")
    named = name_perturbations(values.perturbations, control=columns.control, measured=rna.genes, where=where)
    notes += named.warnings
    codes = np.array([-2 if code is None else code for code in named.codes], np.int64)
    if values.covariates is not None:
        codes = without_missing(codes, values.covariates, columns.covariates, notes)
        codes = without_rare_points(codes, values.covariates, fewest=FEWEST_CELLS, notes=notes)
        batches = matched_batches(batches, codes, values.covariates, columns.covariates)
    codes = _without_rare(codes, named.names, notes)
    _check_numbers(codes, columns.control, where)
    kept = np.flatnonzero(codes > -2)
    present = np.unique(codes[kept][codes[kept] >= 0])
    moved = np.full(len(named.names) + 1, CONTROL, np.int64)
    moved[present] = np.arange(len(present))
    parts = tuple(named.parts[code] for code in present)
    cells = PerturbedCells(
        _expression(rna, kept, uri, notes),
        moved[codes[kept]],
        tuple(named.names[code] for code in present),
        _batch_codes(batches, kept, moved[codes[kept]], notes),
    )
    found = Screen(
        cells,
        rna.genes,
        symbols_of(rna.genes),
        parts,
        frozenset(part for each in parts for part in each) & named.genes,
        uri,
        columns.control,
        None if values.cell_types is None else tuple(values.cell_types[row] for row in kept.tolist()),
        columns.covariates,
        None if values.covariates is None else values.covariates[kept],
        facts={"left_out": dict(named.left_out), "num_controls": int((codes == CONTROL).sum())},
    )
    return replace(found, warnings=(*notes, *_doubts(found)))


def _check_numbers(codes: Int64, control: str, where: str) -> None:
    """Raise CorpusError without enough control cells, or without a perturbation that has enough cells."""
    num_controls = int((codes == CONTROL).sum())
    if num_controls < FEWEST_CONTROLS:
        raise CorpusError(
            f"{where}: {num_controls} control cells ({control!r}); at least {FEWEST_CONTROLS} are needed.",
            remedy="Name the control value with --control, or add control cells.",
        )
    if not (codes >= 0).any():
        raise CorpusError(
            f"{where}: no perturbation has {FEWEST_CELLS} cells.", remedy="Add cells, or name another column."
        )


def _expression(rna: RnaCells, kept: Int64, uri: str, notes: list[str]) -> sparse.csr_matrix:
    """The expression of the kept cells; a warning if the values are not counts."""
    expression = rna.rna.take(kept).expression.astype(np.float64)
    if not np.any(expression.data):
        raise CorpusError(f"{uri}: no cell has a count of RNA.", remedy="Give raw counts.")
    if rna.rna.log_normalised:
        notes.append(f"{uri}: the values have fractions, so they are taken as log-normalised and used as they are")
    return expression


def _without_rare(codes: Int64, names: Sequence[str], notes: list[str]) -> Int64:
    """Codes without those of perturbations that have too few cells."""
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    rare = [row for row in range(len(names)) if 0 < counts[row] < FEWEST_CELLS]
    if rare:
        some = ", ".join(names[row] for row in rare[:_SHOWN])
        notes.append(f"{len(rare)} perturbations with fewer than {FEWEST_CELLS} cells were left out ({some})")
    return np.where(np.isin(codes, rare), -2, codes)


def _batch_codes(batches: Sequence[str] | None, kept: Int64, codes: Int64, notes: list[str]) -> Int64 | None:
    """Codes of the batches of the kept cells; a warning names batches without controls."""
    if batches is None:
        return None
    names, found = np.unique(np.asarray(batches, str)[kept], return_inverse=True)
    without = sorted(set(range(len(names))) - set(found[codes == CONTROL].tolist()))
    if without:
        some = ", ".join(names[row] for row in without[:_SHOWN])
        notes.append(f"batches without control cells ({some}) are compared with all controls: their own effect remains")
    return found.astype(np.int64)


def _doubts(screen: Screen) -> list[str]:
    """Warnings about few genes, targets that were not measured, and conditions that are not genes."""
    found = []
    if len(screen.genes) < FEW_GENES:
        found.append(f"{len(screen.genes)} genes are few: correlations over them are uncertain")
    genes = [target for target in screen.targets if target in screen.known_genes]
    absent = [gene for gene in genes if not screen.own_columns([gene])]
    if absent:
        some = ", ".join(absent[:_SHOWN]) + (", …" if len(absent) > _SHOWN else "")
        found.append(f"{len(absent)} of {len(genes)} targets are not among the measured genes: {some}")
    others = [target for target in screen.targets if target not in screen.known_genes]
    if others:
        some = ", ".join(others[:_SHOWN]) + (", …" if len(others) > _SHOWN else "")
        found.append(f"not genes, taken as conditions of their own: {some}")
    return found
