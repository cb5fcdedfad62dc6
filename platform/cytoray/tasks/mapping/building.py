"""Build a reference from labelled cells."""

# R cells of the reference, S sampled ones

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import progress
from cytoray.errors import CorpusError
from cytoray.evaluation.plots import place_in_plane
from cytoray.evaluation.splits import few_labels
from cytoray.tasks.mapping.fitting import FitMapper, fit_mapper
from cytoray.tasks.mapping.index import IndexKind, build_index
from cytoray.tasks.mapping.inputs import MapCells
from cytoray.tasks.mapping.mapper import Embed
from cytoray.tasks.mapping.querying import FEWEST_GENES
from cytoray.tasks.mapping.reference import Reference
from cytoray.tasks.mapping.votes import num_neighbours, project

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
MOST_SAMPLED = 20_000  # cells that voters are fitted to, and that are kept for queries with fewer genes
FEWEST_CELLS = 10


def build_reference(
    cells: MapCells,
    *,
    embed: Embed | None = None,
    about: dict[str, Any] | None = None,
    space: str | None = None,
    index: IndexKind | None = None,
    seed: int = 0,
    with_map: bool = True,
    fit: FitMapper = fit_mapper,
    advance: progress.Advance = progress.silent,
) -> Reference:
    """Build a reference of labelled cells; space and blend are chosen on their folds, see ``fit_mapper``.

    Raises CorpusError for fewer than ten cells or genes.
    """
    cells = _usable(cells)
    names = np.asarray([str(label) for label in cells.labels])
    labels = tuple(map(str, np.unique(names)))
    codes = np.searchsorted(np.asarray(labels), names).astype(np.int64)
    rows = np.arange(len(codes))
    if len(rows) > MOST_SAMPLED:
        rows = few_labels(list(names), fraction=MOST_SAMPLED / len(rows), seed=seed).train
    some = cells.take(rows)
    fitted = fit(
        some.expression, codes[rows], labels,
        batches=some.batches, embed=embed, seed=seed, space=space, advance=advance,
    )  # fmt: skip
    mapper = replace(
        fitted.mapper,
        counts=np.bincount(codes, minlength=len(labels)),
        num_neighbours=num_neighbours(len(codes)),
    )
    points = mapper.points(cells.expression, embed)
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


def _usable(cells: MapCells) -> MapCells:
    """Return the cells that have a known gene; CorpusError if cells or genes are too few."""
    cells = cells.take(np.flatnonzero(~cells.is_empty))
    if len(cells.names) < FEWEST_CELLS:
        raise CorpusError(
            f"{len(cells.names)} labelled cells have a gene that is known; a reference needs {FEWEST_CELLS}.",
            remedy="Give more cells, or check the names of the genes.",
        )
    if (num_genes := int(cells.expressed.sum())) < FEWEST_GENES:
        raise CorpusError(
            f"The cells express {num_genes} known genes; a reference needs {FEWEST_GENES}.",
            remedy="Give the whole expression of the cells, or check the names of the genes.",
        )
    return cells


def _plane(points: Float32, rows: npt.NDArray[np.int64]) -> Float64:
    """Places of all cells: of the sampled ones by UMAP, of the others the mean of their neighbours'."""
    some, _ = place_in_plane(points[rows])
    if len(rows) == len(points):
        return np.asarray(some, np.float64)
    neighbours, distances = build_index(points[rows]).search(points, num_neighbours(len(rows)))
    plane = project(distances, np.asarray(some, np.float64)[neighbours])
    plane[rows] = some
    return plane
