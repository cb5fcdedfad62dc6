from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
from pydantic import ValidationError
from scipy import sparse

from cytoray.cluster import user_error
from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import CheckConfig, IngestConfig, SourceConfig
from cytoray.corpus.ingest import IngestResult, ingest
from cytoray.corpus.manifest import find_manifest, load_manifest
from cytoray.corpus.shards import ShardCells, decode_shard, encode_shard
from cytoray.errors import CorpusError, StorageError
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig

EMPTY_ROW = 11  # of the first file


@dataclass(frozen=True)
class Sources:
    """Two files of different make, and what is in them."""

    uris: tuple[str, str]
    genes: list[str]  # columns of both; some doubled, some unknown
    counts: dict[tuple[str, str], np.ndarray]  # (uri, cell name) -> counts of the columns
    obs: dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def sources(plant, save, tmp_path_factory) -> Sources:
    """Counts as CSR; log-normalised values, column-compressed, with other columns of obs."""
    folder = tmp_path_factory.mktemp("sources")
    first, second = plant(1, num_cells=300, prefix="a"), plant(2, num_cells=260, prefix="b")
    first.counts_CG[EMPTY_ROW] = 0
    genes = list(first.genes)
    genes[7], genes[100], genes[150] = "unknown 1", "unknown 2", genes[20]
    uris, counts, obs = [], {}, {}
    for name, planted in (("first.h5ad", first), ("second.h5ad", second)):
        frame = planted.frame()
        if planted is first:
            matrix = sparse.csr_matrix(planted.counts_CG)
            frame["batch"] = np.arange(300) % 3
            frame["score"] = np.where(np.arange(300) % 4 == 0, np.nan, np.arange(300) / 8)
            frame["control"] = pd.array([None, True, False] * 100, dtype="boolean")
        else:
            matrix = sparse.csc_matrix(planted.log_normalised())
            frame["batch"] = pd.Categorical([f"lane {row % 2}" for row in range(260)])
            frame["source"] = "blood"
            frame["cell_id"] = [f"barcode-{row}" for row in range(260)]
            frame.loc[frame.index[5], "cell_type"] = None
        uri = folder / name
        save(anndata.AnnData(matrix, obs=frame), uri)
        _rename_genes(uri, genes)
        uris.append(str(uri))
        for row, cell in enumerate(planted.names):
            counts[str(uri), cell] = planted.counts_CG[row]
            obs[str(uri), cell] = frame.iloc[row].to_dict()
    return Sources((uris[0], uris[1]), genes, counts, obs)


def _rename_genes(path: Path, genes: list[str]) -> None:
    """Gene names with doubles, as AnnData would warn of."""
    import h5py

    with h5py.File(path, "a") as file:
        file["var/_index"][...] = genes


def configure(store: Path, uris: tuple[str, ...], **changes: Any) -> IngestConfig:
    config = IngestConfig(
        store=str(store), corpus="cells", sources=tuple(SourceConfig(uri=uri) for uri in uris),
        cells_per_shard=256, rows_per_task=100, read_concurrency=1,
    )  # fmt: skip
    return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def base(ray_cluster, sources, tmp_path_factory) -> tuple[IngestConfig, IngestResult, int]:
    """Both files ingested by one worker, a hundred rows at a time; and how many cells were said to be read."""
    config = configure(tmp_path_factory.mktemp("base"), sources.uris)
    amounts: list[float] = []
    result = ingest(config, advance=lambda amount, note="": amounts.append(amount))
    return config, result, int(sum(amounts))


def decode(result: IngestResult) -> list[ShardCells]:
    return [decode_shard(Path(result.uri, shard.key).read_bytes()) for shard in result.manifest.shards]


def tables(result: IngestResult) -> list[list[dict[str, Any]]]:
    read = (Path(result.uri, shard.obs_key).read_bytes() for shard in result.manifest.shards)
    return [pq.read_table(io.BytesIO(data)).to_pylist() for data in read]


@pytest.mark.ray
def test_every_count_of_every_cell_is_there_under_its_name(base, sources, vocabulary):
    _, result, num_read = base
    assert (result.skipped, num_read) == (False, 560)
    expected = {}
    for key, counts in sources.counts.items():
        cell: dict[int, float] = {}
        for gene, count in zip(sources.genes, counts.tolist(), strict=True):
            if count and gene in vocabulary.index:
                cell[vocabulary.index[gene]] = cell.get(vocabulary.index[gene], 0) + count
        if cell:
            expected[key] = cell
    seen = {}
    for shard, rows in zip(decode(result), tables(result), strict=True):
        cells = shard.cells
        assert [row["_cell_id"] for row in rows] == cells.cell_ids.tolist()
        for row, a, b in zip(rows, cells.indptr[:-1], cells.indptr[1:], strict=True):
            genes, values = cells.gene_ids[a:b].tolist(), cells.values[a:b].tolist()
            seen[row["_source"], row["_obs_name"]] = dict(zip(genes, values, strict=True))
    assert sum(len(rows) for rows in tables(result)) == len(seen) == 559
    assert seen == expected


