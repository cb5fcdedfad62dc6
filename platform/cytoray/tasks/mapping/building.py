"""Build a reference from labelled cells, and map a query among them."""

# C cells, R cells of the reference, S sampled ones

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import progress
from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.plots import place_in_plane
from cytoray.evaluation.splits import few_labels
from cytoray.evaluation.stacking import Choice
from cytoray.evaluation.voters import Expression
from cytoray.model.predictor import CellPredictor
from cytoray.registry.opening import OpenedModel
from cytoray.tasks.mapping.cells import MapCells, keep_genes
from cytoray.tasks.mapping.fitting import Embed, Fitted, fit_mapper, num_steps
from cytoray.tasks.mapping.index import IndexKind, build_index
from cytoray.tasks.mapping.mapper import CHUNK, Mapped, Mapper
from cytoray.tasks.mapping.packing import KINDS
from cytoray.tasks.mapping.reference import Reference
from cytoray.tasks.mapping.votes import num_neighbours, project
from cytoray.tasks.pieces import Pieces
from cytoray.tokens.cells import SparseCells

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
MOST_SAMPLED = 20_000  # cells that voters are fitted to, and that are kept for queries with fewer genes
FEWEST_CELLS, FEWEST_GENES = 10, 10
COVERED = 0.95  # share of a reference cell's counts in the query's genes, below which a mapper is fitted anew
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MappedQuery:
    """Answers to a query, and the reference that gave them: the one asked, or one refitted to the query's genes."""

    mapped: Mapped
    reference: Reference
    coverage: float  # share of a usual reference cell's counts that are in the query's genes
    refitted: bool
    answered: npt.NDArray[np.bool_]  # (C,) False for cells without a gene of the reference
    warnings: tuple[str, ...] = ()


def embed_with(model: OpenedModel) -> Embed:
    """Return a function that gives the model's embeddings of cells (C, D); zeros for a cell without genes."""
    predictor = CellPredictor(model.bundle, empty_cells="nan")

    def embed(cells: Expression) -> Float32:
        """Embed cells over the model's vocabulary."""
        matrix = cells.values.sorted_indices()
        ids = np.zeros(matrix.shape[0], np.uint64)
        sparse_cells = SparseCells(
            matrix.indices.astype(np.int32), matrix.data.astype(np.float32), matrix.indptr.astype(np.int64), ids
        )
        return np.nan_to_num(predictor.predict(sparse_cells).embeddings)

    return embed


def build_reference(
    cells: MapCells,
    *,
    embed: Embed | None = None,
    about: dict[str, Any] | None = None,
    space: str | None = None,
    index: IndexKind | None = None,
    seed: int = 0,
    with_map: bool = True,
    pieces: Pieces | None = None,
    advance: progress.Advance = progress.silent,
) -> Reference:
    """Build a reference of labelled cells; space and blend are chosen on their folds, see ``fit_mapper``.

    A fit that is among the ``pieces`` is not computed again. Raises CorpusError for fewer than ten cells.
    """
    cells = cells.take(np.flatnonzero(~cells.is_empty))
    if len(cells.names) < FEWEST_CELLS:
        raise CorpusError(
            f"{len(cells.names)} labelled cells have a gene that is known; a reference needs {FEWEST_CELLS}.",
            remedy="Give more cells, or check the names of the genes.",
        )
    names = np.asarray([str(label) for label in cells.labels])
    labels = tuple(map(str, np.unique(names)))
    codes = np.searchsorted(np.asarray(labels), names).astype(np.int64)
    rows = np.arange(len(codes))
    if len(rows) > MOST_SAMPLED:
        rows = few_labels(list(names), fraction=MOST_SAMPLED / len(rows), seed=seed).train
    some = cells.take(rows)
    fitted = _fit(
        some.expression, codes[rows], labels, (some.batches, embed, seed, space), Steps("fit", pieces, advance)
    )
    mapper = replace(
        fitted.mapper,
        counts=np.bincount(codes, minlength=len(labels)),
        num_neighbours=num_neighbours(len(codes)),
    )
    points = _points(mapper, cells.expression, embed)
    advance(1, "index")
    plane = _plane(points, rows) if with_map else np.zeros((len(points), 2))
    advance(1, "map")
    meta = pd.DataFrame(
        {
            "ref_id": cells.names,
            "label": names,
            "batch": cells.batches if cells.batches is not None else [""] * len(names),
            "source": cells.sources,
            "x": plane[:, 0],
            "y": plane[:, 1],
        }
    )
    measured = np.ones(cells.expression.values.shape[1], bool) if cells.measured is None else cells.measured
    described = {"model": None, **(about or {}), "space": mapper.space.name, "why_space": fitted.why_space}
    described |= {"chosen": fitted.choice.chosen, "why": fitted.choice.why, "scores": fitted.choice.scores}
    described |= {"space_scores": fitted.space_scores, "seed": seed}
    built = build_index(points, kind=index)
    return Reference(mapper, built, meta, some.expression, rows, measured, described)


