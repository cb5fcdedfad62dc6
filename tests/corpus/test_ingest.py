"""What an ingest makes of files: every cell, once, wherever it was read and whatever else was read with it."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from decode_corpus import decode_cells, read_corpus, read_file, read_manifest
from pydantic import ValidationError
from scipy import sparse
from typer.testing import CliRunner

from cytoray import storage
from cytoray.cli.main import app
from cytoray.cluster import user_error
from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import CheckConfig, IngestConfig, ModalityConfig, RuleConfig, SourceConfig
from cytoray.corpus.ingest import IngestResult, ingest, plan_in_tasks
from cytoray.corpus.ingesting.planning import dry_run, plan_ingest
from cytoray.corpus.manifest import find_manifest, load_manifest
from cytoray.corpus.shards import decode_shard
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.obs import read_tables
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.versions import verify
from cytoray.errors import ConfigError, ConflictError, CorpusError, StorageError
from cytoray.tokens.packed import unpack
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
        checks=CheckConfig(rules=RuleConfig(duplicate_cell="warn")),
    )  # fmt: skip
    return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def base(sources, tmp_path_factory) -> tuple[IngestConfig, IngestResult, float]:
    """Both files ingested in this process, a hundred rows at a time; and how many cells were said to be read."""
    config = configure(tmp_path_factory.mktemp("base"), sources.uris)
    amounts: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        _stay_in_process(patch)
        result = ingest(config, advance=lambda amount, note="": amounts.append(amount))
    return config, result, sum(amounts)


def _stay_in_process(patch: pytest.MonkeyPatch) -> None:
    """Let an ingest take its tasks one after another, even if Ray is running."""
    patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tasks one after another, without Ray."""
    _stay_in_process(monkeypatch)


def cells_of(result: IngestResult) -> dict[tuple[str, str], dict[int, float]]:
    return read_corpus(Path(result.uri))


def tables(result: IngestResult) -> list[list[dict[str, Any]]]:
    folder = Path(result.uri)
    read = (read_file(folder, shard["obs"]) for shard in read_manifest(folder)["shards"])
    return [pq.read_table(io.BytesIO(data)).to_pylist() for data in read]


def expected_cells(sources: Sources, vocabulary: Any) -> dict[tuple[str, str], dict[int, float]]:
    expected = {}
    for key, counts in sources.counts.items():
        cell: dict[int, float] = {}
        for gene, count in zip(sources.genes, counts.tolist(), strict=True):
            if count and gene in vocabulary.index:
                cell[vocabulary.index[gene]] = cell.get(vocabulary.index[gene], 0) + count
        if cell:
            expected[key] = cell
    return expected


def test_every_count_of_every_cell_is_there_under_its_name(base, sources, vocabulary):
    _, result, num_read = base
    assert not result.skipped
    assert num_read == pytest.approx(560, abs=1)
    assert cells_of(result) == expected_cells(sources, vocabulary)
    assert sum(len(rows) for rows in tables(result)) == 559


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
    assert result.manifest.obs_columns == {
        "batch": "string", "cell_id": "string", "cell_type": "string", "control": "bool", "depth": "double",
        "score": "double", "source": "string",
    }  # fmt: skip


def test_the_manifest_tells_what_was_read_and_dropped(base, sources, vocabulary):
    config, result, _ = base
    manifest = result.manifest
    assert load_manifest(config.store, "cells") == manifest
    assert (manifest.num_cells, manifest.values, manifest.binning) == (559, "counts", "on_read")
    (increment,) = manifest.increments
    assert (increment.version, increment.num_cells, increment.num_sources) == (1, 559, 2)
    assert increment.config_digest == config.fingerprint()
    assert manifest.vocabulary_digest == vocabulary.digest()
    first, second = manifest.sources
    assert (first.uri, second.uri) == sources.uris
    assert (first.value_kind, second.value_kind) == ("counts", "recoverable")
    assert (first.num_cells, first.num_kept_cells, first.dropped) == (300, 299, {"empty_cell": 1})
    assert (second.num_cells, second.num_kept_cells, second.dropped) == (260, 260, {})
    assert first.num_matched_genes == 298
    assert first.num_bytes == Path(first.uri).stat().st_size
    assert len(manifest.shards) == 2
    written = {str(path.relative_to(result.uri)) for path in Path(result.uri).rglob("*") if path.is_file()}
    named = {file.key for shard in manifest.shards for file in shard.files}
    assert {path for path in written if path.startswith(("shards/", "obs/"))} == named
    assert {path.partition("/")[0] for path in written - named} == {"manifests", "versions", "reports"}
    report = Path(result.uri, increment.report_key)
    assert {path.name for path in report.iterdir()} == {"report.html", "report.json"}
    assert json.loads((report / "report.json").read_text())["corpus"]["digest"] == manifest.digest


