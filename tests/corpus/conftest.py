"""Small h5ad files of planted cells, corpora written without Ray, and an S3 server, for the corpus room's tests."""

# C cells, G genes

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, FileRecord, ShardRecord, commit_manifest, corpus_uri
from cytoray.corpus.shards import encode_shard
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import pack, with_bins
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

TYPES = ("B cell", "T cell", "monocyte")


@dataclass(frozen=True)
class Planted:
    """Counts of cells whose type raises a third of the genes, and what describes them."""

    counts_CG: np.ndarray  # float32, whole numbers
    types: list[str]  # (C,)
    names: list[str]  # (C,)
    genes: list[str]  # (G,)

    def frame(self) -> pd.DataFrame:
        """An obs table."""
        depth = self.counts_CG.sum(axis=1)
        return pd.DataFrame({"cell_type": pd.Categorical(self.types), "depth": depth}, index=self.names)

    def log_normalised(self) -> np.ndarray:
        """log1p of counts per ten thousand, as scanpy stores it."""
        scale = (1e4 / self.counts_CG.sum(axis=1, keepdims=True)).astype(np.float32)
        return np.log1p(self.counts_CG * scale).astype(np.float32)


@pytest.fixture(scope="session")
def vocabulary() -> GeneVocabulary:
    return GeneVocabulary.load_default()


@pytest.fixture(scope="session")
def gene_symbols(vocabulary) -> list[str]:
    """Three hundred real human gene symbols from all over the vocabulary, in no order."""
    plain = [token for token in vocabulary.tokens if re.fullmatch(r"[A-Z][A-Z0-9]{2,7}", token)]
    return [plain[i] for i in np.random.default_rng(7).permutation(len(plain))[:300]]


@pytest.fixture(scope="session")
def plant(gene_symbols) -> Callable[..., Planted]:
    """A function that draws cells."""

    def draw(seed: int = 0, *, num_cells: int = 300, prefix: str = "cell") -> Planted:
        rng = np.random.default_rng(seed)
        types = rng.integers(0, len(TYPES), num_cells)
        raised = np.arange(len(gene_symbols))[None, :] % len(TYPES) == types[:, None]
        counts = rng.poisson(np.where(raised, 1.2, 0.2) * rng.gamma(2, 0.5, (num_cells, 1)))
        counts[:, 5] += rng.integers(1, 600, num_cells)  # a gene on both sides of one byte
        names = [f"{prefix}-{row}" for row in range(num_cells)]
        return Planted(counts.astype(np.float32), [TYPES[code] for code in types], names, gene_symbols)

    return draw


@pytest.fixture(scope="session")
def build_adata() -> Callable[..., anndata.AnnData]:
    """A function from planted cells (and another X) to AnnData."""

    def build(planted: Planted, *, matrix: object = None, var_names: Sequence[str] | None = None) -> anndata.AnnData:
        x = sparse.csr_matrix(planted.counts_CG) if matrix is None else matrix
        var = pd.DataFrame(index=list(planted.genes if var_names is None else var_names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names may be doubled on purpose
            return anndata.AnnData(x, obs=planted.frame(), var=var)

    return build


@pytest.fixture(scope="session")
def save() -> Callable[..., str]:
    """A function that writes AnnData to an h5ad file and returns its path."""

    def write(adata: anndata.AnnData, path: Path) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's advice about strings and duplicate names
            adata.write_h5ad(path)
        return str(path)

    return write


@pytest.fixture
def planted_file(plant, build_adata, save, tmp_path) -> tuple[str, Planted]:
    """One file of 300 cells with counts in X."""
    planted = plant()
    return save(build_adata(planted), tmp_path / "planted.h5ad"), planted


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a local S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server, monkeypatch) -> str:
    """A bucket, as ``s3://...``, to which the environment points."""
    for name, value in {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # botocore still asks for naive UTC times
        boto3.client("s3").create_bucket(Bucket="cells")
    return "s3://cells"


@dataclass(frozen=True)
class Written:
    """A corpus written without an ingest, and what went into it."""

    store: str
    manifest: CorpusManifest
    cells: SparseCells  # in the order of the shards
    labels: list[str | None]


@pytest.fixture(scope="session")
def write_corpus(vocabulary, tmp_path_factory) -> Callable[..., Written]:
    """A function that writes shards of given sizes and commits them as the corpus ``cells`` of a new store."""

    def write(sizes: Sequence[int] = (70, 41, 0, 59), *, binning: str = "on_read", seed: int = 0) -> Written:
        store = str(tmp_path_factory.mktemp("store"))
        uri = corpus_uri(store, "cells")
        rng = np.random.default_rng(1)
        parts, labels, shards = [], [], []
        for number, size in enumerate(sizes):
            genes = [np.sort(rng.choice(60_000, rng.integers(1, 90), replace=False)) for _ in range(size)]
            indptr = np.concatenate([[0], np.cumsum([len(group) for group in genes])]).astype(np.int64)
            gene_ids = np.concatenate([np.empty(0, np.int32), *genes]).astype(np.int32)
            ids = rng.integers(0, 2**63, size).astype(np.uint64)
            cells = SparseCells(gene_ids, rng.geometric(0.3, len(gene_ids)).astype(np.float32), indptr, ids)
            # A label can be told from the cell id, a fifth of the cells have none.
            here = [None if cell % 5 == 0 else f"type {cell % 3}" for cell in ids.tolist()]
            packed = pack(cells)
            if binning == "stored":
                tokenizer = CellTokenizer(vocabulary, TokenizerConfig(seed=seed))
                packed = with_bins(packed, tokenizer.bin_cells(cells, epoch=0))
            encoded, obs = encode_shard(packed, values="counts"), io.BytesIO()
            storage.write_bytes(f"{uri}/shard-{number}", encoded.data)
            table = {"_cell_id": pa.array(ids), "kind": pa.array(here, pa.string()), "batch": pa.array([1] * size)}
            pq.write_table(pa.table(table), obs)
            digest = storage.write_digested(f"{uri}/obs-{number}", obs.getvalue())
            shards.append(
                ShardRecord(
                    **encoded.record(f"shard-{number}").model_dump(),
                    obs=FileRecord(key=f"obs-{number}", sha256=digest, num_bytes=len(obs.getvalue())),
                    cell_id_sum=int(ids.sum(dtype=np.uint64)),
                )
            )
            parts.append(cells)
            labels += here
        manifest = CorpusManifest(
            name="cells", vocabulary_digest=vocabulary.digest(), values="counts", binning=binning, n_bins=51, seed=seed,
            obs_columns={"kind": "string", "batch": "int64"}, sources=(), shards=tuple(shards),
        )  # fmt: skip
        commit_manifest(uri, manifest)
        return Written(store, manifest, SparseCells.concatenate(parts), labels)

    return write


@pytest.fixture(scope="session")
def corpus(write_corpus) -> Written:
    """170 cells in four shards, one of them empty."""
    return write_corpus()
