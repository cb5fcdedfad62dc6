"""The shuffle of an ingest: as many requests as the benchmark's model counts, and each byte is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from decode_corpus import read_corpus
from scipy import sparse

from benchmarks.ingest_requests import Spilled, Traffic, count_copies, count_shards, count_traffic, simulate
from cytoray import storage
from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import CheckConfig, IngestConfig, RuleConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.ingesting import dedupe, shuffle
from cytoray.corpus.ingesting.dedupe import CopiesRecord
from cytoray.corpus.ingesting.read_pass import SpillRecord
from cytoray.corpus.ingesting.runs import RunRecord
from cytoray.corpus.ingesting.shuffle import Groups, Piece
from cytoray.corpus.manifest import CorpusManifest, commit_manifest

NUM_CELLS = 1_700


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ingest of many million cells meets: groups of partitions, several runs of each, several buckets."""
    monkeypatch.setattr(shuffle, "MAX_SECTIONS", 3)
    monkeypatch.setattr(shuffle, "RUN_BYTES", 60_000)
    monkeypatch.setattr(shuffle, "HASH_BYTES", 60)  # 1,000 cells per run
    monkeypatch.setattr(dedupe, "CELLS_PER_BUCKET", 400)


@pytest.fixture(scope="module")
def sources(plant, build_adata, save, tmp_path_factory) -> tuple[SourceConfig, ...]:
    """Two files with 400 cells in common."""
    folder, planted = tmp_path_factory.mktemp("sources"), plant(1, num_cells=NUM_CELLS)
    whole = build_adata(planted)
    parts = {"one": whole[:900], "two": whole[500:]}
    return tuple(SourceConfig(uri=save(part.copy(), folder / f"{name}.h5ad")) for name, part in parts.items())


def configure(store: Path, sources: tuple[SourceConfig, ...], **changes: Any) -> IngestConfig:
    return IngestConfig(
        store=str(store), corpus="cells", sources=sources, cells_per_shard=256, rows_per_task=130, **changes
    )


@pytest.fixture
def clean(sources, tmp_path) -> CorpusManifest:
    return ingest(configure(tmp_path / "clean", sources)).manifest


def test_groups_runs_and_buckets_make_the_same_corpus(sources, clean, tmp_path, small_limits):
    other = ingest(configure(tmp_path / "grouped", sources))
    assert len(clean.shards) == 8
    assert other.manifest.digest == clean.digest
    assert len(read_corpus(Path(other.uri))) == NUM_CELLS
    assert not list(Path(other.uri).glob("staging/*"))


class Counted:
    """The traffic below the corpora of a store from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.traffic, self.read, self.kinds = Traffic(), Counter[str](), Counter[str]()
        read, write = storage.read_bytes, storage.write_bytes

        def read_bytes(uri: str, **options: Any) -> bytes:
            try:
                data = read(uri, **options)
            except storage.NotFoundError:
                data = b""
                raise
            finally:
                if self._counts(uri) and options.get("start", 0) != options.get("end"):
                    self.traffic.gets += 1
                    self.traffic.read_bytes += len(data)
                    self.read[uri] += len(data)
                    self.kinds[self._kind(uri)] += 1
            return data

        def write_bytes(uri: str, data: bytes) -> None:
            write(uri, data)
            if self._counts(uri):
                self.traffic.puts += 1
                self.traffic.written_bytes += 0 if uri.endswith(".json") else len(data)

        monkeypatch.setattr(storage, "read_bytes", read_bytes)
        monkeypatch.setattr(storage, "write_bytes", write_bytes)

    @staticmethod
    def _counts(uri: str) -> bool:
        return any(f"/{folder}/" in uri for folder in ("staging", "shards", "obs")) and not uri.endswith("/claim")

    @staticmethod
    def _kind(uri: str) -> str:
        return uri.rpartition("/")[2].partition("-")[0] if "/staging/" in uri else "committed"


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The staging folder as it is at the commit; its objects stay."""
    kept: list[Path] = []
    monkeypatch.setattr(storage, "delete_prefix", lambda uri: kept.append(Path(uri)))
    return kept


@pytest.mark.parametrize("limits", ["few cells", "many cells"])
def test_a_real_ingest_makes_the_requests_that_the_model_counts(
    limits: str, sources, tmp_path, staged, monkeypatch, request
):
    if limits == "many cells":
        request.getfixturevalue("small_limits")
    counted = Counted(monkeypatch)
    manifest = ingest(configure(tmp_path / "store", sources)).manifest
    (folder,) = staged
    groups = Groups.of(8)
    assert (groups.num_groups, groups.width) == ((3, 3) if limits == "many cells" else (8, 1))
    model = expect(folder, groups, manifest)
    real = asdict(counted.traffic) | {"deletes": sum(path.name != "claim" for path in folder.iterdir())}
    assert real == asdict(model), counted.kinds
    sections = {uri: size for uri, size in counted.read.items() if not uri.endswith(".json")}
    assert sections == {uri: Path(uri).stat().st_size for uri in sections}, "each byte is read once"


