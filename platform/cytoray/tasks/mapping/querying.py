"""Map a query among the cells of a reference; if it lacks genes, by a mapper that is fitted to the genes of both.

Such a fit takes seconds to minutes. ``Refits`` keeps the latest few, by the genes they were fitted to, and fits one at
a time; a service does not wait for it, but refuses the request until it is there.
"""

# C cells of the query, R cells of the reference, S sampled ones, V genes of the vocabulary, D width

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.errors import ConfigError, CorpusError, CytorayError, RequestError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.mapping.fitting import FitMapper, fit_mapper, num_steps
from cytoray.tasks.mapping.index import build_index
from cytoray.tasks.mapping.inputs import MapCells, keep_genes
from cytoray.tasks.mapping.mapper import Embed, Mapped
from cytoray.tasks.mapping.reference import Reference
from cytoray.tokens.cells import SparseCells

if TYPE_CHECKING:
    from cytoray.model.predictor import Predictions

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
FEWEST_GENES = 10
COVERED = 0.95  # share of a reference cell's counts in the query's genes, below which a mapper is fitted anew
MOST_KEPT = 4  # fits, each with up to 20,000 cells of the reference: tens of megabytes
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MappedQuery:
    """Answers to a query, and the reference that gave them: the one asked, or that refitted to the query's genes."""

    mapped: Mapped
    reference: Reference
    asked: Reference
    coverage: float  # share of a usual reference cell's counts that are in the query's genes
    refitted: bool
    answered: Bool  # (C,) False for cells without a gene of the reference
    about_genes: tuple[str, ...] = ()  # warnings that do not depend on the cells
    about_cells: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings."""
        return self.about_genes + self.about_cells


def embed_with(predict: Callable[[SparseCells], Predictions]) -> Embed:
    """Return a function that gives a model's embeddings of cells (C, D); zeros for a cell without genes."""

    def embed(cells: Expression) -> Float32:
        """Embed cells over the model's vocabulary."""
        matrix = cells.values.sorted_indices()
        ids = np.zeros(matrix.shape[0], np.uint64)
        sparse_cells = SparseCells(
            matrix.indices.astype(np.int32), matrix.data.astype(np.float32), matrix.indptr.astype(np.int64), ids
        )
        return np.nan_to_num(predict(sparse_cells).embeddings)

    return embed


class Refits:
    """Mappers that were fitted to the genes of queries: the latest few, on one reference; safe for several threads."""

    def __init__(self, reference: Reference, embed: Embed | None, *, fit: FitMapper = fit_mapper) -> None:
        """``embed`` is needed if the space of the reference uses embeddings."""
        self._reference, self._embed, self._fit_mapper = reference, embed, fit
        self._fitted: OrderedDict[bytes, Reference] = OrderedDict()
        self._failed: dict[bytes, CytorayError] = {}
        self._running: bytes | None = None
        self._lock = threading.Lock()

    def get(self, common: Bool, *, wait: bool) -> Reference:
        """Return the reference fitted to the genes ``common`` (V,).

        If it is missing, fit it now, or without ``wait`` in a thread, one at a time, and raise a RequestError that asks
        to send the request again. Raises what the fit raised, once.
        """
        key = np.packbits(common).tobytes()
        with self._lock:
            if key in self._fitted:
                self._fitted.move_to_end(key)
                return self._fitted[key]
            if (failure := self._failed.pop(key, None)) is not None:
                raise failure
        if wait:
            with progress.stage("fit to the query's genes", total=num_steps(), unit="steps", brief=True) as advance:
                return self._keep(key, self._refit(common, advance))
        with self._lock:
            if self._running is None and key not in self._fitted:
                self._running = key
                # A daemon: a service that stops does not wait minutes for an answer that nobody gets.
                threading.Thread(target=self._fit, args=(key, common), name="cytoray-refit", daemon=True).start()
            is_own = self._running == key
        raise RequestError(
            f"This request measures {int(common.sum()):,} of the genes of the reference, which "
            + ("is being fitted to them." if is_own else "is being fitted to those of another request first."),
            remedy="Send it again in a few seconds; this happens once for each set of genes. A large reference takes "
            "minutes.",
            code="fitting",
        )

    def _fit(self, key: bytes, common: Bool) -> None:
        try:
            self._keep(key, self._refit(common, progress.silent))
        except CytorayError as error:
            logger.warning("the reference could not be fitted to the genes of a request: %s", error)
            with self._lock:
                self._failed = {key: error}
        finally:
            with self._lock:
                self._running = None

    def _refit(self, common: Bool, advance: progress.Advance) -> Reference:
        return refit(self._reference, common, embed=self._embed, fit=self._fit_mapper, advance=advance)

    def _keep(self, key: bytes, fitted: Reference) -> Reference:
        with self._lock:
            self._fitted[key] = fitted
            while len(self._fitted) > MOST_KEPT:
                self._fitted.popitem(last=False)
        return fitted


