"""`cytoray jobs` against a token-protected Ray head: submit once, follow, kill, retry; the job's exit codes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from chaos_head import wait_until
from token_head import Site, token_site

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.synthetic import SynthConfig, synthesise

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]
INGEST = ("ingest", "--config", "configs/corpus/quickstart.yaml")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with token_site({}) as site:
        yield site


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    synthesise(folder, SynthConfig(num_cells=300, num_genes=2_000, mean_genes=300, num_files=2))
    return folder


def ingest_options(cells: Path, store: Path, *more: str) -> list[object]:
    sources = ", ".join(f"{{uri: {file}}}" for file in sorted(cells.glob("*.h5ad")))
    return [*INGEST, "--set", f"store={store}", "--set", f"sources=[{sources}]", *more]


def test_a_killed_job_is_retried_and_the_same_name_is_the_same_job(site: Site, cells: Path, tmp_path: Path):
    store = tmp_path / "store"
    once = tmp_path / "once"
    once.mkdir()
    options = ingest_options(cells, store, "--name", "cells")
    points = f"CYTORAY_FAILPOINTS_ONCE={once}", "CYTORAY_FAILPOINTS=ingest.before_commit=sleep:600"
    slow = [word for point in points for word in ("--env", point)]

    first = site.json("jobs", "submit", *options, *slow, "--no-wait")
    assert (first["name"], first["attempt"], first["exit_code"]) == ("cells", 1, None)
    wait_until(lambda: list(once.iterdir()), "the job is before its commit")
    out, err = site.run("jobs", "submit", *options, *slow, "--no-wait")
    assert "attempt 1 is there already" in err
    (row,) = site.json("jobs", "ls")["jobs"]
    assert (row["name"], row["stage"], row["status"], row["attempt"]) == ("cells", "ingest", "running", 1)
    assert row["started_s"] == pytest.approx(time.time(), abs=300)

    problem = site.json("jobs", "submit", *options, "--set", "seed=9", "--no-wait", code=2)["error"]
    assert problem["details"]["keys"] == ["seed"]

    # Ctrl-C of the one that waits leaves the job alone and prints how to come back.
    with site.started("jobs", "attach", "cells") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=120)
    assert watching.returncode == 1
    assert "cytoray jobs attach cells --cluster local" in err
    assert site.json("jobs", "status", "cells")["status"] == "running"

    (driver,) = site.drivers("jobs.ingest")
    driver.send_signal(signal.SIGKILL)
    killed = site.json("jobs", "attach", "cells", code=1)
    assert (killed["status"], killed["exit_code"]) == ("failed", 1)

    out, err = site.run("jobs", "retry", "cells")
    assert "attempt 2 submitted" in err
    assert load_manifest(str(store), "pbmc68k").num_cells == 300
    assert '"manifest_digest"' in out
    done = site.json("jobs", "status", "cells")
    assert (done["status"], done["attempt"], done["exit_code"]) == ("succeeded", 2, 0)
    _, err = site.run("jobs", "submit", *options)
    assert "attempt 2 is there already" in err
    every = site.json("jobs", "ls", "--attempts")["jobs"]
    assert [(row["attempt"], row["status"]) for row in every] == [(2, "succeeded"), (1, "failed")]
    assert site.run("jobs", "logs", "cells-attempt-1")[0] != site.run("jobs", "logs", "cells")[0]


@pytest.mark.slow
def test_a_mistake_in_the_data_has_the_exit_code_of_the_job(site: Site, tmp_path: Path):
    (tmp_path / "bad.h5ad").write_bytes(b"no cells")
    options = [*INGEST, "--set", f"store={tmp_path}", "--set", f"sources=[{{uri: {tmp_path}/bad.h5ad}}]"]
    out, err = site.run("jobs", "submit", *options, code=2)
    assert "bad.h5ad" in out
    assert "exit code 2" in err


def test_without_a_token_or_with_a_wrong_one_nothing_is_submitted(site: Site, tmp_path: Path):
    assert httpx.post(f"{site.head.dashboard}/api/jobs/", json={"entrypoint": "true"}).status_code == 401
    options = ["jobs", "submit", *INGEST, "--set", "store=s3://cells/store"]
    wrong = site.json(*options, code=2, RAY_AUTH_TOKEN="f" * 64)["error"]
    assert "rejected the token (HTTP 403)" in wrong["message"]
    assert "RAY_AUTH_TOKEN" in wrong["remedy"]
    none = site.json(*options, code=2, RAY_AUTH_TOKEN="", HOME=str(tmp_path))["error"]
    assert "no token" in none["message"]


def test_unknown_jobs_are_named_with_those_there(site: Site):
    assert "Unknown job 'nobody'" in site.json("jobs", "logs", "nobody", code=2)["error"]["message"]


def test_nothing_secret_can_be_listed(site: Site):
    """Everything that the Jobs API shows of the jobs so far is free of the head's token."""
    headers = {"Authorization": f"Bearer {site.environment['RAY_AUTH_TOKEN']}"}
    text = httpx.get(f"{site.head.dashboard}/api/jobs/", headers=headers).text
    assert "cytoray_settings" in text
    assert site.environment["RAY_AUTH_TOKEN"] not in text
