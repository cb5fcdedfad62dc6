"""``scGPTDataset``: checked cells over the vocabulary of a model, with a report of how their genes were matched."""

# C cells, G genes of the source

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.api.config import EmptyCells
from cytoray.api.reading import CheckedReading
from cytoray.api.sources import open_cells
from cytoray.api.variable_genes import Flavor, select_genes
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.problems import no_column
from cytoray.errors import ModelError
from cytoray.tokens.cells import Int32, SparseCells
from cytoray.tokens.packed import PackedCells, pack, take, unpack
from cytoray.tokens.vocabulary import GeneMapping, GeneVocabulary

logger = logging.getLogger(__name__)
BATCH_COLUMNS = ("batch", "batch_key", "batch_id")
SHOWN = 5  # names in a message
LEAST_MATCHED = 0.05  # of the genes of another species: some mouse genes have human names (F5, C3)


@dataclass(frozen=True, repr=False)
class GeneReport:
    """How G genes were matched to the vocabulary, and which cells have none that matched."""

    num_genes: int
    matched: dict[str, int]  # number of genes by the kind of name: symbol, ensembl, previous, alias
    unknown: tuple[str, ...]  # genes that the model does not know; they are left out
    duplicates: dict[str, list[str]]  # gene of the vocabulary -> the names whose values were summed
    empty_cells: tuple[str, ...]  # names of cells without a single known gene
    id_type: str
    species: str
    older: dict[str, list[str]] = field(default_factory=dict)  # gene -> columns with an older name of it, left out
    num_other_species: int = 0  # genes of another species, left out; so are the values of its cells
    matrix: str = ""  # the matrix that was read, and what else was there
    selected: tuple[str, ...] | None = None  # the highly variable genes that were kept, None: all

    def __repr__(self) -> str:
        """The first lines of the report; the lists of names may be long."""
        return f"GeneReport({'; '.join(self.text().splitlines())})"

    def text(self) -> str:
        """The report in a few lines."""
        found = ", ".join(f"{count:,} by {kind}" for kind, count in self.matched.items() if count) or "none"
        lines = [self.matrix] if self.matrix else []
        lines += [f"{sum(self.matched.values()):,} of {self.num_genes:,} genes are in the vocabulary ({found})"]
        if self.unknown:
            lines.append(f"{len(self.unknown):,} unknown genes were left out: {some(self.unknown)}")
        if self.duplicates:
            names = [f"{gene} ({', '.join(group)})" for gene, group in self.duplicates.items()]
            lines.append(f"values were summed for {len(names):,} genes with several columns: {some(names)}")
        if self.older:
            names = [f"{', '.join(group)} ({gene})" for gene, group in self.older.items()]
            lines.append(f"columns with an older name of a gene that has its own were left out: {some(names)}")
        if self.num_other_species:
            lines.append(
                f"{self.species} genes are mixed: {self.num_other_species:,} of the other species were left out"
            )
        if self.selected is not None:
            lines.append(f"{len(self.selected):,} highly variable genes were kept")
        if self.empty_cells:
            lines.append(f"{len(self.empty_cells):,} cells have no known gene: {some(self.empty_cells)}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class scGPTDataset:
    """C cells, ready for a model with the same vocabulary."""

    cells: PackedCells
    obs_names: tuple[str, ...]  # (C,)
    report: GeneReport
    vocabulary: GeneVocabulary
    batch_labels: tuple[str | None, ...] | None = None  # (C,); None if not requested

    def __len__(self) -> int:
        return len(self.obs_names)

    def __repr__(self) -> str:
        """Cells, genes and batches in one line."""
        known = sum(self.report.matched.values())
        batches = "" if self.batch_labels is None else f", {len(set(self.batch_labels))} batch labels"
        return f"scGPTDataset({len(self):,} cells, {known:,} of {self.report.num_genes:,} genes known{batches})"

    def take(self, rows: npt.NDArray[np.integer]) -> scGPTDataset:
        """Return the cells at ``rows``, in that order; the report still covers all cells."""
        labels = None if self.batch_labels is None else tuple(self.batch_labels[row] for row in rows)
        names = tuple(self.obs_names[row] for row in rows)
        return replace(self, cells=take(self.cells, rows), obs_names=names, batch_labels=labels)

    @property
    def empty_rows(self) -> npt.NDArray[np.int64]:
        """Rows of the cells without a known gene."""
        return np.flatnonzero(self.cells.num_genes_per_cell == 0)


@dataclass(frozen=True)
class Request:
    """The arguments of ``process_data``."""

    gene_names: str
    matrix: str
    counts: bool
    batch_labels: bool | str
    n_top_genes: int | None  # None: all genes
    flavor: Flavor
    empty_cells: EmptyCells
    drawn_bins: int | None = None  # number of bins that NumPy's global generator draws while reading


def build_dataset(
    cells: Any, vocabulary: GeneVocabulary, request: Request, *, advance: Callable[[float], object]
) -> scGPTDataset:
    """Read, check and map ``cells``, a range of rows at a time; see ``scGPT.process_data``."""
    with open_cells(cells, matrix=request.matrix, gene_names=request.gene_names) as reader:
        names = [str(name) for name in reader.obs.index]
        matrix = f"{reader.matrix} was read{reader.other_matrices}"
        batches = _batch_labels(reader, request.batch_labels)
        mapping = vocabulary.map_genes(reader.gene_names, ensembl_ids=reader.ensembl_ids, genomes=reader.genomes)
        _refuse_strangers(reader, mapping)
        if request.drawn_bins is not None:
            _refuse_changed_values(reader, mapping, request)
        packed, whole = CheckedReading(cells, reader, request.counts, request.drawn_bins).read(mapping, advance)
    selected = None
    if request.n_top_genes is not None:
        chosen = select_genes(packed, request.n_top_genes, request.flavor, counts=whole)
        selected = tuple(vocabulary.tokens[gene] for gene in chosen)
        packed = _restricted(packed, chosen)
    empty = tuple(names[row] for row in np.flatnonzero(packed.num_genes_per_cell == 0))
    report = replace(_report(mapping, reader, empty=empty), matrix=matrix, selected=selected)
    logger.info(report.text())
    dataset = scGPTDataset(packed, tuple(names), report, vocabulary, batches)
    report_empty_cells(dataset, request.empty_cells)
    return dataset


def _refuse_changed_values(reader: CellReader, mapping: GeneMapping, request: Request) -> None:
    """Raise ModelError if bins drawn per column would differ from the bins of the genes."""
    reason = "genes are selected first" if request.n_top_genes is not None else None
    if mapping.duplicates:
        reason = f"several columns map to gene {next(iter(mapping.duplicates))!r}"
    if reason is not None:
        raise ModelError(
            f"{reader.source.uri}: ties='global_rng' draws a bin for each stored value, but {reason}.",
            remedy="Prepare the data so that each column is one gene to be embedded, or use ties='keyed'.",
        )


def report_empty_cells(dataset: scGPTDataset, empty_cells: EmptyCells) -> None:
    """Warn about cells without a known gene, or raise ModelError, and name them."""
    names = [dataset.obs_names[row] for row in dataset.empty_rows]
    if not names:
        return
    problem = f"{len(names):,} of {len(dataset):,} cells have no gene that the model knows: {some(names)}."
    if empty_cells == "error":
        raise ModelError(problem, remedy="Remove these cells, or set empty_cells='nan'.", cells=names)
    warnings.warn(f"{problem} Their results will be NaN.", UserWarning, stacklevel=4)


def some(names: Sequence[str]) -> str:
    """Join the first few of many names."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _batch_labels(reader: CellReader, wanted: bool | str) -> tuple[str | None, ...] | None:
    """One label per cell from the requested column of obs; None if none is requested."""
    if wanted is False:
        return None
    columns = [str(name) for name in reader.obs.columns]
    column = wanted if isinstance(wanted, str) else next((name for name in BATCH_COLUMNS if name in columns), None)
    if column is None:
        raise no_column(reader.source.uri, "obs", BATCH_COLUMNS[0], columns)
    return tuple(reader.labels(column))


def _refuse_strangers(reader: CellReader, mapping: GeneMapping) -> None:
    """Raise ModelError if the model knows none of the genes, or hardly any of another species'."""
    num_matched, is_foreign = mapping.num_matched, mapping.species not in ("human", "unknown")
    if num_matched and not (is_foreign and not mapping.is_mixture and num_matched < LEAST_MATCHED * len(mapping.ids)):
        return
    species = "" if mapping.species == "unknown" else f"{mapping.species} "
    raise ModelError(
        f"{reader.source.uri}: the model knows {num_matched or 'none'} of the {len(mapping.ids):,} genes; the first "
        f"are {', '.join(reader.gene_names[:3])} (they look like {species}genes, id type {mapping.id_type}).",
        remedy="Name the column of var that holds symbols or Ensembl ids of the model's species with gene_names; map "
        "genes of another species to their orthologs first.",
        genes=reader.gene_names[:3],
        species=mapping.species,
        id_type=mapping.id_type,
    )


def _restricted(cells: PackedCells, genes: Int32) -> PackedCells:
    """Keep only ``genes`` (ascending ids); values are unchanged."""
    sparse = unpack(cells)
    kept = np.isin(sparse.gene_ids, genes)
    starts = np.concatenate([[0], np.cumsum(kept)])[sparse.indptr].astype(np.int64)
    chosen = SparseCells(sparse.gene_ids[kept], sparse.values[kept], starts, sparse.cell_ids)
    return pack(chosen, counts=cells.holds_counts)


def _report(mapping: GeneMapping, reader: CellReader, *, empty: tuple[str, ...]) -> GeneReport:
    matched = {str(kind): count for kind, count in mapping.how.items() if kind != "unknown"}
    names = reader.gene_names
    return GeneReport(
        num_genes=len(mapping.ids),
        matched=matched,
        unknown=mapping.unknown,
        duplicates=mapping.duplicates,
        empty_cells=empty,
        id_type=mapping.id_type,
        species=mapping.species,
        older={gene: [names[column] for column in columns] for gene, columns in mapping.older.items()},
        num_other_species=int((mapping.origin < 0).sum()),
    )