def map_query(
    reference: Reference, query: MapCells, *, embed: Embed | None = None, pieces: Pieces | None = None
) -> MappedQuery:
    """Map a query; if it lacks genes, by a mapper that is fitted anew to the genes of both on the sampled cells.

    A fit that is among the ``pieces`` is not computed again. Raises CorpusError if query and reference share fewer than
    ten genes.
    """
    measured = np.ones(len(reference.measured), bool) if query.measured is None else query.measured
    common = measured & reference.measured & (reference.mapper.shares > 0)
    if (num_common := int(common.sum())) < FEWEST_GENES:
        name = query.sources[0] if query.sources else "no cells"
        raise CorpusError(
            f"The query ({name}) and the reference share {num_common} genes, of at least {FEWEST_GENES} needed.",
            remedy="Check the names of the genes, and that both are of one species.",
        )
    if reference.mapper.space.uses_embeddings and embed is None:
        raise ConfigError("This reference needs its model.", remedy="Name it with --model.")
    coverage, warnings = reference.mapper.coverage(common), []
    cells = Expression(keep_genes(query.expression.values, common))
    refitted = coverage < COVERED
    if refitted:
        reference = _refit(reference, common, embed, pieces)
        warnings.append(
            f"the query measured genes with {100 * coverage:.0f} % of a reference cell's counts: neighbours and votes "
            f"were fitted to these genes, on {len(reference.rows):,} reference cells"
        )
    cells = reference.mapper.query(cells, None if common[reference.mapper.shares > 0].all() else common)
    embeddings = embed(query.expression) if embed is not None and reference.mapper.space.uses_embeddings else None
    mapped = reference.mapper.map(
        cells, embeddings, index=reference.index, codes_R=reference.codes, plane_R=reference.plane
    )
    answered = np.diff(cells.values.indptr) > 0
    if (empty := int((~answered).sum())) > 0:
        warnings.append(f"{empty} cells have no gene of the reference; their answers are null")
    if answered.any() and (share := float(mapped.unassigned[answered].mean())) > 0.3:
        warnings.append(
            f"{100 * share:.0f} % of the cells are unassigned: the query may be of another tissue or technology"
        )
    return MappedQuery(mapped, reference, coverage, refitted, answered, tuple(warnings))


def _refit(
    reference: Reference, common: npt.NDArray[np.bool_], embed: Embed | None, pieces: Pieces | None
) -> Reference:
    """The sampled reference cells, fitted to the genes of a query in the same space; the map stays as it is."""
    cells = Expression(keep_genes(reference.sample.values, common))
    kept = np.flatnonzero(np.diff(cells.values.indptr) > 0)
    cells, rows = cells.take(kept), reference.rows[kept]
    meta = reference.meta.iloc[rows].reset_index(drop=True)
    labels = tuple(map(str, np.unique(meta["label"].to_numpy(str))))
    codes = np.searchsorted(np.asarray(labels), meta["label"].to_numpy(str)).astype(np.int64)
    batches = tuple(meta["batch"]) if meta["batch"].nunique() > 1 else None
    uses = embed if reference.mapper.space.uses_embeddings else None
    with progress.stage("fit to the query's genes", total=3, unit="steps", brief=True) as advance:
        steps = Steps("fit to the query's genes", pieces, advance)
        fitted = _fit(cells, codes, labels, (batches, uses, reference.about["seed"], None), steps)
    index = build_index(_points(fitted.mapper, cells, uses))
    return replace(reference, mapper=fitted.mapper, index=index, meta=meta, sample=cells, rows=np.arange(len(rows)))


@dataclass(frozen=True)
class Steps:
    """The name of a fit, where finished fits are kept, and who is told of its steps."""

    name: str
    pieces: Pieces | None
    advance: progress.Advance


def _fit(
    cells: Expression,
    codes: npt.NDArray[np.int64],
    labels: tuple[str, ...],
    how: tuple[tuple[str, ...] | None, Embed | None, int, str | None],
    steps: Steps,
) -> Fitted:
    batches, embed, seed, space = how

    def fit() -> Fitted:
        """Fit a mapper."""
        return fit_mapper(
            cells, codes, labels, batches=batches, embed=embed, seed=seed, space=space, advance=steps.advance
        )

    if steps.pieces is None:
        return fit()
    found, reused = steps.pieces.compute(steps.name, fit, kinds=(*KINDS.values(), Fitted, Choice))
    if reused:
        steps.advance(num_steps(), steps.name, already=True)
    return found


def _points(mapper: Mapper, cells: Expression, embed: Embed | None) -> Float32:
    """Unit vectors of all cells, a part of them at a time."""
    parts = []
    for start in range(0, cells.num_cells, CHUNK):
        some = cells.take(np.arange(start, min(start + CHUNK, cells.num_cells)))
        embeddings = embed(some) if embed is not None and mapper.space.uses_embeddings else None
        parts.append(mapper.space.points(mapper.space.features.transform(some), embeddings))
    return np.concatenate(parts)


def _plane(points: Float32, rows: npt.NDArray[np.int64]) -> Float64:
    """Places of all cells: of the sampled ones by UMAP, of the others the mean of their neighbours'."""
    some, _ = place_in_plane(points[rows])
    if len(rows) == len(points):
        return np.asarray(some, np.float64)
    neighbours, distances = build_index(points[rows]).search(points, num_neighbours(len(rows)))
    plane = project(distances, np.asarray(some, np.float64)[neighbours])
    plane[rows] = some
    return plane
