"""A small model that answers every endpoint, with what each answers by beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import planted_batches
import planted_network
import planted_proteins
import planted_reference
import planted_screen

import cytoray
from cytoray.api.sources import open_cells
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.tasks.attaching import attach
from cytoray.tasks.integration.model import IntegrationModel
from cytoray.tasks.integration.reading import read_from
from cytoray.tasks.integration.recipe import Recipe
from cytoray.tasks.mapping.reference import save_reference
from cytoray.tasks.multiomic import assessment
from cytoray.tasks.perturbation import knowledge

BATCHES = planted_batches.planted((60, 60))
PAGE_GENES = ("CD3D", "CD3E", "IL7R", "LYZ")  # of docs/serving-routes.md
GENES = tuple(
    dict.fromkeys(
        (
            *PAGE_GENES,
            *planted_reference.GENES,
            *planted_screen.GENES,
            *planted_network.GENES,
            *planted_proteins.GENES,
            *BATCHES.var_names,
        )
    )
)
LABELS = ("B", "NK", "T")


@dataclass(frozen=True)
class FullModel:
    """The folders of a bundle and of what it carries."""

    folder: Path

    @property
    def bundle(self) -> Path:
        """The bundle."""
        return self.folder / "bundle"

    def load(self) -> ModelBundle:
        """Load the bundle."""
        return load_bundle(self.bundle)


def build_full_model(folder: Path) -> FullModel:
    """Fit small models of everything, and attach them to one model."""
    bundle = planted_reference.build_bundle(genes=GENES, labels=LABELS)
    save_reference(planted_reference.build_planted(bundle), str(folder / "reference"))
    with mock.patch.object(knowledge, "SHIPPED", ()):
        sets = [str(planted_screen.write_sets(folder))]
        cytoray.PerturbationModel.fit(planted_screen.screen(15), gene_sets=sets).save(folder / "perturbations")
    planted_network.build(100).write_h5ad(folder / "network.h5ad")
    cytoray.infer_networks(
        str(folder / "network.h5ad"), out=str(folder / "networks"), num_trees=5, pool_size=1, gene_sets="none"
    )
    with mock.patch.object(assessment, "NUM_FOLDS", 2):  # networks of the usual size: a service loads them
        cytoray.ProteinModel.fit(planted_proteins.build(100), "protein_counts").save(folder / "proteins")
    recipe = Recipe("planted", views=("expression", "scaled"), alignments=1, smoothing=0.5)
    IntegrationModel.fit(batched(BATCHES), recipe=recipe, embedder=None).save(folder / "integration")
    names = ("reference", "perturbations", "networks", "proteins", "integration")
    attach(bundle, {name: str(folder / name) for name in names}, out=folder / "bundle")
    return FullModel(folder)


def batched(adata: Any) -> Any:
    """Return the cells of an AnnData with their batches."""
    with open_cells(adata, matrix="auto", gene_names="index") as reader:
        return read_from(reader, "batch")
