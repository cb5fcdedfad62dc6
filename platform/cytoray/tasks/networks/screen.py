"""What a screen says of factors: the genes that change in cells in which a factor was knocked out."""

# C cells, G genes, T transcription factors

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.evaluation.networks.cells import Float64, prepare_cells
from cytoray.tasks.multiomic.reading import read_rna_of
from cytoray.tasks.networks.candidates import Candidates

FEWEST_CELLS = 20  # with a knock-out, and controls
LARGE = 3.0  # |t| of a gene that changes


@dataclass(frozen=True, eq=False)
class KnockedOut:
    """The effect of one factor's knock-out on the targets that the screen measured."""

    tf: str
    row: int  # of the factor among the candidates
    columns: npt.NDArray[np.int64]  # of the targets among the candidates
    changes: Float64  # t of Welch's test, knocked out minus control

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether each target changes."""
        return np.asarray(np.abs(self.changes) > LARGE)


def screen_genes(uri: str) -> list[str]:
    """Return the names of the genes that a screen measured."""
    with open_source(SourceConfig(uri=uri)) as reader:
        return list(reader.gene_names)


def read_screen(uri: str, candidates: Candidates, *, key: str, control: str) -> tuple[list[KnockedOut], list[str]]:
    """Return the effects of the knock-outs of factors of a network, and warnings about factors that say nothing.

    Raises CorpusError for a missing column or control, and if no factor of the network was knocked out.
    """
    with open_source(SourceConfig(uri=uri)) as reader:
        cells = read_rna_of(reader)
        labels = np.array(["" if label is None else label for label in reader.labels(key)])
    counts = Counter(labels.tolist())
    if control not in counts:
        raise CorpusError(
            f"{uri}: no cell has {control!r} in {key!r}; it has {', '.join(sorted(filter(None, counts))[:10])}.",
            remedy="Name the value of cells without a knock-out with --control.",
        )
    expression = sparse.csr_matrix(prepare_cells(cells.rna.values, log_normalised=cells.rna.log_normalised).expression)
    place = {gene: column for column, gene in enumerate(cells.genes)}
    shared = [(column, place[gene]) for column, gene in enumerate(candidates.targets) if gene in place]
    known = [(row, tf) for row, tf in enumerate(candidates.tfs) if counts.get(tf, 0) >= FEWEST_CELLS]
    if not known or not shared or counts[control] < FEWEST_CELLS:
        raise CorpusError(
            f"{uri}: no factor of the network was knocked out in {FEWEST_CELLS} cells, or the screen measured none of "
            f"its targets; knocked out are {', '.join(sorted(filter(None, counts.keys() - {control}))[:10])}.",
            remedy="Give the screen of genes that are among the factors (--tfs), in the same gene names.",
        )
    found, warnings = [], []
    columns, genes = np.array(shared, np.int64).T
    for row, tf in known:
        own = columns != -1 if tf not in candidates.targets else columns != candidates.targets.index(tf)
        changes = _welch(expression[labels == tf][:, genes[own]], expression[labels == control][:, genes[own]])
        effect = KnockedOut(tf, row, columns[own], changes)
        if 0 < effect.hits.sum() < len(effect.hits):
            found.append(effect)
        else:
            warnings.append(f"the knock-out of {tf} changes {int(effect.hits.sum())} targets: it is not scored")
    return found, warnings


def _welch(first: sparse.csr_matrix, second: sparse.csr_matrix) -> Float64:
    """Return t of Welch's test for each column; 0 for a column that is constant in both."""
    means, errors = [], []
    for matrix in (first, second):
        num = matrix.shape[0]
        mean = np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
        squares = np.asarray(matrix.multiply(matrix).mean(axis=0, dtype=np.float64)).ravel()
        means.append(mean)
        errors.append(np.maximum(squares - mean**2, 0) / max(num - 1, 1))
    spread = np.sqrt(errors[0] + errors[1])
    found: Float64 = np.divide(means[0] - means[1], spread, out=np.zeros_like(spread), where=spread > 0)
    return found
