"""Listing, comparing, verifying and cleaning up corpora."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.corpus import claims
from cytoray.corpus.manifest import commit_manifest, corpus_uri, load_manifest
from cytoray.corpus.version_text import describe_corpus, describe_diff
from cytoray.corpus.versions import diff, gc, list_corpora, verify
from cytoray.errors import ConflictError, CorpusError

DAY = 86_400.0


@pytest.fixture
def store(write_corpus) -> str:
    """Two versions of a corpus: the second lacks a shard and has another seed."""
    written = write_corpus((70, 41))
    first = written.manifest
    second = first.model_copy(update={"version": 2, "parent": first.digest, "shards": first.shards[:1], "seed": 3})
    commit_manifest(corpus_uri(written.store, "cells"), second)
    return str(written.store)


def test_corpora_are_listed_with_their_versions(store):
    (found,) = list_corpora(store)
    assert (found.name, found.versions, found.latest) == ("cells", (1, 2), load_manifest(store, "cells@2"))
    assert list_corpora(f"{store}/nowhere") == []


def test_a_difference_names_cells_shards_sources_and_settings(store):
    older, newer = load_manifest(store, "cells@1"), load_manifest(store, "cells@2")
    found = diff(older, newer)
    assert found.num_cells == (111, 70)
    assert (found.num_shared_shards, found.added_shards, found.removed_shards) == (1, (), ("shard-1",))
    assert found.settings == {"version": ("1", "2"), "seed": ("0", "3")}
    assert not found.same_cells
    assert diff(older, older).same_cells
    text = "\n".join(describe_diff(found))
    assert "111 -> 70 (-41)" in text
    assert "1 shared, 0 added, 1 removed" in text


def test_what_a_corpus_holds_is_told_in_words(store):
    text = "\n".join(describe_corpus(store, load_manifest(store, "cells")))
    for words in ("cells@2", "70", "counts", "kind (string)", load_manifest(store, "cells").digest):
        assert words in text


def test_verify_finds_one_flipped_bit_in_any_file(store):
    assert verify(store, "cells").damaged == ()
    files = sorted(path for path in Path(corpus_uri(store, "cells")).rglob("*") if path.is_file())
    assert len(files) == 2 * 2 + 2 + 2  # shards and obs, manifests, commits
    for path in files:
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            report = verify(store, "cells")
            names = {damage.uri for damage in report.damaged}
            assert len(names) == 1
            assert str(path) in names or "versions/" in next(iter(names))
            assert str(path) in report.damaged[0].problem
        path.write_bytes(data)
    assert verify(store, "cells").damaged == ()


def test_verify_tells_of_every_file_that_is_missing(store):
    folder = Path(corpus_uri(store, "cells"))
    for name in ("shard-0", "obs-1"):
        (folder / name).unlink()
    assert {Path(damage.uri).name for damage in verify(store, "cells").damaged} == {"shard-0", "obs-1"}
    assert {Path(damage.uri).name for damage in verify(store, "cells@2").damaged} == {"shard-0"}
    with pytest.raises(CorpusError, match="no version 9"):
        verify(store, "cells@9")
    with pytest.raises(CorpusError, match="no committed corpus 'others'"):
        verify(store, "others")


def test_verify_looks_at_what_a_file_holds_and_not_only_at_its_digest(write_corpus):
    written = write_corpus((20,))
    wrong = written.manifest.shards[0].model_copy(update={"cell_id_sum": 1})
    changes = {"version": 2, "parent": written.manifest.digest, "shards": (wrong,)}
    commit_manifest(corpus_uri(written.store, "cells"), written.manifest.model_copy(update=changes))
    (damage,) = verify(written.store, "cells@2").damaged
    assert "its record says" in damage.problem


def test_gc_deletes_what_no_version_names_once_it_is_old(store):
    folder = Path(corpus_uri(store, "cells"))
    (folder / "staging/abc").mkdir(parents=True)
    young, old = folder / "shards-new.parquet", folder / "staging/abc/spill-0"
    temporary = folder / ".shard-0.0123456789abcdef0123456789abcdef.part"
    other = Path(store, "corpora/half/staging/x/spill")  # of a corpus that was never committed
    other.parent.mkdir(parents=True)
    for path in (young, old, temporary, other):
        path.write_bytes(b"x")
    for path in (old, temporary, other):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    before = {path: path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}
    listed = gc(store)
    assert (set(listed.orphans), listed.num_young, listed.deleted) == ({str(old), str(temporary), str(other)}, 1, False)
    assert {path: path.read_bytes() for path in Path(store).rglob("*") if path.is_file()} == before
    assert gc(store, dry_run=False).deleted
    assert {path for path in Path(store).rglob("*") if path.is_file()} == before.keys() - {old, temporary, other}
    assert gc(store, dry_run=False, grace_s=0).orphans == (str(young),)
    assert verify(store, "cells").damaged == ()


def test_gc_deletes_nothing_where_a_version_cannot_be_read(store):
    folder = Path(corpus_uri(store, "cells"))
    (folder / "old").write_bytes(b"x")
    (folder / "versions/000001.json").write_bytes(b"{}")
    with pytest.raises(CorpusError, match="damaged"):
        gc(store, dry_run=False, grace_s=0)
    assert (folder / "old").exists()


def test_gc_of_a_store_named_by_a_relative_path_keeps_its_versions(store, monkeypatch):
    monkeypatch.chdir(Path(store).parent)
    assert gc(Path(store).name, dry_run=False, grace_s=0).orphans == ()
    assert verify(store, "cells").damaged == ()


def test_gc_deletes_nothing_of_a_corpus_whose_staging_area_is_in_use(store):
    folder = Path(corpus_uri(store, "cells"))
    (folder / "staging/abc").mkdir(parents=True)
    loose, claim, other = folder / "reused", folder / "staging/abc/claim", Path(corpus_uri(store, "other"), "loose")
    other.parent.mkdir()
    for path in (loose, claim, other):
        path.write_bytes(b"x")
    for path in (loose, other):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    assert gc(store, dry_run=False).orphans == (str(other),)
    os.utime(claim, (time.time() - 2 * DAY,) * 2)
    assert set(gc(store, dry_run=False).orphans) == {str(loose), str(claim)}
    assert not list(Path(store).rglob("gc-under-way"))


def test_gc_that_was_suspended_deletes_nothing_more(store, monkeypatch):
    folder = Path(corpus_uri(store, "cells"))
    for name in ("loose-1", "loose-2"):
        (folder / name).write_bytes(b"x")
    now = iter(range(0, 10_000, 1_000))
    monkeypatch.setattr(claims.time, "monotonic", lambda: next(now))
    with pytest.raises(ConflictError, match="gc was interrupted"):
        gc(store, dry_run=False, grace_s=0)
    assert len(list(folder.glob("loose-*"))) == 2


def test_gc_on_an_object_store(s3_uri):
    from cytoray import storage

    storage.write_bytes(f"{s3_uri}/store/corpora/c/staging/x/spill", b"x")
    assert gc(f"{s3_uri}/store").num_young == 1
    assert gc(f"{s3_uri}/store", dry_run=False, grace_s=0).orphans == (f"{s3_uri}/store/corpora/c/staging/x/spill",)
    assert storage.list_files(f"{s3_uri}/store/") == []


def test_the_commands_print_what_they_find(store):
    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["data", *arguments, "--store", store])
        assert result.exit_code == code, result.output
        return result.output

    assert "cells@2  70 cells" in run("ls")
    assert "cells@1" in run("show", "cells@1")
    assert '"format": 2' in run("show", "cells", "--json")
    assert "111 -> 70" in run("diff", "cells@1", "cells@2")
    assert "2 versions" in run("verify", "cells")
    assert "0 would be deleted" in run("gc")
    Path(corpus_uri(store, "cells"), "obs-0").write_bytes(b"?")
    assert "damaged: " in run("verify", "cells", code=2)
