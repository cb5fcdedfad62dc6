"""A committed corpus of given counts and obs columns, written without an ingest."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, FileRecord, ShardRecord, commit_manifest, corpus_uri
from cytoray.corpus.shards import encode_shard
from cytoray.tokens.packed import pack_rows
from cytoray.tokens.vocabulary import GeneVocabulary


def write_corpus(
    store: str,
    counts_CG: np.ndarray,
    gene_ids: np.ndarray,
    obs: Mapping[str, Sequence[str | float | None]],
    modalities: dict[str, tuple[np.ndarray, tuple[str, ...]]] | None = None,
) -> None:
    """Commit the corpus ``cells`` of one shard; column g of the counts is gene ``gene_ids[g]``.

    ``modalities`` are counts (C, F) and names of features.
    """
    uri, ids = corpus_uri(store, "cells"), np.arange(len(counts_CG), dtype=np.uint64)
    packed = pack_rows(sparse.csr_matrix(counts_CG), gene_ids.astype(np.int32), ids, counts=True)
    encoded, table = encode_shard(packed, values="counts"), io.BytesIO()
    storage.write_bytes(f"{uri}/shard", encoded.data)
    columns = {
        name: pa.array(values, None if isinstance(values[0], float) else pa.string()) for name, values in obs.items()
    }
    kinds = {name: str(column.type) for name, column in columns.items()}
    pq.write_table(pa.table({"_cell_id": pa.array(ids), **columns}), table)
    digest = storage.write_digested(f"{uri}/obs", table.getvalue())
    files = {}
    for name, (counts_CF, features) in (modalities or {}).items():
        own = pack_rows(sparse.csr_matrix(counts_CF), np.arange(len(features), dtype=np.int32), ids, counts=True)
        written = encode_shard(own, values="counts")
        storage.write_bytes(f"{uri}/{name}", written.data)
        files[name] = written.record(name)
    shard = ShardRecord(
        **encoded.record("shard").model_dump(),
        obs=FileRecord(key="obs", sha256=digest, num_bytes=len(table.getvalue())),
        modalities=files,
        cell_id_sum=int(ids.sum(dtype=np.uint64)),
    )
    names = {name: features for name, (_, features) in (modalities or {}).items()}
    manifest = CorpusManifest(
        name="cells", vocabulary_digest=GeneVocabulary.load_default().digest(), values="counts", binning="on_read",
        n_bins=51, seed=0, obs_columns=kinds, sources=(), shards=(shard,),
        modalities=names, modality_values=dict.fromkeys(names, "counts"),
    )  # fmt: skip
    commit_manifest(uri, manifest)