def test_cells_are_shuffled_over_and_within_shards(base, sources):
    _, result, _ = base
    for rows in tables(result):
        origins = [row["_source"] for row in rows]
        changes = sum(a != b for a, b in itertools.pairwise(origins))
        assert 0.35 < changes / len(origins) < 0.65  # about a half where two files are mixed
        numbers = [int(row["_obs_name"].partition("-")[2]) for row in rows]
        assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.25


@pytest.mark.ray
@pytest.mark.parametrize(("rows_per_task", "read_concurrency"), [(100, 1), (4096, 2)])
def test_the_corpus_does_not_depend_on_workers_tasks_or_order_of_files(
    rows_per_task: int, read_concurrency: int, *, ray_cluster, base, sources, tmp_path
):
    """Through Ray it is the one that a single process makes."""
    _, result, num_read = base
    config = configure(tmp_path / "two", sources.uris[::-1])
    config = config.model_copy(update={"rows_per_task": rows_per_task, "read_concurrency": read_concurrency})
    amounts: list[float] = []
    other = ingest(config, advance=lambda amount, note="": amounts.append(amount))
    assert other.manifest == result.manifest
    assert other.manifest.digest == result.manifest.digest
    assert cells_of(other) == cells_of(result)
    assert sum(amounts) == pytest.approx(num_read)


def test_nor_on_how_many_rows_a_task_takes(base, sources, tmp_path, in_process):
    _, result, _ = base
    for rows in (1000, 37):
        config = configure(tmp_path / str(rows), sources.uris, rows_per_task=rows)
        assert ingest(config).manifest.digest == result.manifest.digest


def test_stored_bins_are_those_of_the_first_epoch(base, sources, tmp_path, vocabulary, in_process):
    _, result, _ = base
    config = configure(tmp_path, sources.uris, binning="stored", tokenizer=TokenizerConfig(seed=4))
    other = ingest(config)
    assert other.manifest.content_digest != result.manifest.content_digest
    tokenizer = CellTokenizer(vocabulary, config.tokenizer)
    for shard in other.manifest.shards:
        data = Path(other.uri, shard.key).read_bytes()
        packed = decode_shard(data)
        bins = tokenizer.bin_cells(unpack(packed), epoch=0)
        assert np.array_equal(packed.bins, bins)
        assert decode_cells(data)[1] == bins.tolist()
    assert cells_of(other) == cells_of(result)
    assert tables(other) == tables(result)
    assert other.manifest.sources == result.manifest.sources


def test_a_rerun_finds_the_corpus_and_another_ingest_is_refused(base, sources):
    config, result, _ = base
    again = ingest(config.model_copy(update={"read_concurrency": 2}))
    assert (again.skipped, again.manifest) == (True, result.manifest)
    for change in ({"seed": 1}, {"checks": CheckConfig(min_genes=2)}, {"sources": config.sources[:1]}):
        with pytest.raises(CorpusError, match=r"'cells' is already committed in .* from another") as caught:
            ingest(config.model_copy(update=change))
        assert "another corpus name" in caught.value.remedy
    assert find_manifest(config.store, "cells") == result.manifest


