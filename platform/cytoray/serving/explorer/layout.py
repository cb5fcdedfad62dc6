"""Lay a session's cells out in the plane, in a process of its own: principal components at once, then UMAP.

``python -m cytoray.serving.explorer.layout FOLDER OPTIONS`` is started by `explorer.work`.
"""

# C cells, D width, P principal components, N neighbours

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cytoray.serving.explorer.child import Report, child_main
from cytoray.serving.explorer.columns import save_layout
from cytoray.serving.explorer.layout_inputs import read_embeddings
from cytoray.serving.explorer.sessions import Session

Float32 = npt.NDArray[np.float32]
NUM_COMPONENTS = 50
NUM_NEIGHBOURS = 15
FEWEST_CELLS = 10  # for UMAP
EXACT_CELLS = 20_000  # up to which neighbours are searched exhaustively


def lay_out(folder: Path, options: dict[str, Any], report: Report) -> None:
    """Lay out the embeddings of the cells; each layout is reported by name as soon as it is there."""
    embeddings = read_embeddings(folder)
    there = np.isfinite(embeddings[:, 0])
    components = principal_components(embeddings[there])
    _save(folder, "pca", components[:, :2], there)
    report({"layout": "pca"})
    if len(components) >= FEWEST_CELLS and np.ptp(components, axis=0).max() > 0:
        _save(folder, "umap", umap_of(components), there)
        report({"layout": "umap"})


def principal_components(values_CD: Float32) -> Float32:
    """Return the first components (C, P), at least two columns."""
    centred = values_CD - values_CD.mean(axis=0)
    covariance = centred.T @ centred / max(1, len(centred))
    _, vectors = np.linalg.eigh(covariance.astype(np.float64))
    found = (centred @ vectors[:, ::-1][:, :NUM_COMPONENTS].astype(np.float32)).astype(np.float32)
    return np.pad(found, ((0, 0), (0, max(0, 2 - found.shape[1]))))


def umap_of(values_CP: Float32) -> Float32:
    """Return places (C, 2) by UMAP, the same for the same cells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        import umap  # seconds of numba compilation

    count = min(NUM_NEIGHBOURS, len(values_CP) - 1)
    places, distances = nearest_neighbours(values_CP, count)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")  # new cells are never placed in this layout
        reducer = umap.UMAP(
            n_neighbors=count, min_dist=0.3, init="pca", random_state=0, n_jobs=1, precomputed_knn=(places, distances)
        )
        return np.asarray(reducer.fit_transform(values_CP), np.float32)


def nearest_neighbours(values_CP: Float32, count: int) -> tuple[npt.NDArray[np.int64], Float32]:
    """Return places and distances (C, N) of the nearest cells of each cell, itself first."""
    values = np.ascontiguousarray(values_CP)
    if len(values) <= EXACT_CELLS:
        index: Any = faiss.IndexFlatL2(values.shape[1])
    else:
        num_lists = int(np.sqrt(len(values)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(values.shape[1]), values.shape[1], num_lists)
        index.train(values)
        index.nprobe = max(8, num_lists // 12)
    index.add(values)
    squares, places = index.search(values, count)
    # Cells with equal embeddings may come in any order; UMAP expects each cell to be its own first neighbour.
    own = np.arange(len(values))
    for row in np.flatnonzero(places[:, 0] != own):
        at = np.flatnonzero(places[row] == row)
        places[row, at[0] if len(at) else -1] = places[row, 0]
        places[row, 0] = row
    return places, np.sqrt(np.maximum(squares, 0)).astype(np.float32)


def _save(folder: Path, name: str, places_C2: Float32, there: npt.NDArray[np.bool_]) -> None:
    whole = np.full((len(there), 2), np.nan, np.float32)
    whole[there] = places_C2
    save_layout(Session(folder), name, whole)


if __name__ == "__main__":
    child_main(lay_out)