def common_genes(reference: Reference, query: MapCells) -> Bool:
    """Return which genes (V,) query and reference measured; CorpusError if these are fewer than ten."""
    return check_common(reference.measured & (reference.mapper.shares > 0), query)


def check_common(genes: Bool, query: MapCells) -> Bool:
    """Return which genes (V,) of a reference the query measured; CorpusError if these are fewer than ten."""
    common: Bool = genes if query.measured is None else genes & query.measured
    if (num_common := int(common.sum())) < FEWEST_GENES:
        name = f" ({query.sources[0]})" if query.sources else ""
        raise CorpusError(
            f"The query{name} and the reference share {num_common} genes, of at least {FEWEST_GENES} needed.",
            remedy="Check the names of the genes, and that both are of one species.",
        )
    return common


def needs_refit(reference: Reference, common: Bool) -> bool:
    """Return whether these genes have too small a share of a reference cell's counts for the mapper as it is."""
    return reference.mapper.coverage(common) < COVERED


def map_query(
    reference: Reference,
    query: MapCells,
    *,
    embed: Embed | None = None,
    refits: Refits | None = None,
    wait: bool = True,
) -> MappedQuery:
    """Map a query; if it lacks genes, by a mapper that is fitted anew to the genes of both on the sampled cells.

    ``refits`` keeps such mappers; ``wait`` is that of ``Refits.get``. Raises CorpusError if query and reference share
    fewer than ten genes, ConfigError if the reference needs embeddings and there is no ``embed``.
    """
    common = common_genes(reference, query)
    if reference.mapper.space.uses_embeddings and embed is None:
        raise ConfigError("This reference needs its model.", remedy="Name it with --model.")
    asked, coverage, warnings = reference, reference.mapper.coverage(common), []
    refitted = needs_refit(reference, common)
    if refitted:
        reference = (refits or Refits(reference, embed)).get(common, wait=wait)
        warnings.append(
            f"the query measured genes with {100 * coverage:.0f} % of a reference cell's counts: neighbours and votes "
            f"were fitted to these genes, on {len(reference.rows):,} reference cells"
        )
    cells = Expression(keep_genes(query.expression.values, common))
    cells = reference.mapper.query(cells, None if common[reference.mapper.shares > 0].all() else common)
    embeddings = embed(query.expression) if embed is not None and reference.mapper.space.uses_embeddings else None
    mapped = reference.mapper.map(
        cells, embeddings, index=reference.index, codes_R=reference.codes, plane_R=reference.plane
    )
    answered = np.diff(cells.values.indptr) > 0
    about_cells = _warnings(mapped, answered)
    return MappedQuery(mapped, reference, asked, coverage, refitted, answered, tuple(warnings), about_cells)


def join_mapped(parts: Sequence[MappedQuery], order: Int64) -> MappedQuery:
    """Return the answers to a query from those to its parts; ``order`` (C,): its cells among those of the parts."""
    mapped = Mapped.concatenate([part.mapped for part in parts]).take(order)
    answered = np.concatenate([part.answered for part in parts])[order]
    return replace(parts[0], mapped=mapped, answered=answered, about_cells=_warnings(mapped, answered))


def _warnings(mapped: Mapped, answered: Bool) -> tuple[str, ...]:
    """Return what a user should know about the answers to C cells."""
    warnings = []
    if (empty := int((~answered).sum())) > 0:
        warnings.append(f"cells without a gene of the reference, whose answers are null: {empty}")
    if answered.any() and (share := float(mapped.unassigned[answered].mean())) > 0.3:
        warnings.append(
            f"{100 * share:.0f} % of the cells are unassigned: the query may be of another tissue or technology"
        )
    return tuple(warnings)


def refit(
    reference: Reference,
    common: Bool,
    *,
    embed: Embed | None,
    fit: FitMapper = fit_mapper,
    advance: progress.Advance = progress.silent,
) -> Reference:
    """Return the sampled reference cells as a reference of their own, fitted to some genes; the map stays as it is."""
    cells = Expression(keep_genes(reference.sample.values, common))
    kept = np.flatnonzero(np.diff(cells.values.indptr) > 0)
    cells, rows = cells.take(kept), reference.rows[kept]
    meta = reference.meta.iloc[rows].reset_index(drop=True)
    labels = tuple(map(str, np.unique(meta["label"].to_numpy(str))))
    codes = np.searchsorted(np.asarray(labels), meta["label"].to_numpy(str)).astype(np.int64)
    fitted = fit(
        cells,
        codes,
        labels,
        batches=tuple(meta["batch"]) if meta["batch"].nunique() > 1 else None,
        embed=embed if reference.mapper.space.uses_embeddings else None,
        seed=reference.about["seed"],
        advance=advance,
    )
    index = build_index(fitted.mapper.points(cells, embed))
    return replace(reference, mapper=fitted.mapper, index=index, meta=meta, sample=cells, rows=np.arange(len(rows)))
