"""How many cells of an evaluation a model was pretrained on, by the content hashes that its corpus keeps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cytoray import storage
from cytoray.corpus.ingesting.dedupe import read_known_content
from cytoray.corpus.ingesting.planning import KnownCells
from cytoray.corpus.manifest import CorpusManifest, corpus_uri, load_manifest
from cytoray.errors import CorpusError, StorageError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import content_hashes, pack


def share_of_training(store: str | None, lineage: Mapping[str, str], cells: SparseCells) -> float | None:
    """Return the share of C cells that the model of this lineage was trained on; None if that is unknown."""
    if store is None or "corpus" not in lineage:
        return None
    try:
        manifest = load_manifest(store, lineage["corpus"])
    except (CorpusError, StorageError):  # of another store
        return None
    if manifest.digest != lineage.get("corpus_manifest_digest"):
        return None
    return share_in_corpus(store, manifest, cells)


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
