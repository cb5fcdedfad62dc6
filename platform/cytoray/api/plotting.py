"""Draw cell embeddings in the UMAP plane, coloured by obs or a gene, without changing the AnnData."""

# C cells, D width

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cytoray.errors import CorpusError, ModelError
from cytoray.evaluation.figures import picture_format, save_figure

if TYPE_CHECKING:
    import anndata
    from matplotlib.figure import Figure

FEWEST_CELLS = 10  # fewer have too few neighbours for UMAP


def plot_plane(
    adata: anndata.AnnData, embeddings: npt.NDArray[np.float32], *, color: str | None, file: str | Path | None
) -> Figure:
    """Draw the embeddings (C, D) of the cells of ``adata``; cells whose embedding is NaN are left out.

    Raises ModelError for embeddings of other cells, and for fewer than ten cells.
    """
    import anndata
    import scanpy
    from matplotlib import pyplot

    if embeddings.ndim != 2 or len(embeddings) != adata.n_obs:
        raise ModelError(
            f"The embeddings have shape {embeddings.shape}, for {adata.n_obs:,} cells.",
            remedy="Give one row for each cell of this AnnData.",
        )
    rows = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    if len(rows) < FEWEST_CELLS:
        raise ModelError(f"Only {len(rows)} cells have an embedding.", remedy=f"Plot {FEWEST_CELLS} or more.")
    colors = [] if color is None else [color]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap's, of threads and missing libraries: nothing that a user could mend
        obs = scanpy.get.obs_df(adata, colors).iloc[rows] if colors else adata.obs[[]].iloc[rows]
        copy = anndata.AnnData(obs=obs.copy(), obsm={"X_scGPT": embeddings[rows]})
        scanpy.pp.neighbors(copy, use_rep="X_scGPT", n_neighbors=min(15, len(rows) - 1), random_state=0)
        scanpy.tl.umap(copy, random_state=0)
        figure: Figure = scanpy.pl.umap(copy, color=color, show=False, return_fig=True)
        pyplot.close(figure)  # pyplot would keep it, and show it twice in a notebook
        if file is not None:
            save_figure(figure, Path(file), bbox_inches="tight")
    return figure


def check_request(adata: anndata.AnnData, *, color: str | None, file: str | Path | None) -> None:
    """CorpusError if ``color`` is neither a column of obs nor a gene, ConfigError for a kind of file unknown here."""
    if file is not None:
        picture_format(Path(file))
    if color is not None and color not in adata.obs and color not in adata.var_names:
        columns = [str(name) for name in adata.obs.columns]
        raise CorpusError(
            f"color: {color!r} is neither a column of obs nor a gene.",
            remedy=f"Columns of obs: {', '.join(columns) or 'none'}.",
            columns=columns,
        )
