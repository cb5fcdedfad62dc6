"""Map the genes of a request to the model's vocabulary, remember recent mappings, and warn about doubtful cells."""

# C cells, G genes of the request, N non-zero entries over all cells

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Literal

import numpy as np

from cytoray.errors import RequestError
from cytoray.serving.payloads.parsed import SAMPLE, ParsedRequest
from cytoray.tasks.messages import CellsWarning, EmptyCells, NotCounts, OlderNames, SummedGenes
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneMapping

CACHE_BYTES = 32 * 2**20
NOT_INTEGER = 1e-3  # distance to an integer; counts that went through other units are off by less
LOG_LIMIT = 20.0  # log1p of counts, normalised or not, stays below: e**20 is 485 million
COUNT_LIMIT = 2.0**24  # float32 does not hold every integer above
_NAMES_SHOWN = 5  # names of a gene in a warning


class GeneCache:
    """Recent mappings of gene lists: clients send the same genes again and again. Bounded in bytes.

    Lists are kept as a digest; of a mapping, names that the model does not know are most of its size.
    """

    def __init__(self, map_genes: Callable[..., GeneMapping], *, max_bytes: int = CACHE_BYTES) -> None:
        self._map_genes, self._max_bytes = map_genes, max_bytes
        self._kept: OrderedDict[bytes, tuple[GeneMapping, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def map(self, request: ParsedRequest) -> GeneMapping:
        """Return the mapping of the genes of a request."""
        key = _digest(request)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        mapping = self._map_genes(request.genes, ensembl_ids=request.ensembl_ids, genomes=request.genomes)
        size = _size(mapping)
        with self._lock:
            if key not in self._kept and size <= self._max_bytes:
                self._kept[key] = mapping, size
                self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                _, (_, size) = self._kept.popitem(last=False)
                self.num_bytes -= size
        return mapping


def select_cells(request: ParsedRequest, mapping: GeneMapping, *, min_gene_overlap: float) -> SparseCells:
    """Map the cells to the vocabulary; raises RequestError ``unknown_genes``.

    In a mixture of species, genes of the other species do not count as unknown, and its cells are left without genes.
    """
    matched = mapping.num_matched
    total = len(request.genes)
    if matched == 0 or matched < min_gene_overlap * (mapping.origin >= 0).sum():
        raise RequestError(
            f"The model knows {matched} of the {total} genes of this request; it does not know, for example,"
            f" {', '.join(mapping.unknown[:5])}. The genes look like {mapping.id_type} ids, species {mapping.species}.",
            remedy="Send human HGNC symbols or Ensembl gene ids (ENSG…) in `genes`.",
            code="unknown_genes",
            pointer="/genes",
            matched=matched,
            total=total,
            unknown=list(mapping.unknown[:SAMPLE]),
            id_type=mapping.id_type,
            species=mapping.species,
        )
    rows = np.arange(len(request.cell_ids), dtype=np.uint64)  # ids are not needed: results depend on content only
    foreign = mapping.of_other_species(request.values, request.columns, request.indptr)
    values = np.where(np.repeat(foreign, np.diff(request.indptr)), np.float32(0), request.values)
    return mapping.apply(values, request.columns, request.indptr, rows)


def find_warnings(request: ParsedRequest, mapping: GeneMapping, cells: SparseCells) -> list[CellsWarning]:
    """Return the warnings about a request whose cells were selected."""
    found = (_empty_cells(request, cells), _not_counts(request), _summed_genes(mapping), _older_names(request, mapping))
    return [warning for warning in found if warning is not None]


def _empty_cells(request: ParsedRequest, cells: SparseCells) -> EmptyCells | None:
    empty = np.flatnonzero(cells.num_genes_per_cell == 0)
    if len(empty) == 0:
        return None
    problem = (
        f"{len(empty)} of {cells.num_cells} cells have no expressed gene that the model knows, the first is"
        f" {request.places.cell(int(empty[0]))}; their answers are null."
    )
    return EmptyCells(code="empty_cells", detail=problem, indices=empty.tolist())


def _not_counts(request: ParsedRequest) -> NotCounts | None:
    """Return the warning about values that are not raw counts, with the first cell that has one."""
    fractional = np.abs(request.values - np.rint(request.values)) > NOT_INTEGER
    large = request.values > COUNT_LIMIT
    wrong = large if large.any() else fractional
    if not wrong.any():
        return None
    kind: Literal["normalised", "fractional", "implausibly large"] = "fractional"
    if large.any():
        kind, seems = "implausibly large", f"some are above {COUNT_LIMIT:,.0f}, which no count reaches"
    elif fractional.mean() > 0.5 and request.values.max() < LOG_LIMIT:
        kind, seems = "normalised", f"most are fractions below {LOG_LIMIT:g}, as of log-normalised expression"
    else:
        seems = "some are fractions"
    per_cell = np.diff(np.concatenate([[0], np.cumsum(wrong)])[request.indptr])
    first, num_cells = int((per_cell > 0).argmax()), int((per_cell > 0).sum())
    problem = (
        f"The values of {num_cells} of {len(per_cell)} cells do not look like raw counts: {seems}. The first is"
        f" {request.places.cell(first)}. Models were trained on raw counts; send those if you have them."
    )
    return NotCounts(code="not_counts", detail=problem, kind=kind, num_cells=num_cells, first=first)


def _summed_genes(mapping: GeneMapping) -> SummedGenes | None:
    if not mapping.duplicates:
        return None
    genes = {gene: names[:_NAMES_SHOWN] for gene, names in islice(mapping.duplicates.items(), SAMPLE)}
    shown = "; ".join(f"{gene} ({', '.join(names)})" for gene, names in islice(genes.items(), _NAMES_SHOWN))
    problem = f"Values were summed for {len(mapping.duplicates)} genes that the request names more than once: {shown}."
    return SummedGenes(code="summed_genes", detail=problem, genes=genes)


def _older_names(request: ParsedRequest, mapping: GeneMapping) -> OlderNames | None:
    if not mapping.older:
        return None
    genes = {
        gene: [request.genes[column] for column in columns[:_NAMES_SHOWN]]
        for gene, columns in islice(mapping.older.items(), SAMPLE)
    }
    shown = "; ".join(f"{', '.join(names)} ({gene})" for gene, names in islice(genes.items(), _NAMES_SHOWN))
    problem = f"Older names of {len(mapping.older)} genes that have an entry of their own were left out: {shown}."
    return OlderNames(code="older_names", detail=problem, genes=genes)


def _digest(request: ParsedRequest) -> bytes:
    """Return a digest of the genes of a request, with the lengths of the texts, so that no two lists are alike."""
    digest = hashlib.blake2b(digest_size=32)
    for texts in (request.genes, request.ensembl_ids, request.genomes):
        lengths = np.fromiter(map(len, texts or ()), np.int64)
        digest.update(len(lengths).to_bytes(8, "little") + lengths.tobytes())
        digest.update("".join(texts or ()).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _size(mapping: GeneMapping) -> int:
    """Return about how many bytes a mapping takes."""
    groups: Iterable[str] = chain.from_iterable(mapping.duplicates.values())
    texts = sum(sys.getsizeof(name) + 8 for name in chain(mapping.unknown, groups, mapping.duplicates, mapping.older))
    columns = sum(64 + 8 * len(group) for group in chain(mapping.summed.values(), mapping.older.values()))
    return int(2 * mapping.ids.nbytes + mapping.origin.nbytes + texts + 2 * columns + 1024)
