from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from cytoray import storage
from cytoray.corpus.manifest import (
    CellFileRecord,
    CorpusManifest,
    FileRecord,
    RowGroupRecord,
    ShardRecord,
    SourceRecord,
    commit_manifest,
    content_key,
    corpus_uri,
    find_manifest,
    list_versions,
    load_manifest,
    version_uri,
)
from cytoray.errors import ConflictError, CorpusError, DigestError
from cytoray.failpoints import FailpointError

GROUP = RowGroupRecord(offset=0, num_bytes=7, num_cells=5, num_entries=50, sha256="3" * 64)
SHARD = ShardRecord(
    key="s", sha256="0" * 64, num_bytes=10, num_cells=5, num_entries=50, frame_sha256="2" * 64, row_groups=(GROUP,),
    obs=FileRecord(key="o", sha256="1" * 64, num_bytes=4), cell_id_sum=2**64 - 1,
)  # fmt: skip
SOURCE = SourceRecord(
    uri="s3://b/a.h5ad", identity="a.h5ad", config_digest="d", num_bytes=9, version="e", format="h5ad", matrix="X",
    value_kind="counts", num_cells=6, num_genes=3, num_matched_genes=2, num_kept_cells=5, dropped={"empty_cell": 1},
    warned={},
)  # fmt: skip


def build(**changes: object) -> CorpusManifest:
    manifest = CorpusManifest(
        name="cells", vocabulary_digest="v", values="counts", binning="on_read", n_bins=51, seed=0, sources=(SOURCE,),
        shards=(SHARD, SHARD),
    )  # fmt: skip
    return manifest.model_copy(update=changes)


def test_a_corpus_exists_once_its_commit_does(tmp_path):
    store, manifest = str(tmp_path), build()
    assert find_manifest(store, "cells") is None
    with pytest.raises(CorpusError, match="no committed corpus 'cells'") as caught:
        load_manifest(store, "cells")
    assert "data ingest" in caught.value.remedy
    commit_manifest(corpus_uri(store, "cells"), manifest)
    assert find_manifest(store, "cells") == load_manifest(store, "cells") == manifest
    assert (manifest.num_cells, manifest.num_entries, manifest.num_bytes) == (10, 100, 28)
    assert find_manifest(store, "others") is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"shards": (SHARD,)},
        {"shards": (SHARD, SHARD.model_copy(update={"sha256": "2" * 64}))},
        {"sources": (SOURCE.model_copy(update={"version": "f"}),)},
        {"binning": "stored"},
        {"name": "others"},
    ],
)
def test_the_digest_names_all_there_is(change: dict[str, object]):
    assert build().digest == build().digest
    assert build(**change).digest != build().digest


def test_the_content_digest_names_the_cells_alone():
    content = build().content_digest
    elsewhere = SOURCE.model_copy(update={"uri": "s3://c/a.h5ad", "version": "later"})
    for same in ({"sources": (elsewhere,)}, {"name": "others"}, {"version": 2}, {"parent": "x"}):
        assert build(**same).content_digest == content
    other = SHARD.model_copy(update={"sha256": "2" * 64})
    for changed in ({"shards": (other, SHARD)}, {"shards": (SHARD,)}, {"vocabulary_digest": "w"}, {"n_bins": 3}):
        assert build(**changed).content_digest != content
    assert build(shards=(other, SHARD)).content_digest != build(shards=(SHARD, other)).content_digest
    proteins = CellFileRecord(**{**SHARD.model_dump(include=set(CellFileRecord.model_fields)), "key": "p"})
    with_proteins = SHARD.model_copy(update={"modalities": {"protein": proteins}})
    changed_proteins = SHARD.model_copy(
        update={"modalities": {"protein": proteins.model_copy(update={"sha256": "9" * 64})}}
    )
    modalities = {"protein": ("CD3", "CD4")}
    digests = {
        build(shards=(shard,), modalities=modalities).content_digest
        for shard in (SHARD, with_proteins, changed_proteins)
    }
    assert len(digests) == 3


def test_the_latest_version_or_the_one_asked_for(tmp_path):
    store = str(tmp_path)
    uri = corpus_uri(store, "cells")
    first = build()
    commit_manifest(uri, first)
    second = build(version=2, parent=first.digest, seed=5)
    commit_manifest(uri, second)
    assert load_manifest(store, "cells") == load_manifest(store, "cells@2") == second
    assert load_manifest(store, "cells@1") == first
    assert list_versions(uri) == [1, 2]
    assert corpus_uri(store, "cells@1") == uri
    assert find_manifest(store, "cells@3") is None
    with pytest.raises(CorpusError, match="has no version 3") as caught:
        load_manifest(store, "cells@3")
    assert "cells@2" in caught.value.remedy
    with pytest.raises(CorpusError, match="a version is a number"):
        load_manifest(store, "cells@latest")


