"""The synthetic cells as a committed corpus, ingested once and kept: what the streaming benchmarks read."""

from __future__ import annotations

from benchmarks import common
from cytoray.cluster import connected
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.manifest import find_manifest

NUM_CELLS = 20_000 if common.QUICK else 200_000
STORE = str(common.CACHE / "store")


def stored_corpus(num_cells: int = NUM_CELLS) -> str:
    """The name of the corpus of ``num_cells`` synthetic cells in ``STORE``; created if it does not exist."""
    files = common.synthetic_files(num_cells)
    name = files[0].parent.name
    if find_manifest(STORE, name) is None:
        sources = tuple(SourceConfig(uri=str(path)) for path in files)
        with connected(num_cpus=2):
            from cytoray.corpus.ingest import ingest  # imports Ray, which must wait for its authentication

            ingest(IngestConfig(store=STORE, corpus=name, sources=sources))
    return name