@pytest.mark.ray
def test_tasks_plan_what_one_process_plans(ray_cluster, plant, build_adata, save, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        save(build_adata(plant(number)), tmp_path / f"in/{number}.h5ad")
    (tmp_path / "in/bad.h5ad").write_bytes(b"no HDF5")
    source = SourceConfig(uri=f"{tmp_path}/in/")
    lenient = IngestConfig(
        store=str(tmp_path / "s"), corpus="c", sources=(source,), checks=CheckConfig(max_bad_files=1)
    )
    plan, other = plan_in_tasks(lenient), plan_ingest(lenient)
    assert len(plan.sources) == 5
    assert plan.genes.tolist() == other.genes.tolist() == sorted(set(plan.genes.tolist()))
    assert replace(plan, genes=other.genes) == other
    with pytest.raises(CorpusError, match=r"bad\.h5ad: this looks like plain text") as caught:
        plan_in_tasks(lenient.model_copy(update={"checks": CheckConfig()}))
    assert type(caught.value) is CorpusError  # not one of Ray's wrappers


@pytest.mark.ray
def test_a_file_that_changes_between_plan_and_read_is_refused(ray_cluster, plant, build_adata, save, tmp_path, capfd):
    path = tmp_path / "moving.h5ad"
    save(build_adata(plant(1)), path)
    checks = CheckConfig(max_bad_files=5)  # which is no leave to mix two files
    source = SourceConfig(uri=str(path))
    config = IngestConfig(store=str(tmp_path / "store"), corpus="cells", sources=(source,), checks=checks)
    plan = plan_ingest(config)
    save(build_adata(plant(2, num_cells=280)), path)
    with pytest.raises(ray.exceptions.RayError) as caught:
        ingest(config, plan=plan)
    error = user_error(caught.value)  # what a person is shown
    assert isinstance(error, CorpusError)
    assert f"{path}: the file changed while it was read" in str(error)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert find_manifest(config.store, "cells") is None


def test_when_no_cell_passes_there_is_no_corpus(planted_file, tmp_path, in_process):
    checks = CheckConfig(min_genes=10_000)
    source = SourceConfig(uri=planted_file[0])
    config = IngestConfig(store=str(tmp_path), corpus="cells", sources=(source,), checks=checks)
    with pytest.raises(CorpusError, match="no cell passed the checks"):
        ingest(config)
    assert find_manifest(config.store, "cells") is None


# --- copies of cells


@pytest.fixture
def write(plant, build_adata, save, tmp_path) -> Callable[..., str]:
    """A function that writes a file with the cells at ``rows`` of one set of planted cells."""

    def file(name: str, rows: list[int]) -> str:
        planted = plant(3, num_cells=60)
        names = [f"{name}-{row}" + "'" * rows[:place].count(row) for place, row in enumerate(rows)]
        chosen = replace(
            planted, counts_CG=planted.counts_CG[rows], types=[planted.types[row] for row in rows], names=names
        )
        return save(build_adata(chosen), tmp_path / f"{name}.h5ad")

    return file


def test_of_equal_cells_the_first_stays_in_a_file_and_across_files(write, tmp_path, in_process):
    uris = (write("b", [0, 1, 2, 2, 3]), write("a", [10, 1, 11, 3, 10]))
    digests = set()
    for number, order in enumerate((uris, uris[::-1])):
        config = configure(tmp_path / f"store {number}", order, checks=CheckConfig(), rows_per_task=2)
        result = ingest(config)
        names = {name for _, name in cells_of(result)}
        assert names == {"a-10", "a-1", "a-11", "a-3", "b-0", "b-2"}
        assert {record.identity: record.dropped for record in result.manifest.sources} == {
            "a.h5ad": {"duplicate_cell": 1}, "b.h5ad": {"duplicate_cell": 3},
        }  # fmt: skip
        assert {record.identity: record.num_kept_cells for record in result.manifest.sources} == {
            "a.h5ad": 4, "b.h5ad": 2,
        }  # fmt: skip
        digests.add(result.manifest.digest)
    assert len(digests) == 1


def test_copies_are_found_however_many_parts_the_cells_are_compared_in(write, tmp_path, in_process, monkeypatch):
    uris = (write("b", list(range(30))), write("a", list(range(20, 60))))
    whole = ingest(configure(tmp_path / "1", uris, checks=CheckConfig()))
    monkeypatch.setattr("cytoray.corpus.ingesting.dedupe.CELLS_PER_BUCKET", 7)
    parts = ingest(configure(tmp_path / "2", uris, checks=CheckConfig()))
    assert parts.manifest.digest == whole.manifest.digest
    assert whole.manifest.num_cells == 60


@pytest.mark.parametrize(("severity", "num_cells", "told"), [("warn", 10, 4), ("off", 10, 0)])
def test_copies_may_stay(severity: Any, num_cells: int, told: int, write, tmp_path, in_process):
    uris = (write("b", [0, 1, 2, 2, 3]), write("a", [10, 1, 11, 3, 10]))
    checks = CheckConfig(rules=RuleConfig(duplicate_cell=severity))
    manifest = ingest(configure(tmp_path, uris, checks=checks)).manifest
    assert manifest.num_cells == num_cells
    assert sum(record.warned.get("duplicate_cell", 0) for record in manifest.sources) == told


def test_copies_may_be_an_error_that_names_both(write, tmp_path, in_process):
    uris = (write("b", [0, 1]), write("a", [10, 1]))
    config = configure(tmp_path, uris, checks=CheckConfig(rules=RuleConfig(duplicate_cell="error")))
    with pytest.raises(CorpusError, match=r"b\.h5ad: row 1 has the same counts as row 1 of .*a\.h5ad"):
        ingest(config)
    assert find_manifest(config.store, "cells") is None


# --- bad files


def test_bad_files_are_left_out_as_far_as_is_allowed(write, tmp_path, in_process):
    good, late = write("good", list(range(20))), write("late", list(range(20, 60)))
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(Path(good).read_bytes()[:3000])
    spoil(Path(late), row=35)  # beyond the first range of rows
    uris = (good, late, str(cut))
    allowed = CheckConfig(max_bad_files=2)
    result = ingest(configure(tmp_path / "a", uris, checks=allowed, rows_per_task=10))
    manifest = result.manifest
    assert {name for _, name in cells_of(result)} == {f"good-{row}" for row in range(20)}
    assert [source.identity for source in manifest.sources] == ["good.h5ad"]
    by_name = {Path(record.uri).name: record for record in manifest.quarantined}
    assert by_name.keys() == {"cut.h5ad", "late.h5ad"}
    assert by_name["late.h5ad"].rule == "not_finite"
    assert "late-55" in by_name["late.h5ad"].reason
    assert by_name["cut.h5ad"].rule == "malformed"
    again = ingest(configure(tmp_path / "a", uris, checks=allowed, rows_per_task=10))
    assert (again.skipped, again.manifest) == (True, manifest)
    other = ingest(configure(tmp_path / "b", uris, checks=allowed, rows_per_task=7))
    assert other.manifest.digest == manifest.digest
    with pytest.raises(CorpusError, match=r"late\.h5ad.*bad file number 2"):
        ingest(configure(tmp_path / "c", uris, checks=CheckConfig(max_bad_files=1)))
    with pytest.raises(CorpusError, match=r"cut\.h5ad"):
        ingest(configure(tmp_path / "d", uris, checks=CheckConfig()))


def spoil(path: Path, *, row: int) -> None:
    """Make one count of a cell a NaN."""
    import h5py

    with h5py.File(path, "a") as file:
        file["X/data"][int(file["X/indptr"][row])] = np.nan


def test_sources_are_refused_before_anything_is_written(planted_file, plant, build_adata, save, tmp_path):
    good = SourceConfig(uri=planted_file[0])
    mouse = save(build_adata(plant(1), var_names=[f"{g.capitalize()}x" for g in plant(1).genes]), tmp_path / "m.h5ad")
    negative = save(build_adata(plant(1), matrix=plant(1).counts_CG - 1), tmp_path / "n.h5ad")
    (tmp_path / "cut.h5ad").write_bytes(Path(planted_file[0]).read_bytes()[:5000])
    store = tmp_path / "store"
    for uri, words in (
        (mouse, "0 of 300 genes"),
        (negative, "negative"),
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


# --- what else a corpus can hold


def test_expression_is_kept_to_the_bit_where_that_is_allowed(
    plant, build_adata, save, tmp_path, in_process, vocabulary
):
    planted = plant(4, num_cells=50)
    values = np.sqrt(planted.counts_CG * 1.7).astype(np.float32)
    uri = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "e.h5ad")
    with pytest.raises(CorpusError, match="does not hold counts"):
        ingest(configure(tmp_path, (uri,)))
    checks = CheckConfig(rules=RuleConfig(not_counts="warn"))
    result = ingest(configure(tmp_path, (uri,), checks=checks))
    assert result.manifest.values == "expression"
    expected = {
        (uri, name): {
            vocabulary.index[gene]: value
            for gene, value in zip(planted.genes, row.tolist(), strict=True)
            if value and gene in vocabulary.index
        }
        for name, row in zip(planted.names, values, strict=True)
    }
    assert cells_of(result) == expected


def test_proteins_come_along_as_a_modality(plant, build_adata, save, tmp_path, in_process):
    """From obsm of one file; the other has none, and other cells of it are dropped."""
    with_proteins, without = plant(5, num_cells=90), plant(6, num_cells=40, prefix="other")
    with_proteins.counts_CG[7] = 0
    adata = build_adata(with_proteins)
    rng = np.random.default_rng(0)
    proteins = rng.integers(0, 900, (90, 3))
    adata.obsm["protein"] = pd.DataFrame(proteins, index=adata.obs_names, columns=["CD8", "CD3", "CD19"])
    uris = save(adata, tmp_path / "cite.h5ad"), save(build_adata(without), tmp_path / "rna.h5ad")
    modality = ModalityConfig(name="protein", matrix="obsm/protein")
    sources = SourceConfig(uri=uris[0], modalities=(modality,)), SourceConfig(uri=uris[1])
    result = ingest(configure(tmp_path, uris, sources=sources, cells_per_shard=256, rows_per_task=25))
    assert result.manifest.modalities == {"protein": ("CD19", "CD3", "CD8")}
    expected = {
        (uris[0], name): {place: int(row[column]) for place, column in enumerate((2, 1, 0)) if row[column]}
        for name, row in zip(with_proteins.names, proteins, strict=True)
    }
    del expected[uris[0], with_proteins.names[7]]
    expected |= {(uris[1], name): {} for name in without.names}
    assert read_corpus(Path(result.uri), modality="protein") == expected
    (shard,) = result.manifest.shards
    sizes = [group.num_cells for group in shard.row_groups]
    assert [group.num_cells for group in shard.modalities["protein"].row_groups] == sizes


def test_a_filter_keeps_some_cells_of_every_file(sources, base, tmp_path, in_process):
    _, result, _ = base
    other = ingest(configure(tmp_path, sources.uris, filter="cell_type == 'B cell'"))
    kept = {key for key in cells_of(result) if sources.obs[key]["cell_type"] == "B cell"}
    assert cells_of(other).keys() == kept
    assert sum(record.dropped["filter"] for record in other.manifest.sources) == 560 - len(kept) - 0


def test_only_the_columns_asked_for_are_kept(sources, tmp_path, in_process):
    result = ingest(configure(tmp_path, sources.uris, obs_columns=("depth", "cell_type")))
    assert set(tables(result)[0][0]) == {"_cell_id", "_content", "_source", "_obs_name", "depth", "cell_type"}


def test_a_dry_run_reads_headers_only(sources, tmp_path):
    config = configure(tmp_path / "store", sources.uris)
    run = dry_run(config)
    assert (run.num_sources, run.num_cells, run.num_shards, run.num_quarantined) == (2, 560, 2, 0)
    assert run.num_bytes_read == sum(Path(uri).stat().st_size for uri in sources.uris)
    assert 20_000 < run.num_bytes_written < 500_000
    assert run.seconds < 60
    assert not (tmp_path / "store").exists()


def test_more_bins_than_a_byte_holds_cannot_be_stored(tmp_path):
    fields: dict[str, Any] = {"store": str(tmp_path), "corpus": "c", "sources": (SourceConfig(uri="a.h5ad"),)}
    IngestConfig(**fields, binning="stored", tokenizer=TokenizerConfig(n_bins=256))
    IngestConfig(**fields, tokenizer=TokenizerConfig(n_bins=257))
    with pytest.raises(ValidationError, match="256 at most"):
        IngestConfig(**fields, binning="stored", tokenizer=TokenizerConfig(n_bins=257))


# --- further versions


def test_an_append_adds_cells_and_shares_the_shards_that_are_there(write, tmp_path, in_process):
    one, two = write("one", list(range(30))), write("two", list(range(25, 60)))
    first = ingest(configure(tmp_path, (one,), checks=CheckConfig()))
    with pytest.raises(CorpusError, match="already committed") as caught:
        ingest(configure(tmp_path, (one, two), checks=CheckConfig()))
    assert "append" in caught.value.remedy
    second = ingest(configure(tmp_path, (one, two), checks=CheckConfig(), append=True))
    assert (second.manifest.version, second.manifest.parent) == (2, first.manifest.digest)
    assert second.manifest.shards[: len(first.manifest.shards)] == first.manifest.shards
    assert len(second.manifest.shards) == len(first.manifest.shards) + 1
    assert second.manifest.sources[0] == first.manifest.sources[0]
    assert second.manifest.sources[1].dropped == {"duplicate_cell": 5}  # of those the first version has
    assert {name for _, name in cells_of(second)} == {
        *(f"one-{row}" for row in range(30)), *(f"two-{row}" for row in range(30, 60)),
    }  # fmt: skip
    assert load_manifest(str(tmp_path), "cells@1") == first.manifest
    assert [increment.num_cells for increment in second.manifest.increments] == [30, 30]
    for uris in ((one, two), (two,), (one,)):
        again = ingest(configure(tmp_path, uris, checks=CheckConfig(), append=True))
        assert (again.skipped, again.manifest) == (True, second.manifest)
    assert ingest(configure(tmp_path, (one,), checks=CheckConfig())).skipped


def test_cells_of_before_an_append_have_its_new_columns_as_missing(plant, build_adata, save, tmp_path, in_process):
    old, new = build_adata(plant(1)), build_adata(plant(2))
    old.obs["dose"] = np.arange(old.n_obs) % 3
    new.obs["dose"] = "high"
    new.obs["treated"] = np.arange(new.n_obs) % 2 == 0
    uris = (save(old, tmp_path / "old.h5ad"), save(new, tmp_path / "new.h5ad"))
    ingest(configure(tmp_path / "store", uris[:1]))
    result = ingest(configure(tmp_path / "store", uris, append=True))
    tables = pa.concat_tables(read_tables(str(tmp_path / "store"), result.manifest, ["dose", "treated"]))
    kept = result.manifest.sources[0].num_kept_cells, result.manifest.sources[1].num_kept_cells
    assert tables.column("dose").to_pylist().count("high") == kept[1]
    assert set(tables.column("dose").to_pylist()) == {"0", "1", "2", "high"}
    assert tables.column("treated").null_count == kept[0]
    options = StreamOptions(TokenizerConfig(), seed=1, cells_per_step=8, select="treated == True")
    assert 0 < open_stream(str(tmp_path / "store"), "cells", options).num_cells <= kept[1]
    with pytest.raises(CorpusError, match="no column 'dosis'") as caught:
        list(read_tables(str(tmp_path / "store"), result.manifest, ["dosis"]))
    assert "treated" in caught.value.remedy


def test_an_append_to_nothing_is_an_ingest(write, tmp_path, in_process):
    one = write("one", list(range(30)))
    there, other = (configure(tmp_path / name, (one,)) for name in "ab")
    assert ingest(there.model_copy(update={"append": True})).manifest == ingest(other).manifest


def test_an_append_that_does_not_fit_is_refused(write, tmp_path, in_process):
    one, two = write("one", list(range(30))), write("two", list(range(30, 60)))
    first = ingest(configure(tmp_path, (one,)))
    for changes, words in (
        ({"seed": 3}, r"seed \(3, there 0\)"),
        ({"binning": "stored"}, "binning"),
        ({"tokenizer": TokenizerConfig(n_bins=11)}, "n_bins"),
    ):
        with pytest.raises(CorpusError, match=words):
            ingest(configure(tmp_path, (two,), append=True, **changes))
    renamed = SourceConfig(uri=two, name="one.h5ad")
    with pytest.raises(CorpusError, match=r"a source called 'one\.h5ad' already"):
        ingest(configure(tmp_path, (two,), sources=(renamed,), append=True))
    write("one", list(range(29)))
    with pytest.raises(CorpusError, match="not the one that the corpus was made from"):
        ingest(configure(tmp_path, (one, two), append=True))
    assert load_manifest(str(tmp_path), "cells") == first.manifest


def test_of_two_ingests_at_once_one_wins_and_the_other_is_told(write, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, (write("one", list(range(30))),))
    winner: list[IngestResult] = []
    run = ingest_module._write_all

    def overtaken(*args: Any, **options: Any) -> Any:
        if not winner:
            winner.append(None)
            winner[0] = ingest(config)  # another process does all of it meanwhile, and clears the staging area
        return run(*args, **options)

    monkeypatch.setattr(ingest_module, "_write_all", overtaken)
    with pytest.raises(ConflictError, match="committed by another ingest first") as caught:
        ingest(config)
    assert caught.value.details["winner"] == winner[0].manifest.digest
    assert ingest(config).manifest == winner[0].manifest


def test_of_two_that_commit_at_once_one_wins(write, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, (write("one", list(range(30))),))
    winner: list[IngestResult] = []
    commit = ingest_module.commit_manifest

    def overtaken(uri: str, manifest: Any) -> None:
        if not winner:
            winner.append(None)
            winner[0] = ingest(config)
        commit(uri, manifest)

    monkeypatch.setattr(ingest_module, "commit_manifest", overtaken)
    with pytest.raises(ConflictError, match="committed by another ingest first"):
        ingest(config)
    assert load_manifest(str(tmp_path), "cells") == winner[0].manifest
    assert winner[0].manifest.num_cells == 30


def test_from_and_into_an_object_store_it_is_the_same_corpus(write, tmp_path, in_process, s3_bucket):
    uri = write("one", list(range(60)))
    storage.write_bytes(f"{s3_bucket}/raw/one.h5ad", Path(uri).read_bytes())
    here = ingest(configure(tmp_path, (uri,), rows_per_task=25)).manifest
    config = configure(tmp_path, (uri,), sources=(SourceConfig(uri=f"{s3_bucket}/raw/"),))
    config = config.model_copy(update={"store": f"{s3_bucket}/store"})
    there = ingest(config)
    assert there.manifest.content_digest == here.content_digest
    assert load_manifest(config.store, "cells") == there.manifest
    assert ingest(config).skipped
    assert not verify(config.store, "cells").damaged
    assert not [name for name in storage.list_files(f"{s3_bucket}/store/") if "/staging/" in name]


def test_the_command_needs_no_file_of_configuration(write, tmp_path):
    uri = write("one", list(range(30)))
    arguments = ["data", "ingest", uri, "--store", str(tmp_path / "s"), "--corpus", "c", "--dry-run"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "cells        30" in done.output
    assert not (tmp_path / "s").exists()
    missing = CliRunner().invoke(app, ["data", "ingest", "--store", str(tmp_path), "--dry-run"])
    assert isinstance(missing.exception, ConfigError)
    assert "corpus" in str(missing.exception)
