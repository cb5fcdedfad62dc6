"""Profile the copies that a partition leaves out, so that the report of an ingest is of the cells it kept.

Everything is taken from the spills, so no source is read again.
"""

# C cells

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from cytoray.corpus.checking.observe import profile_packed
from cytoray.corpus.checking.profile import SourceProfile, count_labels
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.ingesting.spill import SOURCE, SUM, from_table


def profile_copies(
    copies: pa.Table, *, plan: IngestPlan, label_columns: Mapping[int, Sequence[str]]
) -> dict[int, SourceProfile]:
    """The profiles of left-out cells, given as rows of spills, by the place of their source in the plan.

    ``label_columns`` names the obs columns whose values the report of each source counts.
    """
    return dict(_profiles(copies, plan, label_columns)) if copies.num_rows else {}


def _profiles(
    copies: pa.Table, plan: IngestPlan, label_columns: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, SourceProfile]]:
    places = copies.column(SOURCE).to_numpy()
    for source in np.unique(places).tolist():
        table = copies.take(pa.array(np.flatnonzero(places == source)))
        cells = from_table(table, counts=plan.values == "counts", gene_table=plan.genes)
        columns = [name for name in label_columns[source] if name in plan.obs_types]
        labels = count_labels(table.select(columns).to_pandas(), columns)
        yield source, profile_packed(cells, sums=table.column(SUM).to_numpy(), labels=labels)
