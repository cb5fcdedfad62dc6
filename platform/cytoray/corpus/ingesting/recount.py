"""Profile the copies among the cells, once they are known, to take them out of the profiles of their sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cytoray import storage
from cytoray.corpus.checking.checks import RowChecks, map_source_genes, profile_cells, source_cell_ids
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.readers.opening import open_source
from cytoray.tokens.cells import UInt64
from cytoray.tokens.vocabulary import GeneVocabulary

ROWS_PER_ITEM = 65_536


def recount_items(num_cells: int, source: int) -> list[dict[str, Any]]:
    """The ranges of rows of one source in which ``profile_copies`` looks for copies."""
    starts = range(0, num_cells, ROWS_PER_ITEM)
    return [{"source": source, "start": start, "stop": min(start + ROWS_PER_ITEM, num_cells)} for start in starts]


def profile_copies(item: dict[str, Any], *, plan: IngestPlan, uris: Sequence[str]) -> dict[str, Any]:
    """The profile of the cells of one range that are left out as copies; ``uris`` are the lists of their ids."""
    planned = plan.sources[int(item["source"])]
    options = RowChecks(plan.config.checks, plan.config.filter, plan.values, plan.genes)
    with open_source(planned.source) as reader:
        rows = np.arange(int(item["start"]), int(item["stop"]))
        rows = rows[np.isin(source_cell_ids(reader, rows), _load_ids(uris))]
        mapping = map_source_genes(reader, GeneVocabulary.load_default(), plan.config.checks)
        profile = profile_cells(reader, mapping, options, rows)
    return {"source": item["source"], "profile": json.dumps(profile.to_json())}


def _load_ids(uris: Sequence[str]) -> UInt64:
    parts = [np.frombuffer(storage.read_bytes(uri), np.uint64) for uri in uris]
    return np.concatenate([np.empty(0, np.uint64), *parts])
