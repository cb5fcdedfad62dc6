"""An object store that refuses, lies, drops, hangs: ingest and stream end with the clean cells or one clear error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from fault_proxy import Fault, FaultProxy

from cytoray import storage
from cytoray.corpus.ingest import IngestResult
from cytoray.corpus.manifest import corpus_uri, load_manifest
from cytoray.corpus.shards import open_shard, read_shard
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.versions import verify
from cytoray.errors import ConflictError, CorpusError, DigestError, StorageError
from cytoray.s3 import build_client
from cytoray.tokens.tokenizer import TokenizerConfig

from .conftest import make_config

pytestmark = pytest.mark.faults
OPTIONS = StreamOptions(TokenizerConfig(), seed=1, cells_per_step=64)


def fault(do: str, **settings: Any) -> Fault:
    return Fault(do, **settings)  # type: ignore[arg-type]


PASSING = {  # what an ingest gets over: on its sources, its spills, its shards and its records
    "F7 500 x3 on reads of a source": fault("status", key="part-001", n=3, status=500, code="InternalError"),
    "F7 503 x20 on reads of a source": fault("status", key="part-001", n=20),
    "F7 reset x2 on reads of a source": fault("reset", key="part-002", n=2),
    "F7 truncated body x3 of a source": fault("partial", key="part-000", n=3),
    "F7 hang x2 on reads of a source": fault("hang", key="part-000", n=2, seconds=5),
    "F7 slow source (64 KiB / 10 ms)": fault("slow", key="part-000", n=4),
    "F7 503 x3 on writes of spills": fault("status", method="PUT", key="spill-", n=3),
    "F7 reset x2 on writes of shards": fault("reset", method="PUT", key="/shards/", n=2),
    "F7 lost replies x2 to writes of shards": fault("reset_after_apply", method="PUT", key="/shards/", n=2),
    "F7 flipped bit in ranged reads of a spill": fault("flip", key="/staging/", n=1, ranged=True),
    "F7 truncated body x2 of a spill": fault("partial", key="/staging/", n=2, ranged=True),
    "F7 lost reply to the commit": fault("reset_after_apply", method="PUT", key="/versions/000001", n=1),
    "F7 503 x3 on the commit": fault("status", method="PUT", key="/versions/000001", n=3),
    "F7 500 x3 on listings": fault("status", key="list-type=2", n=3, status=500, code="InternalError"),
    "F7 500 x3 on HEAD": fault("status", method="HEAD", n=3, status=500, code="InternalError"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_an_ingest_gets_over_it(kind: str, faults, sources_on_s3, s3_uri, ingest_here, clean: IngestResult, outcome):
    config = make_config(f"{s3_uri}/store", sources_on_s3)
    plan = PASSING[kind]
    plan.fired = 0
    faults.set_plan(plan)
    result = ingest_here(config)
    assert result.manifest.content_digest == clean.manifest.content_digest
    assert faults.fired() == plan.n, "the fault fired as often as planned"
    faults.set_plan()
    assert verify(config.store, "cells").damaged == ()
    assert not [seen for seen in faults.log if seen.method == "PUT" and seen.path.strip("/") == "cells"]
    outcome(kind, plan.fired, "retried: the clean corpus")


REFUSED = {
    "F7 403 on a source": fault("status", key="part-001", n=10**6, status=403, code="AccessDenied"),
    "F7 403 on writes": fault("status", method="PUT", key="/corpora/", n=10**6, status=403, code="AccessDenied"),
    "F7 hang for ever on a source": fault("hang", key="part-001", n=10**6, seconds=60),
    "F7 500 for ever on writes": fault(
        "status", method="PUT", key="/corpora/", n=10**6, status=500, code="InternalError"
    ),
    "F7 flipped bits in every read of a spill": fault("flip", key="/staging/", n=10**6, ranged=True),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few attempts and a short deadline; a client keeps the number of attempts of its start."""
    monkeypatch.setenv("CYTORAY_S3_DEADLINE_S", "8")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    build_client.cache_clear()
    yield
    build_client.cache_clear()