def expect(folder: Path, groups: Groups, manifest: CorpusManifest) -> Traffic:
    """The model's traffic for what an ingest left in its staging area."""

    def records(pattern: str, kind: Any) -> list[Any]:
        return [kind.model_validate_json(path.read_bytes()) for path in sorted(folder.glob(pattern))]

    spills = records("spill-*.json", SpillRecord)
    pieces = [Piece.of(f"{spill.source}-{spill.start:010d}", spill.sections) for spill in spills]
    last = range(groups.num_groups, groups.num_groups + 1)
    spilled = Spilled(pieces, [piece.part(last) for piece in pieces], [spill.num_cells for spill in spills])
    spilled = Spilled([piece.part(range(groups.num_groups)) for piece in pieces], spilled.hashes, spilled.num_cells)
    runs: dict[int, list[Piece]] = {group: [] for group in range(groups.num_groups)}
    for record in records("run-*.json", RunRecord):
        runs[int(record.name.split("-")[2])].append(Piece.of(record.name, record.sections))
    cuts = [Piece.of(record.name, record.sections) for record in records("hashes-*.json", RunRecord)]
    traffic = count_traffic(spilled, groups, runs=runs, cuts=cuts)
    copies = [record for record in records("copies-*.json", Joined) if "group" not in record.name]
    num_copies = sum(record.sections.borders[-1] for record in copies) // 8
    assert num_copies == 400
    count_copies(traffic, groups, buckets=len(copies), copies=num_copies)
    files = sum(file.num_bytes for shard in manifest.shards for file in shard.files)
    count_shards(traffic, num_partitions=groups.num_partitions, num_bytes=files)
    return traffic


class Joined(CopiesRecord):
    """A record of copies, of one bucket or joined."""

    bucket: int = 0
    by_source: dict[int, int] = {}  # noqa: RUF012


def test_requests_grow_with_the_number_of_cells_and_not_with_its_square():
    few, many = simulate(5_000_000), simulate(50_000_000)
    assert 8 < many["requests"] / few["requests"] < 12
    assert many["read_bytes_per_cell"] == pytest.approx(few["read_bytes_per_cell"], rel=0.01)
    assert many["requests"] < many["every_partition_out_of_every_spill"] / 10


# --- appending


@pytest.fixture
def grow(plant, build_adata, save, tmp_path) -> Callable[..., str]:
    """A function that writes a further file, with some cells of the first ones."""

    def write(name: str, *, old: int, new: int) -> str:
        before, after = plant(1, num_cells=NUM_CELLS), plant(9, num_cells=new)
        counts = np.concatenate([before.counts_CG[:old], after.counts_CG])
        adata = anndata.AnnData(sparse.csr_matrix(counts), obs={"row": np.arange(old + new)})
        adata.var_names, adata.obs_names = before.genes, [f"{name}-{row}" for row in range(old + new)]
        return save(adata, tmp_path / f"{name}.h5ad")

    return write


def test_an_append_reads_eight_bytes_per_cell_of_the_corpus(sources, tmp_path, grow, monkeypatch, small_limits):
    config = configure(tmp_path / "store", sources)
    first = ingest(config).manifest
    uri = grow("three", old=25, new=200)
    counted = Counted(monkeypatch)
    second = ingest(configure(tmp_path / "store", (*sources, SourceConfig(uri=uri)), append=True)).manifest
    assert second.sources[-1].dropped == {"duplicate_cell": 25}
    read = {
        Path(uri).relative_to(tmp_path / "store/corpora/cells").as_posix(): size for uri, size in counted.read.items()
    }
    committed = {key: size for key, size in read.items() if not key.startswith("staging/")}
    assert committed == {shard.hashes.key: 8 * shard.num_cells for shard in first.shards}
    assert counted.kinds["committed"] == len(first.shards), "each once, however many buckets there are"


def test_an_append_to_an_older_corpus_reads_the_hashes_from_obs(sources, tmp_path, grow, monkeypatch, small_limits):
    config = configure(tmp_path / "store", sources)
    result = ingest(config)
    old = [shard.model_copy(update={"hashes": None}) for shard in result.manifest.shards]
    older = result.manifest.model_copy(update={"shards": tuple(old)})
    for shard in result.manifest.shards:
        Path(result.uri, shard.hashes.key).unlink()
    Path(result.uri, "versions/000001.json").unlink()
    commit_manifest(result.uri, older)
    assert "hashes" not in next(Path(result.uri, "manifests").glob("*")).read_text().partition('"increments"')[0]
    counted = Counted(monkeypatch)
    uri = grow("three", old=25, new=200)
    second = ingest(configure(tmp_path / "store", (*sources, SourceConfig(uri=uri)), append=True)).manifest
    assert second.sources[-1].dropped == {"duplicate_cell": 25}
    assert counted.kinds["committed"] == len(old)


def test_sources_that_are_known_are_not_opened_again(sources, tmp_path, grow, monkeypatch):
    from cytoray.corpus.ingesting import planning

    ingest(configure(tmp_path / "store", sources))
    opened: list[str] = []
    real = planning.open_source
    monkeypatch.setattr(planning, "open_source", lambda source: (opened.append(source.uri), real(source))[1])
    uri = grow("three", old=0, new=50)
    ingest(configure(tmp_path / "store", (*sources, SourceConfig(uri=uri)), append=True))
    assert opened == [uri]


@pytest.mark.parametrize("rows", [(100, 1_000), (1_000, 100)])
def test_an_ingest_that_resumes_with_other_ranges_of_rows_loses_no_cell(rows, sources, clean, tmp_path, monkeypatch):
    config = configure(tmp_path / "store", sources)
    real = ingest_module._write_all

    def stop(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest_module, "_write_all", stop)
    with pytest.raises(KeyboardInterrupt):
        ingest(config.model_copy(update={"rows_per_task": rows[0]}))
    monkeypatch.setattr(ingest_module, "_write_all", real)
    assert ingest(config.model_copy(update={"rows_per_task": rows[1]})).manifest == clean


def test_duplicates_that_are_errors_are_named_with_several_buckets(sources, tmp_path, small_limits):
    from cytoray.errors import CorpusError

    checks = CheckConfig(rules=RuleConfig(duplicate_cell="error"))
    with pytest.raises(CorpusError, match=r"two\.h5ad: row \d+ has the same counts as row \d+ of .*one\.h5ad"):
        ingest(configure(tmp_path, sources, checks=checks))