@pytest.mark.ray
def test_obs_stays_with_its_cell_whatever_the_columns(base, sources):
    _, result, _ = base
    rows = [row for part in tables(result) for row in part]
    for row in rows:
        truth = sources.obs[row["_source"], row["_obs_name"]]
        for column in ("cell_type", "batch", "score", "control", "source", "cell_id", "depth"):
            value = truth.get(column)
            if pd.isna(value):
                assert row[column] is None
            elif column == "batch":  # numbers in one file and words in the other
                assert row[column] == str(value)
            else:
                assert row[column] == value
    assert [row["cell_type"] for row in rows].count(None) == 1


@pytest.mark.ray
def test_the_manifest_tells_what_was_read_and_dropped(base, sources, vocabulary):
    config, result, _ = base
    manifest = result.manifest
    assert load_manifest(config.store, "cells") == manifest
    assert (manifest.num_cells, manifest.values, manifest.binning) == (559, "counts", "on_read")
    assert manifest.config_digest == config.fingerprint()
    assert manifest.vocabulary_digest == vocabulary.digest()
    first, second = manifest.sources
    assert (first.uri, second.uri) == sources.uris
    assert (first.value_kind, second.value_kind) == ("counts", "recoverable")
    assert (first.num_cells, first.num_kept_cells, first.dropped["empty_cell"]) == (300, 299, 1)
    assert (second.num_cells, second.num_kept_cells, sum(second.dropped.values())) == (260, 260, 0)
    assert first.num_matched_genes == 298
    assert first.num_bytes == Path(first.uri).stat().st_size
    assert len(manifest.shards) == 2
    for record, shard in zip(manifest.shards, decode(result), strict=True):
        assert record.num_bytes == Path(result.uri, record.key).stat().st_size
        assert (record.num_cells, record.num_entries) == (shard.cells.num_cells, len(shard.cells.values))
    left = {path.name for path in Path(result.uri).iterdir() if not path.is_dir()}
    assert left == {path for s in manifest.shards for path in (s.key, s.obs_key)} | {
        "COMMIT.json", f"manifest-{manifest.digest[:16]}.json",
    }  # fmt: skip
    assert not list(Path(result.uri).glob("staging/*"))


@pytest.mark.ray
def test_cells_are_shuffled_over_and_within_shards(base, sources):
    _, result, _ = base
    for rows in tables(result):
        origins = [row["_source"] for row in rows]
        changes = sum(a != b for a, b in itertools.pairwise(origins))
        assert 0.35 < changes / len(origins) < 0.65  # about a half where two files are mixed
        numbers = [int(row["_obs_name"].partition("-")[2]) for row in rows]
        assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.25


@pytest.mark.ray
def test_shards_do_not_depend_on_workers_tasks_or_order_of_files(base, sources, tmp_path, vocabulary):
    """Nor do the cells depend on binning; stored bins are those of the first epoch."""
    _, result, _ = base
    config = configure(
        tmp_path, sources.uris[::-1], rows_per_task=4096, read_concurrency=2, binning="stored",
        tokenizer=TokenizerConfig(seed=4),
    )  # fmt: skip
    other = ingest(config)
    assert [record.sha256 for record in result.manifest.shards] != [record.sha256 for record in other.manifest.shards]
    tokenizer = CellTokenizer(vocabulary, config.tokenizer)
    for shard, record in zip(decode(other), result.manifest.shards, strict=True):
        assert encode_shard(shard.cells, values="counts") == Path(result.uri, record.key).read_bytes()
        assert np.array_equal(shard.bins, tokenizer.bin_cells(shard.cells, epoch=0))
    assert tables(other) == tables(result)
    assert other.manifest.sources == result.manifest.sources


@pytest.mark.ray
def test_a_rerun_finds_the_corpus_and_another_ingest_is_refused(base, sources):
    config, result, _ = base
    again = ingest(config.model_copy(update={"read_concurrency": 2}))
    assert (again.skipped, again.manifest) == (True, result.manifest)
    for change in ({"seed": 1}, {"checks": CheckConfig(min_genes=2)}, {"sources": config.sources[:1]}):
        with pytest.raises(CorpusError, match=r"'cells' is already committed in .* from another") as caught:
            ingest(config.model_copy(update=change))
        assert "another corpus name" in caught.value.remedy
    assert find_manifest(config.store, "cells") == result.manifest


DRIVER = """
import sys
import ray
from cytoray.cluster import _quiet, user_error
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.manifest import find_manifest

address, failpoints, text = sys.argv[1:]
ray.init(address, runtime_env={"env_vars": {"CYTORAY_FAILPOINTS": failpoints}}, log_to_driver=False)
_quiet()
config = IngestConfig.model_validate_json(text, strict=False)
for _ in range(20):  # each worker fails once at each point
    try:
        ingest(config)
    except ray.exceptions.RayError as error:
        print(user_error(error).details["point"], find_manifest(config.store, config.corpus), flush=True)
"""


