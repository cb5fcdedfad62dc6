"""What predictors of proteins see of a cell: components of expression and ranks, a panel of genes, an embedding.

    views = fit_views(rna, targets, seed=0)
    inputs = views.transform(other_rna)  # {"expression": (C, F), "ranks": ..., "panel": ...}

All that is learned is arrays.
"""

# C cells, G genes, P proteins, F features, M genes of the panel, D dimensions of an embedding

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression, GeneFeatures, View, fit_components
from cytoray.tasks.multiomic.paired import Float32, Float64, Int64

NUM_COMPONENTS = 50
NUM_GENES = 4000  # of which components are taken; a T cell's CD4 is not among the 2,000 most variable ones
NUM_LEADING = 30  # components that small networks see
GENES_PER_PROTEIN, MOST_PANEL_GENES = 10, 300
Inputs = Mapping[str, Float32]
_COMPONENT_VIEWS: tuple[View, View] = ("expression", "ranks")


@dataclass(frozen=True, eq=False)
class Standard:
    """Centre and scale of the dimensions of an embedding."""

    centre: Float32  # (D,)
    scale: np.float32  # one of all dimensions, so that their proportions stay

    def transform(self, values_CD: Float32) -> Float32:
        """Return centred and scaled values."""
        found: Float32 = ((values_CD - self.centre) / self.scale).astype(np.float32)
        return found


@dataclass(frozen=True, eq=False)
class Views:
    """Fitted views of cells; ``num_genes`` is that of the matrix they were fitted on."""

    expression: GeneFeatures
    ranks: GeneFeatures
    panel: GeneFeatures  # without axes: standardised expression of single genes
    embedding: Standard | None
    num_genes: int

    def transform(self, rna: Expression, embeddings: Float32 | None = None) -> dict[str, Float32]:
        """Return the inputs of predictors by the name of the view, each (C, F)."""
        views = {"expression": self.expression, "ranks": self.ranks, "panel": self.panel}
        inputs = {name: features.transform(rna) for name, features in views.items()}
        if self.embedding is not None:
            assert embeddings is not None, "these views have an embedding"
            inputs["embedding"] = self.embedding.transform(embeddings)
        return inputs

    @property
    def genes(self) -> Int64:
        """Columns of the genes that any view uses, ascending."""
        return np.unique(np.concatenate([self.expression.genes, self.ranks.genes, self.panel.genes]))

    def restricted(self) -> Views:
        """Return the views over their own genes alone, in the order of ``genes``."""
        place = np.full(self.num_genes, -1, np.int64)
        place[self.genes] = np.arange(len(self.genes))
        moved = {
            name: replace(features, genes=place[features.genes])
            for name, features in (("expression", self.expression), ("ranks", self.ranks), ("panel", self.panel))
        }
        return replace(self, **moved, num_genes=len(self.genes))  # type: ignore[arg-type]

    def without(self, missing: npt.NDArray[np.bool_]) -> Views:
        """Return views in which missing genes (G,) have their training mean, whatever their columns hold."""
        changed = {}
        for name, features in (("expression", self.expression), ("ranks", self.ranks), ("panel", self.panel)):
            # Their columns are empty: with a centre of 0 their standardised values are 0.
            changed[name] = replace(features, centre=np.where(missing[features.genes], 0, features.centre))
        return replace(self, **changed)  # type: ignore[arg-type]


def fit_views(rna: Expression, targets_CP: Float64, *, embeddings: Float32 | None = None, seed: int = 0) -> Views:
    """Fit the views on training cells; ``targets_CP`` choose the genes of the panel. CorpusError if no gene varies."""
    shares = np.asarray((rna.values != 0).sum(axis=0)).ravel()
    if not shares.any() or rna.num_cells < 2 or not _varies(rna.values):
        raise CorpusError(
            f"No gene differs between the {rna.num_cells} training cells.", remedy="Give more cells, of raw counts."
        )
    with threadpool_limits(1):
        expression, ranks = (_fit_scaled_components(rna, view, seed) for view in _COMPONENT_VIEWS)
        panel = _fit_panel(rna, expression, targets_CP)
    return Views(expression, ranks, panel, _standard(embeddings), int(rna.values.shape[1]))


def _fit_scaled_components(rna: Expression, view: View, seed: int) -> GeneFeatures:
    """Components of which the first ones have a standard deviation of 1 on average."""
    found = fit_components(rna, view=view, num_components=NUM_COMPONENTS, num_genes=NUM_GENES, seed=seed)
    spread = float(found.transform(rna)[:, :NUM_LEADING].std(axis=0).mean()) or 1.0
    assert found.axes is not None
    return replace(found, axes=found.axes / np.float32(spread))


def _fit_panel(rna: Expression, expression: GeneFeatures, targets_CP: Float64) -> GeneFeatures:
    """The genes that correlate best with each protein: the best one of every protein first, up to a number."""
    values = sparse.csr_matrix(rna.expression[:, expression.genes])
    centred = targets_CP - targets_CP.mean(axis=0)
    products_GP = np.abs(values.T @ (centred / np.maximum(centred.std(axis=0), 1e-12))) / expression.scale[:, None]
    best_NP = np.argsort(-products_GP, axis=0, kind="stable")[:GENES_PER_PROTEIN]
    chosen = list(dict.fromkeys(best_NP.ravel().tolist()))[:MOST_PANEL_GENES]
    places = np.sort(np.array(chosen, np.int64))
    return GeneFeatures("expression", expression.genes[places], expression.centre[places], expression.scale[places])


def _standard(embeddings: Float32 | None) -> Standard | None:
    if embeddings is None:
        return None
    centre = embeddings.mean(axis=0)
    spread = float(np.sqrt((embeddings - centre).var(axis=0).mean())) or 1.0
    return Standard(centre.astype(np.float32), np.float32(spread))


def _varies(values: sparse.csr_matrix) -> bool:
    """Whether any gene differs between two cells."""
    return bool((np.abs(values.max(axis=0).toarray() - values.min(axis=0).toarray()) > 0).any())
