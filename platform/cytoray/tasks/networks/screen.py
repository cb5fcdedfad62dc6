"""Effects of the knock-outs of a screen: the genes that change in cells in which a factor was knocked out."""

# C cells, G genes, T transcription factors

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.evaluation.networks.cells import Float64, Int64, prepare_cells
from cytoray.evaluation.networks.ranking import Bool
from cytoray.tasks.multiomic.reading import read_rna_of
from cytoray.tasks.networks.candidates import Candidates

FEWEST_CELLS = 20  # with a knock-out, and controls
LARGE = 3.0  # |t| of a gene that changes
FEWEST_OF_BATCH = 3  # knocked-out cells, and controls, of a batch
FEWEST_CHANGES = 5  # genes that change by a knock-out that is scored, and genes that do not


@dataclass(frozen=True, eq=False)
class KnockedOut:
    """The effect of one factor's knock-out on the targets that the screen measured."""

    tf: str
    row: int  # of the factor among the candidates
    columns: Int64  # of the targets among the candidates
    changes: Float64  # t of Welch's test, knocked out minus control of the same batch

    @property
    def hits(self) -> Bool:
        """Whether each target changes."""
        return np.asarray(np.abs(self.changes) > LARGE)


def screen_genes(uri: str) -> list[str]:
    """Return the names of the genes that a screen measured."""
    with open_source(SourceConfig(uri=uri)) as reader:
        return list(reader.gene_names)


@dataclass(frozen=True)
class ScreenConfig:
    """A file of cells in which genes were knocked out, and the columns of obs that describe them."""

    uri: str
    key: str = "perturbation"
    control: str = "control"
    batch_key: str | None = None  # knocked-out cells are compared with controls of their batch


def read_screen(config: ScreenConfig, candidates: Candidates) -> tuple[list[KnockedOut], list[str]]:
    """Return the effects of the knock-outs of factors of a network, and warnings about those that are not scored.

    Raises CorpusError for a missing column or control, and if no factor of the network was knocked out.
    """
    uri, control = config.uri, config.control
    with open_source(SourceConfig(uri=uri)) as reader:
        cells = read_rna_of(reader)
        labels = np.array(["" if label is None else label for label in reader.labels(config.key)])
        batches = np.zeros(len(labels), np.int64)
        if config.batch_key is not None:
            names = np.array([str(label) for label in reader.labels(config.batch_key)])
            batches = np.unique(names, return_inverse=True)[1].astype(np.int64)
    counts = Counter(labels.tolist())
    if control not in counts:
        raise CorpusError(
            f"{uri}: no cell has {control!r} in {config.key!r}; it has {', '.join(sorted(filter(None, counts))[:10])}.",
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
    if missing := sorted(filter(None, counts.keys() - {control} - set(candidates.tfs))):
        warnings.append(f"knocked out, but not factors of the network: {', '.join(missing[:20])}")
    columns, genes = np.array(shared, np.int64).T
    measured = sparse.csc_matrix(expression[:, genes])
    for row, tf in known:
        own = columns != -1 if tf not in candidates.targets else columns != candidates.targets.index(tf)
        rows = np.flatnonzero((labels == tf) | (labels == control))
        changes = stratified_welch(sparse.csr_matrix(measured[rows]), labels[rows] == tf, batches[rows])
        effect = KnockedOut(tf, row, columns[own], changes[own])
        if min(effect.hits.sum(), (~effect.hits).sum()) >= FEWEST_CHANGES:
            found.append(effect)
        else:
            warnings.append(f"the knock-out of {tf} changes {int(effect.hits.sum())} targets: it is not scored")
    return found, warnings


def stratified_welch(values: sparse.csr_matrix, is_first: Bool, strata: Int64) -> Float64:
    """Return t of Welch's test of each column (C, G), the difference taken within strata of cells (C,).

    The weight of a stratum with n and m cells is n m / (n + m), its precision; strata with fewer than three cells of
    either kind are left out. Constant columns have t = 0.
    """
    differences, errors, total = np.zeros(values.shape[1]), np.zeros(values.shape[1]), 0.0
    for stratum in np.unique(strata):
        own = strata == stratum
        sides = [values[np.flatnonzero(own & side)] for side in (is_first, ~is_first)]
        sizes = [side.shape[0] for side in sides]
        if min(sizes) < FEWEST_OF_BATCH:
            continue
        weight = sizes[0] * sizes[1] / sum(sizes)
        moments = [_mean_and_error(side) for side in sides]
        differences += weight * (moments[0][0] - moments[1][0])
        errors += weight**2 * (moments[0][1] + moments[1][1])
        total += weight
    spread = np.sqrt(errors)
    found: Float64 = np.divide(differences, spread, out=np.zeros_like(spread), where=spread > 0)
    return found


def _mean_and_error(values: sparse.csr_matrix) -> tuple[Float64, Float64]:
    """Return the mean of each column and the square of its standard error."""
    num = values.shape[0]
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    squares = np.asarray(values.multiply(values).mean(axis=0, dtype=np.float64)).ravel()
    return mean, np.maximum(squares - mean**2, 0) / max(num - 1, 1)