def test_a_manifest_of_the_largest_corpora_loads(tmp_path):
    """33 million cells: 825 shards of 20 row groups."""
    shard = SHARD.model_copy(update={"row_groups": (GROUP,) * 20})
    commit_manifest(corpus_uri(str(tmp_path), "cells"), build(shards=(shard,) * 825))
    manifest = load_manifest(str(tmp_path), "cells")
    assert manifest.digest
    assert sum(len(shard.row_groups) for shard in manifest.shards) == 16_500


def test_an_ingest_that_dies_before_the_commit_leaves_nothing_visible(tmp_path, monkeypatch):
    uri = corpus_uri(str(tmp_path), "cells")
    monkeypatch.setenv("CYTORAY_FAILPOINTS", "ingest.before_commit=raise")
    with pytest.raises(FailpointError):
        commit_manifest(uri, build())
    assert find_manifest(str(tmp_path), "cells") is None
    monkeypatch.delenv("CYTORAY_FAILPOINTS")
    commit_manifest(uri, build())
    assert find_manifest(str(tmp_path), "cells") == build()


def test_of_many_committers_one_wins_and_its_manifest_stays(tmp_path):
    uri = corpus_uri(str(tmp_path), "cells")
    outcomes: dict[int, str] = {}
    barrier = threading.Barrier(8)

    def commit(seed: int) -> None:
        barrier.wait()
        try:
            commit_manifest(uri, build(seed=seed))
            outcomes[seed] = "won"
        except ConflictError as error:
            outcomes[seed] = str(error.details["winner"])

    threads = [threading.Thread(target=commit, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [seed for seed, outcome in outcomes.items() if outcome == "won"]
    assert len(winners) == 1
    assert len(outcomes) == 8
    manifest = load_manifest(str(tmp_path), "cells")
    assert manifest.seed == winners[0]
    assert set(outcomes.values()) == {"won", manifest.digest}  # a loser is told who won


def test_a_changed_manifest_is_noticed(tmp_path):
    store = str(tmp_path)
    uri = corpus_uri(store, "cells")
    commit_manifest(uri, build())
    (path,) = Path(uri).glob("manifests/*.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DigestError):
        load_manifest(store, "cells")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b'{"manifest_key": 3}', b"null"])
def test_a_damaged_commit_is_said_to_be_damaged(content: bytes, tmp_path):
    store = str(tmp_path)
    storage.write_bytes(version_uri(corpus_uri(store, "cells"), 1), content)
    for find in (find_manifest, load_manifest):
        with pytest.raises(CorpusError, match=r"000001\.json is damaged") as caught:
            find(store, "cells")
        assert caught.value.remedy


def test_every_flipped_bit_of_a_commit_is_noticed(tmp_path):
    store = str(tmp_path)
    uri = corpus_uri(store, "cells")
    commit_manifest(uri, build())
    path = Path(version_uri(uri, 1))
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises(CorpusError, match="damaged"):
                load_manifest(store, "cells")


def test_a_manifest_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(CorpusManifest, "model_dump_json", lambda self, **options: '{"format": 1}')
    commit_manifest(corpus_uri(str(tmp_path), "cells"), build())
    monkeypatch.undo()
    with pytest.raises(CorpusError, match="not a manifest that this version"):
        load_manifest(str(tmp_path), "cells")


def test_the_manifest_is_plain_json_for_other_tools(tmp_path):
    commit_manifest(corpus_uri(str(tmp_path), "cells"), build())
    commit = json.loads((tmp_path / "corpora/cells/versions/000001.json").read_text())
    written = json.loads((tmp_path / "corpora/cells" / commit["manifest_key"]).read_text())
    assert written["shards"][1]["sha256"] == "0" * 64
    assert written["sources"][0]["dropped"] == {"empty_cell": 1}


def test_names_carry_the_content():
    sha256 = "ca978112ca1bbdca" + "0" * 48
    assert content_key("shards", "000001-00002", sha256, ".parquet") == "shards/000001-00002-ca978112ca1bbdca.parquet"