@pytest.mark.parametrize("kind", REFUSED)
def test_an_ingest_ends_with_one_clear_error(
    kind: str, faults, sources_on_s3, s3_uri, ingest_here, clean, impatient, outcome
):
    config = make_config(f"{s3_uri}/store", sources_on_s3)
    plan = REFUSED[kind]
    plan.fired = 0
    faults.set_plan(plan)
    started = time.monotonic()
    with pytest.raises((StorageError, CorpusError)) as caught:
        ingest_here(config)
    elapsed, fired = time.monotonic() - started, faults.fired()
    assert elapsed < 60
    assert caught.value.remedy
    assert s3_uri in str(caught.value)
    assert "\n" not in str(caught.value)
    if "flipped" in kind:
        assert isinstance(caught.value, DigestError)
    faults.set_plan()
    outcome(kind, fired, f"{type(caught.value).__name__} after {elapsed:.0f} s, naming the object")


@pytest.fixture
def corpus_on_s3(faults: FaultProxy, sources_on_s3: str, s3_uri: str, ingest_here: Callable[..., Any]) -> str:
    """A store with the clean corpus."""
    ingest_here(make_config(f"{s3_uri}/store", sources_on_s3))
    faults.set_plan()
    return f"{s3_uri}/store"


READS = {
    "F7 503 x20 while streaming": fault("status", key="/shards/", n=20),
    "F7 500 x3 while streaming": fault("status", key="/shards/", n=3, status=500, code="InternalError"),
    "F7 reset x2 while streaming": fault("reset", key="/shards/", n=2),
    "F7 truncated body x3 while streaming": fault("partial", key="/shards/", n=3),
    "F7 hang x2 while streaming": fault("hang", key="/shards/", n=2, seconds=5),
    "F7 flipped bit while streaming (ranged)": fault("flip", key="/shards/", n=1, ranged=True),
}


def _read_epoch(store: str, *, threads: int = 2) -> list[tuple[int, bytes, bytes]]:
    """Everything of an epoch that a trainer sees."""
    steps = open_stream(store, "cells", OPTIONS).read_steps(0, 10, threads=threads)
    return [(batch.step, batch.cell_ids.tobytes(), batch.gene_ids.tobytes()) for batch in steps]


@pytest.mark.parametrize("kind", READS)
def test_a_stream_gets_over_it(kind: str, faults, corpus_on_s3, clean, outcome):
    expected = _read_epoch(clean.uri.rpartition("/corpora/")[0])
    plan = READS[kind]
    plan.fired = 0
    faults.set_plan(plan)
    _forget_footers()
    assert _read_epoch(corpus_on_s3) == expected
    assert faults.fired() == plan.n
    outcome(kind, plan.fired, "retried: the same minibatches")


def _forget_footers() -> None:
    from cytoray.corpus import shards

    shards._load_footer.cache_clear()


@pytest.mark.parametrize("ranged", [True, False])
def test_a_flip_that_stays_is_reported(ranged: bool, faults, corpus_on_s3, outcome):
    manifest = load_manifest(corpus_on_s3, "cells")
    record = manifest.shards[0]
    uri = storage.join(corpus_uri(corpus_on_s3, "cells"), record.key)
    _forget_footers()
    faults.set_plan(Fault("flip", key="/shards/", n=10**6))
    with pytest.raises(DigestError) as caught:
        open_shard(uri, record).read_group(0) if ranged else read_shard(uri, record)
    assert uri in str(caught.value)
    assert caught.value.details["expected"] != caught.value.details["seen"]
    how = "ranged" if ranged else "whole"
    outcome(f"F7 flipped bit in every {how} read of a shard", faults.fired(), "DigestError with key and both digests")


