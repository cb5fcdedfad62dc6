"""Ingest, pretraining and fine-tuning as jobs of a token-protected head, with S3 and an MLflow server: killed, stopped,
retried, and the same weights as of an unbroken run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from chaos_head import wait_until
from chaos_registry import Registry
from token_head import Site, token_site

from cytoray import storage
from cytoray.config import load_config
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.manifest import load_manifest
from cytoray.tracking.server import connect

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
STEPS = 6
CORPUS = "configs/corpus/quickstart.yaml"


@pytest.fixture
def registry(s3_uri: str, tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path, None)
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture
def site(s3_uri: str, registry: Registry) -> Iterator[Site]:
    """The head's nodes have the credentials of the store; jobs do not carry them."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with token_site(variables) as site:
        yield site


def drivers(site: Site, module: str) -> list[psutil.Process]:
    """Processes of jobs that run ``python -m module``."""
    found = []
    for child in psutil.Process(site.head.process.pid).children(recursive=True):
        try:
            words = child.cmdline()
            if module in words and "python" in Path(words[0]).name:
                found.append(child)
        except (psutil.NoSuchProcess, IndexError):
            continue
    return found


def weights(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(f"{uri}/model.safetensors")).hexdigest()


def result(output: str) -> dict[str, object]:
    """What the job printed as JSON, at the end of its logs."""
    found: dict[str, object] = json.loads(output[output.rindex("\n{\n") :])
    return found


def test_the_stages_as_jobs(s3_uri: str, registry: Registry, site: Site, tmp_path: Path):
    store, uri = f"{s3_uri}/store", registry.tracking.uri
    places = ["--set", f"store={store}", "--set", f"tracking.uri={uri}", "--set", "tracking.artifact_location=null"]
    places += ["--set", f"tracking.journal_folder={tmp_path}/journal"]
    steps = ["--set", f"train.num_steps={STEPS}", "--set", "train.checkpoint_every=2"]

    found = site.json("doctor", "--store", store, "--uri", uri, "--cluster", site.head.dashboard, "--time-limit", "60")
    assert [each for each in found["findings"] if each["outcome"] == "fail"] == []
    names = {each["check"] for each in found["findings"]}
    assert names >= {"store.conditional_write", "mlflow.reach", "mlflow.artifacts", "cluster.auth", "cluster.version"}

    source = f"{s3_uri}/raw/blood.h5ad"
    cells = load_config(IngestConfig, ROOT / CORPUS).sources[0].uri
    storage.write_bytes(source, Path(cells).read_bytes())
    ingest = ["jobs", "submit", "ingest", "--config", CORPUS, "--set", f"store={store}"]
    ingest += ["--set", f"sources=[{{uri: {source}, rows: train}}]"]
    out, _ = site.run(*ingest)
    assert result(out)["manifest_digest"] == load_manifest(store, "pbmc68k").digest

    # The same training twice: once unbroken, once killed, stopped and continued.
    pretrain = ["jobs", "submit", "pretrain", "--config", "configs/pretrain/quickstart.yaml", *places, *steps]
    whole = result(site.run(*pretrain, "--set", "run=whole")[0])
    assert whole["step"] == STEPS

    once = tmp_path / "once"
    once.mkdir()
    points = "checkpoint.after_commit=sleep:900@1", str(once)
    slow = [f"CYTORAY_FAILPOINTS={points[0]}", f"CYTORAY_FAILPOINTS_ONCE={points[1]}"]
    broken = [*pretrain, "--set", "run=broken", "--name", "broken"]
    site.json(*broken, "--env", slow[0], "--env", slow[1], "--no-wait")
    wait_until(lambda: list(once.iterdir()), "the first checkpoint is committed")
    for driver in drivers(site, "jobs.pretrain"):
        driver.send_signal(signal.SIGKILL)
    assert site.json("jobs", "attach", "broken", code=1)["status"] == "failed"
    (once / "checkpoint.after_commit").unlink()  # so that the second attempt waits at its first checkpoint
    assert site.json("jobs", "retry", "broken", "--no-wait")["attempt"] == 2
    wait_until(lambda: list(once.iterdir()), "the second attempt has committed a checkpoint")
    stopped = site.json("jobs", "stop", "broken")
    assert (stopped["status"], stopped["exit_code"]) == ("stopped", 75)
    out, err = site.run("jobs", "retry", "broken")
    assert "attempt 3 submitted" in err
    done = result(out)
    assert done["step"] == STEPS
    assert weights(str(done["bundle"])) == weights(str(whole["bundle"]))
    _, err = site.run(*broken)
    assert "attempt 3 is there already" in err

    finetune = ["jobs", "submit", "finetune", "--config", "configs/finetune/quickstart.yaml", *places, *steps]
    tuned = result(site.run(*finetune, "--set", "initial_run=broken")[0])
    assert tuned["step"] == STEPS
    runs = connect(uri).search_runs([connect(uri).get_experiment_by_name("pbmc68k").experiment_id])
    assert {run.info.run_id for run in runs} >= {whole["mlflow_run_id"], done["mlflow_run_id"], tuned["mlflow_run_id"]}
    listed = site.json("jobs", "ls")["jobs"]
    assert {row["job"] for row in listed} == {"ingest", "pretrain", "finetune"}
    assert {row["status"] for row in listed} == {"succeeded"}
