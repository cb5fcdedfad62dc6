"""How many cells of an evaluation a model was pretrained on, by the content hashes that its corpus keeps."""

from __future__ import annotations

import numpy as np

from cytoray import storage
from cytoray.corpus.ingesting.dedupe import read_known_content
from cytoray.corpus.ingesting.planning import KnownCells
from cytoray.corpus.manifest import CorpusManifest, corpus_uri
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import content_hashes, pack


def share_in_corpus(store: str, manifest: CorpusManifest, cells: SparseCells) -> float:
    """Return the share of C cells, over the default vocabulary, whose genes and values equal those of a corpus cell.

    Only the hashes of the corpus are read: 8 bytes per cell, one shard at a time.
    """
    wanted = content_hashes(pack(cells, counts=manifest.values == "counts"))
    found = np.zeros(len(wanted), bool)
    uri = corpus_uri(store, manifest.name)
    for shard in manifest.shards:
        part = KnownCells.of(shard)
        found |= np.isin(wanted, read_known_content(storage.join(uri, part.file.key), part))
    return float(found.mean()) if len(found) else 0.0
