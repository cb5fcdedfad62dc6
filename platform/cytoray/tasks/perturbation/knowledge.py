"""The views of genes that predictions rest on: gene sets, co-expression in control cells, embeddings, other screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cytoray.errors import CorpusError
from cytoray.evaluation.perturbation.effects import CONTROL, Effects, measure_effects
from cytoray.evaluation.perturbation.views import View, view_of_coexpression, view_of_sets, view_of_vectors
from cytoray.tasks.gene_sets import resolve_gene_sets
from cytoray.tasks.perturbation.reading import read_screen
from cytoray.tasks.perturbation.screen import Columns, Screen

SHIPPED = ("go_bp", "go_bp_immune", "hallmark", "reactome", "wikipathways")
COEXPRESSION, EMBEDDING = "co-expression", "model"
MOST_CELLS, MOST_GENES = 2_000, 2_000  # of control cells and the most variable genes that co-expression is taken from


def build_views(
    screen: Screen,
    *,
    gene_sets: Sequence[str] = (),
    embeddings: tuple[Sequence[str], npt.NDArray[np.floating]] | None = None,
    others: Sequence[str] = (),
    columns: Columns | None = None,
    seed: int = 0,
) -> dict[str, View]:
    """Return the views by name; those that know none of the targets are left out.

    ``gene_sets`` are names of packaged collections or .gmt files beside SHIPPED, ``embeddings`` genes and their
    vectors, ``others`` files of other screens with the same ``columns``.
    """
    names = dict.fromkeys([*SHIPPED, *gene_sets])
    views: dict[str, View] = {}
    for source in names:
        sets = resolve_gene_sets(source)
        views[_free(sets.name, views)] = view_of_sets(sets.name, sets.members)
    views[COEXPRESSION] = _coexpression(screen, seed)
    if embeddings is not None:
        views[EMBEDDING] = view_of_vectors(EMBEDDING, *embeddings)
    for number, uri in enumerate(others, 1):
        assert columns is not None, "other screens are read by the same columns"
        views[f"screen {number}"] = _view_of_screen(f"screen {number}", uri, columns)
    return {name: view for name, view in views.items() if any(map(view.knows, screen.targets))}


def view_warnings(screen: Screen, views: Mapping[str, View]) -> list[str]:
    """Return a warning about targets that no view knows: they are predicted as the mean of the others."""
    unknown = [target for target in screen.targets if not any(view.knows(target) for view in views.values())]
    if not unknown:
        return []
    some = ", ".join(unknown[:8]) + (", …" if len(unknown) > 8 else "")
    return [f"{len(unknown)} targets are in no gene set or other view and are predicted as the mean: {some}"]


def control_means(screen: Screen) -> npt.NDArray[np.float64]:
    """Return the mean expression (G,) of the control cells."""
    rows = np.flatnonzero(screen.cells.codes == CONTROL)
    return np.asarray(screen.cells.expression[rows].mean(axis=0), np.float64).ravel()


def _coexpression(screen: Screen, seed: int) -> View:
    rows = np.flatnonzero(screen.cells.codes == CONTROL)
    if len(rows) > MOST_CELLS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_CELLS])
    values = screen.cells.expression[rows]
    variances = np.asarray(values.multiply(values).mean(axis=0) - np.square(values.mean(axis=0))).ravel()
    order = np.argsort(-variances, kind="stable")[:MOST_GENES]
    own = screen.own_columns(screen.targets)
    genes = np.unique(np.concatenate([order, np.array(own, np.int64)]))
    return view_of_coexpression(COEXPRESSION, [screen.symbols[gene] for gene in genes], values[:, genes].tocsr())


def _view_of_screen(name: str, uri: str, columns: Columns) -> View:
    """The view of the effects of single genes in another screen, less what they share."""
    other = read_screen(uri, columns)
    effects: Effects = measure_effects(other.cells)
    rows = [row for row, parts in enumerate(other.parts) if len(parts) == 1]
    if len(rows) < 3:
        raise CorpusError(f"{uri}: {len(rows)} single perturbations; a screen needs 3.", remedy="Leave it out.")
    return view_of_vectors(name, [other.parts[row][0] for row in rows], effects.deltas[rows])


def _free(name: str, taken: Mapping[str, View]) -> str:
    """A name that is not taken."""
    number, found = 2, name
    while found in taken:
        found, number = f"{name} {number}", number + 1
    return found
