"""A model that predicts proteins from RNA: fitted on CITE-seq, kept as a folder, used on cells without proteins.

model = ProteinModel.fit("cite.h5ad")
model.save("proteins")
predicted = ProteinModel.load("proteins").predict("cells.h5ad")
predicted.values, predicted.confidence  # (C, P) and the held-out correlation of each protein
"""

# C cells, G genes, P proteins

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.multiomic.assessment import FEWEST_CELLS, inner_rounds
from cytoray.tasks.multiomic.blending import Blend, fit_proteins
from cytoray.tasks.multiomic.model_files import load_model, save_model
from cytoray.tasks.multiomic.paired import PairedCells, RnaCells, build_proteins, build_rna, sum_columns
from cytoray.tasks.multiomic.protein_predictor import LEVEL, ProteinPrediction, ProteinPredictor
from cytoray.tasks.multiomic.reading import read_paired, read_rna


@dataclass(frozen=True, eq=False)
class ProteinModel(ProteinPredictor):
    """Predictors of P proteins that are fitted, kept and used on files and AnnData."""

    @classmethod
    def fit(
        cls,
        cells: Any,
        proteins: Any = None,
        *,
        names: Sequence[str] | None = None,
        batch_key: str | None = None,
        seed: int = 0,
    ) -> ProteinModel:
        """Fit on cells with RNA and proteins.

        ``cells`` is a file, with ``proteins`` the key of its proteins (found by name if None), or an AnnData, with
        ``proteins`` a key of its obsm, a table or an array, whose columns ``names`` may name. ``batch_key`` is a
        column of obs: what is chosen must then hold for batches not seen. Raises CorpusError for data that cannot be
        used.
        """
        if isinstance(cells, str | Path):
            paired = read_paired(str(cells), protein_key=proteins, batch_key=batch_key)
        else:
            paired = _paired(cells, proteins, names, batch_key)
        return fit_model(paired, seed=seed)

    def predict(self, cells: Any) -> ProteinPrediction:
        """Predict the proteins of a file of cells or an AnnData with counts or log-normalised expression in X.

        Genes are matched by name, if need be without regard to case. Raises CorpusError if more than half of the
        model's genes are missing; fewer of them have their training mean, with a warning.
        """
        return self.predict_rna(read_rna(str(cells)) if isinstance(cells, str | Path) else _rna(cells))

    def save(self, folder: str | Path) -> str:
        """Write the model as a folder, which appears only when complete, and return its digest."""
        return save_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> ProteinModel:
        """Load a model after verifying its digests; nothing in it can run code."""
        return load_model(Path(folder), cls)


def fit_model(cells: PairedCells, *, seed: int = 0) -> ProteinModel:
    """Fit a model on cells with RNA and proteins; see ``ProteinModel.fit``."""
    if cells.num_cells < FEWEST_CELLS:
        raise CorpusError(
            f"{cells.uri}: {cells.num_cells} cells with proteins; at least {FEWEST_CELLS} are needed.",
            remedy="Give more cells.",
        )
    rounds = inner_rounds(cells, elsewhere=True, seed=seed)  # cells to be predicted come from other experiments
    fitted = fit_proteins(cells.rna, cells.proteins.targets, rounds, seed=seed)
    used = {name: fitted.members[name] for name, weight in fitted.blend.weights.items() if np.any(weight > 0)}
    weights = {name: fitted.blend.weights[name] for name in used}
    facts = {
        "are_counts": cells.proteins.are_counts,
        "chosen": fitted.chosen,
        "digest_of_data": cells.digest,
        "num_cells": cells.num_cells,
        "scores": dict(fitted.scores),
        "seed": seed,
        "warnings": list(cells.warnings),
        "why": fitted.why,
    }
    return ProteinModel(
        tuple(cells.genes[place] for place in fitted.views.genes),
        cells.proteins.names,
        fitted.views.restricted(),
        used,
        Blend(weights, fitted.blend.intercept),
        np.nan_to_num(fitted.correlations),
        np.quantile(np.abs(fitted.residuals), LEVEL, axis=0),
        facts,
    )


def _rna(adata: Any) -> RnaCells:
    names, genes = (tuple(map(str, index)) for index in (adata.obs_names, adata.var_names))
    rna = build_rna(sparse.csr_matrix(adata.X), uri="AnnData", genes=genes, cells=names)
    values, genes = sum_columns(rna.values, genes)
    return RnaCells(Expression(values, rna.log_normalised), genes, names)


def _paired(adata: Any, proteins: Any, names: Sequence[str] | None, batch_key: str | None) -> PairedCells:
    """RNA and proteins of an AnnData."""
    if not hasattr(adata, "obsm"):
        raise CorpusError(f"These cells are a {type(adata).__name__}.", remedy="Give a file of cells or an AnnData.")
    table = adata.obsm.get(proteins) if isinstance(proteins, str) else proteins
    if table is None:
        raise CorpusError(
            f"No proteins under {proteins!r}.", remedy=f"Keys of obsm: {', '.join(adata.obsm) or 'none'}."
        )
    columns = names if names is not None else getattr(table, "columns", None)
    values = table.toarray() if sparse.issparse(table) else np.asarray(table)
    if values.ndim != 2 or len(values) != adata.n_obs:
        raise CorpusError(
            f"The proteins have shape {values.shape}, but there are {adata.n_obs} cells.", remedy="Give a row per cell."
        )
    columns = [f"protein_{place}" for place in range(values.shape[1])] if columns is None else list(map(str, columns))
    cells = _rna(adata)
    found, warnings = build_proteins(values, columns, uri="AnnData", cells=cells.names)
    batches = None if batch_key is None else tuple(map(str, adata.obs[batch_key]))
    return PairedCells(cells.rna, cells.genes, found, "AnnData", cells.names, batches=batches, warnings=tuple(warnings))
