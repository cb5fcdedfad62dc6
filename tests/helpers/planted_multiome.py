"""Small multiome data in which peaks that are open in a cell drive the genes they are linked to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from small_corpus import write_corpus

NUM_GENES, NUM_PEAKS = 16, 24
FIRST_GENE = 100  # id in the default vocabulary
PEAKS = tuple(f"chr1:{1000 * number}-{1000 * number + 500}" for number in range(NUM_PEAKS))
LINKS = {gene: (gene, gene + 8) for gene in range(8)}  # gene: its two peaks; the other genes and peaks have none


@dataclass(frozen=True, eq=False)
class PlantedMultiome:
    """Counts of C cells."""

    genes: np.ndarray  # (C, NUM_GENES)
    peaks: np.ndarray  # (C, NUM_PEAKS)

    @property
    def gene_ids(self) -> np.ndarray:
        """Ids of the genes in the default vocabulary."""
        return np.arange(FIRST_GENE, FIRST_GENE + NUM_GENES)


def links_GP() -> np.ndarray:
    """Whether gene and peak are linked."""
    found = np.zeros((NUM_GENES, NUM_PEAKS), bool)
    for gene, peaks in LINKS.items():
        found[gene, list(peaks)] = True
    return found


def draw_cells(num_cells: int, *, seed: int = 0) -> PlantedMultiome:
    """Draw cells: peaks are open by chance, each on its own; a gene has 6 times its rate for each open peak of its."""
    rng = np.random.default_rng(seed)
    is_open = rng.random((num_cells, NUM_PEAKS)) < 0.4
    rates = np.full((num_cells, NUM_GENES), 2.0)
    for gene, peaks in LINKS.items():
        rates[:, gene] *= np.prod(np.where(is_open[:, list(peaks)], 6.0, 1.0), axis=1)
    return PlantedMultiome(rng.poisson(rates), is_open.astype(np.int64))


def write_corpus_of(cells: PlantedMultiome, store: str) -> None:
    """Commit the cells as the corpus ``cells`` with the modality peaks."""
    obs: dict[str, list[str | None]] = {"donor": [f"d{row % 4}" for row in range(len(cells.genes))]}
    write_corpus(store, cells.genes, cells.gene_ids, obs, {"peaks": (cells.peaks, PEAKS)})
