"""Mean and deviation of each gene over the training cells, so that targets are how a cell differs from the others."""

# C cells, V genes of the vocabulary

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.stream import sample_cells
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Float32, SparseCells
from cytoray.tokens.thinning import SCALE
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import PretrainConfig

FILE = "gene_statistics.safetensors"  # name of the attachment of a bundle
_LEAST = 1e-3  # deviation; a gene that varies less is not decoded


@dataclass(frozen=True, eq=False)
class GeneStatistics:
    """Statistics of log(1 + counts per 10,000) over cells, zeros included."""

    mean: Float32  # (V,)
    deviation: Float32  # (V,)
    share: Float32  # (V,) of cells that express the gene

    def panel(self, min_share: float) -> tuple[int, ...]:
        """Return the genes, ascending, that vary and that at least ``min_share`` of the cells express."""
        varies = (self.share > 0) & (self.share >= min_share) & (self.deviation > _LEAST)
        return tuple(np.flatnonzero(varies).tolist())

    def to_bytes(self) -> bytes:
        """Encode as safetensors."""
        return safetensors.numpy.save({"mean": self.mean, "deviation": self.deviation, "share": self.share})


def gene_statistics(cells: SparseCells, *, vocabulary_size: int) -> GeneStatistics:
    """Compute the statistics of counts."""
    rows = np.repeat(np.arange(cells.num_cells), cells.num_genes_per_cell)
    totals = np.bincount(rows, cells.values, cells.num_cells)
    logs = np.log1p(cells.values * (SCALE / totals[rows]))
    means = np.bincount(cells.gene_ids, logs, vocabulary_size) / cells.num_cells
    squares = np.bincount(cells.gene_ids, np.square(logs), vocabulary_size) / cells.num_cells
    shares = np.bincount(cells.gene_ids, minlength=vocabulary_size) / cells.num_cells
    deviations = np.sqrt(np.maximum(squares - np.square(means), 0))
    return GeneStatistics(*(array.astype(np.float32) for array in (means, deviations, shares)))


def measure_genes(config: PretrainConfig) -> GeneStatistics:
    """Compute the statistics of the training cells of a run, or of a sample; CorpusError if no gene can be decoded."""
    whole = config.objective.whole_cell
    assert whole is not None, "this run decodes no whole cells"
    cells = sample_cells(
        config.store,
        load_manifest(config.store, config.corpus),
        select=None if config.validation is None else f"not ({config.validation.select})",
        max_cells=whole.statistics_cells,
        seed=config.train.seed,
    )
    found = gene_statistics(cells, vocabulary_size=GeneVocabulary.load_default().size)
    if not found.panel(whole.min_share):
        raise CorpusError(
            f"Corpus {config.corpus!r}: no gene varies and is expressed by {whole.min_share:.1%} of the cells.",
            remedy="Lower objective.whole_cell.min_share.",
        )
    return found
