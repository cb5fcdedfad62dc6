"""The views of genes that predictions rest on: gene sets, co-expression in control cells, embeddings, other screens."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cytoray import storage
from cytoray.errors import CorpusError
from cytoray.evaluation.perturbation.blending import FEWEST_JUDGED
from cytoray.evaluation.perturbation.effects import CONTROL, Effects, measure_effects
from cytoray.evaluation.perturbation.views import View, view_of_coexpression, view_of_sets, view_of_vectors
from cytoray.registry.opening import OpenedModel
from cytoray.tasks.gene_sets import resolve_gene_sets
from cytoray.tasks.perturbation.members import Generated, GeneratorUse, Members
from cytoray.tasks.perturbation.reading import read_screen
from cytoray.tasks.perturbation.screen import Columns, Screen
from cytoray.tasks.pieces import Pieces

if TYPE_CHECKING:
    from cytoray.tasks.perturbation.generator import Generator

SHIPPED = ("go_bp", "go_bp_immune", "hallmark", "reactome", "wikipathways")
COEXPRESSION, EMBEDDING = "co-expression", "model"
MOST_CELLS, MOST_GENES = 2_000, 2_000  # of control cells and the most variable genes that co-expression is taken from


def build_views(
    screen: Screen,
    *,
    gene_sets: Sequence[str] = (),
    model: OpenedModel | None = None,
    others: Sequence[str] = (),
    columns: Columns | None = None,
    seed: int = 0,
) -> dict[str, View]:
    """Return the views by name; those that know none of the targets are left out.

    ``gene_sets`` are names of packaged collections or .gmt files beside SHIPPED, ``model`` one whose vectors of genes
    are a view, ``others`` files of other screens with the same ``columns``.
    """
    names = dict.fromkeys([*SHIPPED, *gene_sets])
    views: dict[str, View] = {}
    for source in names:
        sets = resolve_gene_sets(source)
        views[_free(sets.name, views)] = view_of_sets(sets.name, sets.members)
    views[COEXPRESSION] = _coexpression(screen, seed)
    if model is not None:
        from cytoray.model.gene_embeddings import static_gene_embeddings

        embeddings = static_gene_embeddings(model.bundle)
        views[EMBEDDING] = view_of_vectors(EMBEDDING, embeddings.names, embeddings.values)
    for number, uri in enumerate(others, 1):
        assert columns is not None, "other screens are read by the same columns"
        views[f"screen {number}"] = _view_of_screen(f"screen {number}", uri, columns)
    return {name: view for name, view in views.items() if any(map(view.knows, screen.targets))}


def build_members(
    screen: Screen,
    *,
    gene_sets: Sequence[str] = (),
    model: OpenedModel | None = None,
    others: Sequence[str] = (),
    columns: Columns | None = None,
    pieces: Pieces | None = None,
    seed: int = 0,
) -> tuple[Members, list[str]]:
    """Return the views and, if ``model`` is a generator, its effects of targets that are new to it; and warnings.

    Nothing of a generator that was trained on a target is used for it: neither its effect, which would look better
    than it is, nor the vectors of genes that training changed.
    """
    from cytoray.tasks.perturbation.generator import find_generator

    generator = None if model is None else find_generator(model.bundle, lasting_uri(model))
    seen = [] if generator is None else [target for target in screen.targets if target.upper() in generator.trained_on]
    views = build_views(
        screen,
        gene_sets=gene_sets,
        model=None if seen else model,
        others=others,
        columns=columns,
        seed=seed,
    )
    warnings = view_warnings(screen, views)
    if model is None or generator is None:
        return Members(views), warnings
    new = [target for target in screen.targets if target not in seen]
    work = functools.partial(_generate, generator, screen, new, seed)
    generated, _ = (pieces or Pieces()).compute("generator", work, kinds=(Generated, GeneratorUse))
    return Members(views, generated), warnings + _generator_warnings(model.uri, screen, seen, generated)


def _generate(generator: Generator, screen: Screen, targets: Sequence[str], seed: int) -> Generated:
    controls = screen.cells.expression[np.flatnonzero(screen.cells.codes == CONTROL)].tocsr()
    use = generator.prepare(controls, screen.symbols, seed=seed)
    return Generated(use, generator.effects(use, screen.symbols, targets))


def _generator_warnings(uri: str, screen: Screen, seen: Sequence[str], generated: Generated) -> list[str]:
    found = []
    if seen:
        found.append(
            f"{uri} was trained on {len(seen)} of the {len(screen.targets)} targets ({_some(seen)}): it is not used "
            "for these, and its vectors of genes are not a view"
        )
    unknown = [target for target in screen.targets if target not in seen and target not in generated.effects]
    if unknown:
        found.append(f"{uri} does not know {_some(unknown)}: predicted without it")
    if len(generated.effects) < FEWEST_JUDGED:
        found.append(
            f"{uri} can be judged by {len(generated.effects)} targets that it was not trained on; {FEWEST_JUDGED} are "
            "needed, so it is not used"
        )
    return found


def _some(names: Sequence[str], *, most: int = 20) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def lasting_uri(model: OpenedModel) -> str:
    """Return a URI by which a model is found later, from elsewhere: of a run its bundle, of an alias its version."""
    if model.record is not None:
        return model.record.uri
    if model.registered is not None:
        return f"models:/{model.registered.name}/{model.registered.version}"
    return model.uri if storage.is_remote(model.uri) else str(storage.local_path(model.uri).resolve())


def view_warnings(screen: Screen, views: Mapping[str, View]) -> list[str]:
    """Return a warning about targets that no view knows: they are predicted as the mean of the others."""
    unknown = [target for target in screen.targets if not any(view.knows(target) for view in views.values())]
    if not unknown:
        return []
    some = _some(unknown, most=8)
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
