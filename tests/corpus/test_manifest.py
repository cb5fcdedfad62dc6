from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from cytoray import storage
from cytoray.corpus.manifest import (
    COMMIT,
    CorpusManifest,
    ShardRecord,
    SourceRecord,
    commit_manifest,
    content_name,
    corpus_uri,
    find_manifest,
    load_manifest,
)
from cytoray.errors import ConflictError, CorpusError, DigestError
from cytoray.failpoints import FailpointError

SHARD = ShardRecord(
    key="s", sha256="0" * 64, num_bytes=10, num_cells=5, num_entries=50, obs_key="o", obs_sha256="1" * 64
)
SOURCE = SourceRecord(
    uri="s3://b/a.h5ad", num_bytes=9, version="e", matrix="X", value_kind="counts", num_cells=6, num_genes=3,
    num_matched_genes=2, num_kept_cells=5, dropped={"empty_cell": 1},
)  # fmt: skip


def build(**changes: object) -> CorpusManifest:
    manifest = CorpusManifest(
        name="cells", config_digest="c", code_version="1", vocabulary_digest="v", values="counts", binning="on_read",
        n_bins=51, seed=0, sources=(SOURCE,), shards=(SHARD, SHARD),
    )  # fmt: skip
    return manifest.model_copy(update=changes)


def test_a_corpus_exists_once_its_commit_does(tmp_path):
    store, manifest = str(tmp_path), build()
    assert find_manifest(store, "cells") is None
    with pytest.raises(CorpusError, match="no committed corpus 'cells'") as caught:
        load_manifest(store, "cells")
    assert "jobs.ingest" in caught.value.remedy
    commit_manifest(corpus_uri(store, "cells"), manifest)
    assert find_manifest(store, "cells") == load_manifest(store, "cells") == manifest
    assert (manifest.num_cells, manifest.num_bytes) == (10, 20)
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
        except ConflictError:
            outcomes[seed] = "lost"

    threads = [threading.Thread(target=commit, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [seed for seed, outcome in outcomes.items() if outcome == "won"]
    assert len(winners) == 1
    assert len(outcomes) == 8
    assert load_manifest(str(tmp_path), "cells").seed == winners[0]


def test_a_changed_manifest_is_noticed(tmp_path):
    store = str(tmp_path)
    uri = corpus_uri(store, "cells")
    commit_manifest(uri, build())
    (path,) = Path(uri).glob("manifest-*.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DigestError):
        load_manifest(store, "cells")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b'{"manifest_key": 3}', b"null"])
def test_a_damaged_commit_is_said_to_be_damaged(content: bytes, tmp_path):
    store = str(tmp_path)
    storage.write_bytes(storage.join(corpus_uri(store, "cells"), COMMIT), content)
    for find in (find_manifest, load_manifest):
        with pytest.raises(CorpusError, match=r"COMMIT\.json is damaged") as caught:
            find(store, "cells")
        assert caught.value.remedy


def test_the_manifest_is_plain_json_for_other_tools(tmp_path):
    commit_manifest(corpus_uri(str(tmp_path), "cells"), build())
    commit = json.loads((tmp_path / "corpora/cells/COMMIT.json").read_text())
    written = json.loads((tmp_path / "corpora/cells" / commit["manifest_key"]).read_text())
    assert written["shards"][1]["sha256"] == "0" * 64
    assert written["sources"][0]["dropped"] == {"empty_cell": 1}


def test_names_carry_the_content():
    first, second = content_name("shard-00001", b"a", ".parquet"), content_name("shard-00001", b"b", ".parquet")
    assert first == content_name("shard-00001", b"a", ".parquet") != second
    assert first.startswith("shard-00001-ca978112ca1bbdca")  # sha256 of "a"