@pytest.mark.ray
def test_killed_at_any_point_nothing_is_visible_and_a_rerun_completes_the_same_corpus(base, sources, tmp_path):
    """Tasks fail after a spill and after a shard, the driver is killed before the commit."""
    _, result, _ = base
    config = configure(tmp_path, sources.uris, read_concurrency=2)
    failpoints = "ingest.after_spill=raise@1,ingest.after_shard=raise@1,ingest.before_commit=kill"
    command = [sys.executable, "-c", DRIVER, ray.get_runtime_context().gcs_address, failpoints]
    environment = {**os.environ, "CYTORAY_FAILPOINTS": failpoints}
    done = subprocess.run(
        [*command, config.model_dump_json()], env=environment, cwd=tmp_path, capture_output=True, timeout=200
    )
    lines = done.stdout.decode().splitlines()
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert {line.split()[0] for line in lines} == {"ingest.after_spill", "ingest.after_shard"}
    assert {line.split()[1] for line in lines} == {"None"}
    assert find_manifest(config.store, "cells") is None
    read: list[float] = []
    rerun = ingest(config, advance=lambda amount, note="": read.append(amount))
    assert not rerun.skipped
    assert rerun.manifest == result.manifest
    assert rerun.manifest.digest == result.manifest.digest
    assert sorted(path.name for path in Path(rerun.uri).glob("*.parquet")) == sorted(
        path.name for path in Path(result.uri).glob("*.parquet")
    )


@pytest.mark.ray
def test_a_file_that_changes_between_plan_and_read_is_refused(
    ray_cluster, plant, build_adata, save, tmp_path, monkeypatch, capfd
):
    path = tmp_path / "moving.h5ad"
    save(build_adata(plant(1)), path)
    config = IngestConfig(store=str(tmp_path / "store"), corpus="cells", sources=(SourceConfig(uri=str(path)),))

    def change(store: str, name: str) -> None:  # the driver looks for a manifest after it has planned
        save(build_adata(plant(2, num_cells=280)), path)

    monkeypatch.setattr(ingest_module, "find_manifest", change)
    with pytest.raises(ray.exceptions.RayError) as caught:
        ingest(config)
    error = user_error(caught.value)  # what a person is shown
    assert isinstance(error, CorpusError)
    assert f"{path}: the file changed while it was read" in str(error)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    monkeypatch.undo()
    assert find_manifest(config.store, "cells") is None


@pytest.mark.ray
def test_when_no_cell_passes_there_is_no_corpus(ray_cluster, planted_file, tmp_path):
    checks = CheckConfig(min_genes=10_000)
    source = SourceConfig(uri=planted_file[0])
    config = IngestConfig(store=str(tmp_path), corpus="cells", sources=(source,), checks=checks)
    with pytest.raises(CorpusError, match="no cell passed the checks"):
        ingest(config)
    assert find_manifest(config.store, "cells") is None


# --- refused before any work is given to Ray


def test_sources_are_refused_before_anything_is_written(planted_file, plant, build_adata, save, tmp_path):
    good = SourceConfig(uri=planted_file[0])
    mouse = save(build_adata(plant(1), var_names=[f"{g.capitalize()}x" for g in plant(1).genes]), tmp_path / "m.h5ad")
    (tmp_path / "cut.h5ad").write_bytes(Path(planted_file[0]).read_bytes()[:5000])
    store = tmp_path / "store"
    for uri, words in (
        (mouse, "0 of 300 genes"),
        (tmp_path / "cut.h5ad", "truncated"),
        (tmp_path / "missing.h5ad", "no such object"),
    ):
        config = IngestConfig(store=str(store), corpus="cells", sources=(good, SourceConfig(uri=str(uri))))
        with pytest.raises((CorpusError, StorageError), match=words) as caught:
            ingest(config)
        assert str(uri) in str(caught.value)
    columns = IngestConfig(store=str(store), corpus="cells", sources=(good,), obs_columns=("depth", "donor"))
    with pytest.raises(CorpusError, match=r"no column 'donor'.*Columns there: cell_type, depth"):
        ingest(columns)
    assert not store.exists()


def test_more_bins_than_a_byte_holds_cannot_be_stored(tmp_path):
    fields: dict[str, Any] = {"store": str(tmp_path), "corpus": "c", "sources": (SourceConfig(uri="a.h5ad"),)}
    IngestConfig(**fields, binning="stored", tokenizer=TokenizerConfig(n_bins=256))
    IngestConfig(**fields, tokenizer=TokenizerConfig(n_bins=257))
    with pytest.raises(ValidationError, match="256 at most"):
        IngestConfig(**fields, binning="stored", tokenizer=TokenizerConfig(n_bins=257))