def test_a_shard_that_is_gone_is_named(faults, corpus_on_s3, s3_endpoint, outcome):
    manifest = load_manifest(corpus_on_s3, "cells")
    uri = storage.join(corpus_uri(corpus_on_s3, "cells"), manifest.shards[0].key)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3", endpoint_url=s3_endpoint).delete_object(Bucket=bucket, Key=key)
    _forget_footers()
    with pytest.raises(StorageError, match="no such object") as caught:
        _read_epoch(corpus_on_s3)
    assert uri in str(caught.value)
    assert [damage.uri for damage in verify(corpus_on_s3, "cells").damaged] == [uri]
    outcome("F7 a key that the manifest names is missing", 1, "NotFoundError names it; verify too")


def test_a_hanging_store_is_given_up_in_bounded_time(faults, corpus_on_s3, monkeypatch, outcome):
    monkeypatch.setenv("CYTORAY_S3_DEADLINE_S", "4")
    _forget_footers()
    faults.set_plan(Fault("hang", key="/shards/", n=10**6, seconds=60))
    started = time.monotonic()
    with pytest.raises(StorageError, match="no complete answer within 4 s"):
        _read_epoch(corpus_on_s3)
    elapsed = time.monotonic() - started
    assert elapsed < 20
    outcome("F7 hang for ever while streaming", faults.fired(), f"StorageError after {elapsed:.0f} s")


def test_a_listing_of_more_than_a_page(faults, sources, s3_endpoint, s3_uri, ingest_here, clean, outcome):
    """The cells come after 1,100 other names, on the second page."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    for number in range(1_100):
        client.put_object(Bucket=bucket, Key=f"{prefix}/many/a-note-{number:04d}.txt", Body=b"x")
    for path in sorted(Path(sources).glob("*.h5ad")):
        client.put_object(Bucket=bucket, Key=f"{prefix}/many/{path.name}", Body=path.read_bytes())
    faults.set_plan()
    result = ingest_here(make_config(f"{s3_uri}/store", f"{s3_uri}/many"))
    pages = [seen for seen in faults.requests("GET", "list-type=2") if "continuation-token" in seen.path]
    assert pages, "a listing took more than one page"
    assert result.manifest.content_digest == clean.manifest.content_digest
    outcome("F7 a listing of 1,103 keys", len(pages), "all pages read: the clean corpus")


def test_a_store_without_put_if_absent(faults, sources_on_s3, s3_uri, ingest_here, clean, caplog, outcome):
    storage._honours_put_if_absent.cache_clear()
    faults.set_plan(Fault("drop_condition", method="PUT", n=10**6))
    config = make_config(f"{s3_uri}/store", sources_on_s3)
    first = ingest_here(config)
    assert first.manifest.content_digest == clean.manifest.content_digest
    assert "one writer at a time" in caplog.text
    from cytoray.corpus.manifest import commit_manifest

    with pytest.raises(ConflictError):
        commit_manifest(first.uri, first.manifest.model_copy(update={"seed": 9}))
    fired = len([seen for seen in faults.log if seen.fault == "drop_condition"])
    storage._honours_put_if_absent.cache_clear()
    assert load_manifest(config.store, "cells").digest == first.manifest.digest
    outcome("F7 a store that ignores put-if-absent", fired, "warned of; a second commit is refused")


def test_through_ray_under_faults(faults, sources_on_s3, s3_uri, start_driver, clean, outcome):
    """Real workers, each with a client of its own."""
    faults.set_plan(
        Fault("status", key="part-", n=4), Fault("reset", key="part-", n=2), Fault("partial", key="/staging/", n=2),
        Fault("flip", key="/staging/", n=1, ranged=True), Fault("reset_after_apply", method="PUT", key="/shards/", n=1),
    )  # fmt: skip
    found = start_driver(make_config(f"{s3_uri}/store", sources_on_s3), ray=True).outcome()
    assert found.get("digest") == clean.manifest.content_digest, found
    assert faults.fired() >= 8
    outcome("F7 503, reset, truncated, flip, lost reply through Ray", faults.fired(), "retried: the clean corpus")
